"""The consensus of a box: what its cheap candidates agree on, instead of the lowest cost (not in the paper).

The cheapest of 2,000 noisy costs is often cheap by luck. So the cheapest candidates vote, each with the weight
p(S) ~ exp(-cost(S) / temperature). The votes give every superpixel a probability to belong to the object. The candidate
wins whose part inside the box has the largest expected overlap with the object. If a cost is read as -log p, this is
the choice of least expected loss.

Votes and choice can disagree about a superpixel. It is decided if it is in the chosen segment with at least half of the
votes, or outside with almost none. Otherwise it is undecided: there the choice is most likely wrong.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.assignment.cost import BoxCosts
from boxsup_dist.assignment.select import COST_DIGITS, by_cost
from boxsup_dist.data.schema import Proposals

NUM_VOTERS = 200  # more voters change nothing measurable, because their weights vanish
# Added to the log-odds of a share of the votes, which makes it a probability: votes are too sure of background.
CALIBRATION = 0.6


class Consensus(NamedTuple):
    """What the NUM_VOTERS cheapest candidates of a box agree on."""

    order: NDArray[np.int64]  # positions of the voters among the candidates, most agreement first
    votes: NDArray[np.float64]  # (S,), each superpixel's share of the votes; 0 outside the box


def find_undecided(votes: NDArray[np.float64], segment: NDArray[np.uint16], share: float | None) -> NDArray[np.uint16]:
    """Superpixels about which votes and chosen segment disagree.

    Args:
        votes: (S,), each superpixel's share of the votes (`Consensus.votes`).
        segment: Superpixel ids of the segment that the box took.
        share: Share of the votes, in 0..1, up to which a superpixel outside the segment is decided; None: all are.

    Returns:
        Ids, ascending: inside the segment those with less than half of the votes, outside it those with more than
        `share`.
    """
    if share is None:
        return np.array([], np.uint16)
    chosen = np.zeros(len(votes), bool)
    chosen[segment] = True
    low = np.where(chosen, 0, share)
    high = np.where(chosen, 0.5, np.inf)
    return np.flatnonzero((votes > low) & (votes < high)).astype(np.uint16)


def calibrated(votes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability (S,) of each superpixel to belong to the object, from its share of the votes; 0 without a vote."""
    share = np.clip(votes, 0, 1)
    raised = share * np.exp(CALIBRATION)
    probability: NDArray[np.float64] = raised / (raised + 1 - share)
    return probability


def find_consensus(
    costs: BoxCosts, proposals: Proposals, area: NDArray[np.integer], *, regression_weight: float, temperature: float
) -> Consensus:
    """Let the cheapest candidates of a box vote, and order them by their agreement with the votes.

    Agreement is the soft IoU of a candidate with the superpixels' shares of the votes, over the pixels of the box.

    Args:
        costs: Costs of the box's candidates.
        proposals: The image's proposals; their superpixel map is not used.
        area: (S,), pixels of every superpixel inside the box (`BoxSums.dense`).
        regression_weight: Lambda of equation 4.
        temperature: A voter's weight falls by e with every `temperature` of cost; > 0.

    Returns:
        Order and votes. Voters that agree equally well are ordered by cost. Without a candidate the order is
        empty and no superpixel has a vote.
    """
    order = by_cost(costs, regression_weight)[:NUM_VOTERS]
    if len(order) == 0:
        return Consensus(order, np.zeros(proposals.num_superpixels))
    total = costs.total(regression_weight)[order]
    weights = np.exp((total[0] - total) / temperature)
    weights /= weights.sum()

    segments = [proposals.members(j) for j in costs.candidates[order]]
    lengths = [len(segment) for segment in segments]
    members = np.concatenate(segments)
    starts = np.cumsum([0, *lengths[:-1]])
    votes = np.bincount(members, weights=np.repeat(weights, lengths), minlength=proposals.num_superpixels)

    shared = np.add.reduceat((votes * area)[members], starts)
    sizes = np.add.reduceat(area[members].astype(np.float64), starts)
    agreement = shared / np.maximum((votes * area).sum() + sizes - shared, 1e-12)
    inside: NDArray[np.float64] = np.where(area > 0, np.round(votes, COST_DIGITS), 0.0)
    return Consensus(order[np.argsort(-np.round(agreement, COST_DIGITS), kind="stable")], inside)
