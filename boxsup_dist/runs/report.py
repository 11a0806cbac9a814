"""RUN/report.html: what a run directory holds, read and drawn as one page."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from boxsup_dist.errors import InputError
from boxsup_dist.evaluation.confusion import CONFUSION
from boxsup_dist.io import storage
from boxsup_dist.reporting.comparison_figures import confusion_figure
from boxsup_dist.reporting.page import MAX_FIGURES, REPORT, render_report


def write_report(run_uri: str) -> str:
    """Write RUN/report.html and return its URI. InputError if the directory has no file of a run."""
    uri = storage.absolute(run_uri)
    summary = _read_mapping(storage.join(uri, "summary.json"))
    config = _read_mapping(storage.join(uri, "config.json"))
    history = read_history(storage.join(uri, "history.jsonl"))
    names = [name for name in storage.list_names(storage.join(uri, "figures")) if name.endswith(".png")]
    if not (summary or config or history or names):
        raise InputError("nothing to report", file=uri, expected="summary.json, history.jsonl, config.json or figures/")
    figures = [(name, storage.read_bytes(storage.join(uri, "figures", name))) for name in names[:MAX_FIGURES]]
    parts = [name for name in storage.list_names(uri) if storage.exists(storage.join(uri, name, REPORT))]
    kept = _read_mapping(storage.join(uri, CONFUSION))
    confusion = confusion_figure(np.array(kept["confusion"]), kept["class_names"]) if kept else None
    page = render_report(uri, summary, history, config, figures, names[MAX_FIGURES:], parts, confusion)
    target = storage.join(uri, REPORT)
    storage.write_bytes(target, page.encode())
    return target


def read_history(uri: str) -> list[dict[str, Any]]:
    """The epochs of a history file in order, the last of each where a resumed run wrote one again; [] without file.

    A killed run may leave half a line at the end: it is passed over.
    """
    if not storage.exists(uri):
        return []
    rows: dict[Any, dict[str, Any]] = {}
    lines = storage.read_bytes(uri).decode(errors="replace").splitlines()
    for number, line in enumerate(lines):
        try:
            row = json.loads(line) if line.strip() else None
        except json.JSONDecodeError:
            if number < len(lines) - 1:
                raise InputError("not valid JSON", file=uri, field=f"line {number + 1}", value=line[:80]) from None
            row = None
        if isinstance(row, dict):
            rows[row.get("epoch", number)] = row
    return [rows[key] for key in sorted(rows)]


def _read_mapping(uri: str) -> dict[str, Any]:
    if not storage.exists(uri):
        return {}
    value = storage.read_json(uri)
    if not isinstance(value, dict):
        raise InputError("not a JSON object", file=uri, value=type(value).__name__, expected="an object")
    return value
