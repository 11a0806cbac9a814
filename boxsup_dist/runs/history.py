"""RUN/history.jsonl: what is known of each epoch, one JSON line per epoch. Epochs count from 1."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from boxsup_dist.errors import InputError
from boxsup_dist.io import storage
from boxsup_dist.io.typed_json import parse_json
from boxsup_dist.runs.layout import RunFiles


@dataclass(frozen=True)
class HistoryEntry:
    """What is known of one epoch. None: not measured (yet), or meaningless under the run's supervision.

    IoUs are in percent, shares in 0..1. The names are those of the metrics in MLflow.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    epoch: int
    """Number of the epoch, from 1."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Duration of the stages around the training: reassign, measure_labels, evaluate, figures."""

    share_without_candidate: float | None = None
    """Share of the boxes that no candidate segment overlaps."""
    mean_overlap_cost: float | None = None
    """Mean overlap cost, 1 - IoU of box and segment, of the chosen segments."""
    mean_regression_cost: float | None = None
    """Mean regression cost of the chosen segments."""
    share_changed: float | None = None
    """Share of the boxes whose segment is not that of the epoch before."""
    label_mean_iou: float | None = None
    """Mean IoU of the label maps against ground truth, undecided pixels as they were chosen."""
    label_recall: float | None = None
    """Objects' pixels that are an object in the label maps, in percent."""
    label_precision: float | None = None
    """Objects' pixels among those that are an object in the label maps, in percent."""
    trained_label_mean_iou: float | None = None
    """label_mean_iou of the pixels that are trained on alone: without undecided and uncovered ones."""
    trained_label_recall: float | None = None
    trained_label_precision: float | None = None
    label_ignored_share: float | None = None
    """Share of the pixels with ground truth that are not trained on."""

    train_loss: float | None = None
    foreground_share: float | None = None
    """Share of the labelled pixels of the training crops that the network predicts to be an object."""
    label_foreground_share: float | None = None
    """Share of the same pixels that are an object in the label maps."""
    images_per_s: float | None = None
    train_s: float | None = None
    """Duration of the training steps."""
    first_batch_s: float | None = None
    """Wait for the first batch."""
    wait_share: float | None = None
    """Share of train_s that was a wait for batches."""
    gap_s: float | None = None
    """Pause between the last step of the epoch before and the first step, without the stages in between."""

    mean_iou: float | None = None
    """Mean IoU on the validation records."""
    iou: dict[str, float | None] | None = None
    """IoU by class; None for a class that does not occur."""
    box_score: float | None = None
    """Box score on the validation records, in percent, where none of them has a mask; see evaluation/boxes.py."""
    box_scores: dict[str, float | None] | None = None
    """Box score by class; None for a class that does not occur."""
    box_iou: float | None = None
    """Mean IoU over the classes, in percent, of the tight boxes of the prediction with the given boxes."""
    box_recall: float | None = None
    """Boxes whose tight box has an IoU of at least 0.5, in percent; mean over the classes."""
    outside_share: float | None = None
    """Share of a class's predicted pixels outside every box of it; mean over the classes."""
    num_images: int | None = None
    """Validation images."""
    num_without_ground_truth: int | None = None
    """Validation images without ground truth."""

    bad_records: dict[str, str] = field(default_factory=dict)
    """image_id -> problem of the records that the run has left out so far."""
    warnings: tuple[str, ...] = ()

    @property
    def quality(self) -> float | None:
        """What the best epoch has most of: mean IoU, or the box score of a run without validation masks."""
        return self.box_score if self.mean_iou is None else self.mean_iou

    def to_dict(self) -> dict[str, Any]:
        """What is known, as JSON keeps it."""
        return {name: value for name, value in asdict(self).items() if value not in (None, {}, ())}

    def metrics(self) -> dict[str, Any]:
        """The fields that MLflow gets: all except the number of the epoch."""
        return {name: value for name, value in self.to_dict().items() if name != "epoch"}


_log = logging.getLogger(__name__)
History = dict[int, HistoryEntry]
"""The epochs by their number, in order."""


def read_history(run_dir: str, *, strict: bool = False) -> History:
    """What is known of each epoch so far; {} for a run without history.

    Of two lines of one epoch the last counts. A damaged line is left out with a warning: the training does not depend
    on it, so it stops no run. If `strict`, the InputError that names it is raised instead.
    """
    uri = RunFiles(run_dir).history
    if not storage.exists(uri):
        return {}
    found: History = {}
    lines = storage.read_bytes(uri).splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = parse_json(HistoryEntry, line, file=uri, place=f"line {number}")
        except InputError as error:
            if strict:
                raise
            _log.warning("warning: the metrics of one epoch are lost, the run itself is whole: %s", error)
            continue
        found[entry.epoch] = entry
    return dict(sorted(found.items()))


def write_history(run_dir: str, history: Mapping[int, HistoryEntry]) -> None:
    """Replace the history of a run, in the order of the epochs."""
    lines = [json.dumps(entry.to_dict()) for _, entry in sorted(history.items())]
    storage.write_bytes(RunFiles(run_dir).history, ("\n".join(lines) + "\n").encode())


def best_epoch(history: Mapping[int, HistoryEntry]) -> int | None:
    """The epoch with the best mean IoU on the validation records, the first of equals; None if none was evaluated.

    Without validation masks, the epoch with the best box score.
    """
    measured = {number: entry.quality for number, entry in sorted(history.items()) if entry.quality is not None}
    return max(measured, key=lambda number: measured[number]) if measured else None
