"""Train the rows of one of the paper's tables and print ours beside its figures: python -m jobs.reproduce --table N ...

Finished runs are kept: the same command does what is missing. Tables 1 to 4 are run; see boxsup_dist/paper.py.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from boxsup_dist import storage
from boxsup_dist.evaluation.text_table import format_table
from boxsup_dist.paper import TABLES, Row, Scale, find_row, make_config
from boxsup_dist.run import open_inputs, train
from jobs._cli import run


@dataclass(frozen=True)
class Settings:
    """Run what is missing of a table's rows, over several seeds, and write OUT/tableN.json."""

    table: int
    """Number of the table in the paper."""
    data: str
    """Folder or URI of the tables (DATA/voc12-train/records and so on, see jobs.build_data)."""
    out: str
    """Folder or URI of the runs and of the result."""
    scale: Scale = "mini"
    """full: the paper's training; mini: that of some hundred images."""
    rows: tuple[str, ...] = ()
    """Names of the rows to run; by default all of the table."""
    seeds: tuple[int, ...] = (0,)
    """One run of each row for each seed."""
    dry_run: bool = False
    """Only open the tables and tell what would run."""


def main(settings: Settings) -> None:
    """Train, compare, print and write the table."""
    names = settings.rows or tuple(row.name for row in TABLES.get(settings.table, ())) or ("",)
    rows = [find_row(settings.table, name) for name in names]
    out = storage.absolute(settings.out)
    if settings.dry_run:
        print(format_table([_planned(row, settings, out) for row in rows]))
        return
    results = []
    for row in rows:
        runs = {}
        for seed in settings.seeds:
            run_dir = _run_dir(out, settings, row, seed)
            runs[seed] = train(make_config(row, settings.scale, settings.data, run_dir, seed=seed))
        results.append(_result(row, runs))
        summary = {"table": settings.table, "scale": settings.scale, "rows": results}
        storage.write_json(storage.join(out, f"table{settings.table}.json"), summary)
    print(format_table([_shown(result) for result in results], title=f"Table {settings.table}, {settings.scale}"))


def _run_dir(out: str, settings: Settings, row: Row, seed: int) -> str:
    name = row.name.replace(",", "").replace(" ", "-").replace("+", "-").lower()
    return storage.join(out, f"table{settings.table}", f"{name}-seed{seed}")


def _planned(row: Row, settings: Settings, out: str) -> dict[str, Any]:
    config = make_config(row, settings.scale, settings.data, _run_dir(out, settings, row, 0)).check()
    mixture = open_inputs(config).mixture
    images = sum(len(unit.rows) for unit in mixture.units)
    steps = -(-images // config.optimizer.global_batch_size) * config.optimizer.epochs
    return {
        "row": row.name,
        "supervision": config.supervision,
        "images": images,
        "dropped": sum(unit.where.num_rows - len(unit.rows) for unit in mixture.units),
        "steps": steps,
        "runs": len(settings.seeds),
    }


def _result(row: Row, runs: dict[int, dict[str, Any]]) -> dict[str, Any]:
    scores = [run["mean_iou"] for run in runs.values()]
    labels = [run["label_mean_iou"]["last"] for run in runs.values() if run["label_mean_iou"]]
    return {
        "row": row.name,
        "paper": row.paper,
        "mean_iou": statistics.mean(scores),
        "spread": max(scores) - min(scores),
        "label_mean_iou": statistics.mean(labels) if labels else None,
        "runs": {str(seed): {key: run[key] for key in ("mean_iou", "label_mean_iou")} for seed, run in runs.items()},
    }


def _shown(result: dict[str, Any]) -> dict[str, str]:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.1f}"

    return {
        "row": result["row"],
        "paper": number(result["paper"]),
        "ours": number(result["mean_iou"]),
        "spread": number(result["spread"]) if len(result["runs"]) > 1 else "",
        "label mIoU": number(result["label_mean_iou"]),
    }


if __name__ == "__main__":
    run(main)
