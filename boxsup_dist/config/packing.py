"""Whether the processes of a run find room on the nodes of a cluster, wherever Ray places them.

Ray places one process after the other and moves none: the train workers first, then the actors, then data tasks. It may
put two workers on the one node that a large actor needs. So a process has room only if no placement of those before it
fills every node; `can_fill` looks for such a placement.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_UNITS = 10_000  # Ray counts shares in 1/10000


@dataclass(frozen=True, order=True)
class Node:
    """What a node has for processes."""

    cpus: float
    gpus: int = 0

    def __str__(self) -> str:
        return f"{_plural(self.cpus, 'CPU')}, {_plural(self.gpus, 'GPU')}" if self.gpus else _plural(self.cpus, "CPU")


@dataclass(frozen=True)
class Share:
    """What Ray reserves for a process. A share of a GPU lies on one GPU."""

    cpus: float
    gpus: float = 0.0

    def __str__(self) -> str:
        return (
            f"{_plural(self.cpus, 'CPU')} and {_plural(self.gpus, 'GPU')}" if self.gpus else _plural(self.cpus, "CPU")
        )


def _plural(number: float, noun: str) -> str:
    return f"{number:g} {noun}" if number <= 1 else f"{number:g} {noun}s"


def describe(nodes: Sequence[Node]) -> str:
    """Nodes in words, equal ones together: "2 x (4 CPUs, 1 GPU), 1 x (8 CPUs)"."""
    return ", ".join(f"{count} x ({node})" for node, count in sorted(Counter(nodes).items())) or "none"


def num_placed(nodes: Sequence[Node], share: Share, count: int, before: tuple[int, Share]) -> int:
    """How many of `count` equal processes surely find room after those of `before`: their number, and their share."""
    if not can_fill(nodes, share, before, (count - 1, share)):
        return count
    return bisect_left(range(count), True, key=lambda i: can_fill(nodes, share, before, (i, share)))


def can_fill(nodes: Sequence[Node], share: Share, first: tuple[int, Share], second: tuple[int, Share]) -> bool:
    """Whether two kinds of processes, badly placed, may leave no node with room for `share`.

    Exact would be a knapsack. Instead each process gets a price: if filling every node at its cheapest costs more than
    all processes are worth, nothing can fill them. One price that shows it is enough, so the answer errs on the side of
    True, and seldom (tests/unit/test_resources.py counts how often).

    Args:
        nodes: The nodes, empty.
        share: What another process needs.
        first: Number of processes of the first kind, and what each reserves.
        second: The same of the second kind.
    """
    (num_first, one), (num_second, other) = first, second
    prices = [(1.0, ratio) for ratio in (0.0, 1 / 3, 1 / 2, 1.0, 2.0, 3.0)]
    for pair in [(0.0, 1.0), (one.cpus, other.cpus), (one.gpus, other.gpus), *prices]:
        worth = pair[0] * num_first + pair[1] * num_second
        if (
            sum(count * _price(node, share, first, second, pair) for node, count in Counter(nodes).items())
            > worth + 1e-9
        ):
            return False
    return True


def _price(
    node: Node, share: Share, first: tuple[int, Share], second: tuple[int, Share], pair: tuple[float, float]
) -> float:
    """The lowest price of processes that leave a node without room for `share`; `pair`: the price of each kind."""
    (num_first, one), (num_second, other) = first, second

    def lowest(capacity: float, need: float, size: float, other_size: float) -> float:
        """The same for one resource. Infinite where nothing fills it."""
        left, needed, unit, other_unit = (round(value * _UNITS) for value in (capacity, need, size, other_size))
        found = math.inf
        for number in range(1 + (min(num_first, left // unit) if unit else 0)):
            missing = left - number * unit - needed  # what the second kind has to exceed
            others = 0 if missing < 0 else missing // other_unit + 1 if other_unit else num_second + 1
            if others <= num_second and number * unit + others * other_unit <= left:
                found = min(found, pair[0] * number + pair[1] * others)
        return found

    of_cpus = lowest(node.cpus, share.cpus, one.cpus, other.cpus)
    if share.gpus == 0:
        return of_cpus
    return min(of_cpus, node.gpus * lowest(1.0, share.gpus, one.gpus, other.gpus) if node.gpus else 0.0)
