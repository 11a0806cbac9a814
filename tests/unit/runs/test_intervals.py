"""Intervals of the rows of a table: of their mean IoU, and of their differences from the first row."""

from __future__ import annotations

import numpy as np
import pytest

from boxsup_dist.errors import InputError
from boxsup_dist.evaluation.by_image import sparse_rows
from boxsup_dist.evaluation.confusion import mean_iou
from boxsup_dist.evaluation.units import UnitResult
from boxsup_dist.reporting.text_table import interval_cells
from boxsup_dist.runs.evaluated import keep_matrices
from boxsup_dist.runs.intervals import mean_iou_intervals


def evaluated(folder: str, hits: float, *, seed: int, num_images: int = 30) -> float:
    rng = np.random.default_rng(seed)
    right = rng.binomial(100, hits, num_images)
    images = [(f"image_{i}", np.array([[50, 0], [100 - n, n]])) for i, n in enumerate(right)]
    total = sum(matrix for _, matrix in images)
    keep_matrices(folder, UnitResult(total, num_images, 0, sparse_rows(images)), ("background", "cat"))
    return 100 * mean_iou(total)


def test_rows_have_intervals_and_differences_from_the_first(tmp_path):
    folders = {name: [str(tmp_path / f"{name}{seed}") for seed in range(2)] for name in ("mask", "box", "old")}
    means = {}
    for name, hits in (("mask", 0.8), ("box", 0.7)):
        means[name] = np.mean([evaluated(folder, hits, seed=i) for i, folder in enumerate(folders[name])])
    evaluated(folders["old"][0], 0.5, seed=0)  # the other run of the row has no matrices
    found = mean_iou_intervals(folders)
    assert list(found) == ["mask", "box"] and list(found["mask"]) == ["interval"]
    for name, mean in means.items():
        interval = found[name]["interval"]
        assert interval["value"] == pytest.approx(mean) and interval["low"] < mean < interval["high"]
    difference = found["box"]["difference"]
    assert difference["from"] == "mask" and difference["value"] == pytest.approx(means["box"] - means["mask"])
    assert difference["low"] < difference["value"] < difference["high"] < 0
    low, high = difference["low"], difference["high"]
    assert interval_cells(found["box"])["minus mask"] == f"{difference['value']:+.1f} [{low:.1f}, {high:.1f}]"
    assert interval_cells({"row": "old"}) == {} == mean_iou_intervals({"old": folders["old"], "none": []})


def test_rows_on_different_images_are_an_error(tmp_path):
    evaluated(str(tmp_path / "a"), 0.8, seed=0)
    evaluated(str(tmp_path / "b"), 0.8, seed=0, num_images=29)
    with pytest.raises(InputError, match="images differ"):
        mean_iou_intervals({"a": [str(tmp_path / "a")], "b": [str(tmp_path / "b")]})
