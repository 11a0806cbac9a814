"""A whole training run: open the tables, check that everything fits, train, and leave the results in the run directory.

    RUN/config.json  RUN/history.jsonl  RUN/labels/  RUN/checkpoints/  RUN/figures/  RUN/report.html  RUN/summary.json
    RUN/mlflow_pending   there while the tracking store may lack something of the run

The same call on the same directory continues an interrupted run and returns at once for a finished one, once the
tracking store has all of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from boxsup_dist.config import TrainConfig
from boxsup_dist.distributed import session
from boxsup_dist.distributed.events import EventLoop, EventPost
from boxsup_dist.io import storage
from boxsup_dist.model import checkpoint
from boxsup_dist.runs.console import Console
from boxsup_dist.runs.coordinator import Coordinator
from boxsup_dist.runs.history import entry_metrics, read_history
from boxsup_dist.runs.inputs import Inputs, open_inputs, tables_by_name, with_absolute_uris
from boxsup_dist.runs.kept_config import keep_config
from boxsup_dist.runs.report import write_report
from boxsup_dist.runs.summary import make_summary
from boxsup_dist.tracking.client import default_tracking_uri
from boxsup_dist.tracking.tracker import RunTracker
from boxsup_dist.training.fit import fit


def train(config: TrainConfig, tags: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Run or continue a training; returns its summary. `tags` go to its MLflow run.

    Raises InputError for what a user can mend.
    """
    config = with_absolute_uris(config.check())
    run_dir = config.run_dir
    runs_root = os.path.dirname(run_dir) if storage.is_local(run_dir) else "runs"
    tracking_uri = default_tracking_uri(runs_root)
    inputs = open_inputs(config)
    keep_config(config)
    summary_uri = storage.join(run_dir, "summary.json")
    if storage.exists(summary_uri):
        print(f"{run_dir}: this run is finished", flush=True)
        if storage.exists(_pending_uri(run_dir)):
            _deliver(RunTracker(runs_root, tracking_uri), config, inputs, tags)
        return storage.read_json(summary_uri)

    session.start()
    size = session.total_cpus(), session.total_gpus()
    config = replace(config, resources=config.resources.resolve(*size))
    config.resources.check_room(*size)
    started = time.perf_counter()
    resumed_from = checkpoint.latest(run_dir)
    tracker = RunTracker(runs_root, tracking_uri)
    _start_run(tracker, config, inputs, tags)
    console = Console(config, tracker)
    status = "FAILED"
    try:
        with EventLoop(console.handle) as events:
            tell = partial(_warn, events.post)
            fit(config, inputs.mixture, partial(Coordinator, config, inputs, events.post), tell)
        if console.failure is not None:
            raise console.failure
        summary = make_summary(config, inputs, time.perf_counter() - started, resumed_from, tracker)
        storage.write_json(summary_uri, summary)
        _publish(run_dir, tracker)
        status = "FINISHED"
        return summary
    finally:
        tracker.end(status)
        _close(tracker, run_dir)


def _start_run(tracker: RunTracker, config: TrainConfig, inputs: Inputs, tags: Mapping[str, Any] | None) -> None:
    """Open the run's MLflow run and send what is known of it so far."""
    name, id_uri = os.path.basename(config.run_dir), storage.join(config.run_dir, "mlflow_run_id")
    storage.write_bytes(_pending_uri(config.run_dir), b"")
    tracker.start(config.experiment, name, id_uri=id_uri)
    tracker.set_tags(tags or {})
    tracker.log_params(config.to_dict())
    for name, table in tables_by_name(inputs).items():
        tracker.log_table("evaluation" if name == "evaluation" else "training", table)
    history = read_history(config.run_dir)
    tracker.log_history({epoch: entry_metrics(entry) for epoch, entry in history.items() if "train_loss" in entry})


def _pending_uri(run_dir: str) -> str:
    return storage.join(run_dir, "mlflow_pending")


def _deliver(tracker: RunTracker, config: TrainConfig, inputs: Inputs, tags: Mapping[str, Any] | None) -> None:
    """Send what the tracking store lacks of a finished run, and note the MLflow run where it had none before."""
    _start_run(tracker, config, inputs, tags)
    _publish(config.run_dir, tracker)
    tracker.end()
    _close(tracker, config.run_dir)
    uri = storage.join(config.run_dir, "summary.json")
    summary, run_id = storage.read_json(uri), tracker.run_id()
    if run_id is not None and summary["mlflow"]["run_id"] != run_id:
        storage.write_json(uri, {**summary, "mlflow": {**summary["mlflow"], "run_id": run_id}})


def _close(tracker: RunTracker, run_dir: str) -> None:
    if tracker.close():
        storage.remove(_pending_uri(run_dir))
    else:
        print("warning: the tracking store lacks some of this run; the same command sends it again", flush=True)


def _warn(post: EventPost, text: str) -> None:
    post("warning", text=text)


def _publish(run_dir: str, tracker: RunTracker) -> None:
    """Write the report and leave it, with the figures and the checkpoint's place, in the tracking store."""
    report = write_report(run_dir)
    tracker.log_artifact("report.html", storage.read_bytes(report))
    for name in ("summary.json", "history.jsonl"):
        tracker.log_artifact(name, storage.read_bytes(storage.join(run_dir, name)))
    for name in storage.list_names(storage.join(run_dir, "figures")):
        tracker.log_artifact(f"figures/{name}", storage.read_bytes(storage.join(run_dir, "figures", name)))
    tracker.set_tags({"checkpoint": checkpoint.latest(run_dir), "run_dir": run_dir})
