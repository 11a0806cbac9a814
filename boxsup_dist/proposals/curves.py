"""Quality curves: the published ones, read from text files, and the figure that shows ours beside them.

A published file is named SET_METHOD.txt (`COCO_val2014_MCG.txt`). Its first line names the columns: ncands, jac_class,
jac_instance, rec_at_0.5, rec_at_0.7, rec_at_0.85. Each further line has the metrics at one number of candidates.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from boxsup_dist.errors import InputError
from boxsup_dist.io import storage

Curve = Sequence[Mapping[str, Any]]  # per number of candidates the metrics that quality.metrics returns
# Panels of the figure: key of a curve, column of a published file, title.
PANELS = (
    ("mean_jaccard_instance", "jac_instance", "Best Jaccard, mean over objects"),
    ("mean_jaccard_class", "jac_class", "Best Jaccard by pixels, mean over classes"),
    ("recall_at_0.5", "rec_at_0.5", "Recall at 0.5"),
    ("recall_at_0.7", "rec_at_0.7", "Recall at 0.7"),
    ("recall_at_0.85", "rec_at_0.85", "Recall at 0.85"),
)


def read_published(folder: str, data_set: str) -> dict[str, Curve]:
    """Read the published curves of a data set.

    Args:
        folder: Path or URI of the folder of the text files.
        data_set: Beginning of the file names, for example `COCO_val2014`.

    Returns:
        The curve of each method.

    Raises:
        InputError: If there is no file of the data set, or one is unreadable.
    """
    names = [n for n in storage.list_names(folder) if n.startswith(f"{data_set}_") and n.endswith(".txt")]
    if not names:
        raise InputError("no published curves here", file=folder, expected=f"files {data_set}_METHOD.txt")
    return {name[len(data_set) + 1 : -4]: _read_curve(storage.join(folder, name)) for name in names}


def _read_curve(file: str) -> Curve:
    lines = [line.split() for line in storage.read_bytes(file).decode(errors="replace").splitlines() if line.strip()]
    columns = {"num_candidates": "ncands"} | {key: column for key, column, _ in PANELS}
    header = lines[0] if lines else []
    missing = set(columns.values()) - set(header)
    if missing:
        raise InputError("the file lacks columns", file=file, value=header, expected=", ".join(sorted(missing)))
    try:
        return [{key: float(line[header.index(column)]) for key, column in columns.items()} for line in lines[1:]]
    except (ValueError, IndexError) as error:
        raise InputError("not a table of numbers", file=file, value=str(error)) from None


def curves_figure(name: str, ours: Curve, published: Mapping[str, Curve], data_set: str = "") -> bytes:
    """Draw every metric against the number of candidates: our curve thick, published curves thin.

    Args:
        name: Name of our method, for the legend.
        ours: Our curve.
        published: Published curves by method; a curve of one point is drawn as a cross.
        data_set: Name of their data set, for the legend.

    Returns:
        A PNG file.
    """
    figure = Figure(figsize=(11.5, 6.4), dpi=110, layout="constrained")
    axes_of = list(figure.subplots(2, 3).ravel())
    for axes, (key, _, title) in zip(axes_of, PANELS, strict=False):
        for i, (method, curve) in enumerate(published.items()):
            _draw(axes, curve, key, f"{method} ({data_set})", color=f"C{i % 10}", linewidth=1.0)
        _draw(axes, ours, key, f"{name} (ours)", color="black", linewidth=2.2, marker="o", markersize=3.5)
        axes.set_xscale("log")
        axes.set_ylim(0, 1)
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xlabel("candidates per image", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes_of[0].get_legend_handles_labels()
    axes_of[-1].legend(handles[::-1], labels[::-1], loc="center left", fontsize=8, frameon=False)
    axes_of[-1].set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw(axes: Axes, curve: Curve, key: str, label: str, **style: Any) -> None:
    points = sorted((row["num_candidates"], row[key]) for row in curve if row[key] is not None)
    if len(points) == 1:
        style = style | {"marker": "x", "linestyle": "none", "markersize": 7}
    axes.plot([x for x, _ in points], [y for _, y in points], label=label, **style)
