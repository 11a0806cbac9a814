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

from boxsup_dist.config import SourceSettings, TrainConfig
from boxsup_dist.data.shared_images import find_duplicates
from boxsup_dist.data.sources import Mixture, Source, balanced_weights, make_units
from boxsup_dist.data.tables import Table, open_table
from boxsup_dist.distributed import session
from boxsup_dist.distributed.events import Event, EventLoop, EventPost
from boxsup_dist.errors import InputError, SettingError
from boxsup_dist.io import storage
from boxsup_dist.model import checkpoint
from boxsup_dist.model.weights import absolute_spec
from boxsup_dist.progress import format_duration
from boxsup_dist.reporting.page import write_report
from boxsup_dist.runs.coordinator import Coordinator, Inputs, read_config, read_history
from boxsup_dist.tracking.tracker import RunTracker, default_tracking_uri
from boxsup_dist.training.fit import fit

# Settings that may differ when a run goes on: they don't decide its result.
FREE_ON_RESUME = ("run_dir", "resources", "keep_checkpoints", "checkpoint_every_steps", "max_bad_records", "experiment")


def train(config: TrainConfig, tags: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Run or continue a training; returns its summary. `tags` go to its MLflow run.

    Raises InputError for what a user can mend.
    """
    config = _with_absolute_uris(config.check())
    run_dir = config.run_dir
    runs_root = os.path.dirname(run_dir) if storage.is_local(run_dir) else "runs"
    tracking_uri = default_tracking_uri(runs_root)
    inputs = open_inputs(config)
    _keep_config(config, run_dir)
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
    console = _Console(config, tracker)
    status = "FAILED"
    try:
        with EventLoop(console.handle) as events:
            tell = partial(_warn, events.post)
            fit(config, inputs.mixture, partial(Coordinator, config, inputs, events.post), tell)
        if console.failure is not None:
            raise console.failure
        summary = _summary(config, inputs, time.perf_counter() - started, resumed_from, tracker)
        storage.write_json(summary_uri, summary)
        _publish(run_dir, tracker)
        status = "FINISHED"
        return summary
    finally:
        tracker.end(status)
        _close(tracker, run_dir)


def _with_absolute_uris(config: TrainConfig) -> TrainConfig:
    """The same run, and the same configuration to compare with, from any working directory."""

    def absolute(uri: str | None) -> str | None:
        return None if uri is None else storage.absolute(uri)

    sources = [
        replace(
            source,
            records=storage.absolute(source.records),
            proposals=absolute(source.proposals),
            label_maps=absolute(source.label_maps),
        )
        for source in config.sources
    ]
    return replace(
        config,
        run_dir=storage.absolute(config.run_dir),
        network=replace(config.network, weights=absolute_spec(config.network.weights)),
        sources=tuple(sources),
        val_records=absolute(config.val_records),
    )


def open_inputs(config: TrainConfig) -> Inputs:
    """Open and check the tables against the supervision."""
    sources = [_open_source(settings) for settings in config.sources]
    val_records = open_table(config.val_records, "records") if config.val_records else None
    if val_records is not None and val_records.counts.get("with_mask", 0) == 0:
        raise SettingError("no record has a mask to evaluate with", file=val_records.uri, field="val_records")
    classes = sources[0].records.classes
    for source in sources:
        if source.records.classes != classes:
            raise SettingError(
                "the sources are labelled with different classes",
                file=source.records.uri,
                field="classes",
                value=len(source.records.classes),
                expected=f"those of {sources[0].records.uri}",
            )
    if config.network.num_classes != len(classes):
        raise SettingError(
            "these records are labelled with other classes",
            field="network.num_classes",
            value=config.network.num_classes,
            expected=str(len(classes)),
        )
    left_out = find_duplicates([source.records for source in sources], val_records, config.duplicates)
    power = config.optimizer.class_balance
    weights = balanced_weights(sources, power) if power else None
    mixture = Mixture(make_units(sources, left_out), config.assignment, config.augment, config.seed, weights)
    measurable = mixture.with_supervision("rectangles", "grabcut", "wssl", "box")
    can_measure = any(mixture.units[i].source.records.counts.get("with_mask", 0) > 0 for i in measurable)
    return Inputs(mixture, val_records, classes, config.measure_labels and can_measure)


def _open_source(settings: SourceSettings) -> Source:
    records = open_table(settings.records, "records")
    partners = {}
    for name, uri in (("proposals", settings.proposals), ("label_maps", settings.label_maps)):
        partners[name] = open_table(uri, name) if uri is not None else None
    with_mask = records.counts.get("with_mask", 0)
    if settings.supervision == "mask" and with_mask < records.num_rows:
        raise SettingError(
            "mask supervision needs a ground-truth mask in every record",
            file=records.uri,
            field="supervision",
            value=f"{with_mask} of {records.num_rows} records have one",
            expected="all, or another supervision",
        )
    found = partners["label_maps"]
    if found is not None and settings.supervision not in ("box", found.settings["method"]):
        raise SettingError(
            "the label maps were made by another method",
            file=found.uri,
            field="supervision",
            value=settings.supervision,
            expected=found.settings["method"],
        )
    return Source(records, settings.supervision, **partners)


def _keep_config(config: TrainConfig, run_dir: str) -> None:
    """Store the resolved configuration; SettingError if the directory holds a run with other ones."""
    uri = storage.join(run_dir, "config.json")
    wanted = config.to_dict()
    assigns = any(source.supervision in ("box", "wssl_em") for source in config.sources)
    free = FREE_ON_RESUME if assigns else (*FREE_ON_RESUME, "assignment")
    if storage.exists(uri):
        # A setting that the run does not know yet is new, and its default what the run did.
        found = read_config(run_dir).to_dict()
        for name in wanted:
            if name not in free and found[name] != wanted[name]:
                raise SettingError(
                    "the run directory holds a run with another setting; choose another or delete it",
                    file=uri,
                    field=name,
                    value=wanted[name],
                    expected=str(found[name]),
                )
    storage.write_json(uri, wanted)


def _start_run(tracker: RunTracker, config: TrainConfig, inputs: Inputs, tags: Mapping[str, Any] | None) -> None:
    """Open the run's MLflow run and send what is known of it so far."""
    name, id_uri = os.path.basename(config.run_dir), storage.join(config.run_dir, "mlflow_run_id")
    storage.write_bytes(_pending_uri(config.run_dir), b"")
    tracker.start(config.experiment, name, id_uri=id_uri)
    tracker.set_tags(tags or {})
    tracker.log_params(config.to_dict())
    for name, table in _tables(inputs).items():
        tracker.log_table("evaluation" if name == "evaluation" else "training", table)
    history = read_history(config.run_dir)
    tracker.log_history({epoch: _metrics(entry) for epoch, entry in history.items() if "train_loss" in entry})


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


def _metrics(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "epoch"}


def _warn(post: EventPost, text: str) -> None:
    post("warning", text=text)


class _Console:
    """Prints what rank 0 tells, and passes it on to the tracker."""

    PROGRESS_EVERY_S = 10.0

    def __init__(self, config: TrainConfig, tracker: RunTracker) -> None:
        self.config, self.tracker = config, tracker
        self.failure: InputError | None = None
        self._stage: tuple[int, str] | None = None
        self._since = self._printed = 0.0

    def handle(self, event: Event) -> None:
        """Dispatch one event of the coordinator."""
        getattr(self, f"_on_{event.kind}")(**event.values)

    def _on_progress(self, epoch: int, stage: str, done: int, total: int, images_per_s: float | None = None) -> None:
        now = time.monotonic()
        if self._stage != (epoch, stage):
            self._stage, self._since, self._printed = (epoch, stage), now, now
            return
        if now - self._printed < self.PROGRESS_EVERY_S or done == 0:
            return
        self._printed = now
        left = (now - self._since) / done * (total - done)
        rate = f"  {images_per_s:.1f} images/s" if images_per_s else ""
        print(f"  epoch {epoch}  {stage} {done}/{total}{rate}  left {format_duration(left)}", flush=True)

    def _on_begin(self, epoch: int, step: int, num_workers: int) -> None:
        where = "the start" if epoch == step == 0 else f"epoch {epoch}, step {step}"
        print(f"training begins at {where}, workers: {num_workers}", flush=True)

    def _on_epoch(self, entry: dict[str, Any]) -> None:
        keys = ("train_loss", "images_per_s", "foreground_share", "share_changed", "label_mean_iou", "mean_iou")
        shown = "  ".join(f"{key} {entry[key]:.3g}" for key in keys if key in entry)
        print(f"epoch {entry['epoch'] + 1}/{self.config.optimizer.epochs}  {shown}", flush=True)
        self.tracker.log_metrics(_metrics(entry), step=entry["epoch"])

    def _on_stalled(self, seconds: float) -> None:
        where = "the start of the workers" if self._stage is None else f"epoch {self._stage[0]}, {self._stage[1]}"
        print(f"warning: nothing heard for {seconds:.0f} s from {where}; {session.describe()}", flush=True)

    def _on_warning(self, text: str) -> None:
        print(f"warning: {text}", flush=True)

    def _on_failed(self, error: InputError) -> None:
        self.failure = error


def _summary(
    config: TrainConfig, inputs: Inputs, seconds: float, resumed_from: str | None, tracker: RunTracker
) -> dict[str, Any]:
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
        "data": {name: _describe(table) for name, table in _tables(inputs).items()},
        "num_images": sum(len(unit.rows) for unit in inputs.mixture.units),
        "num_left_out": sum(unit.where.num_rows - len(unit.rows) for unit in inputs.mixture.units),
        "mlflow": {"tracking_uri": tracker.tracking_uri, "run_id": tracker.run_id()},
    }


