"""The training stream of one worker for one epoch: Ray Data tasks read, decode, paint and augment on any node.

Reads the worker's slices of the epoch plan; yields the worker's share of every global batch, in step order. The tasks
paint label maps from the labels table, which they get by reference. Only columns that the supervision grants are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from boxsup_dist.config import AssignmentSettings, AugmentSettings, Supervision
from boxsup_dist.errors import InputError, RecordError
from boxsup_dist.labels import Labels
from boxsup_dist.regions import Segment, decode_image, decode_png, decode_superpixels, paint_rectangles, paint_segments
from boxsup_dist.schema import Record, iter_records
from boxsup_dist.tables import Table
from boxsup_dist.training.augment import augment
from boxsup_dist.training.plan import EpochPlan, Slice

IMAGE_COLUMNS = ("image_id", "image")
BOX_COLUMNS = ("height", "width", "boxes_xyxy", "class_ids", "crowd")
GRANTED_COLUMNS: dict[Supervision, tuple[str, ...]] = {
    "mask": (*IMAGE_COLUMNS, "gt_label_map"),
    "rectangles": (*IMAGE_COLUMNS, *BOX_COLUMNS),
    "box": (*IMAGE_COLUMNS, *BOX_COLUMNS),
}


@dataclass(frozen=True)
class Source:
    """What the tasks of a stream read and how they make training pairs of it."""

    records: Table
    proposals: Table | None
    supervision: Supervision
    assignment: AssignmentSettings
    augment: AugmentSettings
    seed: int


@dataclass(frozen=True)
class Batch:
    """One worker's share of a global batch; it may be empty in an epoch's last step."""

    step: int
    image_ids: list[str] = field(default_factory=list)
    images: np.ndarray | None = None  # uint8 (n, h, w, 3)
    label_maps: np.ndarray | None = None  # uint8 (n, h, w)
    error: InputError | None = None  # why this rank has no batch


def worker_batches(
    source: Source,
    plan: EpochPlan,
    labels: ray.ObjectRef | None,
    *,
    epoch: int,
    rank: int,
    num_workers: int,
    start_step: int = 0,
    max_tasks: int = 2,
) -> Iterator[Batch]:
    """Yield this worker's batch for every step from `start_step` on. Raises InputError for records of no use."""
    slices = plan.for_worker(rank, num_workers, start_step)
    lanes = [lane for lane in range(len(plan.lane_lengths)) if lane % num_workers == rank]
    rows = _lane_rows(slices, source, labels, epoch, max_tasks)
    waiting: dict[tuple[int, int], dict[str, Any]] = {}  # Ray Data hands blocks over as they finish, in any order
    for step in range(start_step, plan.num_steps):
        taken = []
        for lane in lanes:
            if step >= plan.lane_lengths[lane]:
                continue
            while (lane, step) not in waiting:
                row = next(rows)
                waiting[row["lane"], row["step"]] = row
            taken.append(waiting.pop((lane, step)))
        yield _collate(step, taken)


def _collate(step: int, rows: list[dict[str, Any]]) -> Batch:
    if not rows:
        return Batch(step)
    return Batch(
        step,
        [row["image_id"] for row in rows],
        np.stack([row["image"] for row in rows]),
        np.stack([row["label_map"] for row in rows]),
    )


def _lane_rows(
    slices: Sequence[Slice], source: Source, labels: ray.ObjectRef | None, epoch: int, max_tasks: int
) -> Iterator[dict[str, Any]]:
    """Training pairs of all slices in about the order of the slices, made by at most `max_tasks` tasks at once."""
    if not slices:
        return
    dataset = ray.data.range(len(slices), override_num_blocks=len(slices)).map_batches(
        partial(_load_task, slices=slices, source=source, labels=labels, epoch=epoch),
        batch_size=None,
        compute=ray.data.TaskPoolStrategy(size=max_tasks),
    )
    for block in dataset.iter_batches(batch_size=None, prefetch_batches=2 * max_tasks):
        if "error" in block:
            raise ray.cloudpickle.loads(block["error"][0])
        for i, (lane, step) in enumerate(zip(block["lane"].tolist(), block["step"].tolist(), strict=True)):
            yield {
                "lane": lane,
                "step": step,
                "image_id": str(block["image_id"][i]),
                "image": block["image"][i],
                "label_map": block["label_map"][i],
            }


