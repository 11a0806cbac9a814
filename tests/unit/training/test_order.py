"""The order of an epoch: complete, resumable, and the same batches for any number of workers."""

from collections import Counter

import numpy as np
import pytest

from boxsup_dist.training.order import FIRST_ROWS, EpochOrder, order_epoch

NUM_WORKERS = (1, 2, 3, 4, 7)
TABLES = {
    "even": [8] * 12,
    "uneven": [16, 1, 5, 16, 16, 3, 2, 16],
    "one unit": [37],
    "single rows": [1] * 23,
    "smaller than a batch": [3, 2],
    "one record": [1],
    "whole batches": [10, 10, 10],
    "empty units": [0, 4, 0, 9],
}
tables = pytest.mark.parametrize("sizes", TABLES.values(), ids=TABLES)
batch_sizes = pytest.mark.parametrize("batch_size", [1, 7, 10])


def make_order(sizes: list[int], batch_size: int, seed: int = 0, epoch: int = 0) -> EpochOrder:
    units = [range(rows) for rows in sizes]
    return order_epoch(units, seed=seed, epoch=epoch, global_batch_size=batch_size)


def worker_steps(
    order: EpochOrder, rank: int, num_workers: int, start_step: int = 0
) -> list[list[tuple[int, int, int]]]:
    """(lane, row group, row) of every record that one worker takes, step by step, from a step on."""
    steps: list[list[tuple[int, int, int]]] = [[] for _ in range(order.num_steps - start_step)]
    for piece in order.for_worker(rank, num_workers, start_step):
        for i, row in enumerate(piece.rows):
            steps[piece.first_step + i - start_step].append((piece.lane, piece.unit_index, row))
    return [sorted(step) for step in steps]  # the stream takes a batch lane by lane


def global_steps(order: EpochOrder, num_workers: int, start_step: int = 0) -> list[Counter]:
    """Records of every global batch, over all workers."""
    by_worker = [worker_steps(order, rank, num_workers, start_step) for rank in range(num_workers)]
    return [Counter(record for step in parts for record in step) for parts in zip(*by_worker, strict=True)]


@tables
@batch_sizes
@pytest.mark.parametrize("epoch", [0, 1])
def test_every_record_exactly_once(sizes, batch_size, epoch):
    found = make_order(sizes, batch_size, epoch=epoch)
    records = Counter((piece.unit_index, row) for piece in found.slices for row in piece.rows)
    assert records == Counter((index, row) for index, rows in enumerate(sizes) for row in range(rows))


@tables
@batch_sizes
def test_only_the_last_step_is_smaller(sizes, batch_size):
    found = make_order(sizes, batch_size)
    lengths = [batch.total() for batch in global_steps(found, 1)]
    assert len(lengths) == found.num_steps == -(-sum(sizes) // batch_size)
    assert lengths[:-1] == [batch_size] * (len(lengths) - 1)
    assert 1 <= lengths[-1] <= batch_size and sum(lengths) == sum(sizes)


@tables
@batch_sizes
def test_global_batches_do_not_depend_on_the_number_of_workers(sizes, batch_size):
    found = make_order(sizes, batch_size)
    expected = global_steps(found, 1)
    for num_workers in NUM_WORKERS:
        assert global_steps(found, num_workers) == expected


@tables
@batch_sizes
def test_a_lane_gives_one_record_a_step_without_gaps(sizes, batch_size):
    found = make_order(sizes, batch_size)
    assert len(found.lane_lengths) == batch_size
    steps: dict[int, list[int]] = {lane: [] for lane in range(batch_size)}
    for piece in found.slices:
        assert piece.rows
        steps[piece.lane] += range(piece.first_step, piece.first_step + len(piece.rows))
    for lane, length in enumerate(found.lane_lengths):
        assert steps[lane] == list(range(length))  # in the order of the slices, which is the order of reading


@tables
def test_slices_come_in_the_order_in_which_steps_need_them(sizes):
    found = make_order(sizes, 7)
    for num_workers in (1, 3):
        for rank in range(num_workers):
            starts = [(piece.first_step, piece.lane) for piece in found.for_worker(rank, num_workers)]
            assert starts == sorted(starts)


@tables
@batch_sizes
def test_units_are_read_in_few_pieces(sizes, batch_size):
    # A slice ends where its row group ends or where its lane does.
    found = make_order(sizes, batch_size)
    assert len(found.slices) <= sum(rows > 0 for rows in sizes) + min(batch_size, sum(sizes)) - 1


@tables
@pytest.mark.parametrize("num_workers", NUM_WORKERS)
def test_resuming_from_any_step_gives_the_rest(sizes, num_workers):
    found = make_order(sizes, 7)
    for rank in range(num_workers):
        whole = worker_steps(found, rank, num_workers)
        for start in range(found.num_steps + 1):
            assert worker_steps(found, rank, num_workers, start) == whole[start:]


def test_a_resumed_epoch_may_have_another_number_of_workers():
    found = make_order(TABLES["uneven"], 10)
    assert global_steps(found, 3, start_step=2) == global_steps(found, 4)[2:]


def test_workers_share_a_batch_as_evenly_as_they_can():
    found = make_order([16] * 10, 10)
    for num_workers in NUM_WORKERS:
        shares = [[len(step) for step in worker_steps(found, rank, num_workers)] for rank in range(num_workers)]
        assert all(max(step) - min(step) <= 1 for step in zip(*shares, strict=True))


def test_the_order_is_a_function_of_seed_and_epoch():
    sizes = TABLES["uneven"]
    assert make_order(sizes, 7, seed=3, epoch=2) == make_order(sizes, 7, seed=3, epoch=2)
    orders = {make_order(sizes, 7, seed, epoch).slices for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_where_a_record_comes_is_uniform():
    # The first record of the table: over 400 epochs of 5 steps it comes about 80 times in each.
    steps = []
    for epoch in range(400):
        (piece,) = (p for p in make_order([4] * 10, 8, epoch=epoch).slices if p.unit_index == 0 and 0 in p.rows)
        steps.append(piece.first_step + piece.rows.index(0))
    counts = np.bincount(steps)
    assert len(counts) == 5 and np.abs(counts - 80).max() < 5 * 80**0.5


def test_a_batch_mixes_units():
    # 40 row groups of 16, batches of 10: neighbours in the table must not fill a batch together.
    found = make_order([16] * 40, 10)
    distinct = [len({group for _, group, _ in batch}) for batch in global_steps(found, 1)]
    assert min(distinct) >= 9


def test_a_table_without_records_has_no_step():
    found = make_order([], 4)
    assert (found.num_steps, found.slices, found.for_worker(0, 2)) == (0, (), [])


@pytest.mark.parametrize("start_step", [0, 3, 9])
def test_the_first_step_waits_for_few_records(start_step):
    found = make_order([16] * 20, 10)
    slices = found.for_worker(0, 2, start_step)
    first = [piece for piece in slices if piece.first_step == start_step]
    assert len(first) == 5 and all(len(piece.rows) <= FIRST_ROWS for piece in first)
    assert len(slices) <= len(found.for_worker(0, 2, 0)) <= 2 * 5 + 10
