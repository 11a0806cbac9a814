"""Pictures of a run as PNG bytes: label maps over the epochs, curves, IoU by class.

The canvas is matplotlib's Agg, without pyplot: nothing global changes and no display is needed. The functions import
matplotlib when they draw, because every worker of a run imports this module and only a few of them draw.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.data.palette import class_palette
from boxsup_dist.data.schema import BACKGROUND, IGNORE_INDEX
from boxsup_dist.reporting.overlay import overlay
from boxsup_dist.reporting.words import METRICS, STAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_INCHES = 2.6
DPI = 110
CURVES_ACROSS = 3
LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#999999")  # Okabe, Ito

PHOTO_INCHES = 3.4  # side of a panel of an example: three fill the page of a report
PHOTOS_ACROSS = 3

Panel = tuple[str, dict[str, str], float]
"""Title, {key of the history: legend}, factor. The history has IoUs in percent, shares in 0..1."""

QUALITY: tuple[Panel, ...] = (
    (
        "Mean IoU (%)",
        {"mean_iou": "validation images", "label_mean_iou": "label maps", "trained_label_mean_iou": "trained on"},
        1.0,
    ),
    (
        "Objects in the label maps (%)",
        {
            "label_recall": "recall",
            "label_precision": "precision",
            "trained_label_recall": "recall, trained on",
            "trained_label_precision": "precision, trained on",
        },
        1.0,
    ),
    ("Pixels that are not trained on (%)", {"label_ignored_share": "ignored"}, 100.0),
    ("Box score (%)", {"box_score": "box score", "box_iou": "IoU of boxes", "box_recall": "boxes found"}, 1.0),
    ("Predicted outside every box (%)", {"outside_share": "pixels"}, 100.0),
    ("Foreground pixels (%)", {"foreground_share": "predicted", "label_foreground_share": "label maps"}, 100.0),
    ("Boxes whose segment changed (%)", {"share_changed": "changed"}, 100.0),
    ("Training loss", {"train_loss": "loss"}, 1.0),
)
SPEED: tuple[Panel, ...] = (
    ("Images per second", {"images_per_s": "rate"}, 1.0),
    ("Wait for later batches (% of the steps)", {"wait_share": "wait"}, 100.0),
)
INTERNALS: tuple[Panel, ...] = (
    ("Mean costs of the chosen segments", {"mean_overlap_cost": "overlap", "mean_regression_cost": "regression"}, 1.0),
    ("Boxes without a candidate (%)", {"share_without_candidate": "boxes"}, 100.0),
    ("Training (s)", {"train_s": "steps", "first_batch_s": "first batch", "gap_s": "pause before it"}, 1.0),
)
CURVES = (*QUALITY, *SPEED, *INTERNALS)
NOT_DRAWN = {"epoch", "num_images", "num_without_ground_truth"}  # the same in every epoch
STACKED = "seconds"  # a mapping of stages to their duration


def new_figure(width_inches: float, height_inches: float) -> Figure:
    """An empty figure whose layout matplotlib makes."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width_inches, height_inches), dpi=DPI, layout="constrained")


def colour(label_map: NDArray[np.uint8], class_names: Sequence[str] = ()) -> NDArray[np.uint8]:
    """A label map (H, W) as RGB (H, W, 3), in the colours of its classes."""
    colours: NDArray[np.uint8] = class_palette(class_names)[label_map]
    return colours


def label_evolution_figure(
    image: NDArray[np.uint8],
    boxes_xyxy: NDArray[np.float32],
    class_ids: NDArray[np.int32],
    label_maps: Sequence[tuple[str, NDArray[np.uint8]]],
    prediction: NDArray[np.uint8] | None,
    gt_label_map: NDArray[np.uint8] | None = None,
    class_names: Sequence[str] = (),
    headline: str = "",
) -> bytes:
    """One image: with its boxes, its label map at several epochs, the prediction, the ground truth.

    Label maps lie over the photo with contours, three panels in a row.

    Args:
        image: RGB (H, W, 3).
        boxes_xyxy: Boxes (K, 4); K may be 0.
        class_ids: Class of each box (K,).
        label_maps: (title, label map (H, W)). White or nearly white: ignored pixels.
        prediction: Label map (H, W); None leaves the panel out.
        gt_label_map: Label map (H, W); None leaves the panel out.
        class_names: Names for the legend; a class without a name is shown by its number.
        headline: Text above all panels.

    Returns:
        The PNG file.
    """
    colours = class_palette(class_names)
    maps = [*label_maps, ("prediction", prediction), ("ground truth", gt_label_map)]
    shown = [(title, label_map) for title, label_map in maps if label_map is not None]
    panels = [("image and boxes", overlay(image, None, colours, boxes=boxes_xyxy, box_classes=class_ids))]
    panels += [(title, overlay(image, label_map, colours)) for title, label_map in shown]
    down, across = _rows_and_columns(len(panels), PHOTOS_ACROSS)
    height = PHOTO_INCHES * min(max(image.shape[0] / image.shape[1], 0.4), 1.6)
    figure = new_figure(PHOTO_INCHES * across, (height + 0.25) * down + 0.3)
    if headline:
        figure.suptitle(headline, fontsize=9, x=0.01, ha="left")
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, (title, picture) in zip(grid, panels, strict=False):
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(title, fontsize=9)
    present = {int(c) for _, label_map in shown for c in np.unique(label_map)} | {int(c) for c in class_ids}
    draw_legend(figure, sorted(present - {BACKGROUND}), class_names)
    return png(figure)


