"""Pictures that compare runs, as PNG bytes: grids of label maps, IoU by class, confusion, curves.

Runs differ by colour (Okabe and Ito's palette, safe for colour-blind readers) and by hatch or marker. Colour-blind
readers confuse the colours of label maps: the names of the classes are written on the regions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.data.schema import BACKGROUND, IGNORE_INDEX
from boxsup_dist.reporting.figures import (
    CURVES,
    CURVES_ACROSS,
    LINE_COLOURS,
    PANEL_INCHES,
    colour,
    draw_legend,
    finish_axes,
    new_figure,
    number,
    png,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIN_NAMED_SHARE = 0.01  # of the image: a smaller region has no room for its name
MIN_SHOWN_PERCENT = 0.5  # in a cell of the confusion matrix; below it rounds to nothing
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "++++")
MARKERS = ("o", "s", "^", "D", "v", "P")


def image_grid_figure(
    columns: Sequence[str], rows: Sequence[Sequence[NDArray[np.uint8] | None]], class_names: Sequence[str]
) -> bytes:
    """A grid with one image per row.

    Args:
        columns: Titles of the columns.
        rows: Panels of each row: RGB pictures (H, W, 3) and label maps (H, W), with white for ignored pixels. The first
            panel is the image; None leaves a panel empty. At least one row.
        class_names: Names of the classes, written on the regions; a class without a name is shown by its number.

    Returns:
        The PNG file.
    """
    assert rows and all(len(row) == len(columns) and row[0] is not None for row in rows)
    heights = [_panel_height(row[0]) for row in rows]
    figure = new_figure(PANEL_INCHES * len(columns), sum(heights) + 0.6)
    grid = figure.subplots(len(rows), len(columns), squeeze=False, height_ratios=heights)
    present: set[int] = set()
    for index, row in enumerate(rows):
        for axes, title, panel in zip(grid[index], columns, row, strict=True):
            if index == 0:
                axes.set_title(title, fontsize=9)
            axes.set_axis_off()
            if panel is None:
                continue
            axes.imshow(panel if panel.ndim == 3 else colour(panel, class_names), interpolation="nearest")
            if panel.ndim == 2:
                present |= set(np.unique(panel).tolist())
                _name_regions(axes, panel, class_names)
    draw_legend(figure, sorted(present - {BACKGROUND}), class_names)
    return png(figure)


def _panel_height(image: NDArray[np.uint8] | None) -> float:
    assert image is not None
    height, width = image.shape[:2]
    return PANEL_INCHES * float(min(max(height / width, 0.4), 1.6))


def _name_regions(axes: Axes, label_map: NDArray[np.uint8], class_names: Sequence[str]) -> None:
    """Write each class's name where its regions are widest."""
    from matplotlib.patheffects import withStroke
    from scipy import ndimage

    for class_id in np.unique(label_map):
        inside = label_map == class_id
        if class_id in (BACKGROUND, IGNORE_INDEX) or inside.mean() < MIN_NAMED_SHARE:
            continue
        depth = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
        y, x = (float(place) for place in np.unravel_index(int(depth.argmax()), depth.shape))
        name = class_names[class_id] if class_id < len(class_names) else f"class {class_id}"
        rim = [withStroke(linewidth=1.6, foreground="black")]
        axes.text(x, y, name, fontsize=7, color="white", ha="center", va="center", path_effects=rim, clip_on=True)


