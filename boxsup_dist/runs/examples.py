"""Example figures of a run: a few training images with their label maps over the epochs and the final prediction."""

from __future__ import annotations

import numpy as np

from boxsup_dist.data.images import decode_image, decode_png
from boxsup_dist.data.labels import labels_uri, read_labels
from boxsup_dist.data.painting import Painter, painter
from boxsup_dist.data.schema import iter_records
from boxsup_dist.data.sources import Mixture
from boxsup_dist.errors import RecordError, decoding
from boxsup_dist.io import storage
from boxsup_dist.model.inference import predict_log_probs
from boxsup_dist.model.networks import SegmentationNetwork
from boxsup_dist.reporting.figures import label_evolution_figure

MAX_EXAMPLES = 3  # of each row group that is drawn
NUM_STAGES = 4  # epochs shown of one image, first and last among them


def epochs_to_show(num_epochs: int) -> list[int]:
    """At most NUM_STAGES epochs, evenly spaced, first and last included."""
    return sorted({round(e) for e in np.linspace(0, num_epochs - 1, NUM_STAGES)})


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
    """(file name, PNG) for some images of a unit of the training records."""
    unit = mixture.units[index]
    painters = _painters(index, mixture, run_dir, num_epochs)
    figures = []
    records = [record for record in iter_records(unit.source.records.read(unit.where)) if len(record.boxes_xyxy)]
    for record in records[:MAX_EXAMPLES]:
        assert record.image is not None
        try:
            with decoding(record.image_id):
                image = decode_image(record.image)
            painted = [(title, paint(record)) for title, paint in painters]
        except RecordError:  # the training has left it out and told
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
    """Title and painter of the epochs to show; one entry where the labels never change."""
    unit, assignment = mixture.units[index], mixture.assignment
    if unit.source.supervision != "box":
        return [("label map", painter(unit, {}, assignment))]
    shown = []
    for epoch in epochs_to_show(num_epochs):
        segments = read_labels(labels_uri(run_dir, epoch)).segments(index)
        shown.append((f"epoch {epoch + 1}", painter(unit, segments, assignment)))
    return shown


def store_figures(run_dir: str, figures: list[tuple[str, bytes]]) -> None:
    """Write figures under RUN/figures."""
    for name, png in figures:
        storage.write_bytes(storage.join(run_dir, "figures", name), png)
