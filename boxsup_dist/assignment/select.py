"""The choice of a candidate for a box: the cheapest, or a draw among the k cheapest (paper, section 4.3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.assignment.cost import BoxCosts
from boxsup_dist.randomness import draw_integer

# Costs are compared after rounding to this many digits. Two segments with the same pixels in the box have equal costs,
# but the order of summation, which differs between machines, changes the last bits of the sums.
COST_DIGITS = 9


@dataclass(frozen=True)
class Choice:
    """The candidate that one box took."""

    proposal_index: int  # -1: no candidate
    overlap_cost: float  # Eo; nan without a candidate
    regression_cost: float  # Er; nan without a candidate
    rank: int  # place in the order of choice, 0 is first; -1: no candidate


NO_CHOICE = Choice(-1, float("nan"), float("nan"), -1)


def by_cost(costs: BoxCosts, regression_weight: float) -> NDArray[np.int64]:
    """Order the candidates of a box by their total cost.

    Args:
        costs: Costs of the M candidates.
        regression_weight: Lambda of equation 4.

    Returns:
        Positions among the candidates, (M,), cheapest first. Costs that agree to COST_DIGITS are in proposal order.
    """
    order: NDArray[np.int64] = np.argsort(np.round(costs.total(regression_weight), COST_DIGITS), kind="stable")
    return order


def choose(
    costs: BoxCosts, order: NDArray[np.int64], *, top_k: int, seed: int, epoch: int, image_id: str, box_index: int
) -> Choice:
    """Draw one of the first candidates of an order.

    The draw is a function of (seed, epoch, image_id, box_index) and the number of candidates: any machine makes the
    same one at any time.

    Args:
        costs: Costs of the candidates.
        order: Positions among the candidates, best first, from `by_cost` or `consensus.find_consensus`.
        top_k: Draw among this many; 1 takes the first (winner takes all), the paper draws among 5.
        seed: Seed of the run.
        epoch: Epoch, from 0.
        image_id: The record.
        box_index: The box in the record.

    Returns:
        The choice; NO_CHOICE if the order is empty.
    """
    if len(order) == 0:
        return NO_CHOICE
    rank = draw_integer(min(top_k, len(order)), seed, epoch, image_id, box_index)
    winner = order[rank]
    return Choice(int(costs.candidates[winner]), float(costs.overlap[winner]), float(costs.regression[winner]), rank)
