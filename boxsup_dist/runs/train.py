"""A whole training run: open the tables, check that everything fits, train, and leave the results in the run directory.

The same call on the same directory continues an interrupted run. For a finished run it returns at once, after it has
sent to MLflow what MLflow lacks. `runs/layout.py` lists the files.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from boxsup_dist.config import TrainConfig
from boxsup_dist.distributed import session
from boxsup_dist.distributed.events import EventLoop
from boxsup_dist.errors import CheckpointError
from boxsup_dist.io import lease, storage
from boxsup_dist.io.lease import Claim, Lease
from boxsup_dist.model import checkpoint
from boxsup_dist.model.transfer import check_start
from boxsup_dist.runs.checkpoints import best_checkpoint
from boxsup_dist.runs.console import Console, print_header, print_result
from boxsup_dist.runs.coordinator import Coordinator
from boxsup_dist.runs.events import Lost
from boxsup_dist.runs.history import best_epoch, read_history
from boxsup_dist.runs.inputs import (
    Inputs,
    check_tables,
    keep_tables,
    open_inputs,
    tables_by_name,
    with_absolute_uris,
)
from boxsup_dist.runs.kept_config import check_resume, keep_config
from boxsup_dist.runs.layout import RunFiles
from boxsup_dist.runs.report import write_report
from boxsup_dist.runs.summary import Summary, is_finished, make_summary, read_summary, write_summary
from boxsup_dist.runs.timeline import Timeline
from boxsup_dist.tracking.address import default_tracking_uri
from boxsup_dist.tracking.tracker import RunTracker
from boxsup_dist.training.fit import fit


def train(config: TrainConfig, tags: Mapping[str, Any] | None = None) -> Summary:
    """Run or continue a training.

    Args:
        config: All settings of the run.
        tags: Tags of its MLflow run.

    Returns:
        The result, as RUN/summary.json has it.

    Raises:
        InputError: A setting, a table or the run directory cannot be used; the message says what to do.
    """
    began = time.time()
    config = with_absolute_uris(config.check())
    run_dir = config.run_dir
    runs_root = os.path.dirname(run_dir) if storage.is_local(run_dir) else "runs"
    tracking_uri = default_tracking_uri(runs_root)
    inputs = open_inputs(config)
    warmup = config.optimizer.warmup(inputs.num_steps * config.optimizer.epochs)
    config = replace(config, optimizer=replace(config.optimizer, warmup_steps=warmup))
    check_resume(config)
    check_tables(run_dir, tables_by_name(inputs))
    if is_finished(run_dir):
        print(f"{run_dir}: this run is finished", flush=True)
        if storage.exists(RunFiles(run_dir).mlflow_pending):
            with _one_writer(run_dir):
                _deliver(RunTracker(runs_root, tracking_uri), config, inputs, tags)
        summary = read_summary(run_dir)
    else:
        storage.check_output(run_dir)
        lease.refuse_held(run_dir, RunFiles(run_dir).writer)
        _start_ray(config, inputs)
        nodes = session.nodes()
        resources = config.resources.resolve(nodes, config.optimizer.global_batch_size)
        resources.check_room(nodes)
        replace(config, resources=resources).check()
        with _one_writer(run_dir) as held:
            check_resume(config)  # again: another command may have ended here just now
            keep_config(config)
            keep_tables(run_dir, tables_by_name(inputs))
            config = replace(config, resources=resources)
            print_header(config, inputs, tracking_uri)
            timeline = Timeline(run_dir, inputs.num_steps, began)
            summary = _train(config, inputs, RunTracker(runs_root, tracking_uri), tags, held.claim, timeline)
    print_result(run_dir, summary)
    return summary


def _start_ray(config: TrainConfig, inputs: Inputs) -> None:
    """Start Ray and, beside it, check that the network can start: each takes some seconds."""
    print("starting Ray, checking the network", flush=True)
    with ThreadPoolExecutor(1) as beside:
        checked: Future[None] | None = None
        if checkpoint.latest(config.run_dir) is None:
            options = config.network
            checked = beside.submit(check_start, inputs.network, options.weights, random_fc=options.random_fc)
        session.start()
    if checked is not None:
        checked.result()


def _one_writer(run_dir: str) -> AbstractContextManager[Lease]:
    """The lease of the run directory; jobs that only read a run, or write elsewhere, run beside it."""
    return lease.held(run_dir, RunFiles(run_dir).writer, lambda text: print(f"warning: {text}", flush=True))


def _train(
    config: TrainConfig,
    inputs: Inputs,
    tracker: RunTracker,
    tags: Mapping[str, Any] | None,
    claim: Claim,
    timeline: Timeline,
) -> Summary:
    """Train from the newest checkpoint to the end, and keep the result."""
    started = time.perf_counter()
    resumed_from = checkpoint.latest(config.run_dir)
    console = Console(config, tracker, timeline)
    with _closing(tracker, config.run_dir), tracker.ends_with_block():
        _start_tracking(tracker, config, inputs, tags)
        with EventLoop(console.handle) as events:
            post = events.post
            print("starting the train workers", flush=True)
            make_coordinator = partial(Coordinator, config, inputs, post, claim)
            fit(config, inputs.mixture, make_coordinator, lambda text: post(Lost(text)))
        if console.failure is not None:
            raise console.failure
        claim.check()
        summary = make_summary(
            config,
            tables=tables_by_name(inputs),
            num_images=inputs.num_images,
            num_left_out=inputs.num_left_out,
            seconds=time.perf_counter() - started,
            checkpoint=checkpoint.latest(config.run_dir),
            resumed_from=resumed_from,
            mlflow={"tracking_uri": tracker.tracking_uri, "run_id": tracker.run_id()},
            time=timeline.finish(),
        )
        write_summary(config.run_dir, summary)
        _publish(config.run_dir, summary, tracker, inputs)
        return summary


def _start_tracking(tracker: RunTracker, config: TrainConfig, inputs: Inputs, tags: Mapping[str, Any] | None) -> None:
    """Open the run's MLflow run and send what is known of it so far."""
    files = RunFiles(config.run_dir)
    storage.write_bytes(files.mlflow_pending, b"")
    tracker.start(config.experiment, os.path.basename(config.run_dir), id_uri=files.mlflow_run_id)
    tracker.set_tags(tags or {})
    tracker.log_params(config.to_dict())
    for name, table in tables_by_name(inputs).items():
        tracker.log_table("evaluation" if name == "evaluation" else "training", table)
    history = read_history(config.run_dir)
    # An epoch without a loss is not over: its metrics come when it is.
    tracker.log_history({epoch: entry.metrics() for epoch, entry in history.items() if entry.train_loss is not None})


