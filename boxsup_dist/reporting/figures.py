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

from boxsup_dist.data.palette import voc_palette
from boxsup_dist.data.schema import BACKGROUND, IGNORE_INDEX
from boxsup_dist.reporting.words import STAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_INCHES = 2.6
DPI = 110
CURVES_ACROSS = 3
LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#999999")  # Okabe, Ito

# Panels of the curves figure: title, {key of the history: legend}, factor. The history has IoUs in percent, shares in
# 0..1.
CURVES: tuple[tuple[str, dict[str, str], float], ...] = (
    ("Training loss", {"train_loss": "loss"}, 1.0),
    ("Mean IoU (%)", {"mean_iou": "validation", "label_mean_iou": "label maps"}, 1.0),
    ("Box score (%)", {"box_score": "box score", "box_iou": "IoU of boxes", "box_recall": "boxes found"}, 1.0),
    ("Predicted outside every box (%)", {"outside_share": "pixels"}, 100.0),
    ("Foreground pixels (%)", {"foreground_share": "predicted", "label_foreground_share": "label maps"}, 100.0),
    ("Boxes whose segment changed (%)", {"share_changed": "changed"}, 100.0),
    ("Mean costs of the chosen segments", {"mean_overlap_cost": "overlap", "mean_regression_cost": "regression"}, 1.0),
    ("Boxes without a candidate (%)", {"share_without_candidate": "boxes"}, 100.0),
    ("Images per second", {"images_per_s": "rate"}, 1.0),
    ("Training (s)", {"train_s": "steps", "first_batch_s": "first batch", "gap_s": "pause before it"}, 1.0),
    ("Wait for later batches (% of the steps)", {"wait_share": "wait"}, 100.0),
)
NOT_DRAWN = {"epoch", "num_images", "num_without_ground_truth"}  # the same in every epoch
STACKED = "seconds"  # a mapping of stages to their duration


def new_figure(width_inches: float, height_inches: float) -> Figure:
    """An empty figure whose layout matplotlib makes."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width_inches, height_inches), dpi=DPI, layout="constrained")


def shown_palette() -> NDArray[np.uint8]:
    """VOC's colour of every class id, RGB (256, 3), with white for IGNORE_INDEX."""
    palette = voc_palette()
    palette[IGNORE_INDEX] = 255
    return palette


