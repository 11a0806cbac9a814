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

from boxsup_dist.data.images import decode_image
from boxsup_dist.data.labels import Labels
from boxsup_dist.data.painting import GRANTED_COLUMNS, Painter, painter
from boxsup_dist.data.schema import IGNORE_INDEX, Record, iter_records
from boxsup_dist.data.sources import Mixture
from boxsup_dist.distributed.session import set_up_ray_data
from boxsup_dist.distributed.shared import fetch
from boxsup_dist.errors import InputError, RecordError, decoding
from boxsup_dist.training.augment import augment
from boxsup_dist.training.order import EpochPlan, Slice


@dataclass(frozen=True)
class Batch:
    """One worker's share of a global batch; it may be empty in an epoch's last step."""

    step: int
    image_ids: list[str] = field(default_factory=list)
    images: np.ndarray | None = None  # uint8 (n, h, w, 3)
    label_maps: np.ndarray | None = None  # uint8 (n, h, w)
    is_em: np.ndarray | None = None  # bool (n,), label maps inside whose boxes the network is to decide
    bad_records: dict[str, str] = field(default_factory=dict)  # image_id -> why it is an image of ignored pixels
    error: InputError | None = None  # why this rank has no batch


def worker_batches(
    mixture: Mixture,
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
    rows = _lane_rows(slices, mixture, labels, epoch, max_tasks)
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
        np.array([row["is_em"] for row in rows]),
        {row["image_id"]: row["problem"] for row in rows if row["problem"]},
    )


def _lane_rows(
    slices: Sequence[Slice], mixture: Mixture, labels: ray.ObjectRef | None, epoch: int, max_tasks: int
) -> Iterator[dict[str, Any]]:
    """Training pairs of all slices in about the order of the slices, made by at most `max_tasks` tasks at once."""
    if not slices:
        return
    dataset = make_dataset(slices, mixture, labels, epoch, max_tasks)
    for block in dataset.iter_batches(batch_size=None, prefetch_batches=2 * max_tasks):
        if "error" in block:
            raise ray.cloudpickle.loads(block["error"][0])
        for i, (lane, step) in enumerate(zip(block["lane"].tolist(), block["step"].tolist(), strict=True)):
            yield {
                "lane": lane,
                "step": step,
                "image_id": str(block["image_id"][i]),
                "is_em": block["is_em"][i],
                "problem": str(block["problem"][i]),
                "image": block["image"][i],
                "label_map": block["label_map"][i],
            }


def make_dataset(
    slices: Sequence[Slice], mixture: Mixture, labels: ray.ObjectRef | None, epoch: int, max_tasks: int
) -> ray.data.Dataset:
    """A block of training pairs for every slice, made by at most `max_tasks` tasks at once."""
    set_up_ray_data()
    # The same limit on both sides lets Ray Data fuse them. Else each number of the range has a task of its own, and all
    # of these come before the first slice: with a hundred thousand images they took minutes.
    numbers = ray.data.range(len(slices), concurrency=max_tasks, override_num_blocks=len(slices))
    return numbers.map_batches(
        partial(_load_task, shared=[ray.put((slices, mixture))], labels=labels, epoch=epoch),
        batch_size=None,
        compute=ray.data.TaskPoolStrategy(size=max_tasks),
    )


def _load_task(
    batch: dict[str, np.ndarray], shared: list[ray.ObjectRef], labels: ray.ObjectRef | None, epoch: int
) -> dict[str, np.ndarray]:
    slices, mixture = fetch(shared)
    resolved = None if labels is None else ray.get(labels)
    try:
        parts = [load_slice(slices[i], mixture, resolved, epoch) for i in batch["id"].tolist()]
    except InputError as error:  # returned, not raised: the user gets the error itself, not Ray's trace of it
        return {"error": np.array([ray.cloudpickle.dumps(error)], object)}
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def load_slice(piece: Slice, mixture: Mixture, labels: Labels | None, epoch: int) -> dict[str, np.ndarray]:
    """Augmented training pairs of one slice.

    lane, step, image_id, is_em, problem (n,), image (n, h, w, 3), label_map (n, h, w); is_em: the network is to decide
    inside the boxes. problem: "", or why a record does not decode, which becomes a black image without a valid pixel.
    """
    unit = mixture.units[piece.unit_index]
    supervision = unit.source.supervision
    rows = pa.array(piece.rows)
    # The names once each: rectangles and boxes share some of them.
    columns = tuple(dict.fromkeys(("image", *GRANTED_COLUMNS[supervision])))
    records = unit.source.records.read(unit.where, columns).take(rows)
    segments = labels.segments(piece.unit_index) if labels is not None else {}
    paint = painter(unit, segments, mixture.assignment)

    size = (mixture.augment.crop_height_px, mixture.augment.crop_width_px)
    images, label_maps, image_ids, problems = [], [], [], []
    for record in iter_records(records):
        problem = ""
        try:
            image, label_map = _decode(record, paint, unit.source.records.uri)
            pair = augment(image, label_map, mixture.augment, seed=mixture.seed, epoch=epoch, image_id=record.image_id)
        except RecordError as error:
            pair, problem = (np.zeros((*size, 3), np.uint8), np.full(size, IGNORE_INDEX, np.uint8)), str(error)
        images.append(pair[0])
        label_maps.append(pair[1])
        image_ids.append(record.image_id)
        problems.append(problem)
    return {
        "lane": np.full(len(images), piece.lane),
        "step": piece.first_step + np.arange(len(images)),
        "image_id": np.array(image_ids),
        "is_em": np.full(len(images), supervision == "wssl_em"),
        "problem": np.array(problems),
        "image": np.stack(images),
        "label_map": np.stack(label_maps),
    }


def _decode(record: Record, paint: Painter, uri: str) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 (H, W, 3) and label map uint8 (H, W) of one record; RecordError where its bytes are no image."""
    assert record.image is not None
    with decoding(record.image_id, uri):
        return decode_image(record.image), paint(record)
