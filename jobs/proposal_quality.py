"""Measure proposals against ground truth: best Jaccard index and recall.

python -m jobs.proposal_quality --records T --proposals T2 --out DIR
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from boxsup_dist.data.tables import open_table
from boxsup_dist.errors import SettingError
from boxsup_dist.io import storage
from boxsup_dist.runs.command_line import NumCpus, run
from boxsup_dist.runs.summary import write_result


@dataclass(frozen=True)
class Settings:
    """Which tables, and where to write."""

    records: str
    """Folder or URI of the records table, with instance masks. With class masks, only boxes apart from others count."""
    proposals: str
    """Folder or URI of the proposals table of these records."""
    out: str
    """Folder or URI of summary.json and curves.png."""
    published: str | None = None
    """Folder of published curves, SET_METHOD.txt, to draw beside ours. They are means over all objects, so compare them
    with records that have instance masks."""
    published_set: str | None = None
    """Data set of the published curves. Default: COCO_val2014 for records of COCO, else pascal2012_val2012."""
    num_storage_images: int = 8
    """Images whose candidates are also stored as RLE and PNG, to compare sizes."""
    num_cpus: NumCpus = None


def main(settings: Settings) -> None:
    """Measure, write OUT/summary.json and OUT/curves.png, and print the metrics."""
    if settings.published is None and settings.published_set is not None:
        expected = "none, or a folder as published"
        raise SettingError(
            "published_set has no effect without published",
            field="published_set",
            value=settings.published_set,
            expected=expected,
        )
    if settings.num_storage_images < 0:
        raise SettingError(
            "a setting is out of range", field="num_storage_images", value=settings.num_storage_images, expected=">= 0"
        )
    records, proposals = open_table(settings.records, "records"), open_table(settings.proposals, "proposals")
    from boxsup_dist.proposals.curves import curves_figure, read_published
    from boxsup_dist.proposals.measure import LONE_BOXES, measure

    started = time.monotonic()
    is_coco = str(records.settings.get("source")).startswith("coco")
    data_set = settings.published_set or ("COCO_val2014" if is_coco else "pascal2012_val2012")
    published = read_published(settings.published, data_set) if settings.published is not None else {}
    summary: dict[str, Any] = {"records": records.uri, "proposals": proposals.uri}
    summary |= measure(records, proposals, num_storage_images=settings.num_storage_images, num_cpus=settings.num_cpus)
    summary["seconds"] = round(time.monotonic() - started, 2)
    out = storage.absolute(settings.out)
    counted = f"{summary['num_objects']} of {summary['num_annotated_objects']} objects"
    png = curves_figure(f"{summary['method']}, {counted}", summary["curve"], published, data_set)
    storage.write_bytes(storage.join(out, "curves.png"), png)
    write_result(out, summary)
    _print(summary)
    if published and LONE_BOXES in summary["objects"]:
        text = f"ours counts {counted}, those whose box meets no other of its class; the published curves count all"
        print(f"warning: not comparable: {text}", flush=True)


def _print(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console()
    counted = f"{summary['num_objects']} of {summary['num_annotated_objects']} objects"
    title = f"{summary['method']}: {counted} ({summary['objects']})"
    rows = RichTable("cut", "candidates", "Jaccard", "by class", "at 0.5", "at 0.7", "at 0.85", title=title)
    for part, cuts in (("", summary["cuts"]), *summary["halves"].items()):
        for cut, found in cuts.items():
            cells = ["-" if v is None else f"{v:.3f}" for k, v in found.items() if k != "num_candidates"]
            rows.add_row(f"{cut} {part}".strip(), f"{found['num_candidates'] or 0:.0f}", *cells)
        rows.add_section()
    console.print(rows)
    for name in ("bytes_per_image", "bytes_by_column", "seconds_per_image", "storage"):
        if summary[name] is not None:
            console.print(f"{name}: " + ", ".join(f"{key} {value:g}" for key, value in summary[name].items()))


if __name__ == "__main__":
    run(main)
