"""Run every measurement in turn, each in a process of its own, and print the rows of all.

    python -m jobs.bench all                                      # what runs on synthetic data, about 20 minutes
    python -m jobs.bench all --run-dir R --records T              # and what needs a trained network
    make bench                                                    # writes docs/results/bench.json

It names what it leaves out, with the reason. A measurement that fails is reported; the others still run, and the exit
status is then 1.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import fields

import torch

from boxsup_dist.io import storage
from boxsup_dist.reporting.text_table import format_table
from jobs.bench.rows import NEEDS, read_rows
from jobs.bench.settings import MEASUREMENTS, All


def main(settings: All) -> None:
    """Run the measurements and print the table; exit status 1 if one of them failed."""
    table = settings.bench_table or storage.join(settings.out, "bench.json")
    failed = []
    skipped = left_out(settings)
    for name, reason in skipped.items():
        print(f"{name} is left out: {reason}", flush=True)
    for name in MEASUREMENTS:
        if name == "all" or name in skipped:
            continue
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


def left_out(settings: All) -> dict[str, str]:
    """The measurements that do not run with these settings or on this machine, each with the reason."""
    reasons = {"scale": "it takes hours: run `python -m jobs.bench scale`"}
    reasons["networks"] = "it compares networks and has no goal: run `python -m jobs.bench networks`"
    reasons["segments"] = f"it needs {NEEDS['segments']}"
    if settings.run_dir is None:
        reasons |= {name: f"it needs {options}" for name, options in NEEDS.items()}
    if not torch.cuda.is_available():
        reasons["gpu"] = "this machine has no GPU"
    return {name: reason for name, reason in reasons.items() if name in MEASUREMENTS}


def arguments(name: str, settings: All, table: str) -> list[str]:
    """The options of one measurement."""
    found = ["--out", storage.join(settings.out, name), "--bench-table", table]
    own = {field.name for field in fields(MEASUREMENTS[name])}
    for option, value in (
        ("voc_root", settings.voc_root),
        ("run_dir", settings.run_dir),
        ("records", settings.records),
    ):
        if option in own and value is not None:
            found += [f"--{option.replace('_', '-')}", value]
    return found
