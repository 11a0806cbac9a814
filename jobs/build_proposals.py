"""Build the proposals table of a records table: python -m jobs.build_proposals --records URI --method M --out URI.

The other options are those of the method: --method M --help shows them.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, make_dataclass
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from boxsup_dist.errors import SettingError
from boxsup_dist.proposals import build
from boxsup_dist.proposals.methods import METHODS
from boxsup_dist.proposals.settings import MAX_FAILED_SHARE
from boxsup_dist.runs.command_line import run
from boxsup_dist.runs.summary import write_result

DEFAULT_METHOD = "selective_search"


@dataclass(frozen=True)
class Settings:
    """Write candidate segments for every record; a second call continues."""

    records: str
    """Folder or URI of the records table."""
    out: str
    """Folder or URI of the proposals table."""
    method: str = DEFAULT_METHOD
    """Proposal method: mcg, selective_search, gop, or imported for files that another program wrote."""
    max_failed_share: float = MAX_FAILED_SHARE
    """Refuse the table if more than this share of the images failed."""
    num_cpus: int | None = None
    """CPUs of the local Ray session; by default all cores. Not with RAY_ADDRESS."""
    gpus_per_task: float = 0
    """Share of a GPU for each task; HED computes on it, in batches of images of one size."""


def with_method_settings() -> type:
    """Settings with a field `method_settings`, those of the method that the command line names."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--method", default=DEFAULT_METHOD)
    name = parser.parse_known_args()[0].method
    if name not in METHODS:
        raise SettingError("no such proposal method", field="method", value=name, expected=" or ".join(METHODS))
    fields = [("method_settings", METHODS[name].settings_type)]
    return make_dataclass("Settings", fields, bases=(Settings,), frozen=True, kw_only=True)


def main(settings: Any) -> None:
    """Build the table, leave OUT/summary.json and print what is in it."""
    started = time.monotonic()
    table = build.build_proposals(
        settings.out,
        settings.records,
        settings.method,
        settings.method_settings,
        max_failed_share=settings.max_failed_share,
        num_cpus=settings.num_cpus,
        gpus_per_task=settings.gpus_per_task,
    )
    summary = {"records": settings.records, **build.summarize(table)}
    summary["seconds"] = round(time.monotonic() - started, 2)
    write_result(table.uri, summary)
    _print(summary)


def _print(summary: dict) -> None:
    console = Console()
    rows = RichTable("proposals", summary["method"], title=summary["out"])
    rows.add_row("images", str(summary["num_images"]))
    rows.add_row("failed", str(summary["num_failed"]))
    rows.add_row("candidates per image", str(summary["mean_candidates"]))
    rows.add_row("size per image", f"{summary['bytes_per_image'] / 1000:.1f} kB")
    for name, seconds in summary["seconds_per_image"].items():
        rows.add_row(f"time per image, {name}", f"{seconds:.2f} s of one core")
    rows.add_row("with detector, mean", f"{summary['seconds_per_image_with_detector']:.2f} s of one core")
    rows.add_row("time", f"{summary['seconds']} s")
    console.print(rows)
    for problem in summary["problems"][:20]:
        console.print(f"failed {problem['image_id']}: {problem['problem']}", markup=False, highlight=False)
    if len(summary["problems"]) > 20:
        console.print(f"and {len(summary['problems']) - 20} more, see summary.json")


if __name__ == "__main__":
    run(main, with_method_settings)
