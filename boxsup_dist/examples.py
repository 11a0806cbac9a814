"""Example figures of a run: a few training images with their label maps over the epochs and the final prediction."""

from __future__ import annotations

import numpy as np

from boxsup_dist import storage
from boxsup_dist.evaluation.figures import label_evolution_figure
from boxsup_dist.labels import labels_uri, read_labels
from boxsup_dist.model.inference import predict_log_probs
from boxsup_dist.model.networks import SegmentationNetwork
from boxsup_dist.regions import decode_image, decode_png, decode_superpixels, paint_rectangles, paint_segments
from boxsup_dist.schema import Record, iter_records
from boxsup_dist.tables import RowGroup, Table
from boxsup_dist.training.stream import Source

MAX_EXAMPLES = 3  # of each row group that is drawn
NUM_STAGES = 4  # epochs shown of one image, first and last among them


def epochs_to_show(num_epochs: int) -> list[int]:
    """At most NUM_STAGES epochs, evenly spaced, first and last included."""
    return sorted({round(e) for e in np.linspace(0, num_epochs - 1, NUM_STAGES)})


def draw_examples(
    network: SegmentationNetwork,
    unit: tuple[int, RowGroup],
    *,
    source: Source,
    run_dir: str,
    num_epochs: int,
    class_names: tuple[str, ...],
    show_ground_truth: bool,
) -> list[tuple[str, bytes]]:
    """(file name, PNG) for some images of a row group of the training records; a unit of the actor pool."""
    index, where = unit
    figures = []
    records = [record for record in iter_records(source.records.read(where)) if len(record.boxes_xyxy)]
    for record in records[:MAX_EXAMPLES]:
        assert record.image is not None
        image = decode_image(record.image)
        truth = decode_png(record.gt_label_map) if record.gt_label_map and show_ground_truth else None
        figure = label_evolution_figure(
            image,
            record.boxes_xyxy,
            record.class_ids,
            _label_maps(record, index, where, source, run_dir, num_epochs),
            predict_log_probs(network, image, network.device).argmax(0).astype(np.uint8),
            truth,
            class_names,
        )
        figures.append((f"example-{record.image_id.replace('/', '-')}.png", figure))
    return figures


def _label_maps(
    record: Record, index: int, where: RowGroup, source: Source, run_dir: str, num_epochs: int
) -> list[tuple[str, np.ndarray]]:
    """Title and label map of the epochs to show; one entry where the labels never change."""
    if source.supervision == "mask":
        assert record.gt_label_map is not None
        return [("label map", decode_png(record.gt_label_map))]
    if source.supervision == "rectangles":
        shape = (record.height, record.width)
        return [("label map", paint_rectangles(shape, record.boxes_xyxy, record.class_ids, record.crowd))]
    assert source.proposals is not None
    superpixels, count = _superpixels(source.proposals, where, record.image_id)
    maps = []
    for epoch in epochs_to_show(num_epochs):
        segments = read_labels(labels_uri(run_dir, epoch)).segments(index)
        label_map = paint_segments(
            superpixels,
            count,
            record.boxes_xyxy,
            record.class_ids,
            record.crowd,
            segments[record.image_id],
            clip_to_box=source.assignment.clip_to_box,
            ignore_outside=source.assignment.ignore_outside,
            ignore_undecided=True,
        )
        maps.append((f"epoch {epoch + 1}", label_map))
    return maps


def _superpixels(proposals: Table, where: RowGroup, image_id: str) -> tuple[np.ndarray, int]:
    rows = proposals.read(where, ("image_id", "superpixels", "num_superpixels")).to_pylist()
    row = next(row for row in rows if row["image_id"] == image_id)
    return decode_superpixels(row["superpixels"]), row["num_superpixels"]


def store_figures(run_dir: str, figures: list[tuple[str, bytes]]) -> None:
    """Write figures under RUN/figures."""
    for name, png in figures:
        storage.write_bytes(storage.join(run_dir, "figures", name), png)
