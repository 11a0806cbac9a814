"""The lines that every measurement prints, and the table of all measurements (docs/results/bench.json)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from boxsup_dist.io import storage
from boxsup_dist.reporting.text_table import format_table
from boxsup_dist.runs.summary import write_result

# What a person adds to the command line of a measurement that does not run on synthetic data.
NEEDS = {
    "crf": "--run-dir RUN --records RECORDS",
    "segments": "--records RECORDS --proposals PROPOSALS",
}


class Settings(Protocol):
    """What the settings of all measurements share."""

    @property
    def out(self) -> str:
        """Folder of summary.json."""

    @property
    def bench_table(self) -> str | None:
        """JSON table to put the rows into; None: none."""


def row(name: str, unit: str, rounds: Sequence[float], goal: float, *, at_most: bool = False) -> dict[str, Any]:
    """A line: the median of the rounds, their spread, and whether the goal is reached."""
    measured = statistics.median(rounds)
    return {
        "measurement": name,
        "measured": measured,
        "spread": f"{shown(min(rounds))} to {shown(max(rounds))}",
        "unit": unit,
        "goal": f"{'<=' if at_most else '>='} {goal:g}",
        "reached": "yes" if (measured <= goal if at_most else measured >= goal) else "no",
    }


def shown(value: float) -> str:
    """A number with three digits, or all digits before its point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def finish(settings: Settings, bench: str, rows: Sequence[dict[str, Any]], facts: Mapping[str, Any]) -> None:
    """End the measurement `bench`: write OUT/summary.json, print the rows, and put them into the table of all."""
    write_result(settings.out, {"rows": rows, **facts}, [format_table(rows)])
    if settings.bench_table is not None:
        store_rows(settings.bench_table, bench, rows)


def store_rows(table: str, bench: str, rows: Sequence[dict[str, Any]]) -> None:
    """Put the rows of the measurement `bench` into the table, in place of its earlier ones; makes the table."""
    kept = [line for line in read_rows(table) if line["bench"] != bench]
    new = [
        {
            "bench": bench,
            "measurement": line["measurement"],
            "measured": " ".join(f"{shown(line['measured'])} {line['unit']} ({line['spread']})".split()),
            "goal": line["goal"],
            "reached": line["reached"],
        }
        for line in rows
    ]
    found = [*kept, *new]
    others = [f"python -m jobs.bench {name} {text}" for name, text in NEEDS.items() if any_of(found, name)]
    storage.write_json(table, {"command": ["make bench", *others], "seeds": None, "rows": found})


def read_rows(table: str) -> list[dict[str, Any]]:
    """The rows of the table of all measurements; [] if there is none."""
    return list(storage.read_json(table)["rows"]) if storage.exists(table) else []


def any_of(rows: Sequence[Mapping[str, Any]], bench: str) -> bool:
    """Whether a row is of the measurement `bench`."""
    return any(line["bench"] == bench for line in rows)
