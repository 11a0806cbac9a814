"""The training stream of one worker for one epoch: Ray tasks read, decode, paint and augment on any node.

Reads the worker's slices of the epoch's order; yields the worker's share of every global batch, in step order. Each
slice is one plain task (`load_slice`); a window of tasks runs ahead of the training. The tasks paint label maps from
the labels table, of which they read the row group that they need. Only columns that the supervision grants are read.

Guarantees: the batches depend on the order alone, not on the tasks, nodes or losses; at most `max_tasks` tasks of a
worker run at once; the memory is bounded by `max_slices`, for any number of images. A lost task is run again; a record
that ends the process of its task every time is found, and its pixels are ignored like those of an undecodable record.

To add a supervision, start in `data/painting.py`: its name in `config.Supervision`, its columns in `GRANTED_COLUMNS`
and a branch of `painter` are all that this stream needs. Only a supervision whose labels need the network during the
step, as `wssl_em` does, also marks its pairs (`TrainingPair.is_em`) for `TrainWorker.train_step`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from PIL import Image
from ray.exceptions import OutOfMemoryError, WorkerCrashedError

from boxsup_dist.config import AssignmentSettings
from boxsup_dist.data.images import open_image
from boxsup_dist.data.labels import LabelsTable
from boxsup_dist.data.painting import CERTAIN, GRANTED_COLUMNS, Painter, Segments, painter, prior_painter
from boxsup_dist.data.schema import IGNORE_INDEX, Record, iter_records
from boxsup_dist.data.sources import Mixture, Unit
from boxsup_dist.distributed.faults import describe_loss
from boxsup_dist.distributed.ordered import WINDOW, Step, Workers, result_of, run_in_order
from boxsup_dist.distributed.shared import Reference, fetch
from boxsup_dist.errors import InputError, RecordError, decoding
from boxsup_dist.training.augment import augment
from boxsup_dist.training.order import EpochOrder, Slice

OUT_OF_MEMORY_PAUSE_S = 5.0  # before a task whose process was killed for memory is started again
T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """One worker's share of a global batch: n images. It may be empty in an epoch's last step."""

    step: int
    image_ids: list[str] = field(default_factory=list)
    images: NDArray[np.uint8] | None = None  # (n, h, w, 3); None: no image
    label_maps: NDArray[np.uint8] | None = None  # (n, h, w); None: no image
    is_em: NDArray[np.bool_] | None = None  # (n,), as TrainingPair.is_em; None: no image
    priors: NDArray[np.uint8] | None = None  # (n, h, w), as Prior.prior; None: no image has a doubtful pixel
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
    prior: NDArray[np.uint8] | None = None  # (h, w), as Prior.prior


def worker_batches(
    shared: list[Reference],
    order: EpochOrder,
    labels: ray.ObjectRef[LabelsTable] | None,
    *,
    epoch: int,
    rank: int,
    num_workers: int,
    start_step: int = 0,
    max_tasks: int = 2,
) -> Iterator[Batch]:
    """Yield one worker's batch for every step of an epoch that is left.

    Args:
        shared: The reference to the mixture that the run trains on; the same for all workers and epochs, because each
            data process unpacks every reference once.
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
    lanes = [lane for lane in range(len(order.lane_lengths)) if lane % num_workers == rank]
    slices = order.for_worker(rank, num_workers, start_step)
    # Lanes of equal phase all need their next slice in the same step: so as many slices are made ahead as there are
    # lanes, while the training takes the slices before them.
    tasks = _SliceTasks(shared, [] if labels is None else [labels], epoch, max_tasks)
    prepared = _ahead(run_in_order(tasks, slices, on_lost=tasks.find_record), len(lanes))
    ready: dict[int, deque[TrainingPair]] = {lane: deque() for lane in lanes}
    for step in range(start_step, order.num_steps):
        due = [lane for lane in lanes if step < order.lane_lengths[lane]]
        for lane in due:
            while not ready[lane]:
                for pair in next(prepared):
                    ready[pair.lane].append(pair)
        yield _collate(step, [ready[lane].popleft() for lane in due])


def max_slices(num_lanes: int, max_tasks: int) -> int:
    """Most slices that a worker of `num_lanes` images per step has in Ray's object store.

    Half of the lanes' slices are in use and half are prepared; the others are running, or wait for an earlier, slower
    slice. A slice of n rows has n * crop height * crop width * 4 bytes, 5 with a prior.
    """
    return 2 * num_lanes + WINDOW * max_tasks


def _collate(step: int, pairs: Sequence[TrainingPair]) -> Batch:
    if not pairs:
        return Batch(step)
    return Batch(
        step,
        [pair.image_id for pair in pairs],
        np.stack([pair.image for pair in pairs]),
        np.stack([pair.label_map for pair in pairs]),
        np.array([pair.is_em for pair in pairs]),
        _priors(pairs),
        {pair.image_id: pair.problem for pair in pairs if pair.problem},
    )


def _priors(pairs: Sequence[TrainingPair]) -> NDArray[np.uint8] | None:
    if all(pair.prior is None for pair in pairs):
        return None
    return np.stack([np.full_like(pair.label_map, CERTAIN) if pair.prior is None else pair.prior for pair in pairs])


def _ahead(results: Iterator[T], count: int) -> Iterator[T]:
    """The same results, taken by a thread: tasks follow each other while the training computes a step.

    Up to `count` results wait for the training.
    """
    thread = ThreadPoolExecutor(1)
    try:
        taken = deque(thread.submit(next, results, None) for _ in range(count))
        while (result := taken.popleft().result()) is not None:
            taken.append(thread.submit(next, results, None))
            yield result
    finally:
        thread.shutdown(wait=False, cancel_futures=True)


