"""The training stream: the same global batches for any number of workers, from any step on, with and without Ray."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from boxsup_dist.assignment.assign import assign_row_group
from boxsup_dist.data.labels import LabelsTable, store_labels
from boxsup_dist.data.painting import GRANTED_COLUMNS
from boxsup_dist.data.schema import IGNORE_INDEX
from boxsup_dist.data.sources import Mixture, Source, make_units
from boxsup_dist.distributed.ordered import MAX_RETRIES, Step, run_in_order
from boxsup_dist.training import stream
from boxsup_dist.training.order import Slice, order_epoch
from boxsup_dist.training.stream import TrainingPair, load_slice, worker_batches
from tests.distributed import tiny
from tests.distributed.crashing_table import CRASHING, CrashingTable

BATCH, EPOCH = 4, 2


@pytest.fixture(scope="module")
def mixture(tmp_path_factory) -> Mixture:
    """Box supervision on records whose ground truth does not decode, so that reading it would fail."""
    train, proposals, _ = tiny.write_tables(tmp_path_factory.mktemp("poisoned"), mask=tiny.POISON)
    return Mixture(make_units([Source(train, "box", proposals)]), tiny.ASSIGNMENT, tiny.AUGMENT, seed=5)


def with_supervision(mixture: Mixture, supervision: str) -> Mixture:
    return replace(mixture, units=make_units([Source(mixture.sources[0].records, supervision)]))


def make_labels(mixture: Mixture) -> LabelsTable:
    (source,) = mixture.sources
    parts = [
        assign_row_group(
            None, source.records.read(w), source.proposals.read(w), mixture.assignment, seed=mixture.seed, epoch=EPOCH
        )
        for w in source.records.row_groups()
    ]
    return store_labels(source.records.uri + "-labels", parts)


def make_order(mixture: Mixture, epoch: int = EPOCH):
    units = [unit.rows for unit in mixture.units]
    return order_epoch(units, seed=mixture.seed, epoch=epoch, global_batch_size=BATCH)


def stream_all(mixture: Mixture, labels, num_workers: int = 1, start_step: int = 0, epoch: int = EPOCH) -> dict:
    """step -> image_id -> (image, label map), over all workers."""
    order = make_order(mixture, epoch)
    steps: dict[int, dict] = {step: {} for step in range(start_step, order.num_steps)}
    for rank in range(num_workers):
        batches = worker_batches(
            [ray.put(mixture)], order, labels, epoch=epoch, rank=rank, num_workers=num_workers, start_step=start_step
        )
        for step, batch in enumerate(batches, start_step):
            assert batch.step == step
            for i, image_id in enumerate(batch.image_ids):
                assert image_id not in steps[step]
                steps[step][image_id] = (batch.images[i], batch.label_maps[i])
    return steps


def assert_same(found: dict, expected: dict) -> None:
    assert {step: set(pairs) for step, pairs in found.items()} == {step: set(p) for step, p in expected.items()}
    for step, pairs in expected.items():
        for image_id, arrays in pairs.items():
            for ours, theirs in zip(found[step][image_id], arrays, strict=True):
                assert ours.dtype == theirs.dtype == np.uint8 and (ours == theirs).all()


def oracle(mixture: Mixture, labels: LabelsTable | None) -> dict:
    """The same without Ray, lane by lane."""
    order = make_order(mixture)
    steps: dict[int, dict] = {step: {} for step in range(order.num_steps)}
    for piece in order.slices:
        for i, pair in enumerate(load_slice(piece, mixture, labels, EPOCH)):
            steps[piece.first_step + i][pair.image_id] = (pair.image, pair.label_map)
    return steps


def test_any_number_of_workers_gives_the_same_batches_from_any_step_on(ray_local, mixture):
    """Box supervision works although every gt_label_map and instance mask is poisoned: the stream opens none."""
    for supervision, columns in GRANTED_COLUMNS.items():
        assert supervision == "mask" or not {"gt_label_map", "instance_masks"} & set(columns)
    labels = make_labels(mixture)
    expected = oracle(mixture, labels)
    assert sorted(i for pairs in expected.values() for i in pairs) == [f"tiny/train_{k:02d}" for k in range(14)]
    assert [len(pairs) for pairs in expected.values()] == [4, 4, 4, 2]
    reference = ray.put(labels)
    for num_workers in (1, 2, 3):
        assert_same(stream_all(mixture, reference, num_workers), expected)
    rest = stream_all(mixture, reference, 2, start_step=2)
    assert_same(rest, {step: expected[step] for step in (2, 3)})


def test_the_order_and_the_pixels_change_with_the_epoch(mixture):
    orders = [make_order(mixture, epoch) for epoch in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_rectangles_need_no_mask(ray_local, mixture):
    rectangles = stream_all(with_supervision(mixture, "rectangles"), None, num_workers=2)
    maps = [pair[1] for pairs in rectangles.values() for pair in pairs.values()]
    assert len(maps) == 14 and all(m.shape == (65, 65) for m in maps) and any((m > 0).any() for m in maps)


def test_a_mask_that_does_not_decode_gives_ignored_pixels_and_names_its_record(ray_local, mixture):
    mixture = with_supervision(mixture, "mask")
    batches = list(worker_batches([ray.put(mixture)], make_order(mixture), None, epoch=0, rank=0, num_workers=1))
    problems = {name: text for batch in batches for name, text in batch.bad_records.items()}
    assert sorted(problems) == sorted(name for batch in batches for name in batch.image_ids)
    assert all("does not decode" in text and "records" in text and name in text for name, text in problems.items())
    for batch in batches:
        assert (batch.label_maps == IGNORE_INDEX).all() and not batch.images.any()


def test_worker_without_a_record_in_the_last_step_gets_an_empty_batch(ray_local, mixture):
    order = make_order(mixture)
    shared = [ray.put(with_supervision(mixture, "rectangles"))]
    sizes = [
        [len(b.image_ids) for b in worker_batches(shared, order, None, epoch=0, rank=rank, num_workers=4)]
        for rank in range(4)
    ]
    assert sizes == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0]]


def test_tasks_follow_each_other_while_a_step_is_computed(ray_local, mixture):
    """One slice is taken by the step; the tasks go on by themselves, one at once, until four more are ready."""
    begun: list[Slice] = []

    class Watched(stream._SliceTasks):
        def start(self, unit: Slice, **options: Any) -> Step:
            begun.append(unit)
            return super().start(unit, **options)

    pieces = make_order(mixture).for_worker(0, 1)
    tasks = Watched([ray.put(with_supervision(mixture, "rectangles"))], [], EPOCH, 1)
    prepared = stream._ahead(run_in_order(tasks, pieces), 4)
    first = next(prepared)
    deadline = time.monotonic() + 30
    while len(begun) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    assert begun == pieces[:5] != pieces
    found = [(pair.lane, pair.step) for pairs in [first, *prepared] for pair in pairs]
    assert found == [(piece.lane, piece.first_step + i) for piece in pieces for i in range(len(piece.rows))]


def with_crashing_record(mixture: Mixture, log: Path, times: int) -> Mixture:
    """Rectangles on the same records, one of which ends the process of its task so many times."""
    log.write_text("")
    table = CrashingTable(**vars(mixture.sources[0].records), log=log, times=times)
    return replace(mixture, units=make_units([Source(table, "rectangles")]))


def test_a_task_that_loses_its_process_is_run_again(ray_local, mixture, tmp_path):
    crashing = with_crashing_record(mixture, tmp_path / "crashes", times=1)
    assert_same(stream_all(crashing, None, 2), oracle(with_supervision(mixture, "rectangles"), None))
    assert (tmp_path / "crashes").read_text() == "x"


def test_a_record_that_ends_every_process_is_named_and_ignored(ray_local, mixture, tmp_path):
    crashing = with_crashing_record(mixture, tmp_path / "crashes", times=10**6)
    expected = oracle(with_supervision(mixture, "rectangles"), None)
    for pairs in expected.values():
        if CRASHING in pairs:
            image, label_map = pairs[CRASHING]
            pairs[CRASHING] = (np.zeros_like(image), np.full_like(label_map, IGNORE_INDEX))
    order = make_order(mixture)
    batches = list(worker_batches([ray.put(crashing)], order, None, epoch=EPOCH, rank=0, num_workers=1))
    found = {b.step: dict(zip(b.image_ids, zip(b.images, b.label_maps, strict=True), strict=True)) for b in batches}
    assert_same(found, expected)
    ((name, problem),) = [item for batch in batches for item in batch.bad_records.items()]
    assert name == CRASHING
    assert problem == (
        "ended its data task in every try: native code crashed in it, or the system ended it for lack of memory "
        "(see `dmesg`); "
        f"file: {mixture.sources[0].records.uri}; field: image_id; found: '{CRASHING}'"
    )
    (piece,) = [p for p in order.for_worker(0, 1) if CRASHING in {pair.image_id for pair in load(p, mixture)}]
    levels = {1: 0, 2: 1, 3: 2, 4: 2}  # halvings until the record is alone
    tries = len((tmp_path / "crashes").read_text())
    assert MAX_RETRIES + 1 <= tries <= MAX_RETRIES + 1 + 2 * levels[len(piece.rows)]


def load(piece: Slice, mixture: Mixture) -> list[TrainingPair]:
    return load_slice(piece, with_supervision(mixture, "rectangles"), None, EPOCH)
