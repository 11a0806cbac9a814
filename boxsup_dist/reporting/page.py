"""One self-contained HTML page of a run: no scripts, no links to the outside, readable in light and dark.

Quality comes first, then pictures, then speed; what only a developer asks is folded away. Known metrics are named in
words (words.py), others by their keys. IoUs are in percent in the values, shares 0..1.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from boxsup_dist.progress import format_duration
from boxsup_dist.reporting.figures import (
    INTERNALS,
    QUALITY,
    SPEED,
    curves_figure,
    iou_bars_figure,
    number,
    other_panels,
    stages_figure,
)
from boxsup_dist.reporting.html import render
from boxsup_dist.reporting.text_table import format_value
from boxsup_dist.reporting.words import ACTIVITIES, METRICS, RESULTS

MAX_FIGURES = 24  # embedded; the others are named
MAX_SIMILAR = 6  # warnings in one box; the others are counted
LEFT_OUT = "left out: "  # how the warning of a record begins
GROUPS = {"worst": "Worst images", "best": "Best images", "": "Example images"}
"""First part of the name of a picture -> the headline above it; see runs/examples."""
Card = tuple[str, str]
"""What it shows, and the caption below."""
Warned = tuple[list[str], str]
"""What happened, and what to do about it."""
Cell = tuple[str, bool]
"""Text, and whether it is a number."""


def render_report(
    title: str,
    *,
    summary: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    figures: Sequence[tuple[str, bytes]] = (),
    left_out: Sequence[str] = (),
    parts: Sequence[str] = (),
    confusion: bytes | None = None,
) -> str:
    """The page as text.

    Args:
        title: URI of the run directory.
        summary: Result of the run, or of several; {} for a run that is not finished.
        history: Metrics of the epochs in order, a mapping each with the key `epoch`, which counts from 1.
        config: All settings.
        figures: (file name, PNG bytes) of the pictures to embed.
        left_out: File names of the pictures to name only.
        parts: Links to the reports of the runs below this directory, relative to it.
        confusion: Picture of the confusion matrix, PNG bytes.
    """
    columns = _columns(history)
    named, unknown = other_panels(history)
    results = {key: value for key, value in summary.items() if key not in ("iou", "data", "warnings", "config", "time")}
    return render(
        "page",
        title=title,
        name=title.rstrip("/").rpartition("/")[2],
        cards=list(_cards(summary, history)),
        facts=list(_facts(summary, history)),
        warnings=_warnings(summary, history),
        parts=[(part.rpartition("/")[0], quote(part)) for part in parts],
        curves=_picture(curves_figure(history, [*QUALITY, *named])),
        figures=_grouped(figures),
        left_out=list(left_out),
        iou_bars=_iou_bars(summary.get("iou") or _newest(history, "iou")),
        confusion=_picture(confusion),
        time=list(_time_rows(summary.get("time"))),
        speed=_picture(curves_figure(history, SPEED)),
        internals=_picture(curves_figure(history, [*INTERNALS, *unknown])),
        stages=_picture(stages_figure(history)),
        epoch_columns=[METRICS[key][0] if key in METRICS else key.replace("_", " ") for key in columns],
        epochs=[[_cell(_in_unit(key, row.get(key))) for key in columns] for row in history],
        results=_leaves({RESULTS.get(key, key): value for key, value in results.items()}),
        data=_leaves(summary.get("data") or {}),
        config=_leaves(config),
    )


def _cards(summary: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> Iterator[Card]:
    """Measures of quality, the most important first."""
    for part, value in _numbers(summary.get("mean_iou", _newest(history, "mean_iou"))):
        yield f"{value:.1f} %", f"mean IoU: {part}" if part else "mean IoU on the validation images"
    for _, value in _numbers(summary.get("box_score", _newest(history, "box_score"))):
        yield f"{value:.1f} %", "box score on the validation images, which have no masks"
    for key in (key for _, keys, _ in other_panels(history)[0] for key in keys):
        words, factor = METRICS[key]
        for _, value in _numbers(_newest(history, key)):
            percent = words.endswith(" (%)")
            yield f"{factor * value:.1f} %" if percent else format_value(factor * value), words.removesuffix(" (%)")
    for part, value in _numbers(summary.get("label_mean_iou", _newest(history, "label_mean_iou"))):
        words = {"first": "first epoch", "last": "last epoch"}.get(part, part)
        yield f"{value:.1f} %", f"mean IoU of the label maps: {words}" if part else "mean IoU of the label maps"
    for _, value in _numbers(_newest(history, "trained_label_mean_iou")):
        yield f"{value:.1f} %", "mean IoU of the label maps' pixels that are trained on"
    for key, caption in (("foreground_share", "as predicted"), ("label_foreground_share", "in the label maps")):
        for _, value in _numbers(_newest(history, key)):
            yield f"{100 * value:.1f} %", f"foreground pixels {caption}"


def _facts(summary: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What the run was, in one line: images, epochs, time."""
    for value, caption in (
        (summary.get("num_images"), "training images"),
        (_newest(history, "num_images"), "validation images"),
        (summary.get("epochs"), "epochs"),
    ):
        for _, found in _numbers(value):
            yield f"{format_value(found if found % 1 else int(found))} {caption}"
    for part, value in _numbers(summary.get("seconds")):
        if part == "all":
            since = "continued" if summary.get("resumed_from") else "started"
            yield f"{format_duration(value)} since the run was {since}"