def _deliver(tracker: RunTracker, config: TrainConfig, inputs: Inputs, tags: Mapping[str, Any] | None) -> None:
    """Send what MLflow lacks of a finished run, and note the MLflow run where the summary has none."""
    summary = read_summary(config.run_dir)
    with _closing(tracker, config.run_dir):
        _start_tracking(tracker, config, inputs, tags)
        _publish(config.run_dir, summary, tracker, inputs)
        tracker.end()
    run_id = tracker.run_id()
    if run_id is not None and summary["mlflow"]["run_id"] != run_id:
        summary["mlflow"]["run_id"] = run_id
        write_summary(config.run_dir, summary)


@contextmanager
def _closing(tracker: RunTracker, run_dir: str) -> Iterator[None]:
    """Close the tracker with the block, and note in the run directory whether MLflow has everything."""
    try:
        yield
    finally:
        if tracker.close():
            storage.remove(RunFiles(run_dir).mlflow_pending)
        else:
            print("warning: MLflow lacks a part of this run: run the same command again to send it", flush=True)


def _publish(run_dir: str, summary: Summary, tracker: RunTracker, inputs: Inputs) -> None:
    """Write the report. Leave it, with the figures, the best network and the place of the checkpoint, in MLflow."""
    files = RunFiles(run_dir)
    for uri in (write_report(run_dir), files.summary, files.history):
        tracker.log_artifact(os.path.basename(uri), storage.read_bytes(uri))
    for name in storage.list_names(files.figures):
        tracker.log_artifact(f"figures/{name}", storage.read_bytes(storage.join(files.figures, name)))
    if "time" in summary:
        tracker.log_history({summary["epochs"]: {"time": summary["time"]}})
    tracker.set_tags({"checkpoint": summary["checkpoint"], "run_dir": run_dir})
    _publish_best(run_dir, tracker, inputs)


def _publish_best(run_dir: str, tracker: RunTracker, inputs: Inputs) -> None:
    """Leave the best network in MLflow, with its mean IoU or box score; nothing without validation records."""
    history = read_history(run_dir)
    number = best_epoch(history)
    if number is None or inputs.val_records is None:
        return
    entry = history[number]
    metric = "box_score" if entry.mean_iou is None else "mean_iou"
    assert entry.quality is not None
    try:
        uri = best_checkpoint(run_dir)
    except CheckpointError as error:
        print(f"warning: MLflow does not get the best network: {error}", flush=True)
        return
    tracker.log_best_model(
        uri, inputs.class_names, epoch=number, metrics={metric: entry.quality}, data=inputs.val_records
    )