@ray.remote(num_cpus=1, max_retries=0)  # run_in_order starts lost tasks again: Ray would start some of them for ever
def _load_slice(
    piece: Slice, shared: list[Reference], labels: list[Reference], epoch: int, problem: str
) -> list[TrainingPair]:
    mixture = fetch(shared)
    if problem:
        return [ignored_pair(piece, mixture, problem)]
    return load_slice(piece, mixture, fetch(labels) if labels else None, epoch)


@dataclass(frozen=True)
class _SliceTasks(Workers):
    """One task for each slice."""

    shared: list[Reference]  # the mixture
    labels: list[Reference]
    epoch: int
    max_running: int

    def start(self, unit: Slice, *, alone: bool = True, problem: str = "") -> Step:
        """Start the task of a slice; no other runs in its process."""
        # Ray's default placement takes the node of this worker while at least half of that node is free.
        return Step(_load_slice.remote(unit, self.shared, self.labels, self.epoch, problem))

    def lose(self, step: Step, error: Exception) -> None:
        """Let the memory of a killed process come free before the next one starts."""
        if isinstance(error, OutOfMemoryError):
            time.sleep(OUT_OF_MEMORY_PAUSE_S)

    def find_record(self, unit: Slice, error: Exception) -> list[TrainingPair]:
        """The pairs of a slice that ended its process in every try: halves it until the record is found."""
        if not isinstance(error, WorkerCrashedError):
            raise error  # lost nodes or too little memory are no fault of a record: the run starts again
        if len(unit.rows) == 1:
            problem = f"ended its data task in every try: {describe_loss(error)}"
            return list(result_of(self.start(unit, problem=problem).reference))
        # The whole slice failed often enough, so its halves are tried only twice.
        parts = run_in_order(self, halves(unit), on_lost=self.find_record, max_retries=1)
        return [pair for pairs in parts for pair in pairs]

    def describe(self) -> str:
        return f"at most {self.max_running} data tasks of one CPU each"


def halves(piece: Slice) -> tuple[Slice, Slice]:
    """Cut a slice of at least two rows into two."""
    cut = len(piece.rows) // 2
    first, second = piece.rows[:cut], piece.rows[cut:]
    return replace(piece, rows=first), replace(piece, rows=second, first_step=piece.first_step + cut)


def load_slice(piece: Slice, mixture: Mixture, labels: LabelsTable | None, epoch: int) -> list[TrainingPair]:
    """Read, decode, paint and augment the records of one slice.

    A record that does not decode becomes a black image without a valid pixel, and its pair names the problem.

    Args:
        piece: The slice.
        mixture: What the run trains on.
        labels: LabelsTable of this epoch; None if no source is supervised by `box`.
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
    paint = _painter(unit, segments, mixture.assignment, epoch)

    is_em = supervision == "wssl_em"
    pairs = []
    for step, record in enumerate(iter_records(records), piece.first_step):
        try:
            whole, label_map = _decode(record, paint, unit.source.records.uri)
            image, label_map = augment(
                whole, label_map, mixture.augment, seed=mixture.seed, epoch=epoch, image_id=record.image_id
            )
            pairs.append(TrainingPair(piece.lane, step, record.image_id, is_em, "", image, *_split(label_map)))
        except RecordError as error:
            pairs.append(TrainingPair(piece.lane, step, record.image_id, is_em, str(error), *_ignored(mixture)))
    return pairs


def _painter(unit: Unit, segments: Segments, assignment: AssignmentSettings, epoch: int) -> Painter:
    """`painting.painter`; where the network completes label maps, it paints (H, W, 2): label map and prior."""
    if not (unit.source.supervision == "box" and assignment.completes(epoch)):
        return painter(unit, segments, assignment)
    with_prior = prior_painter(unit, segments, assignment)
    return lambda record: np.dstack(with_prior(record))


def _split(label_map: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Label map and prior of what `_painter` painted; None: it has no prior."""
    if label_map.ndim == 2:
        return label_map, None
    return np.ascontiguousarray(label_map[..., 0]), np.ascontiguousarray(label_map[..., 1])


def ignored_pair(piece: Slice, mixture: Mixture, problem: str) -> TrainingPair:
    """The pair of a record that cannot be opened at all: reads nothing but its name.

    Args:
        piece: The slice of this record alone.
        mixture: What the run trains on.
        problem: Why it cannot be opened.

    Returns:
        As `load_slice` for a record that does not decode.
    """
    unit = mixture.units[piece.unit_index]
    image_id = unit.source.records.read(unit.where, ("image_id",))["image_id"][piece.rows[0]].as_py()
    error = RecordError(problem, file=unit.source.records.uri, field="image_id", value=image_id)
    is_em = unit.source.supervision == "wssl_em"
    return TrainingPair(piece.lane, piece.first_step, image_id, is_em, str(error), *_ignored(mixture))


def _ignored(mixture: Mixture) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A black image and a label map without a valid pixel."""
    size = (mixture.augment.crop_height_px, mixture.augment.crop_width_px)
    return np.zeros((*size, 3), np.uint8), np.full(size, IGNORE_INDEX, np.uint8)


def _decode(record: Record, paint: Painter, uri: str) -> tuple[Image.Image, NDArray[np.uint8]]:
    """RGB image and label map (H, W) of one record; RecordError if its bytes do not decode."""
    assert record.image is not None
    with decoding(record.image_id, uri):
        return open_image(record.image), paint(record)
