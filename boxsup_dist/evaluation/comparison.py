"""Arms of runs, compared on the same images: every metric of each arm, and its difference from the first arm.

An arm is one run, or several that differ in their seeds alone; its metric is the mean over its runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.evaluation.bootstrap import Estimate, draw, estimates, measure_all
from boxsup_dist.evaluation.confusion import (
    foreground_shares,
    iou_per_class,
    mean_iou,
    precision_per_class,
    recall_per_class,
)

if TYPE_CHECKING:
    from scipy.sparse import csr_array

NUM_MISTAKES = 8  # of the pairs of classes, those whose share differs most
Key = tuple[str, str]
"""Name of a metric, and the class that it is of; "" for all classes together."""


@dataclass(frozen=True)
class Compared:
    """Metrics as shares, 0..1, with their intervals."""

    arms: dict[str, dict[Key, Estimate]]
    differences: dict[str, dict[Key, Estimate]]  # of each arm but the first: its metrics minus those of the first
    by_run: dict[str, list[float]]  # the same difference of mean IoU for each pair of runs, where the arms pair up

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it: metric, class, value, low and high in percent."""

        def rows(found: Mapping[Key, Estimate]) -> list[dict[str, Any]]:
            return [
                {"metric": metric, "class": cls}
                | {name: None if np.isnan(v) else 100 * v for name, v in each._asdict().items()}
                for (metric, cls), each in found.items()
            ]

        return {
            "metrics": {name: rows(found) for name, found in self.arms.items()},
            "differences": {name: rows(found) for name, found in self.differences.items()},
            "mean_iou_by_run": {name: [100 * each for each in found] for name, found in self.by_run.items()},
        }


def compare(arms: Mapping[str, Sequence[csr_array]], class_names: Sequence[str]) -> Compared:
    """Compare arms with the first of them.

    Args:
        arms: Of each arm the matrices of its runs, int64 (N, C * C), with the same image in the same row (`paired`).
        class_names: C names.
    """
    names, runs = list(arms), [matrices for each in arms.values() for matrices in each]
    ends = np.cumsum([len(each) for each in arms.values()])
    parts = [slice(end - len(each), end) for end, each in zip(ends, arms.values(), strict=True)]
    size = len(class_names)
    pairs = measure_all(runs, lambda confusion: _mistakes(confusion).ravel())
    shares = [pairs[part].mean(axis=0) for part in parts]
    spread = np.nanmax([np.nan_to_num(np.abs(share - shares[0])) for share in shares], axis=0)
    cells = np.argsort(-spread, kind="stable")[:NUM_MISTAKES]
    cells = cells[spread[cells] > 0]

    def measure(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
        by_class = (iou_per_class(confusion), recall_per_class(confusion), precision_per_class(confusion))
        of_all = np.array([mean_iou(confusion), *foreground_shares(confusion)])
        return np.concatenate([of_all, *by_class, _mistakes(confusion).ravel()[cells]])

    keys = [(name, "") for name in ("mean_iou", "recall", "precision", "wrong_class")]
    keys += [(kind, name) for kind in ("iou", "class_recall", "class_precision") for name in class_names]
    keys += [("taken", f"{class_names[cell // size]} taken for {class_names[cell % size]}") for cell in cells.tolist()]
    values, drawn = measure_all(runs, measure), draw(runs, measure)
    found = {name: (values[part], drawn[part]) for name, part in zip(names, parts, strict=True)}
    mean = {name: (ours.mean(axis=0), draws.mean(axis=0)) for name, (ours, draws) in found.items()}

    def named(values: NDArray[np.float64], drawn: NDArray[np.float64]) -> dict[Key, Estimate]:
        return dict(zip(keys, estimates(values, drawn), strict=True))

    first, *others = names
    same_number = [name for name in others if len(found[name][0]) == len(found[first][0])]
    return Compared(
        {name: named(*mean[name]) for name in names},
        {name: named(mean[name][0] - mean[first][0], mean[name][1] - mean[first][1]) for name in others},
        {name: (found[name][0][:, 0] - found[first][0][:, 0]).tolist() for name in same_number},
    )


def _mistakes(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """(C, C): share of every class (row) that is taken for another one; 0 on the diagonal, nan without a pixel."""
    wholes = confusion.sum(axis=1, keepdims=True)
    shares: NDArray[np.float64] = np.divide(confusion, wholes, out=np.full(confusion.shape, np.nan), where=wholes > 0)
    np.fill_diagonal(shares, 0)
    return shares
