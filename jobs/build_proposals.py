"""Build the proposals table of a records table: candidate segments for every image.

    python -m jobs.build_proposals --records T --method mcg --out T2
    python -m jobs.build_proposals --method mcg --help      # the options of the method mcg

Run the command again to continue an interrupted build.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, make_dataclass
from typing import Annotated, Any

import tyro

from boxsup_dist.data.tables import MAX_FAILED_SHARE, open_table
from boxsup_dist.proposals.settings import SETTINGS, MethodName
from boxsup_dist.runs.command_line import NumCpus, check_choice, run
from boxsup_dist.runs.summary import write_result

DEFAULT_METHOD: MethodName = "selective_search"


@dataclass(frozen=True)
class Settings:
    """What to read, write and do, besides the settings of the method."""

    records: str
    """Folder or URI of the records table."""
    out: str
    """Folder or URI of the proposals table to write."""
    method: MethodName = DEFAULT_METHOD
    """Proposal method; imported reads files that another program wrote, prompted runs a segmenter on the boxes."""
    max_failed_share: float = MAX_FAILED_SHARE
    """Refuse the table if more than this share of the images failed."""
    num_cpus: NumCpus = None
    gpus_per_task: float = 0
    """Share of a GPU for each task. Only HED (mcg) and the segmenter (prompted) compute on it."""


def with_method_settings() -> type[Settings]:
    """Settings with a field `method_settings`, those of the method that the command line names.

    Raises:
        SettingError: The command line names no method that exists.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--method", default=DEFAULT_METHOD, nargs="?")
    name = parser.parse_known_args()[0].method or ""
    check_choice(name, SETTINGS, "method")
    own = Annotated[SETTINGS[name], tyro.conf.arg(name="")]  # type: ignore[valid-type]  # chosen at run time
    return make_dataclass("Settings", [("method_settings", own)], bases=(Settings,), frozen=True, kw_only=True)


def main(settings: Any) -> None:
    """Build the table, write OUT/summary.json and print what is in it."""
    open_table(settings.records, "records")  # before anything starts
    from boxsup_dist.proposals.build import build_proposals, summarize

    started = time.monotonic()
    table = build_proposals(
        settings.out,
        settings.records,
        settings.method,
        settings.method_settings,
        max_failed_share=settings.max_failed_share,
        num_cpus=settings.num_cpus,
        gpus_per_task=settings.gpus_per_task,
    )
    summary = {"records": settings.records, **summarize(table)}
    summary["seconds"] = round(time.monotonic() - started, 2)
    write_result(table.uri, summary)
    _print(summary)


def _print(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table as RichTable

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
        console.print(f"and {len(summary['problems']) - 20} more: see summary.json")


if __name__ == "__main__":
    run(main, with_method_settings)
