"""Example figures of a run: some training images with their label maps over the epochs and the final prediction."""

from __future__ import annotations

import numpy as np

from boxsup_dist.data.images import decode_image, decode_png
from boxsup_dist.data.labels import open_labels
from boxsup_dist.data.painting import Painter, painter
from boxsup_dist.data.schema import iter_records
from boxsup_dist.data.sources import Mixture
from boxsup_dist.errors import RecordError, decoding
from boxsup_dist.io import storage
from boxsup_dist.model.inference import predict_log_probs
from boxsup_dist.model.networks import SegmentationNetwork
from boxsup_dist.reporting.figures import label_evolution_figure
from boxsup_dist.runs.layout import RunFiles

MAX_EXAMPLES = 3  # images per unit
NUM_SHOWN = 4  # epochs of one image, first and last among them


def epochs_to_show(num_epochs: int) -> list[int]:
    """At most NUM_SHOWN epochs, counted from 1, evenly spaced, first and last included."""
    return sorted({round(epoch) for epoch in np.linspace(1, num_epochs, NUM_SHOWN)})


def draw_examples(
    network: SegmentationNetwork,
    index: int,
    *,
    mixture: Mixture,
    run_dir: str,
    num_epochs: int,
    class_names: tuple[str, ...],
    show_ground_truth: bool,
) -> list[tuple[str, bytes]]:
    """Draw some images of a unit of the training records, on a member of the actor pool.

    Args:
        network: The run's trained network.
        index: Index of the unit in `mixture`.
        mixture: Training data of the run.
        run_dir: Run directory, for the labels of the epochs.
        num_epochs: Epochs of the run.
        class_names: Names for the legend.
        show_ground_truth: Add a panel with the ground truth of records that have one.

    Returns:
        (file name, PNG) of each image; [] if no record of the unit has a box.
    """
    unit = mixture.units[index]
    painters = _painters(index, mixture, run_dir, num_epochs)
    figures = []
    rows = unit.trained(unit.source.records.read(unit.where))
    records = [record for record in iter_records(rows) if len(record.boxes_xyxy)]
    for record in records[:MAX_EXAMPLES]:
        assert record.image is not None
        try:
            with decoding(record.image_id):
                image = decode_image(record.image)
            painted = [(title, paint(record)) for title, paint in painters]
        except RecordError:  # the training has left it out and warned of it
            continue
        truth = decode_png(record.gt_label_map) if record.gt_label_map and show_ground_truth else None
        figure = label_evolution_figure(
            image,
            record.boxes_xyxy,
            record.class_ids,
            painted,
            predict_log_probs(network, image, network.device).argmax(0).astype(np.uint8),
            truth,
            class_names,
        )
        name = storage.safe_name(record.image_id.replace("/", "-"), file=unit.source.records.uri, field="image_id")
        figures.append((f"example-{name}.png", figure))
    return figures


def _painters(index: int, mixture: Mixture, run_dir: str, num_epochs: int) -> list[tuple[str, Painter]]:
    """Title and painter of each epoch to show; one entry for labels that never change."""
    unit, assignment = mixture.units[index], mixture.assignment
    if unit.source.supervision != "box":
        return [("label map", painter(unit, {}, assignment))]
    shown = []
    for epoch in epochs_to_show(num_epochs):
        segments = open_labels(RunFiles(run_dir).labels(epoch)).segments(index)
        shown.append((f"epoch {epoch}", painter(unit, segments, assignment)))
    return shown


def store_figures(run_dir: str, figures: list[tuple[str, bytes]]) -> None:
    """Write figures, (file name, PNG), to RUN/figures."""
    for name, png in figures:
        storage.write_bytes(storage.join(RunFiles(run_dir).figures, name), png)