def colour(label_map: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A label map (H, W) as RGB (H, W, 3)."""
    colours: NDArray[np.uint8] = shown_palette()[label_map]
    return colours


def outline_boxes(
    image: NDArray[np.uint8], boxes_xyxy: NDArray[np.float32], class_ids: NDArray[np.int32]
) -> NDArray[np.uint8]:
    """A copy of the image, uint8 (H, W, 3), with a frame in its class's colour along the inside of every box."""
    outlined, palette = image.copy(), shown_palette()
    height, width = image.shape[:2]
    for box, class_id in zip(boxes_xyxy, class_ids, strict=True):
        x0, y0 = np.clip(np.floor(box[:2]), 0, (width, height)).astype(int).tolist()
        x1, y1 = np.clip(np.ceil(box[2:]), 0, (width, height)).astype(int).tolist()
        for frame_px, frame_colour in ((3, 255), (2, palette[class_id])):  # a white rim separates dark from dark
            inner = np.s_[y0 + frame_px : max(y1 - frame_px, 0), x0 + frame_px : max(x1 - frame_px, 0)]
            content = outlined[inner].copy()
            outlined[y0:y1, x0:x1] = frame_colour
            outlined[inner] = content
    return outlined


def label_evolution_figure(
    image: NDArray[np.uint8],
    boxes_xyxy: NDArray[np.float32],
    class_ids: NDArray[np.int32],
    label_maps: Sequence[tuple[str, NDArray[np.uint8]]],
    prediction: NDArray[np.uint8] | None,
    gt_label_map: NDArray[np.uint8] | None = None,
    class_names: Sequence[str] = (),
) -> bytes:
    """One image in a row: with its boxes, its label map at several epochs, the prediction, the ground truth.

    Args:
        image: RGB (H, W, 3).
        boxes_xyxy: Boxes (K, 4); K may be 0.
        class_ids: Class of each box (K,).
        label_maps: (title, label map (H, W)). White: ignored pixels.
        prediction: Label map (H, W); None leaves the panel out.
        gt_label_map: Label map (H, W); None leaves the panel out.
        class_names: Names for the legend; a class without a name is shown by its number.

    Returns:
        The PNG file.
    """
    panels = [("image and boxes", image), *((title, colour(label_map)) for title, label_map in label_maps)]
    panels += [
        (title, colour(label_map))
        for title, label_map in (("prediction", prediction), ("ground truth", gt_label_map))
        if label_map is not None
    ]
    height = PANEL_INCHES * min(max(image.shape[0] / image.shape[1], 0.4), 1.6)
    figure = new_figure(PANEL_INCHES * len(panels), height + 0.55)
    grid = np.atleast_1d(figure.subplots(1, len(panels)))
    for axes, (title, picture) in zip(grid, panels, strict=True):
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(title, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    _draw_boxes(grid[0], boxes_xyxy, class_ids)
    maps = [label_map for _, label_map in label_maps] + [m for m in (prediction, gt_label_map) if m is not None]
    present = {int(c) for label_map in maps for c in np.unique(label_map)} | {int(c) for c in class_ids}
    draw_legend(figure, sorted(present - {BACKGROUND}), class_names)
    return png(figure)


def _draw_boxes(axes: Axes, boxes_xyxy: NDArray[np.float32], class_ids: NDArray[np.int32]) -> None:
    from matplotlib.patches import Rectangle

    palette = shown_palette() / 255.0
    for (x0, y0, x1, y1), class_id in zip(boxes_xyxy, class_ids, strict=True):
        # Pixel i covers i-0.5..i+0.5 in imshow. A white rim keeps dark colours visible on dark images.
        corner, width, height = (x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0
        for line_width, edge in ((3.0, (1.0, 1.0, 1.0)), (1.6, tuple(palette[class_id]))):
            axes.add_patch(Rectangle(corner, width, height, fill=False, linewidth=line_width, edgecolor=edge))


def draw_legend(figure: Figure, class_ids: Sequence[int], class_names: Sequence[str]) -> None:
    """Patches below all panels; a class without a name is shown by its number."""
    from matplotlib.patches import Patch

    palette = shown_palette() / 255.0
    names = [
        "ignored" if c == IGNORE_INDEX else class_names[c] if c < len(class_names) else f"class {c}" for c in class_ids
    ]
    patches = [
        Patch(facecolor=tuple(palette[c]), edgecolor="#808080", linewidth=0.5, label=name)
        for c, name in zip(class_ids, names, strict=True)
    ]
    if patches:
        figure.legend(handles=patches, loc="outside lower left", ncols=8, fontsize=8, frameon=False)


def curves_figure(history: Sequence[Mapping[str, Any]]) -> bytes:
    """Curves of the numbers in a run's history over its epochs.

    Args:
        history: The metrics of each epoch, with the key `epoch`. Known keys share panels (CURVES); another number gets
            a panel of its own; the mapping `seconds` becomes stacked bars. A value that is missing or not finite has no
            point, and the line continues at the next one. [] gives an empty picture.

    Returns:
        The PNG file.
    """
    panels = _curve_panels(history)
    has_stack = any(isinstance(row.get(STACKED), Mapping) for row in history)
    count = max(len(panels) + has_stack, 1)
    across = min(count, CURVES_ACROSS)
    figure = new_figure(3.9 * across, 2.7 * math.ceil(count / across))
    grid = list(np.atleast_1d(figure.subplots(math.ceil(count / across), across)).ravel())
    epochs = [row.get("epoch", i) for i, row in enumerate(history, 1)]
    for axes, (title, keys, factor) in zip(grid, panels, strict=False):
        _draw_curves(axes, epochs, history, keys, factor)
        finish_axes(axes, title, epochs)
    if has_stack:
        _draw_stack(grid[len(panels)], epochs, [row.get(STACKED) or {} for row in history])
        finish_axes(grid[len(panels)], "Stages around the training (s)", epochs)
    for axes in grid[len(panels) + has_stack :]:
        axes.set_axis_off()
    return png(figure)


def _curve_panels(history: Sequence[Mapping[str, Any]]) -> list[tuple[str, dict[str, str], float]]:
    present = {
        key: None for row in history for key, value in row.items() if key not in NOT_DRAWN and number(value) is not None
    }
    panels = [(t, {k: name for k, name in keys.items() if k in present}, factor) for t, keys, factor in CURVES]
    known = {key for _, keys, _ in CURVES for key in keys}
    others = [(key.replace("_", " "), {key: key}, 1.0) for key in present if key not in known]
    return [panel for panel in panels if panel[1]] + others


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
    axes.set_xlim(min(epochs, default=0) - 0.5, max(epochs, default=0) + 0.5)
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