def _newest(history: Sequence[Mapping[str, Any]], key: str) -> Any:
    """The value of the last epoch that has one; an interrupted run has not measured all of its last epoch."""
    return next((row[key] for row in reversed(history) if row.get(key) is not None), None)


def _grouped(figures: Sequence[tuple[str, bytes]]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Headline, and caption and picture of each of its figures."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, png in figures:
        place = re.match(r"(worst|best)-\d+-", name)
        caption = _caption(name[place.end() :] if place else name)
        groups.setdefault(place[1] if place else "", []).append((caption, base64.b64encode(png).decode()))
    return [(headline, groups[group]) for group, headline in GROUPS.items() if group in groups]


def _time_rows(account: Any) -> Iterator[tuple[str, str, bool]]:
    """Where the time of a run went, largest part first, and its starts after the first; nothing without an account."""
    if not isinstance(account, Mapping):
        return
    wall_s = number(account.get("wall_s")) or 0.0
    if wall_s > 0:
        parts = sorted(_numbers(account.get("seconds")), key=lambda part: -part[1])
        yield "all", format_duration(wall_s), True
        for kind, value in parts:
            yield ACTIVITIES.get(kind, kind), f"{value / wall_s:.1%}, {format_duration(value)}", True
        yield "goodput: share of steps that count", format_value(account.get("goodput")), True
    for restart in account.get("restarts") or ():
        steps, seconds = restart["redone_steps"], format_duration(restart["seconds"])
        yield f"started again after {seconds}, steps trained again: {steps}", restart["reason"], False


def _numbers(value: Any) -> Iterator[tuple[str, float]]:
    """A number with the name ""; the named numbers of a mapping, such as those of several runs; else nothing."""
    for name, each in value.items() if isinstance(value, Mapping) else [("", value)]:
        found = number(each)
        if found is not None:
            yield name.replace("_", " "), found


def _warnings(summary: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> list[Warned]:
    """Every warning once, with the epochs that gave it; those with the same advice together."""
    epochs: dict[str, list[int]] = {text: [] for text in _texts(summary.get("warnings"))}
    for row in history:
        for text in dict.fromkeys(_texts(row.get("warnings"))):
            epochs.setdefault(text, []).append(row["epoch"])
    groups: dict[str, list[str]] = {}
    for text, found in epochs.items():
        where = f"{_ranges(found)}: " if found else ""
        happened, _, advice = text.partition(": ")
        if text.startswith(LEFT_OUT):
            happened, advice = text, LEFT_OUT
        groups.setdefault(advice, []).append(where + happened)
    return [(_some(lines), "" if advice == LEFT_OUT else advice) for advice, lines in groups.items()]


def _some(lines: list[str]) -> list[str]:
    more = len(lines) - MAX_SIMILAR
    return [*lines[:MAX_SIMILAR], *([f"and {more} more"] if more > 0 else [])]


def _ranges(epochs: Sequence[int]) -> str:
    """Ascending epochs in words: "epochs 2-4, 7"."""
    groups = [list(group) for _, group in itertools.groupby(enumerate(epochs), lambda pair: pair[1] - pair[0])]
    texts = [f"{group[0][1]}-{group[-1][1]}" if len(group) > 1 else str(group[0][1]) for group in groups]
    return f"epoch{'s' if len(epochs) > 1 else ''} {', '.join(texts)}"


def _texts(value: Any) -> Iterable[str]:
    return [str(each) for each in value] if isinstance(value, (list, tuple)) else [str(value)] if value else []


def _iou_bars(iou: Any) -> str | None:
    if not isinstance(iou, Mapping) or not iou:
        return None
    return _picture(iou_bars_figure([number(value) for value in iou.values()], [str(name) for name in iou]))


def _caption(file_name: str) -> str:
    return re.sub(r"[_/]+", " ", file_name.removesuffix(".png"))


def _picture(png: bytes | None) -> str | None:
    return base64.b64encode(png).decode() if png else None


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys of the single values of all rows, known ones first; nested values are drawn elsewhere or in the file."""
    nested = (Mapping, list, tuple)
    found = dict.fromkeys(key for row in rows for key, value in row.items() if not isinstance(value, nested))
    return [key for key in METRICS if key in found] + [key for key in found if key not in METRICS]


def _in_unit(key: str, value: Any) -> Any:
    factor = METRICS[key][1] if key in METRICS else 1
    return value if factor == 1 or number(value) is None else factor * value


def _leaves(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str, bool]]:
    """Dotted name, text and whether it is a number, of every single value of nested mappings."""
    found = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found += _leaves(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", *_cell(value)))
    return found


def _cell(value: Any) -> Cell:
    is_number = value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
    return format_value(json.dumps(value) if isinstance(value, (list, tuple, dict)) else value), is_number
