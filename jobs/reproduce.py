"""Train the rows of one of the paper's tables and print ours beside its figures: python -m jobs.reproduce --table N ...

    OUT/runs/            one run directory a row and seed, shared by rows of other tables that are the same run
    OUT/tableN.json      the table, also as .md and .html

Finished runs are kept: the same command does what is missing. The runs are children of one MLflow run. What the rows
are is told in boxsup_dist/runs/paper.py.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from boxsup_dist.config import TrainConfig
from boxsup_dist.io import storage
from boxsup_dist.reporting.text_table import format_table, to_html, to_markdown
from boxsup_dist.runs.command_line import run
from boxsup_dist.runs.inputs import open_inputs
from boxsup_dist.runs.layout import RunFiles
from boxsup_dist.runs.paper import TABLES, Row, Scale, find_row, make_configs
from boxsup_dist.runs.summary import Summary, is_finished, read_summary
from boxsup_dist.runs.train import train
from boxsup_dist.tracking.tracker import RunTracker, git_revision

EXPERIMENT = "boxsup"


@dataclass(frozen=True)
class Settings:
    """Run what is missing of a table's rows, over several seeds, and write OUT/tableN.json, .md and .html."""

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
    train_missing: bool = True
    """Train what is missing; else the table is written of the finished runs alone."""
    dry_run: bool = False
    """Only open the tables and tell what would run, with hours and storage as finished runs of OUT had them."""


def main(settings: Settings) -> None:
    """Train, compare, print and write the table."""
    names = settings.rows or tuple(row.name for row in TABLES.get(settings.table, ())) or ("",)
    rows = [find_row(settings.table, name) for name in names]
    out = storage.absolute(settings.out)
    runs = storage.join(out, "runs")
    configs: dict[Row, dict[int, list[TrainConfig]]] = {}
    for row in rows:
        for seed in settings.seeds:
            wanted = make_configs(row, settings.scale, settings.data, runs, seed=seed, epochs=settings.epochs)
            configs.setdefault(row, {})[seed] = [config.check() for config in wanted]
    if settings.dry_run:
        print(format_table(_plan(configs, runs), title=f"Table {settings.table}, {settings.scale}: what would run"))
        return
    tracker = RunTracker(runs_root=runs, system_metrics=False)
    tracker.start(EXPERIMENT, f"paper, {settings.scale}", id_uri=RunFiles(out).mlflow_run_id)
    parent = tracker.run_id(timeout_s=60)
    tags = {"mlflow.parentRunId": parent} if parent else {}
    results = []
    try:
        for row in rows:
            chosen = configs[row]
            if not settings.train_missing:
                chosen = {seed: made for seed, made in chosen.items() if all(map(_is_finished, made))}
            # The last run of a row is its own; those before it only give it the network to begin with.
            ended = {seed: [train(config, tags) for config in made][-1] for seed, made in chosen.items()}
            if not ended:
                continue
            results.append(_result(row, ended))
            _write(storage.join(out, f"table{settings.table}"), results, settings, tracker)
    finally:
        tracker.end()
        tracker.close()
    print(format_table([_shown(result) for result in results], title=f"Table {settings.table}, {settings.scale}"))


def _is_finished(config: TrainConfig) -> bool:
    return is_finished(config.run_dir)


def _plan(configs: dict[Row, dict[int, list[TrainConfig]]], runs: str) -> list[dict[str, Any]]:
    """A line a row: images, steps, the runs that are missing, their hours and the storage that they fill.

    Hours and storage are those of the finished runs in `runs`, a pass over an image and a run; none without any.
    """
    finished = [storage.join(runs, name) for name in storage.list_names(runs)]
    finished = [folder for folder in finished if is_finished(folder)]
    seconds, sizes = [], []
    for folder in finished:
        summary = read_summary(folder)
        seconds.append(summary["seconds"]["all"] / (summary["epochs"] * max(summary["num_images"], 1)))
        sizes.append(storage.size(folder))
    lines = []
    for row, by_seed in configs.items():
        own = next(iter(by_seed.values()))[-1]
        images, dropped = _count_images(own)
        missing = [c for made in by_seed.values() for c in made if c.run_dir not in finished]
        passes = sum(c.optimizer.epochs * _count_images(c)[0] for c in missing)
        lines.append(
            {
                "row": row.name,
                "supervision": own.supervision,
                "images": images,
                "dropped": dropped,
                "steps": -(-images // own.optimizer.global_batch_size) * own.optimizer.epochs,
                "runs": sum(map(len, by_seed.values())),
                "missing": len(missing),
                "hours": round(passes * statistics.median(seconds) / 3600, 2) if seconds else None,
                "GB": round(len(missing) * statistics.median(sizes) / 1e9, 2) if sizes else None,
            }
        )
    return lines


def _count_images(config: TrainConfig) -> tuple[int, int]:
    """Images that a run trains on, and those that it drops because another data set has them."""
    inputs = open_inputs(config)
    return inputs.num_images, inputs.num_left_out


def _write(base: str, results: list[dict[str, Any]], settings: Settings, tracker: RunTracker) -> None:
    """The table so far, also as artifacts of the parent run."""
    made_by = {name: getattr(settings, name) for name in ("table", "scale", "seeds", "epochs")}
    made_by["command"] = (
        f"python -m jobs.reproduce --table {settings.table} --scale {settings.scale} --data DATA --out OUT"
        f" --seeds {' '.join(map(str, settings.seeds))}"
        + (f" --epochs {settings.epochs}" if settings.epochs is not None else "")
    )
    storage.write_json(f"{base}.json", {**made_by, "git_revision": git_revision(), "rows": results})
    shown = [_shown(result) for result in results]
    title = f"Table {settings.table}, {settings.scale}"
    storage.write_bytes(f"{base}.md", to_markdown(shown, title).encode())
    storage.write_bytes(f"{base}.html", to_html(shown, title).encode())
    for kind in ("json", "md", "html"):
        tracker.log_artifact(f"table{settings.table}.{kind}", storage.read_bytes(f"{base}.{kind}"))
    scores = {f"table{settings.table}/{result['row']}": result["mean_iou"] for result in results}
    tracker.log_metrics(scores, step=0)


def _result(row: Row, runs: dict[int, Summary]) -> dict[str, Any]:
    scores = [score for run in runs.values() if (score := run["mean_iou"]) is not None]
    labels = [run["label_mean_iou"]["last"] for run in runs.values() if run["label_mean_iou"]]
    return {
        "row": row.name,
        "paper": row.paper,
        "mean_iou": statistics.mean(scores),
        "spread": max(scores) - min(scores) if len(scores) > 1 else None,
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
        "spread": number(result["spread"]),
        "seeds": str(len(result["runs"])),
        "label mIoU": number(result["label_mean_iou"]),
    }


if __name__ == "__main__":
    run(main)
