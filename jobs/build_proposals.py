"""Build the proposals table of a records table: python -m jobs.build_proposals --records URI --method M --out URI."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Console
from rich.table import Table as RichTable

from boxsup_dist import storage
from boxsup_dist.proposals import generate
from boxsup_dist.proposals.selective_search import SelectiveSearchSettings
from jobs._cli import run


@dataclass(frozen=True)
class Settings:
    """Write candidate segments for every record; a second call continues."""

    records: str
    """Folder or URI of the records table."""
    out: str
    """Folder or URI of the proposals table."""
    method: Literal["selective_search"] = "selective_search"
    """Proposal method."""
    selective_search: SelectiveSearchSettings = field(default_factory=SelectiveSearchSettings)
    max_failed_share: float = generate.MAX_FAILED_SHARE
    """Refuse the table if more than this share of the images failed."""
    num_cpus: int | None = None
    """CPUs of the local Ray session; by default all cores. Not with RAY_ADDRESS."""


def main(settings: Settings) -> None:
    """Build the table, leave OUT/summary.json and print what is in it."""
    started = time.monotonic()
    table = generate.build_proposals(
        settings.out,
        settings.records,
        settings.method,
        getattr(settings, settings.method),
        max_failed_share=settings.max_failed_share,
        num_cpus=settings.num_cpus,
    )
    summary = {"records": settings.records, **generate.summarize(table)}
    summary["seconds"] = round(time.monotonic() - started, 2)
    storage.write_json(storage.join(table.uri, "summary.json"), summary)
    _print(summary)


def _print(summary: dict) -> None:
    console = Console()
    rows = RichTable("proposals", summary["method"], title=summary["out"])
    rows.add_row("images", str(summary["num_images"]))
    rows.add_row("failed", str(summary["num_failed"]))
    rows.add_row("candidates per image", str(summary["mean_candidates"]))
    rows.add_row("size per image", f"{summary['bytes_per_image'] / 1000:.1f} kB")
    rows.add_row("time per image", f"{summary['seconds_per_image']:.2f} s of one core")
    rows.add_row("time", f"{summary['seconds']} s")
    console.print(rows)
    for problem in summary["problems"][:20]:
        console.print(f"failed {problem['image_id']}: {problem['problem']}", markup=False, highlight=False)
    if len(summary["problems"]) > 20:
        console.print(f"and {len(summary['problems']) - 20} more, see summary.json")


if __name__ == "__main__":
    run(main)
