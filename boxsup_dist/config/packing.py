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
    return bisect_left(range(count), True, key=lambda i: can_fill(nodes, share, before, (i, share)))


def can_fill(nodes: Sequence[Node], share: Share, first: tuple[int, Share], second: tuple[int, Share]) -> bool:
    """Whether two kinds of processes, badly placed, leave no node with room for `share`.

    It is a knapsack: the fewest processes of the second kind that do it, for each number of the first kind.

    Args:
        nodes: The nodes, empty.
        share: What another process needs.
        first: Number of processes of the first kind, and what each reserves.
        second: The same of the second kind.
    """
    (num_first, one), (num_second, other) = first, second
    fewest = [0.0]
    for node, copies in Counter(nodes).items():
        costs = _costs_to_fill(node, share, num_first, one, other)
        for _ in range(copies):
            fewest = _added(fewest, costs, num_first)
            if min(fewest) > num_second:
                return False
    return True


def _costs_to_fill(node: Node, share: Share, num_first: int, one: Share, other: Share) -> list[float]:
    """For each number of the first kind: the fewest of the second that leave the node without room for `share`."""
    of_cpus = _costs(_units(node.cpus), _units(share.cpus), _units(one.cpus), _units(other.cpus), num_first)
    if share.gpus == 0:
        return of_cpus
    of_gpus = [0.0]
    of_gpu = _costs(_UNITS, _units(share.gpus), _units(one.gpus), _units(other.gpus), num_first)
    for _ in range(node.gpus):
        of_gpus = _added(of_gpus, of_gpu, num_first)
    size = max(len(of_cpus), len(of_gpus))
    padded = [costs + [math.inf] * (size - len(costs)) for costs in (of_cpus, of_gpus)]
    return [min(pair) for pair in zip(*padded, strict=True)]


def _costs(capacity: int, need: int, one: int, other: int, num_first: int) -> list[float]:
    """As `_costs_to_fill`, for one resource."""
    return [
        _fewest(capacity - first * one, need, other)
        for first in range(1 + (num_first if one == 0 else min(num_first, capacity // one)))
    ]


def _fewest(left: int, need: int, other: int) -> float:
    """The fewest processes of `other` units that leave less than `need` of `left`; infinite where none do."""
    if left < need:
        return 0
    number = (left - need) // other + 1 if other else 0
    return number if number and number * other <= left else math.inf


def _added(costs: list[float], more: list[float], limit: int) -> list[float]:
    """Costs of filling both; the numbers of the first kind add up, to `limit` at most."""
    total = [math.inf] * min(len(costs) + len(more) - 1, limit + 1)
    for i, cost in enumerate(costs):
        for j, extra in enumerate(more[: len(total) - i]):
            total[i + j] = min(total[i + j], cost + extra)
    return total


def _units(share: float) -> int:
    return round(share * _UNITS)
