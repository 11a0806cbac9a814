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
    rank: int  # place in the order of choice, 0 is first; -1 without a candidate


NO_CHOICE = Choice(-1, float("nan"), float("nan"), -1)


def by_cost(costs: BoxCosts, regression_weight: float) -> np.ndarray:
    """Positions among the candidates, int64 (M,), cheapest first.

    Equal costs go by proposal order, that is by objectness; equal means to COST_DIGITS.
    """
    return np.argsort(np.round(costs.total(regression_weight), COST_DIGITS), kind="stable")


def choose(
    costs: BoxCosts, order: np.ndarray, *, top_k: int, seed: int, epoch: int, image_id: str, box_index: int
) -> Choice:
    """Draw one of the `top_k` first candidates of `order` (by_cost or consensus.by_agreement); 1 takes the first.

    The draw is a pure function of (seed, epoch, image_id, box_index): it does not depend on who makes it, or when.
    """
    if len(order) == 0:
        return NO_CHOICE
    rank = draw_integer(min(top_k, len(order)), seed, epoch, image_id, box_index)
    winner = order[rank]
    return Choice(int(costs.candidates[winner]), float(costs.overlap[winner]), float(costs.regression[winner]), rank)
