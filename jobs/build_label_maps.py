"""Build label maps from boxes without a network, by GrabCut or WSSL.

    python -m jobs.build_label_maps --records T --method grabcut --out T2

The supervisions grabcut and wssl train on them. Run the command again to continue an interrupted build.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from boxsup_dist.assignment.static import StaticMethod
from boxsup_dist.data.tables import MAX_FAILED_SHARE, open_table
from boxsup_dist.runs.command_line import NumCpus, run
from boxsup_dist.runs.summary import key_lines, write_result


@dataclass(frozen=True)
class Settings:
    """What to read, write and do."""

    records: str
    """Folder or URI of the records table."""
    out: str
    """Folder or URI of the label maps table to write."""
    method: StaticMethod
    """grabcut: GrabCut in each box. wssl: Bbox-Seg of WSSL, a dense CRF in each box."""
    max_failed_share: float = MAX_FAILED_SHARE
    """Refuse the table if more than this share of the images failed."""
    num_cpus: NumCpus = None


def main(settings: Settings) -> None:
    """Build the table, write OUT/summary.json and print it."""
    open_table(settings.records, "records")  # before anything starts
    from boxsup_dist.assignment.build import build_label_maps

    started = time.monotonic()
    table = build_label_maps(
        settings.out,
        settings.records,
        settings.method,
        max_failed_share=settings.max_failed_share,
        num_cpus=settings.num_cpus,
    )
    problems = [problem for shard in table.shards for problem in shard.problems]
    summary = {
        "out": table.uri,
        "records": settings.records,
        "method": settings.method,
        "num_images": table.num_rows,
        "num_failed": len(problems),
        "seconds_per_image": round(table.counts["compute_ms"] / 1000 / table.num_rows, 4),
        "bytes_per_image": round(table.num_bytes / table.num_rows),
        "seconds": round(time.monotonic() - started, 2),
    }
    failed = [f"failed {problem['image_id']}: {problem['problem']}" for problem in problems[:20]]
    write_result(table.uri, summary | {"problems": problems}, key_lines(summary) + failed)


if __name__ == "__main__":
    run(main)
