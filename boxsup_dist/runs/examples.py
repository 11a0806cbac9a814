"""Example figures of a run: its worst and best training images, with label maps over the epochs and the prediction.

    worst-1-IMAGE.png, worst-2-..., best-1-...

The score of an image is the mean IoU of its prediction with the ground truth, where the run may look at that. Otherwise
it is the mean overlap cost of its boxes' segments in the last epoch; under a supervision without such costs the
images are only examples, `example-IMAGE.png`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.data.images import decode_image, decode_png
from boxsup_dist.data.labels import open_labels
from boxsup_dist.data.painting import Painter, painter
from boxsup_dist.data.schema import Record, iter_records
from boxsup_dist.data.sources import Mixture
from boxsup_dist.errors import InputError, RecordError, decoding
from boxsup_dist.evaluation.confusion import confusion_matrix, mean_iou
from boxsup_dist.io import storage
from boxsup_dist.model.inference import predict_log_probs
from boxsup_dist.model.networks import SegmentationNetwork
from boxsup_dist.reporting.figures import label_evolution_figure
from boxsup_dist.runs.layout import RunFiles

MAX_UNITS = 8  # in which the worst and the best images are looked for, spread over all units
MAX_SCORED = 8  # images per unit: 64 forward passes at most
NUM_EACH = 3  # worst images, and best images
NUM_SHOWN = 4  # epochs of one image in jobs.figures, first and last among them
NUM_IN_EXAMPLE = 3  # with photo, prediction and ground truth they fill two rows of three


class Example(NamedTuple):
    """One image to draw."""

    unit: int  # index in the mixture
    image_id: str
    score: float | None = None  # the larger, the better; None: not scored
    text: str = ""  # the score in words
    kind: str = "example"  # first part of the file name


def epochs_to_show(num_epochs: int, most: int = NUM_SHOWN) -> list[int]:
    """At most `most` epochs, counted from 1, evenly spaced, first and last included."""
    return sorted({round(epoch) for epoch in np.linspace(1, num_epochs, most)})


def units_to_score(num_units: int) -> list[int]:
    """Indices of at most MAX_UNITS units, evenly spaced."""
    return sorted({int(index) for index in np.linspace(0, num_units - 1, min(num_units, MAX_UNITS))})


def score_examples(
    network: SegmentationNetwork,
    index: int,
    *,
    mixture: Mixture,
    run_dir: str,
    num_epochs: int,
    class_names: tuple[str, ...],
    show_ground_truth: bool,
) -> list[Example]:
    """Score some images of a unit of the training records, on a member of the actor pool.

    Args:
        network: The run's trained network.
        index: Index of the unit in `mixture`.
        mixture: Training data of the run.
        run_dir: Run directory, for the labels of the epochs.
        num_epochs: Epochs of the run.
        class_names: Names of the classes.
        show_ground_truth: Score by the ground truth of records that have one.

    Returns:
        The first MAX_SCORED images with a box, without those whose image or ground truth is damaged.
    """
    costs = _costs(index, mixture, run_dir, num_epochs)
    scored = []
    for record in _records(index, mixture)[:MAX_SCORED]:
        example = Example(index, record.image_id)
        if show_ground_truth and record.gt_label_map:
            image = _decoded(record)
            if image is None:
                continue
            try:
                with decoding(record.image_id):
                    truth = decode_png(record.gt_label_map)
                iou = mean_iou(confusion_matrix(truth, _predict(network, image), len(class_names)))
            except InputError:  # measuring the labels names the record; a picture is no reason to end a trained run
                continue
            if np.isfinite(iou):
                example = example._replace(score=iou, text=f"mean IoU of the prediction {100 * iou:.1f} %")
        elif record.image_id in costs and not show_ground_truth:
            cost = costs[record.image_id]
            example = example._replace(score=-cost, text=f"mean overlap cost of its segments {cost:.2f}")
        scored.append(example)
    return scored


def choose_examples(scored: Sequence[Example]) -> list[Example]:
    """The NUM_EACH worst and best images, in that order, each once; without scores the first images."""
    ranked = sorted((e for e in scored if e.score is not None), key=lambda e: (e.score, e.image_id))
    if not ranked:
        return list(scored[: 2 * NUM_EACH])
    num_worst = min(NUM_EACH, (len(ranked) + 1) // 2)
    num_best = min(NUM_EACH, len(ranked) - num_worst)
    worst = [e._replace(kind=f"worst-{n}") for n, e in enumerate(ranked[:num_worst], 1)]
    best = [e._replace(kind=f"best-{n}") for n, e in enumerate(ranked[::-1][:num_best], 1)]
    return worst + best


def draw_examples(
    network: SegmentationNetwork,
    example: Example,
    *,
    mixture: Mixture,
    run_dir: str,
    num_epochs: int,
    class_names: tuple[str, ...],
    show_ground_truth: bool,
) -> list[tuple[str, bytes]]:
    """Draw one image, on a member of the actor pool.

    Args:
        network: The run's trained network.
        example: The image.
        mixture: Training data of the run.
        run_dir: Run directory, for the labels of the epochs.
        num_epochs: Epochs of the run.
        class_names: Names for the legend.
        show_ground_truth: Add a panel with the ground truth of a record that has one.

    Returns:
        Its file name and PNG; [] for an image that is damaged.
    """
    source = mixture.units[example.unit].source
    record = next(r for r in _records(example.unit, mixture) if r.image_id == example.image_id)
    name = storage.safe_name(record.image_id.replace("/", "-"), file=source.records.uri, field="image_id")
    image = _decoded(record)
    if image is None:
        return []
    try:
        with decoding(record.image_id):
            painted = [(title, paint(record)) for title, paint in _painters(example.unit, mixture, run_dir, num_epochs)]
    except RecordError:  # the training has left it out and warned of it
        return []
    figure = label_evolution_figure(
        image,
        record.boxes_xyxy,
        record.class_ids,
        painted,
        _predict(network, image),
        decode_png(record.gt_label_map) if record.gt_label_map and show_ground_truth else None,
        class_names,
        example.text,
    )
    return [(f"{example.kind}-{name}.png", figure)]


def _records(index: int, mixture: Mixture) -> list[Record]:
    """The training records of a unit that have a box."""
    unit = mixture.units[index]
    rows = unit.trained(unit.source.records.read(unit.where))
    return [record for record in iter_records(rows) if len(record.boxes_xyxy)]


def _decoded(record: Record) -> NDArray[np.uint8] | None:
    """The photo; None if it is damaged: the training has left it out and warned of it."""
    assert record.image is not None
    try:
        with decoding(record.image_id):
            return decode_image(record.image)
    except RecordError:
        return None


def _predict(network: SegmentationNetwork, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    predicted: NDArray[np.uint8] = predict_log_probs(network, image, network.device).argmax(0).astype(np.uint8)
    return predicted


def _costs(index: int, mixture: Mixture, run_dir: str, num_epochs: int) -> dict[str, float]:
    """Mean overlap cost of the boxes of each image in the last epoch; {} for labels that never change."""
    if mixture.units[index].source.supervision != "box":
        return {}
    labels = open_labels(RunFiles(run_dir).labels(num_epochs)).read(index, ("image_id", "overlap_cost"))
    costs: dict[str, list[float]] = {}
    for row in labels.to_pylist():
        costs.setdefault(row["image_id"], []).append(row["overlap_cost"])
    finite = {image_id: [c for c in values if np.isfinite(c)] for image_id, values in costs.items()}
    return {image_id: float(np.mean(values)) for image_id, values in finite.items() if values}


def _painters(index: int, mixture: Mixture, run_dir: str, num_epochs: int) -> list[tuple[str, Painter]]:
    """Title and painter of each epoch to show; one entry for labels that never change."""
    unit, assignment = mixture.units[index], mixture.assignment
    if unit.source.supervision != "box":
        return [("label map", painter(unit, {}, assignment))]
    shown = []
    for epoch in epochs_to_show(num_epochs, NUM_IN_EXAMPLE):
        segments = open_labels(RunFiles(run_dir).labels(epoch)).segments(index)
        shown.append((f"label map, epoch {epoch}", painter(unit, segments, assignment)))
    return shown


def store_figures(run_dir: str, figures: list[tuple[str, bytes]]) -> None:
    """Write figures, (file name, PNG), to RUN/figures."""
    for name, png in figures:
        storage.write_bytes(storage.join(RunFiles(run_dir).figures, name), png)
