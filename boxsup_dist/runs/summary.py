"""summary.json: the result of a finished run, and of every command that has an output folder."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import (
    Any,
    NotRequired,  # pydantic reads typing's from Python 3.12 on
)

from typing_extensions import TypedDict

from boxsup_dist.config import TrainConfig
from boxsup_dist.data.tables import Table
from boxsup_dist.errors import InputError
from boxsup_dist.io import storage
from boxsup_dist.io.typed_json import parse_json
from boxsup_dist.runs.history import HistoryEntry, best_epoch, read_history
from boxsup_dist.runs.layout import SUMMARY, RunFiles
from boxsup_dist.runs.timeline import Account


class FirstAndLast(TypedDict):
    """A metric in the first and in the last epoch that have it."""

    first: float
    last: float


class MlflowRun(TypedDict):
    """Where MLflow has the run; no id while it has not."""

    tracking_uri: str
    run_id: str | None


class _Tracked(TypedDict, total=False):
    """The part of a summary that says where MLflow has the run."""

    mlflow: MlflowRun


class Summary(TypedDict):
    """The result of a finished run. IoUs are in percent; None: not measured."""

    supervision: str
    mean_iou: float | None
    iou: dict[str, float | None] | None
    label_mean_iou: FirstAndLast | None
    epochs: int
    train_loss: float | None
    seconds: dict[str, float]  # "all": since the run was started or continued; the stages: over all epochs
    gap_s_median: float | None
    checkpoint: str | None
    resumed_from: str | None
    bad_records: dict[str, str]
    data: dict[str, dict[str, Any]]  # part in the run -> URI, fingerprint and counts of the table
    num_images: int  # that the run trains on
    num_left_out: int  # because another table of the run has them
    mlflow: MlflowRun
    time: NotRequired[Account]  # over all starts of the run; earlier versions kept none
    best_epoch: NotRequired[int | None]  # with the best mean_iou or box_score; None without validation
    box_score: NotRequired[float | None]  # on validation records without any mask, which have no mean_iou
    box_scores: NotRequired[dict[str, float | None] | None]  # by class
    box_iou: NotRequired[float | None]
    box_recall: NotRequired[float | None]
    outside_share: NotRequired[float | None]  # in 0..1


def make_summary(
    config: TrainConfig,
    *,
    tables: Mapping[str, Table],
    num_images: int,
    num_left_out: int,
    seconds: float,
    checkpoint: str | None,
    resumed_from: str | None,
    mlflow: MlflowRun,
    time: Account,
) -> Summary:
    """The result of a run whose last epoch is over; the metrics are those of its history."""
    known = read_history(config.run_dir)
    history = list(known.values())
    last = history[-1] if history else HistoryEntry(config.optimizer.epochs)  # its lines were damaged
    stages: dict[str, float] = {}
    for entry in history:
        for stage, spent in {**entry.seconds, "train": entry.train_s or 0.0}.items():
            stages[stage] = stages.get(stage, 0.0) + spent
    label_curve = [entry.label_mean_iou for entry in history if entry.label_mean_iou is not None]
    gaps = [entry.gap_s for entry in history if entry.gap_s is not None]
    return {
        "supervision": config.supervision,
        "mean_iou": last.mean_iou,
        "iou": last.iou,
        "label_mean_iou": {"first": label_curve[0], "last": label_curve[-1]} if label_curve else None,
        "epochs": config.optimizer.epochs,
        "train_loss": last.train_loss,
        "seconds": {"all": seconds, **stages},
        "gap_s_median": statistics.median(gaps) if gaps else None,
        "checkpoint": checkpoint,
        "resumed_from": resumed_from,
        "bad_records": last.bad_records,
        "data": {name: _describe(table) for name, table in tables.items()},
        "num_images": num_images,
        "num_left_out": num_left_out,
        "mlflow": mlflow,
        "time": time,
        "best_epoch": best_epoch(known),
        "box_score": last.box_score,
        "box_scores": last.box_scores,
        "box_iou": last.box_iou,
        "box_recall": last.box_recall,
        "outside_share": last.outside_share,
    }


def _describe(table: Table) -> dict[str, Any]:
    return {"uri": table.uri, "fingerprint": table.fingerprint, "num_rows": table.num_rows, **table.counts}


def is_finished(run_dir: str) -> bool:
    """True if the directory holds the result of a run."""
    return storage.exists(RunFiles(run_dir).summary)


def read_summary(run_dir: str) -> Summary:
    """The result of a finished run.

    Raises:
        InputError: The run is not finished, or the file does not hold the result of a run.
    """
    uri = RunFiles(run_dir).summary
    return parse_json(Summary, storage.read_bytes(uri), file=uri)


def mlflow_run(run_dir: str) -> tuple[str, str]:
    """Tracking URI and run id in MLflow of a finished run.

    Raises:
        InputError: The run is not finished, or MLflow does not have it.
    """
    uri = RunFiles(run_dir).summary
    found = parse_json(_Tracked, storage.read_bytes(uri), file=uri).get("mlflow")
    if found is None or not found["run_id"]:
        expected = "a run that MLflow has: run the training command again to send it"
        raise InputError("the run has no MLflow run", file=uri, field="mlflow.run_id", expected=expected)
    return found["tracking_uri"], found["run_id"]


def write_summary(run_dir: str, summary: Summary) -> None:
    """Keep the result of a run: from now on the run is finished."""
    storage.write_json(RunFiles(run_dir).summary, summary)


def write_result(out: str, values: Mapping[str, Any], lines: Iterable[str] = ()) -> None:
    """Write the result of a command to OUT/summary.json, then print it.

    Args:
        out: Output folder or URI of the command.
        values: The result; JSON values.
        lines: What a person reads of it.
    """
    storage.write_json(storage.join(storage.absolute(out), SUMMARY), values)
    for line in lines:
        print(line, flush=True)


def key_lines(values: Mapping[str, Any]) -> list[str]:
    """A result as one line per value, aligned, for a person to read."""
    return [f"{key:<24} {value}" for key, value in values.items()]