def _tables(inputs: Inputs) -> dict[str, Table]:
    """Every table of the run by its part in it: "training", for one of several sources "training 2"."""
    found: dict[str, Table | None] = {}
    for number, source in enumerate(inputs.mixture.sources, 1):
        suffix = f" {number}" if number > 1 else ""
        found |= {
            f"training{suffix}": source.records,
            f"proposals{suffix}": source.proposals,
            f"label maps{suffix}": source.label_maps,
        }
    found["evaluation"] = inputs.val_records
    return {name: table for name, table in found.items() if table is not None}


def _describe(table: Table) -> dict[str, Any]:
    return {"uri": table.uri, "fingerprint": table.fingerprint, "num_rows": table.num_rows, **table.counts}


def _publish(run_dir: str, tracker: RunTracker) -> None:
    """Write the report and leave it, with the figures and the checkpoint's place, in the tracking store."""
    report = write_report(run_dir)
    tracker.log_artifact("report.html", storage.read_bytes(report))
    for name in ("summary.json", "history.jsonl"):
        tracker.log_artifact(name, storage.read_bytes(storage.join(run_dir, name)))
    for name in storage.list_names(storage.join(run_dir, "figures")):
        tracker.log_artifact(f"figures/{name}", storage.read_bytes(storage.join(run_dir, "figures", name)))
    tracker.set_tags({"checkpoint": checkpoint.latest(run_dir), "run_dir": run_dir})
