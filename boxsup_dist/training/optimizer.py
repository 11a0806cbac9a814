"""The optimizer of a run, and the factor on its learning rate at every step."""

from __future__ import annotations

from typing import Any

import torch

from boxsup_dist.config import OptimizerSettings


def make_optimizer(groups: list[dict[str, Any]], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Make SGD or AdamW.

    Args:
        groups: Parameter groups as torch.optim takes them; each has its own `lr` and `weight_decay`.
        settings: `kind` and `momentum` are used; AdamW takes `momentum` as its first beta, and 0.999 as its second.
    """
    if settings.kind == "adamw":
        return torch.optim.AdamW(groups, betas=(settings.momentum, 0.999), fused=True)
    return torch.optim.SGD(groups, momentum=settings.momentum, fused=True)


def lr_factor(settings: OptimizerSettings, *, epoch: int, step: int, num_steps: int) -> float:
    """Factor on the learning rate at one step.

    Schedule "step" is the paper's (section 4.3): divide by 10 every `decay_epochs`. Schedule "poly" falls as
    (1 - progress) ** 0.9 to zero at the end of the run (DeepLab-v2, https://arxiv.org/abs/1606.00915); it suits runs
    that are too short for plateaus. Both start with a warm-up in which the factor rises linearly.

    Args:
        settings: Schedule, warm-up and number of epochs.
        epoch: Epoch, from 0.
        step: Step inside the epoch, from 0.
        num_steps: Steps of an epoch.

    Returns:
        The factor, > 0 and at most 1.

    Raises:
        SettingError: The warm-up that is set does not fit the run.
    """
    done, total = epoch * num_steps + step, settings.epochs * num_steps
    warmup = min(1.0, (done + 1) / max(settings.warmup(total), 1))
    if settings.schedule == "step":
        return float(warmup * 0.1 ** (epoch // settings.decay_epochs))
    return float(warmup * (1 - done / total) ** 0.9)