def _rows_and_columns(count: int, most_across: int) -> tuple[int, int]:
    """The grid of `count` panels; four of them are two rows of two, not a row of three and one alone."""
    across = 2 if count == 4 else min(count, most_across)
    return math.ceil(count / across), across


def draw_legend(figure: Figure, class_ids: Sequence[int], class_names: Sequence[str]) -> None:
    """Patches below all panels; a class without a name is shown by its number."""
    from matplotlib.patches import Patch

    palette = class_palette(class_names) / 255.0
    names = [
        "ignored" if c == IGNORE_INDEX else class_names[c] if c < len(class_names) else f"class {c}" for c in class_ids
    ]
    patches = [
        Patch(facecolor=tuple(palette[c]), edgecolor="#808080", linewidth=0.5, label=name)
        for c, name in zip(class_ids, names, strict=True)
    ]
    if patches:
        figure.legend(handles=patches, loc="outside lower left", ncols=8, fontsize=8, frameon=False)


def curves_figure(history: Sequence[Mapping[str, Any]], panels: Sequence[Panel]) -> bytes | None:
    """Curves of the numbers in a run's history over its epochs.

    Args:
        history: The metrics of each epoch, with the key `epoch`. A value that is missing or not finite has no point,
            and the line continues at the next one.
        panels: What to draw. A panel is left out unless one of its metrics has two epochs of different value.

    Returns:
        The PNG file; None if no metric has a curve.
    """
    shown = [(_titled_alone(title, keys, history), _drawn(history, keys), factor) for title, keys, factor in panels]
    shown = [panel for panel in shown if any(_is_curve(history, key) for key in panel[1])]
    if not shown:
        return None
    down, across = _rows_and_columns(len(shown), CURVES_ACROSS)
    figure = new_figure(3.9 * across, 2.7 * down)
    grid = list(figure.subplots(down, across, squeeze=False).ravel())
    epochs = [row.get("epoch", i) for i, row in enumerate(history, 1)]
    for axes, (title, keys, factor) in zip(grid, shown, strict=False):
        _draw_curves(axes, epochs, history, keys, factor)
        finish_axes(axes, title, epochs)
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    return png(figure)


def _titled_alone(title: str, keys: Mapping[str, str], history: Sequence[Mapping[str, Any]]) -> str:
    """A panel's title; with the name of its curve where it has only one of several, for which there is no legend."""
    drawn = _drawn(history, keys)
    return f"{title}: {next(iter(drawn.values()))}" if len(drawn) == 1 < len(keys) else title


def stages_figure(history: Sequence[Mapping[str, Any]]) -> bytes | None:
    """Stacked bars of the seconds of the stages around the training; None for fewer than two epochs that have them."""
    rows = [row[STACKED] if isinstance(row.get(STACKED), Mapping) else {} for row in history]
    if sum(bool(row) for row in rows) < 2:
        return None
    figure = new_figure(5.2, 3.0)
    axes = figure.subplots()
    epochs = [row.get("epoch", i) for i, row in enumerate(history, 1)]
    _draw_stack(axes, epochs, rows)
    finish_axes(axes, "Stages around the training (s)", epochs)
    return png(figure)


def other_panels(history: Sequence[Mapping[str, Any]]) -> tuple[list[Panel], list[Panel]]:
    """Panels of the numbers that CURVES lacks: measures of quality, which words.py knows, and the rest."""
    known = NOT_DRAWN | {key for _, keys, _ in CURVES for key in keys}
    found = [k for k in dict.fromkeys(k for row in history for k in row) if k not in known]
    numbers = [key for key in found if any(number(row.get(key)) is not None for row in history)]
    named: list[Panel] = [(_titled(METRICS[k][0]), {k: k}, METRICS[k][1]) for k in numbers if k in METRICS]
    return named, [(_titled(k.replace("_", " ")), {k: k}, 1.0) for k in numbers if k not in METRICS]


