"""Which candidate a box takes: winner-takes-all or a draw among the k cheapest (paper, section 4.3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from boxsup_dist.assignment.cost import BoxCosts
from boxsup_dist.randomness import draw_integer

# Segments with the same pixels in the box tie, but their sums differ in the last bits with the order of summation,
# which is a matter of the machine: ties are decided before those bits.
COST_DIGITS = 9


@dataclass(frozen=True)
class Choice:
    """What one box took."""

    proposal_index: int  # -1: the box has no candidate
    overlap_cost: float
    regression_cost: float
    rank: int  # 0 is the cheapest candidate; -1 without one


NO_CHOICE = Choice(-1, float("nan"), float("nan"), -1)


def choose(
    costs: BoxCosts, *, regression_weight: float, top_k: int, seed: int, epoch: int, image_id: str, box_index: int
) -> Choice:
    """Draw one of the `top_k` candidates of lowest cost; top_k = 1 is winner-takes-all.

    The draw is a pure function of (seed, epoch, image_id, box_index): it does not depend on who makes it, or when.
    Equal costs go by proposal order, that is by objectness; equal means to COST_DIGITS.
    """
    num_candidates = len(costs.candidates)
    if num_candidates == 0:
        return NO_CHOICE
    order = np.argsort(np.round(costs.total(regression_weight), COST_DIGITS), kind="stable")[:top_k]
    rank = draw_integer(len(order), seed, epoch, image_id, box_index)
    winner = order[rank]
    return Choice(int(costs.candidates[winner]), float(costs.overlap[winner]), float(costs.regression[winner]), rank)
