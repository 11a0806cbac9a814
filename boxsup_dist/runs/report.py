"""RUN/report.html: what a run directory holds, on one page.

A folder of runs has a report too: of its summary.json, with links to the reports of its runs.
"""

from __future__ import annotations

from typing import Any

from boxsup_dist.errors import InputError
from boxsup_dist.evaluation.confusion import read_confusion
from boxsup_dist.io import storage
from boxsup_dist.reporting.comparison_figures import confusion_figure
from boxsup_dist.reporting.page import MAX_FIGURES, render_report
from boxsup_dist.runs.history import read_history
from boxsup_dist.runs.layout import RunFiles


def write_report(run_dir: str) -> str:
    """Write the report of a run directory, or of a folder of runs, from the files that are there.

    Returns:
        URI of the report.

    Raises:
        InputError: The directory has no file of a run, or one of them is damaged.
    """
    files = RunFiles(run_dir)
    summary, config = _read_mapping(files.summary), _read_mapping(files.config)
    history = [entry.to_dict() for entry in read_history(run_dir).values()]
    names = [name for name in storage.list_names(files.figures) if name.endswith(".png")]
    if not (summary or config or history or names):
        expected = "summary.json, history.jsonl, config.json or figures/"
        raise InputError("nothing to report: no file of a run is here", file=files.run_dir, expected=expected)
    confusion = read_confusion(files.confusion)
    page = render_report(
        files.run_dir,
        summary=summary,
        history=history,
        config=config,
        figures=[(name, storage.read_bytes(storage.join(files.figures, name))) for name in names[:MAX_FIGURES]],
        left_out=names[MAX_FIGURES:],
        parts=files.reports_of_parts(),
        confusion=None if confusion is None else confusion_figure(confusion.confusion, confusion.class_names),
    )
    storage.write_bytes(files.report, page.encode())
    return files.report


def _read_mapping(uri: str) -> dict[str, Any]:
    """A JSON object of any fields; {} without a file."""
    value = storage.read_json(uri) if storage.exists(uri) else {}
    if not isinstance(value, dict):
        raise InputError("not a JSON object", file=uri, value=type(value).__name__, expected="an object")
    return value
