"""Recipes: a run is a small function that returns a full configuration.

python -m jobs.train NAME --run-dir R --records T --proposals P --val-records V --supervision box
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from boxsup_dist.config import (
    AssignmentSettings,
    AugmentSettings,
    NetworkSettings,
    OptimizerSettings,
    SourceSettings,
    TrainConfig,
)

Recipe = Callable[[str, tuple[SourceSettings, ...], str | None], TrainConfig]


def paper(run_dir: str, sources: tuple[SourceSettings, ...], val_records: str | None) -> TrainConfig:
    """The paper as written: DeepLab-LargeFOV on VGG-16, lambda 3, draw among 5, 45 epochs of batches of 20.

    Expected on VOC 2012 val with the CRF, trained on train_aug (Tables 1 and 2): mask 63.8, box 62.0, rectangles 52.3.
    Not run at full scale here.
    """
    return TrainConfig(run_dir, sources, val_records)


def mini(run_dir: str, sources: tuple[SourceSettings, ...], val_records: str | None) -> TrainConfig:
    """A small VOC (some hundred images, long side 320 px) on a CPU: EfficientNet-Lite0, the robust assignment.

    What departs from the paper, and why, is told in assignment/cost.py; README.md has the measured table.
    """
    return TrainConfig(
        run_dir,
        sources,
        val_records,
        network=NetworkSettings("timm:tf_efficientnet_lite0", output_stride=16, dropout=0.1),
        assignment=AssignmentSettings(
            form="centred",
            regression_weight=0.7,
            top_k=1,
            warmup_epochs=3,
            box_margin=0.0,
            logit_limit=3.0,
            rank_weight=0.03,
            consensus_temperature=0.1,
            ignore_undecided=0.15,
        ),
        optimizer=OptimizerSettings(
            kind="adamw",
            epochs=10,
            global_batch_size=10,
            lr=3e-4,
            head_lr_multiplier=5.0,
            schedule="poly",
            warmup_steps=50,
            weight_decay=0.01,
            class_balance=0.5,
        ),
        augment=AugmentSettings(257, 257, 0.75, 1.35),
        evaluate_every=0,
    )


def demo(run_dir: str, sources: tuple[SourceSettings, ...], val_records: str | None) -> TrainConfig:
    """The embedded synthetic data (420 images of about 200 px): `mini` with small crops and batches.

    Its classes are equally frequent, so none is weighed.
    """
    config = mini(run_dir, sources, val_records)
    return replace(
        config,
        assignment=replace(config.assignment, warmup_epochs=2),
        optimizer=replace(config.optimizer, epochs=8, global_batch_size=5, class_balance=0.0),
        augment=AugmentSettings(161, 161, 0.75, 1.35),
    )


RECIPES: dict[str, Recipe] = {"paper": paper, "mini": mini, "demo": demo}
