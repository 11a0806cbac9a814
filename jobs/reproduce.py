"""Train the rows of a table of the paper and print our results beside the paper's.

    python -m jobs.reproduce --table 2 --data DATA --out OUT --dry-run      # what would run
    python -m jobs.reproduce --table 2 --data DATA --out OUT --seeds 0 1 2

    OUT/runs/          a run directory per row and seed; rows of other tables that are the same run share it
    OUT/tableN.json    the table, also as .md and .html

jobs.build_data makes DATA. Run the command again to train what is missing: finished runs are kept. All runs are
children of one MLflow run. boxsup_dist/runs/paper.py defines the rows. Every row has the 95 % interval of its mean IoU,
and of its difference from the first row on the same images, as jobs.compare makes them.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from boxsup_dist.config import TrainConfig
from boxsup_dist.errors import InputError
from boxsup_dist.io import storage
from boxsup_dist.reporting.text_table import format_table, interval_cells, to_html, to_markdown
from boxsup_dist.runs.command_line import Epochs, open_tables, run
from boxsup_dist.runs.costs import RunCosts
from boxsup_dist.runs.layout import RunFiles
from boxsup_dist.runs.paper import TABLES, Row, Scale, find_row, make_configs
from boxsup_dist.runs.summary import Summary, is_finished

if TYPE_CHECKING:
    from boxsup_dist.tracking.tracker import RunTracker

EXPERIMENT = "boxsup"


@dataclass(frozen=True)
class Settings:
    """Which rows of which table."""

    table: Literal[1, 2, 3, 4, 5]
    """Number of the table in the paper."""
    data: str
    """Folder or URI of the data root that jobs.build_data makes."""
    out: str
    """Folder or URI of the runs and of the result."""
    scale: Scale = "mini"
    """full: the paper's training. mini: a training for some hundred images."""
    rows: tuple[str, ...] = ()
    """Names of the rows to run. Default: all rows of the table."""
    seeds: tuple[int, ...] = (0,)
    """Train each row once per seed."""
    epochs: Epochs = None
    train_missing: bool = True
    """Train what is missing. Otherwise write the table from finished runs only."""
    dry_run: bool = False
    """Only open the tables and print what would run. Hours and storage are those of finished runs in OUT."""


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
    for config in (config for by_seed in configs.values() for made in by_seed.values() for config in made):
        open_tables(config)
    from boxsup_dist.runs.train import train
    from boxsup_dist.tracking.tracker import RunTracker

    tracker = RunTracker(runs_root=runs, system_metrics=False)
    results: list[dict[str, Any]] = []
    folders: dict[str, list[str]] = {}
    try:
        with tracker.ends_with_block():
            tracker.start(EXPERIMENT, f"paper, {settings.scale}", id_uri=RunFiles(out).mlflow_run_id)
            parent = tracker.run_id(timeout_s=60)
            tags = {"mlflow.parentRunId": parent} if parent else {}
            for row in rows:
                chosen = configs[row]
                if not settings.train_missing:
                    chosen = {seed: made for seed, made in chosen.items() if all(map(_is_finished, made))}
                # The last run of a row is its own; those before it only give it the network to begin with.
                ended = {seed: [train(config, tags) for config in made][-1] for seed, made in chosen.items()}
                if not ended:
                    continue
                results.append(_result(row, ended))
                folders[row.name] = [chosen[seed][-1].run_dir for seed in ended]
                _add_intervals(results, folders)
                _write(storage.join(out, f"table{settings.table}"), results, settings, tracker)
    finally:
        tracker.close()
    print(format_table([_shown(result) for result in results], title=f"Table {settings.table}, {settings.scale}"))


def _is_finished(config: TrainConfig) -> bool:
    return is_finished(config.run_dir)


def _plan(configs: dict[Row, dict[int, list[TrainConfig]]], runs: str) -> list[dict[str, Any]]:
    """A line per row: images, steps, the runs that are missing, and the hours and storage that they will take.

    Hours and storage follow from the finished runs in `runs` (boxsup_dist/runs/costs.py); None if there is none.
    """
    folders = [storage.join(runs, name) for name in storage.list_names(runs)]
    finished = [folder for folder in folders if is_finished(folder)]
    return [_plan_row(row, by_seed, finished, RunCosts.of(finished)) for row, by_seed in configs.items()]


def _plan_row(
    row: Row, by_seed: dict[int, list[TrainConfig]], finished: Sequence[str], costs: RunCosts
) -> dict[str, Any]:
    own = next(iter(by_seed.values()))[-1]
    images, dropped = _count_images(own)
    missing = [config for made in by_seed.values() for config in made if config.run_dir not in finished]
    hours = costs.hours(sum(config.optimizer.epochs * _count_images(config)[0] for config in missing))
    gigabytes = costs.gigabytes(len(missing))
    return {
        "row": row.name,
        "supervision": own.supervision,
        "images": images,
        "dropped": dropped,
        "steps": -(-images // own.optimizer.global_batch_size) * own.optimizer.epochs,
        "runs": sum(map(len, by_seed.values())),
        "missing": len(missing),
        "hours": None if hours is None else round(hours, 2),
        "GB": None if gigabytes is None else round(gigabytes, 2),
    }


def _count_images(config: TrainConfig) -> tuple[int, int]:
    """How many images a run trains on, and how many it drops because another data set has them."""
    from boxsup_dist.runs.inputs import open_inputs

    inputs = open_inputs(config)
    return inputs.num_images, inputs.num_left_out


def _write(base: str, results: list[dict[str, Any]], settings: Settings, tracker: RunTracker) -> None:
    """Write the table so far, also as artifacts of the parent run."""
    from boxsup_dist.tracking.tracker import git_revision

    made_by = {name: getattr(settings, name) for name in ("table", "scale", "seeds", "epochs")}
    made_by["command"] = (
        f"python -m jobs.reproduce --table {settings.table} --scale {settings.scale} --data DATA --out OUT"
        f" --seeds {' '.join(map(str, settings.seeds))}"
        + (f" --optimizer.epochs {settings.epochs}" if settings.epochs is not None else "")
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


def _add_intervals(results: list[dict[str, Any]], folders: dict[str, list[str]]) -> None:
    """Give every row its interval and its difference from the first; runs of earlier versions have none."""
    from boxsup_dist.runs.intervals import mean_iou_intervals

    try:
        found = mean_iou_intervals(folders)
    except InputError as error:  # the table is worth having without
        print(f"warning: no intervals: {error}", flush=True)
        return
    for result in results:
        result |= found.get(result["row"], {})


def _shown(result: dict[str, Any]) -> dict[str, str]:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.1f}"

    return {
        "row": result["row"],
        "paper": number(result["paper"]),
        "ours": number(result["mean_iou"]),
        **interval_cells(result),
        "spread": number(result["spread"]),
        "seeds": str(len(result["runs"])),
        "label mIoU": number(result["label_mean_iou"]),
    }


if __name__ == "__main__":
    run(main)
