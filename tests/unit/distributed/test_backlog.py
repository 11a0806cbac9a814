"""Chunks cover every unit once and in order, shrink towards the end, and lost units go out alone."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxsup_dist.distributed import backlog
from boxsup_dist.distributed.backlog import CHUNK_S, Backlog


@given(
    num_units=st.integers(0, 3000),
    num_sharing=st.integers(1, 200),
    unit_s=st.floats(0, 3),
    limits=st.lists(st.integers(1, 50), min_size=1),
)
def test_chunks_cover_every_unit_once_and_in_order(num_units, num_sharing, unit_s, limits):
    work, taken, sizes = Backlog(num_units), [], []
    while work.num_waiting:
        assert work.first == len(taken) and not work.is_suspect
        size = work.chunk_size(num_sharing)
        assert size == 1 or size * unit_s <= CHUNK_S
        sizes.append(size)
        taken += work.take(min(size, limits[len(sizes) % len(limits)]))
        work.note(1, unit_s)
    assert taken == list(range(num_units))
    assert sizes[:1] in ([], [1])  # before the first answer nobody knows how long a unit takes
    assert sizes[1:] == sorted(sizes[1:], reverse=True)


@given(num_units=st.integers(1, 300), num_sharing=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_every_unit_finishes_once_whatever_is_lost(num_units, num_sharing, seed):
    rng, work, running, finished, lost = random.Random(seed), Backlog(num_units), [], [], set()
    while work.num_waiting or running:
        if work.num_waiting and (not running or rng.random() < 0.5):
            first, alone = work.first, work.is_suspect
            chunk = work.take(work.chunk_size(num_sharing))
            assert chunk[0] == first and list(chunk) == list(range(first, chunk.stop))
            assert not set(chunk) & lost or len(chunk) == 1
            assert alone == (first in lost)
            running.append(chunk)
        else:
            chunk = running.pop(rng.randrange(len(running)))
            work.note(len(chunk), 0.001)
            if rng.random() < 0.2:
                work.give_back(chunk, suspect=True)
                lost |= set(chunk)
            else:
                finished += chunk
    assert sorted(finished) == list(range(num_units))


def test_lost_units_come_first_in_their_order_and_a_lost_node_makes_no_suspects():
    work = Backlog(10)
    work.note(1, 0.0)
    first, second = work.take(4), work.take(3)
    work.give_back(second, suspect=False)
    work.give_back(first, suspect=True)
    order = []
    while work.num_waiting:
        suspect = work.is_suspect
        order.append((list(work.take(work.chunk_size(1))), suspect))
    assert order == [*(([i], True) for i in range(4)), *(([i], False) for i in range(4, 7)), ([7, 8, 9], False)]


@pytest.mark.parametrize("num_members", [8, 64, 512])
def test_hundreds_of_workers_need_a_fraction_of_the_messages_and_end_together(num_members):
    """8,400 units, 133k images: members take turns, each with two chunks, as in the pool."""
    work, chunks = Backlog(8400), []
    done = [0] * num_members
    while work.num_waiting:
        size = work.chunk_size(2 * num_members)
        chunks.append(len(work.take(size)))
        work.note(1, 0.0)
        done[done.index(min(done))] += chunks[-1]
    assert len(chunks) <= 2 * num_members * (1 + math.log(8400 / (2 * num_members)))
    assert max(done) - min(done) <= 2


def test_a_slow_answer_now_and_then_does_not_set_the_size():
    work = Backlog(10_000)
    for seconds in (0.1, 0.1, 50.0, 0.1, 0.0):
        work.note(1, seconds)
    assert work.chunk_size(10) == 10 == int(CHUNK_S / 0.1)
    for _ in range(backlog._NUM_TIMES):
        work.note(4, 4.0)
    assert work.chunk_size(10) == 1
