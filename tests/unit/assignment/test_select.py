"""The draw among the cheapest candidates: a pure function of its key, uniform, with ties in proposal order."""

import math

import numpy as np
import pytest
import scipy.stats

from boxsup_dist.assignment.cost import BoxCosts
from boxsup_dist.assignment.select import NO_CHOICE, Choice, by_cost, choose

KEY = {"seed": 0, "epoch": 1, "image_id": "voc2012/2007_000032", "box_index": 2}


def costs_of(overlap: list[float], regression: list[float] | None = None, candidates: list[int] | None = None):
    return BoxCosts(
        np.arange(len(overlap)) if candidates is None else np.array(candidates),
        np.array(overlap),
        np.zeros(len(overlap)) if regression is None else np.array(regression),
    )


def take(costs: BoxCosts, top_k: int, regression_weight: float = 1.0, **key) -> Choice:
    return choose(costs, by_cost(costs, regression_weight), top_k=top_k, **{**KEY, **key})


def test_winner_takes_all_takes_the_lowest_total_cost():
    rng = np.random.default_rng(0)
    for weight in (0.0, 0.3, 3.0):
        costs = costs_of(rng.random(50), rng.random(50), rng.permutation(1000)[:50])
        best = (costs.overlap + weight * costs.regression).argmin()
        expected = Choice(int(costs.candidates[best]), costs.overlap[best], costs.regression[best], 0)
        assert take(costs, 1, weight) == expected


@pytest.mark.parametrize("noise", [0.0, 1e-15])
def test_ties_go_to_the_proposal_that_comes_first(noise):
    rng = np.random.default_rng(1)
    costs = costs_of(np.repeat([0.5, 0.2], 20) + noise * rng.normal(size=40))
    assert take(costs, 1).proposal_index == 20
    drawn = {take(costs, 3, image_id=str(i)).proposal_index for i in range(60)}
    assert drawn == {20, 21, 22}


def test_the_draw_is_among_the_k_cheapest_and_has_its_rank():
    costs = costs_of([0.9, 0.1, 0.5, 0.3, 0.7], candidates=[10, 11, 12, 13, 14])
    by_rank = [11, 13, 12]
    drawn = [take(costs, 3, image_id=str(i)) for i in range(60)]
    assert {choice.rank for choice in drawn} == {0, 1, 2}
    for choice in drawn:
        assert choice.proposal_index == by_rank[choice.rank]
        assert choice.overlap_cost == costs.overlap[choice.proposal_index - 10]


def test_the_draw_is_a_function_of_its_key_alone():
    costs = costs_of(list(range(1000)))
    first = take(costs, 1000)
    np.random.seed(5)  # the global generator must not matter
    assert take(costs, 1000) == first
    # The costs do not matter either: only the number of candidates does.
    assert take(costs_of(list(range(0, 5000, 5))), 1000).rank == first.rank
    ranks = {
        take(costs, 1000, **change).rank
        for change in ({}, {"seed": 1}, {"epoch": 2}, {"image_id": "voc2012/2007_000033"}, {"box_index": 3})
    }
    assert len(ranks) == 5


@pytest.mark.parametrize("top_k", [2, 5, 7])
@pytest.mark.parametrize("varied", ["seed", "epoch", "image_id", "box_index"])
def test_ranks_are_uniform_along_every_part_of_the_key(top_k, varied):
    costs = costs_of(list(range(20)))
    num_draws = 1500
    values = [str(i) for i in range(num_draws)] if varied == "image_id" else range(num_draws)
    counts = np.bincount([take(costs, top_k, **{varied: value}).rank for value in values], minlength=top_k)
    expected = num_draws / top_k
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert scipy.stats.chi2.sf(chi_square, top_k - 1) > 1e-5, counts


def test_draws_of_neighbouring_boxes_and_epochs_are_independent():
    costs = costs_of(list(range(20)))
    for varied, other in (("box_index", 3), ("epoch", 2)):
        pairs = np.zeros((4, 4))
        for i in range(1600):
            a, b = take(costs, 4, image_id=str(i)), take(costs, 4, image_id=str(i), **{varied: other})
            pairs[a.rank, b.rank] += 1
        assert scipy.stats.chi2.sf(((pairs - 100) ** 2 / 100).sum(), 15) > 1e-5, pairs


def test_fewer_candidates_than_k():
    costs = costs_of([0.4, 0.2])
    assert {take(costs, 5, image_id=str(i)).rank for i in range(40)} == {0, 1}
    assert take(costs_of([0.4], candidates=[7]), 5) == Choice(7, 0.4, 0.0, 0)


@pytest.mark.parametrize("top_k", [1, 5])
def test_no_candidate(top_k):
    choice = take(costs_of([]), top_k)
    assert choice is NO_CHOICE and choice.proposal_index == choice.rank == -1
    assert math.isnan(choice.overlap_cost) and math.isnan(choice.regression_cost)
