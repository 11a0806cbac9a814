"""The optimizer, and the learning rate of a step."""

from __future__ import annotations

from typing import Any

import torch

from boxsup_dist.config import OptimizerSettings


def make_optimizer(groups: list[dict[str, Any]], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """SGD or AdamW over parameter groups that hold their own learning rates and weight decays."""
    if settings.kind == "adamw":
        return torch.optim.AdamW(groups, betas=(settings.momentum, 0.999), fused=True)
    return torch.optim.SGD(groups, momentum=settings.momentum, fused=True)


def lr_factor(settings: OptimizerSettings, *, epoch: int, step: int, num_steps: int) -> float:
    """Factor on the learning rate for step `step` of `num_steps` in `epoch`.

    "step" is the paper's: divided by 10 every `decay_epochs`. "poly" falls as (1 - progress) ** 0.9 to the end of the
    run (Chen et al., DeepLab-V2), for runs too short for plateaus. Both may begin with a linear warm-up.
    """
    done = epoch * num_steps + step
    warmup = min(1.0, (done + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    if settings.schedule == "step":
        return warmup * 0.1 ** (epoch // settings.decay_epochs)
    return warmup * (1 - done / (settings.epochs * num_steps)) ** 0.9
