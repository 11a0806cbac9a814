"""The training stream: the same global batches for any number of workers, from any step on, with and without Ray."""

import random
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import ray

from boxsup_dist.assignment.assign import assign_row_group
from boxsup_dist.data.labels import Labels
from boxsup_dist.data.painting import GRANTED_COLUMNS
from boxsup_dist.data.schema import IGNORE_INDEX
from boxsup_dist.data.sources import Mixture, Source, make_units
from boxsup_dist.distributed.ray_internals import STEP_S, UnhurriedSteps
from boxsup_dist.training import stream
from boxsup_dist.training.order import order_epoch
from boxsup_dist.training.stream import TrainingPair, load_slice, worker_batches
from tests.distributed import tiny

BATCH, EPOCH = 4, 2


@pytest.fixture(scope="module")
def mixture(tmp_path_factory) -> Mixture:
    """Box supervision on records whose ground truth does not decode, so that reading it would fail."""
    train, proposals, _ = tiny.write_tables(tmp_path_factory.mktemp("poisoned"), mask=tiny.POISON)
    return Mixture(make_units([Source(train, "box", proposals)]), tiny.ASSIGNMENT, tiny.AUGMENT, seed=5)


def with_supervision(mixture: Mixture, supervision: str) -> Mixture:
    return replace(mixture, units=make_units([Source(mixture.sources[0].records, supervision)]))


def make_labels(mixture: Mixture) -> Labels:
    (source,) = mixture.sources
    parts = [
        assign_row_group(
            None, source.records.read(w), source.proposals.read(w), mixture.assignment, seed=mixture.seed, epoch=EPOCH
        )
        for w in source.records.row_groups()
    ]
    return Labels.concatenate(parts)


def make_order(mixture: Mixture, epoch: int = EPOCH):
    units = [unit.rows for unit in mixture.units]
    return order_epoch(units, seed=mixture.seed, epoch=epoch, global_batch_size=BATCH)


def stream_all(mixture: Mixture, labels, num_workers: int = 1, start_step: int = 0, epoch: int = EPOCH) -> dict:
    """step -> image_id -> (image, label map), over all workers."""
    order = make_order(mixture, epoch)
    steps: dict[int, dict] = {step: {} for step in range(start_step, order.num_steps)}
    for rank in range(num_workers):
        batches = worker_batches(
            mixture, order, labels, epoch=epoch, rank=rank, num_workers=num_workers, start_step=start_step
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


def oracle(mixture: Mixture, labels: Labels | None) -> dict:
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


def test_blocks_may_arrive_in_any_order(mixture, monkeypatch):
    """Ray Data yields blocks as they finish; each row must still reach its step."""
    mixture = with_supervision(mixture, "rectangles")
    expected = oracle(mixture, None)

    def shuffled(slices, mixture, labels, epoch, max_tasks) -> Iterator[TrainingPair]:
        blocks = [load_slice(piece, mixture, labels, epoch) for piece in slices]
        random.Random(0).shuffle(blocks)
        for block in blocks:
            yield from block

    monkeypatch.setattr(stream, "_lane_pairs", shuffled)
    assert_same(stream_all(mixture, None, 2), expected)


def test_the_order_and_the_pixels_change_with_the_epoch(mixture):
    orders = [make_order(mixture, epoch) for epoch in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_scheduling_does_not_spin_while_the_training_is_slow(ray_local, mixture):
    """With one megabyte beside its reserve, Ray Data soon has no task to wait for."""
    steps = []

    class Counted(UnhurriedSteps):
        def on_execution_step(self, executor: object) -> None:
            steps.append(executor)
            super().on_execution_step(executor)

    slices = make_order(mixture).for_worker(0, 1, 0) * 8
    dataset = stream.make_dataset(slices, with_supervision(mixture, "rectangles"), None, EPOCH, max_tasks=2)
    assert dataset.context.custom_execution_callback_classes == [UnhurriedSteps]
    dataset.context.custom_execution_callback_classes = [Counted]
    dataset.context.execution_options.resource_limits = ray.data.ExecutionResources(object_store_memory=2**20)
    started = time.monotonic()
    for _ in dataset.iter_batches(batch_size=None, prefetch_batches=1):
        time.sleep(0.1)
    assert 1 < len(steps) < (time.monotonic() - started) / STEP_S + 2


def test_rectangles_need_no_mask(ray_local, mixture):
    rectangles = stream_all(with_supervision(mixture, "rectangles"), None, num_workers=2)
    maps = [pair[1] for pairs in rectangles.values() for pair in pairs.values()]
    assert len(maps) == 14 and all(m.shape == (65, 65) for m in maps) and any((m > 0).any() for m in maps)


def test_a_mask_that_does_not_decode_gives_ignored_pixels_and_names_its_record(ray_local, mixture):
    mixture = with_supervision(mixture, "mask")
    batches = list(worker_batches(mixture, make_order(mixture), None, epoch=0, rank=0, num_workers=1))
    problems = {name: text for batch in batches for name, text in batch.bad_records.items()}
    assert sorted(problems) == sorted(name for batch in batches for name in batch.image_ids)
    assert all("does not decode" in text and "records" in text and name in text for name, text in problems.items())
    for batch in batches:
        assert (batch.label_maps == IGNORE_INDEX).all() and not batch.images.any()


def test_worker_without_a_record_in_the_last_step_gets_an_empty_batch(mixture, monkeypatch):
    mixture = with_supervision(mixture, "rectangles")
    order = make_order(mixture)
    rows = [(piece, step) for piece in order.slices for step in range(len(piece.rows))]
    pairs = [
        TrainingPair(piece.lane, piece.first_step + step, "x", False, "", np.zeros(1), np.zeros(1))
        for piece, step in rows
    ]

    def lane_pairs(slices, *_) -> Iterator[TrainingPair]:
        lanes = {piece.lane for piece in slices}
        return iter([pair for pair in pairs if pair.lane in lanes])

    monkeypatch.setattr(stream, "_lane_pairs", lane_pairs)
    sizes = [
        [len(b.image_ids) for b in worker_batches(mixture, order, None, epoch=0, rank=rank, num_workers=4)]
        for rank in range(4)
    ]
    assert sizes == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0]]


def test_a_slice_takes_one_task(ray_local, mixture):
    """Ray Data fuses the numbering of the slices with their loading."""
    pieces = make_order(mixture).for_worker(0, 1)
    rectangles = with_supervision(mixture, "rectangles")
    stats = stream.make_dataset(pieces, rectangles, None, EPOCH, 2).materialize().stats()
    assert f"ReadRange->MapBatches(_load_task): {len(pieces)} tasks executed" in stats
