"""Agreement of the cheap candidates, against masks drawn one by one."""

from __future__ import annotations

import numpy as np
import pytest

from boxsup_dist.assignment.consensus import NUM_VOTERS, find_consensus, find_undecided
from boxsup_dist.assignment.cost import BoxCosts
from boxsup_dist.assignment.select import by_cost
from boxsup_dist.data.painting import pixel_box
from boxsup_dist.data.schema import Proposals
from tests.random_proposals import areas_in, random_proposals

BOX = np.array([4.0, 3.0, 30.0, 25.0])


def drawn_agreement(
    costs: BoxCosts, proposals: Proposals, box: np.ndarray, weight: float, temperature: float
) -> dict[int, float]:
    """Soft IoU of each voter with the mean mask, by position among the candidates; masks are drawn pixel by pixel."""
    x0, y0, x1, y1 = pixel_box(box, *proposals.superpixels.shape)
    voters = by_cost(costs, weight)[:NUM_VOTERS]
    total = costs.total(weight)[voters]
    masks = [np.isin(proposals.superpixels[y0:y1, x0:x1], proposals.members(costs.candidates[v])) for v in voters]
    weights = np.exp(-(total - total.min()) / temperature)
    mean = sum(w * mask for w, mask in zip(weights / weights.sum(), masks, strict=True))
    return {
        int(v): (mean * mask).sum() / (mean + mask - mean * mask).sum() for v, mask in zip(voters, masks, strict=True)
    }


def random_case(seed: int, num_proposals: int) -> tuple[BoxCosts, Proposals]:
    rng = np.random.default_rng(seed)
    proposals = random_proposals(rng, 30, 40, num_superpixels=25, num_proposals=num_proposals, image_id="a")
    n = len(proposals)
    candidates = np.sort(rng.permutation(n)[: max(1, n - 3)])
    return BoxCosts(candidates, rng.random(len(candidates)), rng.normal(size=len(candidates))), proposals


def areas(proposals):
    return areas_in(proposals, BOX)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("temperature", [0.02, 0.1, 1.0])
def test_order_is_that_of_drawn_masks(seed, temperature):
    costs, proposals = random_case(seed, 40)
    order = find_consensus(costs, proposals, areas(proposals), regression_weight=0.5, temperature=temperature).order
    expected = drawn_agreement(costs, proposals, BOX, 0.5, temperature)
    assert sorted(order.tolist()) == sorted(expected)
    agreement = np.array([expected[v] for v in order.tolist()])
    assert (np.diff(agreement) <= 1e-8).all()


def test_a_cold_consensus_is_the_cheapest_candidate():
    costs, proposals = random_case(0, 40)
    order = find_consensus(costs, proposals, areas(proposals), regression_weight=0.5, temperature=1e-6).order
    cheapest = by_cost(costs, 0.5)[0]
    expected = drawn_agreement(costs, proposals, BOX, 0.5, 1e-6)
    assert expected[int(order[0])] == pytest.approx(expected[int(cheapest)])


def test_only_the_cheapest_vote():
    costs, proposals = random_case(1, 3 * NUM_VOTERS)
    order = find_consensus(costs, proposals, areas(proposals), regression_weight=0.5, temperature=0.1).order
    assert sorted(order.tolist()) == sorted(by_cost(costs, 0.5)[:NUM_VOTERS].tolist())


def test_no_candidate_gives_an_empty_order():
    _, proposals = random_case(2, 10)
    none = BoxCosts(np.empty(0, np.int64), np.empty(0), np.empty(0))
    found = find_consensus(none, proposals, areas(proposals), regression_weight=1.0, temperature=0.1)
    assert len(found.order) == 0 and len(find_undecided(found.votes, np.empty(0, np.uint16), 0.15)) == 0


@pytest.mark.parametrize("seed", range(4))
def test_probabilities_are_the_mean_of_drawn_masks(seed):
    costs, proposals = random_case(seed, 40)
    found = find_consensus(costs, proposals, areas(proposals), regression_weight=0.5, temperature=0.2)
    x0, y0, x1, y1 = pixel_box(BOX, *proposals.superpixels.shape)
    total = costs.total(0.5)
    weights = np.exp(-(total - total.min()) / 0.2)
    masks = [np.isin(proposals.superpixels, proposals.members(j)) for j in costs.candidates]
    mean = sum(w * mask for w, mask in zip(weights / weights.sum(), masks, strict=True))
    np.testing.assert_allclose(found.votes[proposals.superpixels[y0:y1, x0:x1]], mean[y0:y1, x0:x1], atol=1e-8)
    absent = np.setdiff1d(np.arange(proposals.num_superpixels), proposals.superpixels[y0:y1, x0:x1])
    assert not found.votes[absent].any()
    segment = proposals.members(costs.candidates[found.order[0]])
    chosen = np.isin(proposals.superpixels, segment)
    undecided = np.isin(proposals.superpixels, find_undecided(found.votes, segment, 0.15))
    np.testing.assert_array_equal(undecided[y0:y1, x0:x1], np.where(chosen, mean < 0.5, mean > 0.15)[y0:y1, x0:x1])
