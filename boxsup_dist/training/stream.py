"""The training stream of one worker for one epoch: Ray Data tasks read, decode, paint and augment on any node.

Reads the worker's slices of the epoch's order; yields the worker's share of every global batch, in step order. The
tasks paint label maps from the labels table, which they get by reference. Only columns that the supervision grants are
read.

To add a supervision, start in `data/painting.py`: its name in `config.Supervision`, its columns in `GRANTED_COLUMNS`
and a branch of `painter` are all that this stream needs. Only a supervision whose labels need the network during the
step, as `wssl_em` does, also marks its pairs (`TrainingPair.is_em`) for `TrainWorker.train_step`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray

from boxsup_dist.data.images import decode_image
from boxsup_dist.data.labels import Labels
from boxsup_dist.data.painting import GRANTED_COLUMNS, Painter, painter
from boxsup_dist.data.schema import IGNORE_INDEX, Record, iter_records
from boxsup_dist.data.sources import Mixture
from boxsup_dist.distributed.session import set_up_ray_data
from boxsup_dist.distributed.shared import fetch
from boxsup_dist.errors import InputError, RecordError, decoding
from boxsup_dist.training.augment import augment
from boxsup_dist.training.order import EpochOrder, Slice


@dataclass(frozen=True)
class Batch:
    """One worker's share of a global batch: n images. It may be empty in an epoch's last step."""

    step: int
    image_ids: list[str] = field(default_factory=list)
    images: NDArray[np.uint8] | None = None  # (n, h, w, 3); None: no image
    label_maps: NDArray[np.uint8] | None = None  # (n, h, w); None: no image
    is_em: NDArray[np.bool_] | None = None  # (n,), as TrainingPair.is_em; None: no image
    bad_records: dict[str, str] = field(default_factory=dict)  # image_id -> why all of its pixels are ignored
    error: InputError | None = None  # why this rank has no batch


class TrainingPair(NamedTuple):
    """One record prepared for its step: the augmented image and label map."""

    lane: int
    step: int
    image_id: str
    is_em: bool  # whether the network decides inside the boxes of the label map (supervision wssl_em)
    problem: str  # why the record could not be decoded; "" if it could
    image: NDArray[np.uint8]  # RGB (h, w, 3), the crop's size
    label_map: NDArray[np.uint8]  # (h, w)


def worker_batches(
    mixture: Mixture,
    order: EpochOrder,
    labels: ray.ObjectRef[Labels] | None,
    *,
    epoch: int,
    rank: int,
    num_workers: int,
    start_step: int = 0,
    max_tasks: int = 2,
) -> Iterator[Batch]:
    """Yield one worker's batch for every step of an epoch that is left.

    Args:
        mixture: What the run trains on.
        order: The order of this epoch.
        labels: Reference to the labels of this epoch; None if no source is supervised by `box`.
        epoch: Epoch, from 0.
        rank: The worker, 0..num_workers-1.
        num_workers: Number of workers.
        start_step: First step to yield.
        max_tasks: Data tasks that may run at once for this worker.

    Yields:
        The batches of the steps start_step..num_steps-1, in this order.

    Raises:
        InputError: A task met an error that is not of one record alone, such as labels that do not fit the records.
    """
    slices = order.for_worker(rank, num_workers, start_step)
    lanes = [lane for lane in range(len(order.lane_lengths)) if lane % num_workers == rank]
    pairs = _lane_pairs(slices, mixture, labels, epoch, max_tasks)
    waiting: dict[tuple[int, int], TrainingPair] = {}  # Ray Data yields blocks as they finish, in any order
    for step in range(start_step, order.num_steps):
        taken = []
        for lane in lanes:
            if step >= order.lane_lengths[lane]:
                continue
            while (lane, step) not in waiting:
                pair = next(pairs)
                waiting[pair.lane, pair.step] = pair
            taken.append(waiting.pop((lane, step)))
        yield _collate(step, taken)


def _collate(step: int, pairs: Sequence[TrainingPair]) -> Batch:
    if not pairs:
        return Batch(step)
    return Batch(
        step,
        [pair.image_id for pair in pairs],
        np.stack([pair.image for pair in pairs]),
        np.stack([pair.label_map for pair in pairs]),
        np.array([pair.is_em for pair in pairs]),
        {pair.image_id: pair.problem for pair in pairs if pair.problem},
    )


def _lane_pairs(
    slices: Sequence[Slice], mixture: Mixture, labels: ray.ObjectRef[Labels] | None, epoch: int, max_tasks: int
) -> Iterator[TrainingPair]:
    """Training pairs of all slices in roughly the order of the slices, made by at most `max_tasks` tasks at once."""
    if not slices:
        return
    dataset = make_dataset(slices, mixture, labels, epoch, max_tasks)
    for block in dataset.iter_batches(batch_size=None, prefetch_batches=2 * max_tasks):
        assert isinstance(block, dict)
        if "error" in block:
            raise ray.cloudpickle.loads(block["error"][0])
        yield from _from_block(block)


def make_dataset(
    slices: Sequence[Slice], mixture: Mixture, labels: ray.ObjectRef[Labels] | None, epoch: int, max_tasks: int
) -> ray.data.Dataset:
    """The dataset that makes the training pairs of each slice: one task and one block per slice.

    Args:
        slices: What to make.
        mixture: What the run trains on.
        labels: As in `worker_batches`.
        epoch: Epoch, from 0.
        max_tasks: Tasks that may run at once.
    """
    set_up_ray_data()
    # With the same limit on both sides Ray Data fuses them. Otherwise each number of the range has a task of its own,
    # and all of these run before the first slice: with a hundred thousand images they took minutes.
    numbers = ray.data.range(len(slices), concurrency=max_tasks, override_num_blocks=len(slices))
    return numbers.map_batches(
        partial(_load_task, shared=[ray.put((slices, mixture))], labels=labels, epoch=epoch),
        batch_size=None,
        compute=ray.data.TaskPoolStrategy(size=max_tasks),
    )


def _load_task(
    batch: Mapping[str, NDArray[Any]],
    shared: list[ray.ObjectRef[tuple[Sequence[Slice], Mixture]]],
    labels: ray.ObjectRef[Labels] | None,
    epoch: int,
) -> dict[str, NDArray[Any]]:
    slices, mixture = fetch(shared)
    resolved = None if labels is None else ray.get(labels)
    try:
        pairs = [pair for i in batch["id"].tolist() for pair in load_slice(slices[i], mixture, resolved, epoch)]
    except InputError as error:  # returned, not raised: the user sees the error itself instead of Ray's trace of it
        pickled: bytes = ray.cloudpickle.dumps(error)  # type: ignore[no-untyped-call]
        return {"error": np.array([pickled], object)}
    return _to_block(pairs)


def _to_block(pairs: Sequence[TrainingPair]) -> dict[str, NDArray[Any]]:
    """Training pairs as a block of Ray Data: one array (n, ...) per field. There must be at least one pair."""
    return {name: np.stack(column) for name, column in zip(TrainingPair._fields, zip(*pairs, strict=True), strict=True)}


def _from_block(block: Mapping[str, NDArray[Any]]) -> Iterator[TrainingPair]:
    """Inverse of _to_block."""
    for row in zip(*(block[name] for name in TrainingPair._fields), strict=True):
        lane, step, image_id, is_em, problem, image, label_map = row
        yield TrainingPair(int(lane), int(step), str(image_id), bool(is_em), str(problem), image, label_map)


def load_slice(piece: Slice, mixture: Mixture, labels: Labels | None, epoch: int) -> list[TrainingPair]:
    """Read, decode, paint and augment the records of one slice.

    A record that does not decode becomes a black image without a valid pixel, and its pair names the problem.

    Args:
        piece: The slice.
        mixture: What the run trains on.
        labels: Labels of this epoch; None if no source is supervised by `box`.
        epoch: Epoch, from 0.

    Returns:
        One pair per row of the slice, in its order.

    Raises:
        TableError: A table or the labels do not fit the records.
    """
    unit = mixture.units[piece.unit_index]
    supervision = unit.source.supervision
    # Each name once: some supervisions grant a column that is read anyway.
    columns = tuple(dict.fromkeys(("image", *GRANTED_COLUMNS[supervision])))
    records = unit.source.records.read(unit.where, columns).take(pa.array(piece.rows))
    segments = labels.segments(piece.unit_index) if labels is not None else {}
    paint = painter(unit, segments, mixture.assignment)

    size = (mixture.augment.crop_height_px, mixture.augment.crop_width_px)
    pairs = []
    for step, record in enumerate(iter_records(records), piece.first_step):
        problem = ""
        try:
            image, label_map = _decode(record, paint, unit.source.records.uri)
            image, label_map = augment(
                image, label_map, mixture.augment, seed=mixture.seed, epoch=epoch, image_id=record.image_id
            )
        except RecordError as error:
            problem = str(error)
            image, label_map = np.zeros((*size, 3), np.uint8), np.full(size, IGNORE_INDEX, np.uint8)
        pairs.append(
            TrainingPair(piece.lane, step, record.image_id, supervision == "wssl_em", problem, image, label_map)
        )
    return pairs


def _decode(record: Record, paint: Painter, uri: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Image (H, W, 3) and label map (H, W) of one record; RecordError if its bytes do not decode."""
    assert record.image is not None
    with decoding(record.image_id, uri):
        return decode_image(record.image), paint(record)
