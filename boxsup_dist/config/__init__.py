"""All settings of a training run, their defaults (the paper's) and the checks that need nothing but the settings.

A setting has one name everywhere: `optimizer.epochs` in config.json and in messages, `--optimizer.epochs` on the
command line. None means "not set": the docstring of the setting says what is used then.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from boxsup_dist.config.checks import check_choice, check_range
from boxsup_dist.config.packing import Node
from boxsup_dist.config.parts import (
    TILE_GRID_PX,
    AssignmentSettings,
    AugmentSettings,
    CostForm,
    Head,
    NetworkSettings,
    OptimizerKind,
    OptimizerSettings,
    PredictionSettings,
    Schedule,
)
from boxsup_dist.config.resources import Resources, ResourceSettings
from boxsup_dist.errors import SettingError

__all__ = [
    "TILE_GRID_PX",
    "AssignmentSettings",
    "AugmentSettings",
    "CostForm",
    "Duplicates",
    "Head",
    "InputType",
    "NetworkSettings",
    "Node",
    "OptimizerKind",
    "OptimizerSettings",
    "PredictionSettings",
    "ResourceSettings",
    "Resources",
    "Schedule",
    "SourceSettings",
    "Supervision",
    "TrainConfig",
    "differences",
]

Supervision = Literal["mask", "rectangles", "grabcut", "wssl", "wssl_em", "label_maps", "box"]
Duplicates = Literal["refuse", "drop"]
InputType = Literal["uint8", "float32"]  # of the images that an exported network takes


@dataclass(frozen=True)
class SourceSettings:
    """One data set to train on, and which of its annotation training may use."""

    records: str
    """Records table to train on."""
    supervision: Supervision = "box"
    """mask: ground truth. rectangles: filled boxes. grabcut, wssl: label maps, made once by jobs.build_label_maps.
    wssl_em: after the warm-up the network's own prediction, with a bias for the classes of the boxes. label_maps: those
    of the table, whatever made them. box: BoxSup."""
    proposals: str | None = None
    """Proposals table of these records; the supervision box needs it."""
    label_maps: str | None = None
    """Label maps of these records. The supervisions grabcut and wssl need them; with box they vote where
    assignment.refine_from_epoch refines."""

    def check(self) -> None:
        """Check that the source names exactly the tables that its supervision reads.

        Raises:
            SettingError: A table is missing or would have no effect.
        """
        check_choice(self.supervision, Supervision, "supervision")
        for name, users in (("proposals", ("box",)), ("label_maps", ("grabcut", "wssl", "label_maps"))):
            value, needed = getattr(self, name), self.supervision in users
            if needed and value is None:
                raise SettingError(
                    f"{self.supervision} supervision needs {_TABLES[name]}",
                    field=name,
                    expected=f"a table URI; python -m jobs.build_{name} makes the table",
                )
            if value is not None and not needed and (self.supervision, name) != ("box", "label_maps"):
                raise SettingError(
                    f"{self.supervision} supervision does not read {_TABLES[name]}: remove {name}",
                    field=name,
                    value=value,
                    expected="not set",
                )


_TABLES = {"proposals": "a proposals table", "label_maps": "a table of label maps"}


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Everything that decides its result is here."""

    run_dir: str
    """Folder or URI of the run: configuration, checkpoints, labels of every epoch, history, report."""
    sources: tuple[SourceSettings, ...] = ()
    """What to train on, mixed in one stream."""
    val_records: str | None = None
    """Records table to evaluate on, during the run and at its end. Not set: no evaluation."""
    duplicates: Duplicates = "refuse"
    """What to do with an image that two sources share, or a source and val_records. refuse: stop. drop: remove it from
    the later source, and from training."""
    network: NetworkSettings = field(default_factory=NetworkSettings)
    assignment: AssignmentSettings = field(default_factory=AssignmentSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    resources: ResourceSettings = field(default_factory=ResourceSettings)
    seed: int = 0
    """Seed of order, augmentation, draws and first weights."""
    evaluate_every: int = 5
    """Epochs between evaluations on val_records. 0: evaluate at the end only."""
    measure_labels: bool = True
    """Measure the label maps of each epoch against ground truth where records have it. Training never reads it."""
    max_bad_records: int = 10
    """How many unusable training images to tolerate, which do not decode or end the process that loads them. Each is
    reported and trained as void; one more ends the run."""
    checkpoint_every_steps: int = 0
    """Steps between checkpoints inside an epoch. 0: none after a number of steps."""
    checkpoint_every_s: float = 300.0
    """Seconds between checkpoints inside an epoch, by the clock of train worker 0; the end of an epoch writes one too.
    0: none after a time."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints to keep."""
    experiment: str = "boxsup"
    """MLflow experiment."""

    def check(self) -> TrainConfig:
        """Check the settings, alone and together. The network and the tables are checked where they are opened.

        Returns:
            This configuration.

        Raises:
            SettingError: A value is out of range, contradicts another one or would have no effect.
        """
        for part in (self.assignment, self.optimizer, self.augment, self.resources):
            part.check()
        check_range(len(self.sources) > 0, "sources", self.sources, "at least one data set to train on")
        for source in self.sources:
            source.check()
            if source.supervision == "box" and source.label_maps and self.assignment.refine_from_epoch is None:
                raise SettingError(
                    "label maps of a box-supervised source have no effect without assignment.refine_from_epoch",
                    field="label_maps",
                    value=source.label_maps,
                    expected="not set, or set assignment.refine_from_epoch",
                )
        if any(source.supervision in ("box", "wssl_em") for source in self.sources):
            for name in ("warmup_epochs", "refine_from_epoch"):
                value, epochs = getattr(self.assignment, name), self.optimizer.epochs
                check_range(
                    value is None or value <= epochs, f"assignment.{name}", value, f"<= optimizer.epochs = {epochs}"
                )
        check_choice(self.duplicates, Duplicates, "duplicates")
        for name in ("evaluate_every", "checkpoint_every_steps", "checkpoint_every_s", "max_bad_records"):
            check_range(getattr(self, name) >= 0, name, getattr(self, name), ">= 0")
        if self.val_records is None and self.evaluate_every > 0:
            raise SettingError(
                "there is nothing to evaluate on: set val_records, or set evaluate_every 0",
                field="evaluate_every",
                value=self.evaluate_every,
                expected="0 without val_records",
            )
        num_workers, batch_size = self.resources.num_workers, self.optimizer.global_batch_size
        if num_workers is not None and num_workers > batch_size:
            raise SettingError(
                "there are more workers than images in a global batch",
                field="resources.num_workers",
                value=num_workers,
                expected=f"<= optimizer.global_batch_size = {batch_size}",
            )
        check_range(self.keep_checkpoints >= 1, "keep_checkpoints", self.keep_checkpoints, ">= 1")
        return self

    @property
    def supervision(self) -> str:
        """Names of the supervisions of the sources, as "box" or "mask+box"."""
        return "+".join(dict.fromkeys(source.supervision for source in self.sources))

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dictionary, as JSON gives it back."""
        return {**asdict(self), "sources": [asdict(source) for source in self.sources]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Inverse of to_dict. A setting that `values` lacks takes its default, or what earlier versions did.

        Raises:
            SettingError: `values` lacks the sources or has a setting that does not exist.
        """
        parts = {
            "network": NetworkSettings,
            "assignment": AssignmentSettings,
            "optimizer": OptimizerSettings,
            "augment": AugmentSettings,
            "resources": ResourceSettings,
        }
        try:
            sources = tuple(SourceSettings(**source) for source in values["sources"])
            optimizer = values.get("optimizer")
            if isinstance(optimizer, dict) and "score_lr_multiplier" not in optimizer:
                # Earlier versions had one factor for all layers after the backbone, and none for biases.
                factors = {"score_lr_multiplier": optimizer["head_lr_multiplier"], "bias_lr_multiplier": 1.0}
                values = {**values, "optimizer": {**optimizer, **factors}}
            rest = {key: parts[key](**value) if key in parts else value for key, value in values.items()}
            return cls(**{**rest, "sources": sources})
        except KeyError as error:
            raise SettingError(f"not the settings of a training run: {error} is missing") from None
        except TypeError as error:
            raise SettingError("not the settings of a training run", value=str(error)) from None


def differences(before: TrainConfig, now: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Settings that differ, by their dotted names such as `optimizer.epochs` or `sources[0].records`.

    Returns:
        Both values of each, None where one of the configurations lacks the setting.
    """
    old, new = dict(_leaves(before.to_dict())), dict(_leaves(now.to_dict()))
    found = {name: (old.get(name), new.get(name)) for name in {**old, **new}}
    return {name: values for name, values in found.items() if values[0] != values[1]}


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _leaves(part, f"{name}.{key}" if name else key)
    elif name == "sources":
        for index, source in enumerate(value):
            yield from _leaves(source, f"sources[{index}]")
    else:
        yield name, value