def iou_comparison_figure(iou: Mapping[str, Mapping[str, float | None]]) -> bytes:
    """Bars of IoU by class and run, with the mean on top.

    Args:
        iou: Name of the run -> class -> IoU in percent, None for an absent class. All runs have the same classes; at
            least one run.

    Returns:
        The PNG file.
    """
    classes = list(next(iter(iou.values())))
    labels = ["mean", *classes]
    thickness = 0.8 / len(iou)
    figure = new_figure(7.5, (0.13 * len(iou) + 0.14) * len(labels) + 1.0)
    axes = figure.subplots()
    for index, (run, by_class) in enumerate(iou.items()):
        values = np.array([number(by_class.get(name)) for name in classes], np.float64)
        values = np.concatenate([[np.nanmean(values) if not np.isnan(values).all() else np.nan], values])
        places = np.arange(len(labels)) + (index - (len(iou) - 1) / 2) * thickness
        axes.barh(
            places,
            np.nan_to_num(values),
            height=0.92 * thickness,
            color=LINE_COLOURS[index % len(LINE_COLOURS)],
            hatch=HATCHES[index % len(HATCHES)],
            edgecolor="white",
            linewidth=0,
            label=run,
        )
        for place, value in zip(places, values, strict=True):
            text = "absent" if np.isnan(value) else f"{value:.1f}"
            axes.text(np.nan_to_num(value) + 0.8, place, text, va="center", fontsize=6, color="#444444")
    axes.axhline(0.5, color="#999999", linewidth=0.8)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlim(0, 106)
    axes.set_xlabel("IoU (%)", fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=3, fontsize=8, frameon=False)
    return png(figure)


def confusion_figure(confusion: NDArray[np.int64], class_names: Sequence[str]) -> bytes:
    """A confusion matrix as percent of each row.

    Args:
        confusion: Counts of pixels (C, C), rows ground truth, columns prediction. A row without a pixel stays empty.
        class_names: Names of the C classes.

    Returns:
        The PNG file. One hue from light to dark: it can be read by lightness alone.
    """
    num_classes = len(class_names)
    assert confusion.shape == (num_classes, num_classes)
    totals = confusion.sum(axis=1, keepdims=True)
    percent = np.divide(100.0 * confusion, totals, out=np.zeros(confusion.shape), where=totals > 0)
    side = 0.36 * num_classes + 1.6
    figure = new_figure(side, side)
    axes = figure.subplots()
    axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    for row, column in itertools.product(range(num_classes), repeat=2):
        value = percent[row, column]
        if value >= MIN_SHOWN_PERCENT:
            dark = value > 55
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=6.5,
                      color="white" if dark else "#222222")  # fmt: skip
    axes.set_xticks(range(num_classes), list(class_names), fontsize=8, rotation=90)
    axes.set_yticks(range(num_classes), list(class_names), fontsize=8)
    axes.set_xlabel("prediction", fontsize=9)
    axes.set_ylabel("ground truth (% of its pixels)", fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return png(figure)


def curves_comparison_figure(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """Curves over epochs: one panel per known metric (CURVES) that a run has, one line per run.

    Args:
        histories: Name of the run -> the metrics of its epochs, with the key `epoch`.

    Returns:
        The PNG file.
    """
    panels = [
        (f"{title}: {name}" if len(keys) > 1 else title, key, factor)
        for title, keys, factor in CURVES
        for key, name in keys.items()
        if any(number(row.get(key)) is not None for rows in histories.values() for row in rows)
    ]
    count = max(len(panels), 1)
    across = min(count, CURVES_ACROSS)
    down = math.ceil(count / across)
    figure = new_figure(3.9 * across, 2.7 * down + 0.4)
    grid = list(figure.subplots(down, across, squeeze=False).ravel())
    last = max((row["epoch"] for rows in histories.values() for row in rows), default=1)
    for axes, (title, key, factor) in zip(grid, panels, strict=False):
        for index, rows in enumerate(histories.values()):
            points = [(row["epoch"], number(row.get(key))) for row in rows]
            found = [(epoch, factor * value) for epoch, value in points if value is not None]
            if found:
                axes.plot(*zip(*found, strict=True), linewidth=1.4, color=LINE_COLOURS[index % len(LINE_COLOURS)],
                          marker=MARKERS[index % len(MARKERS)], markersize=3.5)  # fmt: skip
        finish_axes(axes, title, range(1, last + 1))
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for index, run in enumerate(histories):
        grid[0].plot([], [], color=LINE_COLOURS[index % len(LINE_COLOURS)], marker=MARKERS[index % len(MARKERS)],
                     markersize=3.5, label=run)  # fmt: skip
    figure.legend(loc="outside upper left", ncols=4, fontsize=8, frameon=False)
    return png(figure)
