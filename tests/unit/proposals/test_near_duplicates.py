"""Suppression and choice of candidates against their plain forms."""

import numpy as np
import pytest

from boxsup_dist.proposals import near_duplicates
from boxsup_dist.proposals.membership import Membership


def random_sets(num_sets: int, num_superpixels: int, seed: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    base = [rng.random(num_superpixels) < rng.uniform(0.1, 0.9) for _ in range(6)]
    sets = [np.flatnonzero(base[rng.integers(6)] ^ (rng.random(num_superpixels) < 0.05)) for _ in range(num_sets)]
    sets = [s if len(s) else np.array([0]) for s in sets]
    return sets, np.cumsum([0] + [len(s) for s in sets]), np.concatenate(sets).astype(np.uint16)


def random_superpixels() -> tuple[np.ndarray, np.ndarray]:
    """Sizes and boxes of 40 superpixels, 5 rows of 8, each filling a random part of its cell of 10x10 pixels."""
    rng = np.random.default_rng(1)
    height, width = rng.integers(4, 11, (2, 40))
    left, top = 10 * (np.arange(40) % 8), 10 * (np.arange(40) // 8)
    extents = np.stack([left, top, left + width, top + height], 1).astype(np.int32)
    return rng.integers(1, height * width + 1), extents


@pytest.mark.parametrize("limit", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("max_candidates", [1, 10, 60, 1000])
def test_suppression_equals_the_plain_form(limit, max_candidates):
    sets, indptr, indices = random_sets(60, 40, 0)
    sizes, extents = random_superpixels()
    kept: list[int] = []
    dropped = []
    for j, members in enumerate(sets):
        shared = [sizes[np.intersect1d(members, sets[i])].sum() for i in kept]
        union = [sizes[np.union1d(members, sets[i])].sum() for i in kept]
        near = any(s / u > limit for s, u in zip(shared, union, strict=True))
        (dropped if near else kept).append(j)
    membership = Membership(indptr, indices)
    found = near_duplicates.suppress_duplicates(membership, sizes, extents, limit, max_candidates)
    assert found.tolist() == (kept + dropped)[:max_candidates]
    assert (
        near_duplicates.survivors(membership, sizes, extents, limit, max_candidates).tolist() == kept[:max_candidates]
    )


def test_no_candidate():
    empty = np.empty(0, np.uint16)
    membership = Membership(np.zeros(1, np.int64), empty)
    boxes = np.zeros((3, 4), np.int32)
    assert near_duplicates.suppress_duplicates(membership, np.ones(3, np.int64), boxes, 0.9, 5).tolist() == []


def test_take_keeps_order():
    sets, indptr, indices = random_sets(20, 15, 3)
    rows = np.array([7, 0, 19, 7])
    out_indptr, out = Membership(indptr, indices).take(rows)
    assert [out[out_indptr[j] : out_indptr[j + 1]].tolist() for j in range(4)] == [sets[r].tolist() for r in rows]
    assert Membership(indptr, indices).take(np.empty(0, np.int64)).indptr.tolist() == [0]