def _titled(words: str) -> str:
    return words[:1].upper() + words[1:]


def _drawn(history: Sequence[Mapping[str, Any]], keys: Mapping[str, str]) -> dict[str, str]:
    return {key: name for key, name in keys.items() if any(number(row.get(key)) is not None for row in history)}


def _is_curve(history: Sequence[Mapping[str, Any]], key: str) -> bool:
    return len({value for row in history if (value := number(row.get(key))) is not None}) > 1


def number(value: Any) -> float | None:
    """The value if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _draw_curves(
    axes: Axes, epochs: Sequence[int], history: Sequence[Mapping[str, Any]], keys: Mapping[str, str], factor: float
) -> None:
    for line_colour, (key, name) in zip(LINE_COLOURS, keys.items(), strict=False):
        numbers = [number(row.get(key)) for row in history]
        points = [(e, v * factor) for e, v in zip(epochs, numbers, strict=True) if v is not None]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.4, color=line_colour, label=name)
    if len(keys) > 1:
        axes.legend(fontsize=7, frameon=False)


def _draw_stack(axes: Axes, epochs: Sequence[int], rows: Sequence[Mapping[str, Any]]) -> None:
    base = np.zeros(len(rows))
    for index, part in enumerate(dict.fromkeys(part for row in rows for part in row)):
        values = np.array([number(row.get(part)) or 0.0 for row in rows])
        line_colour = LINE_COLOURS[index % len(LINE_COLOURS)]
        axes.bar(epochs, values, bottom=base, color=line_colour, label=STAGES.get(part, part.replace("_", " ")))
        base += values
    axes.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)


def finish_axes(axes: Axes, title: str, epochs: Sequence[int]) -> None:
    """Title, ticks and faint grid of a panel over epochs."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, fontsize=9, loc="left")
    axes.set_xlabel("epoch", fontsize=8)
    axes.set_xlim(min(epochs, default=1) - 0.5, max(epochs, default=1) + 0.5)
    axes.tick_params(labelsize=7)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_axisbelow(True)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def iou_bars_figure(iou: Sequence[float | None], class_names: Sequence[str]) -> bytes:
    """One bar per class: its IoU in percent, 0..100. A class that is in neither map (nan or None) is marked absent."""
    assert len(iou) == len(class_names)
    values = np.array([np.nan if value is None else value for value in iou], np.float64)
    figure = new_figure(7.0, 0.24 * len(values) + 0.7)
    axes = figure.subplots()
    axes.barh(range(len(values)), np.nan_to_num(values), color=LINE_COLOURS[0], height=0.72)
    for row, value in enumerate(values):
        text = "absent" if np.isnan(value) else f"{value:.1f}"
        axes.text(np.nan_to_num(value) + 0.8, row, text, va="center", fontsize=7, color="#444444")
    axes.set_yticks(range(len(values)), list(class_names), fontsize=8)
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.set_xlim(0, 108)
    axes.set_xlabel("IoU (%)", fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    if not np.isnan(values).all():
        mean = float(np.nanmean(values))
        axes.axvline(mean, color=LINE_COLOURS[1], linewidth=1.2, linestyle="--", label=f"mean {mean:.1f}")
        axes.legend(fontsize=7, frameon=False, loc="lower right")
    return png(figure)


def trimap_figure(widths_px: Sequence[int], runs: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Mean IoU in percent over the width of the trimap band, inside and outside the band; one curve per run.

    Args:
        widths_px: Widths of the band.
        runs: Name of the run -> {"inside": values, "outside": values}, one value per width, None for a missing one.

    Returns:
        The PNG file.
    """
    figure = new_figure(8.2, 3.2)
    order = np.argsort(widths_px)
    for axes, side in zip(figure.subplots(1, 2), ("inside", "outside"), strict=True):
        for index, (name, values) in enumerate(runs.items()):
            numbers = np.array([np.nan if v is None else v for v in values[side]], np.float64)[order]
            line_colour = LINE_COLOURS[index % len(LINE_COLOURS)]
            axes.plot(np.take(widths_px, order), numbers, marker="o", markersize=3, color=line_colour, label=name)
        axes.set_title(f"Mean IoU {side} the band (%)", fontsize=9, loc="left")
        axes.set_xlabel("Width of the band (px)", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, frameon=False)
    return png(figure)


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)  # type: ignore[no-untyped-call]
    return buffer.getvalue()