def _load_task(
    batch: dict[str, np.ndarray], slices: Sequence[Slice], source: Source, labels: ray.ObjectRef | None, epoch: int
) -> dict[str, np.ndarray]:
    resolved = None if labels is None else ray.get(labels)
    try:
        parts = [load_slice(slices[i], source, resolved, epoch) for i in batch["id"].tolist()]
    except InputError as error:  # returned, not raised: the user gets the error itself, not Ray's trace of it
        return {"error": np.array([ray.cloudpickle.dumps(error)], object)}
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def load_slice(piece: Slice, source: Source, labels: Labels | None, epoch: int) -> dict[str, np.ndarray]:
    """Augmented training pairs of one slice: lane, step, image_id (n,), image (n, h, w, 3), label_map (n, h, w)."""
    where = source.records.row_groups()[piece.row_group_index]
    rows = pa.array(piece.rows)
    records = source.records.read(where, GRANTED_COLUMNS[source.supervision]).take(rows)
    superpixels: list[bytes | None] = [None] * len(rows)
    counts = [0] * len(rows)
    segments: dict[str, list[Segment | None]] = {}
    if source.supervision == "box":
        assert source.proposals is not None and labels is not None
        maps = source.proposals.read(where, ("superpixels", "num_superpixels")).take(rows)
        superpixels, counts = maps.column("superpixels").to_pylist(), maps.column("num_superpixels").to_pylist()
        segments = labels.segments(piece.row_group_index)

    images, label_maps, image_ids = [], [], []
    for record, encoded, count in zip(iter_records(records), superpixels, counts, strict=True):
        image, label_map = _decode(record, encoded, count, segments, source)
        pair = augment(image, label_map, source.augment, seed=source.seed, epoch=epoch, image_id=record.image_id)
        images.append(pair[0])
        label_maps.append(pair[1])
        image_ids.append(record.image_id)
    return {
        "lane": np.full(len(images), piece.lane),
        "step": piece.first_step + np.arange(len(images)),
        "image_id": np.array(image_ids),
        "image": np.stack(images),
        "label_map": np.stack(label_maps),
    }


def _decode(
    record: Record,
    superpixels: bytes | None,
    num_superpixels: int,
    segments: dict[str, list[Segment | None]],
    source: Source,
) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 (H, W, 3) and label map uint8 (H, W) of one record; RecordError where its bytes are no image."""
    assert record.image is not None
    try:
        return decode_image(record.image), _paint(record, superpixels, num_superpixels, segments, source)
    except (OSError, SyntaxError) as error:  # Pillow's two words for damaged files
        raise RecordError(
            f"does not decode: {error}", file=source.records.uri, field="image_id", value=record.image_id
        ) from None


def _paint(
    record: Record,
    superpixels: bytes | None,
    num_superpixels: int,
    segments: dict[str, list[Segment | None]],
    source: Source,
) -> np.ndarray:
    """The label map that the supervision gives this record, uint8 (H, W)."""
    if source.supervision == "mask":
        assert record.gt_label_map is not None
        return decode_png(record.gt_label_map)
    if source.supervision == "rectangles":
        return paint_rectangles((record.height, record.width), record.boxes_xyxy, record.class_ids, record.crowd)
    assert superpixels is not None
    return paint_segments(
        decode_superpixels(superpixels),
        num_superpixels,
        record.boxes_xyxy,
        record.class_ids,
        record.crowd,
        segments.get(record.image_id, []),
        clip_to_box=source.assignment.clip_to_box,
        ignore_outside=source.assignment.ignore_outside,
        ignore_undecided=True,
    )
