"""Figures that compare runs: every panel and bar is there, for any number of runs and classes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from boxsup_dist.data.schema import VOC_CLASSES
from boxsup_dist.errors import InputError
from boxsup_dist.evaluation.confusion import read_confusion, write_confusion
from boxsup_dist.reporting import comparison_figures as figures


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def has_colour(picture: np.ndarray, colour: tuple[int, int, int], at_least: int = 1) -> bool:
    return int((picture == colour).all(axis=2).sum()) >= at_least


@pytest.mark.parametrize("size", [(30, 40), (40, 4), (1, 1)])
def test_a_grid_shows_every_panel(size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 77, np.uint8)
    rows = [
        [image, np.full(size, 1, np.uint8), np.full(size, 255, np.uint8)],
        [image, None, np.full(size, 2, np.uint8)],
    ]
    picture = pixels(figures.image_grid_figure(["image", "a", "b"], rows, VOC_CLASSES))
    assert has_colour(picture, (77, 77, 77), 20)
    assert has_colour(picture, (128, 0, 0), 20)  # VOC's aeroplane
    assert has_colour(picture, (0, 128, 0), 20)  # and bicycle


def test_a_grid_names_regions() -> None:
    image = np.zeros((60, 80, 3), np.uint8)
    label_map = np.zeros((60, 80), np.uint8)
    label_map[10:50, 10:70] = 15
    with_names = figures.image_grid_figure(["image", "a"], [[image, label_map]], VOC_CLASSES)
    region = (pixels(with_names) == (192, 128, 128)).all(axis=2)
    ys, xs = np.nonzero(region)
    inside = pixels(with_names)[ys.min() : ys.max(), xs.min() : xs.max()]
    assert has_colour(inside, (255, 255, 255)), "the name is written in white on the region"


@pytest.mark.parametrize("num_runs", [1, 2, 7])
def test_iou_bars_of_runs(num_runs: int) -> None:
    iou = {f"run {i}": dict.fromkeys(VOC_CLASSES, 10.0 * i + 5) for i in range(num_runs)}
    picture = pixels(figures.iou_comparison_figure(iou))
    assert has_colour(picture, (0, 0x72, 0xB2), 50)
    assert has_colour(picture, (0xD5, 0x5E, 0x00), 50) == (num_runs > 1)


def test_iou_bars_of_absent_classes() -> None:
    figures.iou_comparison_figure({"a": {"cat": None, "dog": None}, "b": {"cat": float("nan"), "dog": 3.0}})


def test_the_confusion_matrix_is_of_rows() -> None:
    confusion = np.zeros((21, 21), np.int64)
    confusion[0, 0] = 10**9
    confusion[3, 4] = 2
    picture = pixels(figures.confusion_figure(confusion, VOC_CLASSES))
    # The darkest blue twice: one row of few pixels counts like one of many; the others are white.
    darkest = (picture == (8, 48, 107)).all(axis=2)
    rows = np.flatnonzero(np.diff(darkest.any(axis=1).astype(int)) == 1)
    assert len(rows) == 2


@pytest.mark.parametrize("histories", [
    {"a": [{"epoch": 1, "train_loss": 1.0}, {"epoch": 2, "train_loss": 0.5, "mean_iou": 40.0}],
     "b": [{"epoch": 1, "train_loss": 2.0, "label_mean_iou": 70.0}]},
    {"a": [], "b": []},
    {"a": [{"epoch": 1, "train_loss": float("nan")}]},
])  # fmt: skip
def test_curves_of_runs(histories: dict) -> None:
    assert pixels(figures.curves_comparison_figure(histories)).size > 0


def test_a_kept_confusion_matrix_comes_back(tmp_path) -> None:
    uri = str(tmp_path / "confusion.json")
    assert read_confusion(uri) is None
    confusion = np.array([[2**40, 1], [0, 3]])
    write_confusion(uri, confusion, ("background", "cat"))
    found = read_confusion(uri)
    assert found is not None and found.confusion.dtype == np.int64 and found.class_names == ("background", "cat")
    np.testing.assert_array_equal(found.confusion, confusion)


@pytest.mark.parametrize("text", ["[]", "{}", '{"confusion": [[1], [2, 3]], "class_names": []}'])
def test_what_is_no_confusion_matrix_is_an_error_that_names_the_file(tmp_path, text: str) -> None:
    (tmp_path / "confusion.json").write_text(text)
    with pytest.raises(InputError, match=r"(not a confusion matrix|an object|required).*confusion\.json"):
        read_confusion(str(tmp_path / "confusion.json"))
