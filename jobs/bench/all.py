"""Run every measurement in turn, each in a process of its own, and print the rows of all.

    python -m jobs.bench all                                      # what runs on synthetic data, about 20 minutes
    python -m jobs.bench all --run-dir R --records T              # and what needs a trained network
    make bench                                                    # writes docs/results/bench.json

Left out is `scale`, which takes hours at its full size. A measurement that fails is reported; the others still run, and
the exit status is then 1.
"""

from __future__ import annotations

import subprocess
import sys
import time

from boxsup_dist.io import storage
from boxsup_dist.reporting.text_table import format_table
from jobs.bench.rows import NEEDS, read_rows
from jobs.bench.settings import MEASUREMENTS, All

LONG = ("scale",)


def main(settings: All) -> None:
    """Run the measurements and print the table; exit status 1 if one of them failed."""
    table = settings.bench_table or storage.join(settings.out, "bench.json")
    failed = []
    for name in measurements(settings):
        command = [sys.executable, "-m", "jobs.bench", name, *arguments(name, settings, table)]
        print(f"== {name}", flush=True)
        started = time.monotonic()
        status = subprocess.run(command).returncode
        print(f"{name}: {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
        if status != 0:
            failed.append(name)
    print(format_table(read_rows(table), f"all rows, also in {table}"), flush=True)
    for name in failed:
        print(f"error: {name} failed: its rows are of an earlier call, or absent", file=sys.stderr)
    if failed:
        raise SystemExit(1)


def measurements(settings: All) -> list[str]:
    """Names of the measurements that run with these settings, in order."""
    needing = () if settings.run_dir is not None else tuple(NEEDS)
    return [name for name in MEASUREMENTS if name not in ("all", *LONG, *needing)]


def arguments(name: str, settings: All, table: str) -> list[str]:
    """The options of one measurement."""
    found = ["--out", storage.join(settings.out, name), "--bench-table", table]
    if name == "stream" and settings.voc_root is not None:
        found += ["--voc-root", settings.voc_root]
    if name == "crf" and settings.run_dir is not None and settings.records is not None:
        found += ["--run-dir", settings.run_dir, "--records", settings.records]
    return found
