"""Figures: the right colours in the right places, and no input that a run can produce breaks them."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from boxsup_dist.data.palette import bright_colours, class_palette
from boxsup_dist.data.schema import VOC_CLASSES
from boxsup_dist.reporting import figures
from boxsup_dist.reporting.overlay import overlay

LINE = (0x00, 0x72, 0xB2)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def has_colour(picture: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((picture == colour).all(axis=2).any())


def test_palette_is_vocs() -> None:
    palette = class_palette(VOC_CLASSES)
    # As the devkit's own PNG files carry it.
    assert palette[[0, 1, 2, 3, 8, 15, 20]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [64, 0, 0],
        [192, 128, 128],
        [0, 64, 128],
    ]
    assert palette[255].tolist() == [224, 224, 192]
    assert len({tuple(row) for row in palette[:255].tolist()}) == 255
    np.testing.assert_array_equal(palette, class_palette())


@pytest.mark.parametrize("count", [2, 5, 21, 81, 200])
def test_other_classes_have_colours_of_their_own(count: int) -> None:
    palette = class_palette(("background", *(f"thing {i}" for i in range(1, count))))
    assert palette[0].tolist() == [0, 0, 0] and palette[255].tolist() == [255, 255, 255]
    used = palette[:count].astype(int)
    apart = np.abs(used[:, None] - used[None]).sum(2) + 999 * np.eye(count, dtype=int)
    assert apart.min() >= (40 if count <= 21 else 1)
    np.testing.assert_array_equal(used[1:], bright_colours(count)[1:])  # those of the contact sheet


def test_palette_equals_that_of_a_devkit_file(shared: Path) -> None:
    folder = shared / "voc-mini/VOCdevkit/VOC2012/SegmentationClass"
    stored = Image.open(next(iter(sorted(folder.glob("*.png"))))).getpalette()
    assert stored is not None
    np.testing.assert_array_equal(np.reshape(stored, (-1, 3))[:21], class_palette(VOC_CLASSES)[:21])


@pytest.mark.parametrize("num_maps", [0, 1, 4])
@pytest.mark.parametrize("num_boxes", [0, 2])
@pytest.mark.parametrize("size", [(30, 40), (40, 4), (1, 1)])
def test_every_panel_is_drawn(num_maps: int, num_boxes: int, size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 77, np.uint8)
    boxes = np.tile(np.array([[0.0, 0.0, size[1], size[0]]], np.float32), (num_boxes, 1))
    label_maps = [(f"epoch {i}", np.full(size, i + 1, np.uint8)) for i in range(num_maps)]
    prediction = np.full(size, 9, np.uint8)
    ground_truth = np.full(size, 12, np.uint8)
    class_ids = np.full(num_boxes, 20)
    png = figures.label_evolution_figure(image, boxes, class_ids, label_maps, prediction, ground_truth, VOC_CLASSES)
    picture = pixels(png)
    palette = class_palette(VOC_CLASSES)
    for class_id in [*range(1, num_maps + 1), 9, 12]:
        assert has_colour(picture, tuple(palette[class_id])), "in the legend"
        over_photo = np.round(0.55 * 77 + 0.45 * palette[class_id]).astype(int)
        assert has_colour(picture, tuple(over_photo))
    without = figures.label_evolution_figure(image, boxes, class_ids, [], None)
    assert pixels(without).size < picture.size


HISTORIES: dict[str, list[dict[str, Any]]] = {
    "gaps": [{"epoch": e, "train_loss": 1.0 / e, "mean_iou": None if e % 2 else 50.0} for e in range(1, 6)],
    "not finite": [{"epoch": 1, "train_loss": math.nan}, {"epoch": 2, "train_loss": 2}, {"epoch": 3, "train_loss": 1}],
    "resumed in the middle": [{"epoch": e, "label_mean_iou": 10.0 * e} for e in (7, 8)],
    "no epoch key": [{"train_loss": 1.0}, {"train_loss": 0.5}],
}


@pytest.mark.parametrize("name", HISTORIES)
def test_curves_of_any_history(name: str) -> None:
    picture = figures.curves_figure(HISTORIES[name], figures.CURVES)
    assert picture is not None and has_colour(pixels(picture), LINE)


@pytest.mark.parametrize(
    "history",
    [[], [{"epoch": 1, "train_loss": 1.0}], [{"epoch": e, "train_loss": 1.0} for e in (1, 2)],
     [{"epoch": e, "mean_iou": None, "note": "x"} for e in (1, 2)]],
)  # fmt: skip
def test_what_has_no_curve_is_not_drawn(history: list[dict[str, Any]]) -> None:
    assert figures.curves_figure(history, figures.CURVES) is None


def test_a_panel_for_each_curve() -> None:
    loss = [{"epoch": e, "train_loss": 1.0 / e} for e in (1, 2)]
    few = figures.curves_figure(loss, figures.CURVES)
    many = figures.curves_figure([{**row, "mean_iou": 9.0 * row["epoch"]} for row in loss], figures.CURVES)
    assert few is not None and many is not None
    assert pixels(many).shape[1] > pixels(few).shape[1]


def test_numbers_that_no_panel_has_get_one() -> None:
    named, unknown = figures.other_panels([{"epoch": e, "surprise_s": e, "flag": True, "text": "a"} for e in (1, 2)])
    assert (named, unknown) == ([], [("Surprise s", {"surprise_s": "surprise_s"}, 1.0)])


def test_stages_of_several_epochs_are_bars() -> None:
    rows: list[dict[str, Any]] = [{"epoch": 1, "seconds": None}, {"epoch": 2, "seconds": {"a b_c": 1}}]
    assert figures.stages_figure(rows) is None
    assert figures.stages_figure([*rows, {"epoch": 3, "seconds": {"train": 3, "evaluate": 1.0}}]) is not None


@pytest.mark.parametrize("iou", [[50.0, 100.0, 0.0], [math.nan, 0.5, None], [math.nan] * 3])
def test_bars_mark_absent_classes(iou: list[float | None]) -> None:
    assert pixels(figures.iou_bars_figure(iou, ["background", "cat", "a <b> & $c$"])).size > 0


def test_trimap_curves_of_several_runs_and_gaps() -> None:
    runs: dict[str, dict[str, Any]] = {
        "mask": {"inside": [10.0, 20.0], "outside": [50.0, None]},
        "box": {"inside": [None, None], "outside": [40.0, 45.0]},
    }
    assert pixels(figures.trimap_figure((8, 2), runs)).size > 0


def test_no_global_state_of_matplotlib_is_touched() -> None:
    code = (
        "import sys; import numpy as np; from boxsup_dist.reporting import figures;"
        "assert figures.curves_figure([{'train_loss': 1.0}, {'train_loss': 2.0}], figures.CURVES);"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


def test_boxes_are_outlined_in_their_colour_and_the_rest_stays() -> None:
    image = np.full((40, 60, 3), 7, np.uint8)
    boxes = np.array([[10, 5, 30, 25], [50, 30, 70, 45], [0, 0, 2, 2]], np.float32)  # whole, over the border, tiny
    palette = class_palette(VOC_CLASSES)
    outlined = overlay(image, None, palette, boxes=boxes, box_classes=np.array([1, 2, 3], np.int32))
    assert (image == 7).all()
    assert (outlined[5:7, 10:30] == palette[1]).all() and (outlined[23:25, 10:30] == palette[1]).all()
    assert (outlined[8:22, 13:27] == 7).all()
    assert (outlined[30:32, 50:60] == palette[2]).all() and (outlined[33:37, 53:57] == 7).all()
    assert (outlined[0:2, 0:2] == palette[3]).all()
    assert (outlined[0:5, 2:50] == 7).all()


def test_a_panel_with_one_curve_of_several_names_it(monkeypatch):
    titles = []
    monkeypatch.setattr(figures, "finish_axes", lambda axes, title, epochs: titles.append(title))
    history = [{"epoch": n, "label_mean_iou": 60.0 + n, "train_loss": 1.0 / n} for n in (1, 2)]
    figures.curves_figure(history, figures.QUALITY)
    figures.curves_figure([{**row, "mean_iou": 40.0 + row["epoch"]} for row in history], figures.QUALITY)
    assert titles == ["Mean IoU (%): label maps", "Training loss", "Mean IoU (%)", "Training loss"]
