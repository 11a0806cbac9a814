"""The order of MCG's candidates: what it prefers, all else being equal."""

import numpy as np
import pytest

from boxsup_dist.proposals import mcg_ranking
from boxsup_dist.proposals.combining import Pool

SHAPE = (100, 200)


def pool(**changes) -> Pool:
    """Two candidates that differ in `changes` alone."""
    fields = {
        "trees": 0, "nodes": [0, -1, -1], "parts": 1, "steps": 40, "outer": np.float32(0.2), "inner": np.float32(0.1),
        "length": np.float32(120), "copies": 1, "areas": 900, "boxes": [20, 30, 55, 60],
    }  # fmt: skip
    both = {name: np.array([value, changes.get(name, value)]) for name, value in fields.items()}
    return Pool(**both)


@pytest.mark.parametrize(
    "better",
    [{"outer": 0.4}, {"copies": 4}, {"length": 100.0}, {"boxes": [20, 30, 51, 60]}],
    ids=["stronger contour", "in more hierarchies", "smoother", "fills its box"],
)
def test_denser(better):
    one, two = mcg_ranking.density(pool(**better), SHAPE)
    assert two > one


@pytest.mark.parametrize("worse", [{"boxes": [0, 30, 35, 60]}, {"parts": 3}, {"boxes": [0, 0, 200, 100]}])
def test_sparser(worse):
    one, two = mcg_ranking.density(pool(**worse), SHAPE)
    assert two < one


def test_first_order():
    assert mcg_ranking.first_order(pool(steps=3)).tolist() == [1, 0]
    assert mcg_ranking.first_order(pool(parts=2)).tolist() == [0, 1]
    assert mcg_ranking.first_order(pool(outer=0.5)).tolist() == [1, 0]
    assert mcg_ranking.first_order(pool()).tolist() == [0, 1]


def test_the_chosen_come_denser_first():
    assert mcg_ranking.by_density(pool(copies=4), np.array([0, 1]), SHAPE).tolist() == [1, 0]
    assert mcg_ranking.by_density(pool(copies=4), np.array([0]), SHAPE).tolist() == [0]
