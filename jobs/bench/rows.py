"""The lines that every measurement prints, and the table of all measurements (docs/results/bench.json)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from boxsup_dist.io import storage


def row(name: str, unit: str, rounds: Sequence[float], goal: float, *, at_most: bool = False) -> dict[str, Any]:
    """A line: the median of the rounds, their spread, and whether the goal is reached."""
    measured = statistics.median(rounds)
    return {
        "measurement": name,
        "measured": measured,
        "spread": f"{min(rounds):.3g} to {max(rounds):.3g}",
        "unit": unit,
        "goal": f"{'<=' if at_most else '>='} {goal:g}",
        "reached": "yes" if (measured <= goal if at_most else measured >= goal) else "no",
    }


def store_rows(table: str, bench: str, rows: Sequence[dict[str, Any]]) -> None:
    """Put the rows of the measurement `bench` into the table, in place of its earlier ones."""
    stored = storage.read_json(table)
    kept = [line for line in stored["rows"] if line["bench"] != bench]
    new = [
        {
            "bench": bench,
            "measurement": line["measurement"],
            "measured": f"{line['measured']:.3g} {line['unit']} ({line['spread']})",
            "goal": line["goal"],
        }
        for line in rows
    ]
    storage.write_json(table, {**stored, "rows": [*kept, *new]})
