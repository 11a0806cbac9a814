"""The 95 % intervals in a table of results: of each row's mean IoU, and of its difference from the first row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from boxsup_dist.evaluation.bootstrap import Estimate, draw, estimates, measure_all
from boxsup_dist.evaluation.by_image import paired
from boxsup_dist.evaluation.confusion import mean_iou
from boxsup_dist.runs.evaluated import has_matrices, read_matrices

Interval = dict[str, Any]
"""value, low and high in percent; a difference also has `from`, the name of the first row."""


def mean_iou_intervals(rows: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Interval]]:
    """Intervals of the rows whose runs all have the matrices of single images.

    Args:
        rows: Name of each row -> folders of its runs, which differ in their seeds.

    Returns:
        Name of a row -> `interval`, and after the first `difference`, as JSON values. Of the mean over the runs.

    Raises:
        InputError: The runs were evaluated on different images, or a file is damaged.
    """
    usable = {name: list(folders) for name, folders in rows.items() if folders and all(map(has_matrices, folders))}
    if not usable:
        return {}
    runs = paired([(folder, read_matrices(folder)) for folders in usable.values() for folder in folders])

    def measure(confusion: Any) -> Any:
        return np.array([mean_iou(confusion)])

    values, drawn = measure_all(runs, measure), draw(runs, measure)
    found: dict[str, dict[str, Interval]] = {}
    first: tuple[str, Any, Any] | None = None
    start = 0
    for name, folders in usable.items():
        part = slice(start, start + len(folders))
        value, draws, start = values[part].mean(axis=0), drawn[part].mean(axis=0), part.stop
        found[name] = {"interval": _percent(estimates(value, draws)[0])}
        if first is None:
            first = name, value, draws
        else:
            difference = estimates(value - first[1], draws - first[2])[0]
            found[name]["difference"] = {"from": first[0], **_percent(difference)}
    return found


def _percent(found: Estimate) -> Interval:
    return {name: 100 * value for name, value in found._asdict().items()}
