"""Train the rows of one of the paper's tables and print ours beside its figures: python -m jobs.reproduce --table N ...

Finished runs are kept: the same command does what is missing. Tables 1 to 4 are run; see boxsup_dist/paper.py.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from boxsup_dist import storage
from boxsup_dist.config import TrainConfig
from boxsup_dist.evaluation.text_table import format_table
from boxsup_dist.paper import TABLES, Row, Scale, find_row, make_config
from boxsup_dist.run import open_inputs, train
from boxsup_dist.tracking import RunTracker, git_revision
from jobs._cli import run

EXPERIMENT = "boxsup"


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
    epochs: int | None = None
    """Passes over the data; by default as many as the scale's recipe has."""
    dry_run: bool = False
    """Only open the tables and tell what would run."""


def main(settings: Settings) -> None:
    """Train, compare, print and write the table."""
    names = settings.rows or tuple(row.name for row in TABLES.get(settings.table, ())) or ("",)
    rows = [find_row(settings.table, name) for name in names]
    out = storage.absolute(settings.out)
    configs = {row: {seed: _config(row, settings, out, seed) for seed in settings.seeds} for row in rows}
    if settings.dry_run:
        print(format_table([_planned(row, configs[row][settings.seeds[0]], len(settings.seeds)) for row in rows]))
        return
    tracker = RunTracker(runs_root=storage.join(out, "runs"), system_metrics=False)
    tracker.start(EXPERIMENT, f"paper, {settings.scale}", id_uri=storage.join(out, "mlflow_run_id"))
    parent = tracker.run_id(timeout_s=60)
    try:
        results = []
        for row in rows:
            tags = {"mlflow.parentRunId": parent} if parent else {}
            results.append(_result(row, {seed: train(config, tags) for seed, config in configs[row].items()}))
            _write(storage.join(out, f"table{settings.table}"), results, settings, tracker)
    finally:
        tracker.end()
        tracker.close()
    print(format_table([_shown(result) for result in results], title=f"Table {settings.table}, {settings.scale}"))


def _config(row: Row, settings: Settings, out: str, seed: int) -> TrainConfig:
    runs = storage.join(out, "runs")
    return make_config(row, settings.scale, settings.data, runs, seed=seed, epochs=settings.epochs).check()


def _planned(row: Row, config: TrainConfig, num_runs: int) -> dict[str, Any]:
    mixture = open_inputs(config).mixture
    images = sum(len(unit.rows) for unit in mixture.units)
    steps = -(-images // config.optimizer.global_batch_size) * config.optimizer.epochs
    return {
        "row": row.name,
        "supervision": config.supervision,
        "images": images,
        "dropped": sum(unit.where.num_rows - len(unit.rows) for unit in mixture.units),
        "steps": steps,
        "runs": num_runs,
    }


def _write(base: str, results: list[dict[str, Any]], settings: Settings, tracker: RunTracker) -> None:
    """OUT/tableN.json, so far, also as the artifact of the parent run."""
    command = {"scale": settings.scale, "seeds": settings.seeds, "epochs": settings.epochs}
    summary = {"table": settings.table, **command, "git_revision": git_revision(), "rows": results}
    storage.write_json(f"{base}.json", summary)
    tracker.log_artifact(f"table{settings.table}.json", storage.read_bytes(f"{base}.json"))
    scores = {f"table{settings.table}/{result['row']}": result["mean_iou"] for result in results}
    tracker.log_metrics(scores, step=0)


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
