"""Choose the candidate that the cheap candidates agree on, instead of the cheapest one (not in the paper).

The cheapest of 2,000 noisy costs is often cheap by luck. With p(S) ~ exp(-cost(S) / temperature) over the cheapest
candidates, every superpixel gets a probability to belong to the object, and the candidate wins whose part inside the
box has the largest expected overlap with it: the choice of least expected loss, if the costs are read as -log p.

A superpixel is decided if it lies in the chosen segment and half of the votes or more are for it, or outside and hardly
any is; the choice is most likely wrong about the others.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from boxsup_dist.assignment.cost import BoxCosts
from boxsup_dist.assignment.select import COST_DIGITS, by_cost
from boxsup_dist.data.painting import pixel_box
from boxsup_dist.data.schema import Proposals

NUM_VOTERS = 200  # more change nothing measurable: their weights vanish


class Consensus(NamedTuple):
    """What the NUM_VOTERS cheapest candidates of a box agree on."""

    order: np.ndarray  # int64 (M,), their positions among the candidates, in falling agreement with all of them
    probability: np.ndarray  # float64 (S,), of each superpixel to belong to the object; 0 outside the box


def find_undecided(probability: np.ndarray, segment: np.ndarray, share: float) -> np.ndarray:
    """Superpixels that are neither decided for nor against, where `segment`, uint16, is the box's one: uint16.

    `probability` (S,) is each one's to belong to the object. Decided for: in the segment with 0.5 or more. Against:
    outside it with `share` or less.
    """
    chosen = np.zeros(len(probability), bool)
    chosen[segment] = True
    low = np.where(chosen, 0, share)
    high = np.where(chosen, 0.5, np.inf)
    return np.flatnonzero((probability > low) & (probability < high)).astype(np.uint16)


def find_consensus(
    costs: BoxCosts, proposals: Proposals, box: np.ndarray, *, regression_weight: float, temperature: float
) -> Consensus:
    """Weigh the cheapest candidates by exp(-cost / temperature) and order them by agreement.

    Agreement is the soft IoU, over the pixels of the box, of a candidate with the superpixels' probabilities. Equal
    agreement goes by cost. Without a candidate the order is empty and every probability 0.
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
    x0, y0, x1, y1 = pixel_box(box, *proposals.superpixels.shape)
    area = np.bincount(proposals.superpixels[y0:y1, x0:x1].ravel(), minlength=proposals.num_superpixels)
    probability = np.bincount(members, weights=np.repeat(weights, lengths), minlength=proposals.num_superpixels)

    shared = np.add.reduceat((probability * area)[members], starts)
    sizes = np.add.reduceat(area[members].astype(np.float64), starts)
    agreement = shared / np.maximum((probability * area).sum() + sizes - shared, 1e-12)
    probability = np.where(area > 0, np.round(probability, COST_DIGITS), 0)
    return Consensus(order[np.argsort(-np.round(agreement, COST_DIGITS), kind="stable")], probability)
