"""RUN/summary.json: the result of a finished run."""

from __future__ import annotations

from typing import Any

from boxsup_dist.config import TrainConfig
from boxsup_dist.data.tables import Table
from boxsup_dist.model import checkpoint
from boxsup_dist.runs.history import read_history
from boxsup_dist.runs.inputs import Inputs, tables_by_name
from boxsup_dist.tracking.tracker import RunTracker


def make_summary(
    config: TrainConfig, inputs: Inputs, seconds: float, resumed_from: str | None, tracker: RunTracker
) -> dict[str, Any]:
    """The result of a finished run, from its history."""
    run_dir = config.run_dir
    history = read_history(run_dir)
    last = history[max(history)]
    stages: dict[str, float] = {}
    for entry in history.values():
        for stage, spent in {**entry["seconds"], "train": entry.get("train_s", 0.0)}.items():
            stages[stage] = stages.get(stage, 0.0) + spent
    label_curve = [entry["label_mean_iou"] for _, entry in sorted(history.items()) if "label_mean_iou" in entry]
    gaps = sorted(entry["gap_s"] for entry in history.values() if "gap_s" in entry)
    return {
        "supervision": config.supervision,
        "mean_iou": last.get("mean_iou"),
        "iou": last.get("iou"),
        "label_mean_iou": {"first": label_curve[0], "last": label_curve[-1]} if label_curve else None,
        "epochs": config.optimizer.epochs,
        "train_loss": last.get("train_loss"),
        "seconds": {"all": seconds, **stages},
        "gap_s_median": gaps[len(gaps) // 2] if gaps else None,
        "checkpoint": checkpoint.latest(run_dir),
        "resumed_from": resumed_from,
        "bad_records": last.get("bad_records", {}),
        "data": {name: _describe(table) for name, table in tables_by_name(inputs).items()},
        "num_images": sum(len(unit.rows) for unit in inputs.mixture.units),
        "num_left_out": sum(unit.where.num_rows - len(unit.rows) for unit in inputs.mixture.units),
        "mlflow": {"tracking_uri": tracker.tracking_uri, "run_id": tracker.run_id()},
    }


def _describe(table: Table) -> dict[str, Any]:
    return {"uri": table.uri, "fingerprint": table.fingerprint, "num_rows": table.num_rows, **table.counts}
