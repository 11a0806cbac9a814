"""Build the proposals table of a records table: python -m jobs.build_proposals --records URI --method M --out URI."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rich.console import Console
from rich.table import Table as RichTable

from boxsup_dist import storage
from boxsup_dist.errors import SettingError
from boxsup_dist.proposals import generate
from boxsup_dist.proposals.edges import Detector
from boxsup_dist.proposals.gop import GopSettings
from boxsup_dist.proposals.mcg import McgSettings
from boxsup_dist.proposals.selective_search import SelectiveSearchSettings
from jobs._cli import run


@dataclass(frozen=True)
class Settings:
    """Write candidate segments for every record; a second call continues."""

    records: str
    """Folder or URI of the records table."""
    out: str
    """Folder or URI of the proposals table."""
    method: Literal["mcg", "selective_search", "gop"] = "selective_search"
    """Proposal method."""
    max_candidates: int | None = None
    """Candidates kept of each image, best first; by default the method's own number."""
    edges: Detector | None = None
    """MCG's boundary detector: gradient (its default, no weights) or hed (learned)."""
    hed_weights: str | None = None
    """HED's weights for --edges hed; python -m jobs.get_hed_weights makes the file."""
    mcg: McgSettings = field(default_factory=McgSettings)
    selective_search: SelectiveSearchSettings = field(default_factory=SelectiveSearchSettings)
    gop: GopSettings = field(default_factory=GopSettings)
    max_failed_share: float = generate.MAX_FAILED_SHARE
    """Refuse the table if more than this share of the images failed."""
    num_cpus: int | None = None
    """CPUs of the local Ray session; by default all cores. Not with RAY_ADDRESS."""
    gpus_per_task: float = 0
    """Share of a GPU for each task; HED computes on it, in batches of images of one size."""

    def of_method(self) -> Any:
        """The chosen method's settings with the top-level flags; SettingError for a flag of another method."""
        given = {name: getattr(self, name) for name in ("max_candidates", "edges", "hed_weights")}
        given = {name: value for name, value in given.items() if value is not None}
        for name in {"edges", "hed_weights"} & set(given):
            if self.method != "mcg":
                raise SettingError(
                    "only MCG has a choice of boundaries", field=name, value=given[name], expected="--method mcg"
                )
        return replace(getattr(self, self.method), **given)


def main(settings: Settings) -> None:
    """Build the table, leave OUT/summary.json and print what is in it."""
    started = time.monotonic()
    table = generate.build_proposals(
        settings.out,
        settings.records,
        settings.method,
        settings.of_method(),
        max_failed_share=settings.max_failed_share,
        num_cpus=settings.num_cpus,
        gpus_per_task=settings.gpus_per_task,
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
    run(main, omit_prefixes=False)  # the methods' settings have names in common
