"""Tracking into a real SQLite store, read back through MLflow's own client."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boxsup_dist.data.tables import ShardInfo, Table
from boxsup_dist.errors import InputError, SettingError
from boxsup_dist.tracking.address import default_tracking_uri
from boxsup_dist.tracking.calls import flatten
from boxsup_dist.tracking.client import add_artifacts
from boxsup_dist.tracking.tracker import MAX_PARAM_CHARS, RunTracker, git_revision

# A new SQLite store takes seconds of migrations, so the tests share one.
WAIT_S = 120.0


@pytest.fixture(scope="module")
def runs_root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("runs"))


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def open_client(tracker: RunTracker) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracker.tracking_uri)


def finish(tracker: RunTracker) -> str:
    tracker.end()
    assert tracker.close(WAIT_S)
    run_id = tracker.run_id()
    assert run_id is not None
    return run_id


CONFIG = {
    "seed": 1,
    "model": {"backbone": "lite0", "weights": None},
    "lr": 0.01,
    "words": "x" * 2000,
    "list": [1, 2],
    "odd key!": True,
}


def test_everything_is_in_the_store(runs_root: str) -> None:
    tracker = RunTracker(runs_root)
    table = Table(
        uri="/data/records",
        kind="records",
        settings={"split": "train"},
        shards=[ShardInfo(100, "00", 8, "00", [], file="part-00000.parquet", row_groups=[4, 4], ids="00")],
        counts={"boxes": 12},
        fingerprint="0123456789abcdef",
    )
    started = time.monotonic()
    tracker.start("boxsup tests", "first")
    tracker.log_params(CONFIG)
    tracker.log_table("training", table)
    for epoch in range(3):
        tracker.log_metrics({"loss": 1.0 / (epoch + 1), "iou": {"cat": np.float64(0.5)}, "gap": None}, step=epoch)
    tracker.log_metrics({"mean_iou": math.nan, "bad": math.inf, "num_images": 7, "name": "text"}, step=2)
    tracker.log_artifact("figures/epoch_002.png", b"png bytes")
    tracker.set_tags({"checkpoint": "/runs/a/checkpoint_2"})
    assert time.monotonic() - started < 8, "the caller waited for the store"
    run_id = finish(tracker)

    client = open_client(tracker)
    run = client.get_run(run_id)
    assert (run.info.run_name, run.info.status) == ("first", "FINISHED")
    assert {m.step: m.value for m in client.get_metric_history(run_id, "loss")} == {0: 1.0, 1: 0.5, 2: 1 / 3}
    assert run.data.metrics["iou/cat"] == 0.5
    assert run.data.metrics["num_images"] == 7
    assert not {"gap", "mean_iou", "bad", "name"} & set(run.data.metrics)
    assert run.data.params["model.backbone"] == "lite0"
    assert run.data.params["model.weights"] == "null"
    assert run.data.params["list"] == "[1, 2]"
    assert run.data.params["odd key_"] == "true"
    assert len(run.data.params["words"]) == MAX_PARAM_CHARS
    assert run.data.params["words"].endswith("(2000 characters, whole in config.json)")
    assert run.data.tags["checkpoint"] == "/runs/a/checkpoint_2"
    assert run.data.tags["git_revision"] == git_revision()
    assert run.data.tags["boxsup_dist_version"]
    assert [d.dataset.digest for d in run.inputs.dataset_inputs] == ["0123456789abcdef"]

    place = Path(client.download_artifacts(run_id, ""))
    assert (place / "figures/epoch_002.png").read_bytes() == b"png bytes"
    assert json.loads((place / "config.json").read_text()) == CONFIG
    assert json.loads((place / "data/training_records.json").read_text())["num_rows"] == 8
    assert place.resolve().is_relative_to(Path(runs_root).resolve()), "artifacts lie beside the store"
    assert (Path(runs_root) / "mlflow.db").exists()


def test_a_run_is_resumed_by_its_id(runs_root: str) -> None:
    first = RunTracker(runs_root, system_metrics=False)
    first.start("boxsup tests", "killed")
    first.log_params({"lr": 0.1, "seed": 1})
    first.log_metrics({"loss": 3.0}, step=0)
    run_id = first.run_id(WAIT_S)
    assert first.flush(WAIT_S)  # no end(): the process was killed

    second = RunTracker(runs_root, system_metrics=False)
    second.start("boxsup tests", "killed", run_id=run_id)
    second.log_params({"lr": 0.2, "seed": 1, "new": "yes"})
    second.log_metrics({"loss": 2.0}, step=1)
    assert finish(second) == run_id
    first.close(1)

    client = open_client(second)
    run = client.get_run(run_id)
    assert [m.value for m in client.get_metric_history(run_id, "loss")] == [3.0, 2.0]
    assert run.data.params == {"lr": "0.1", "seed": "1", "new": "yes"}
    assert run.data.tags["changed.lr"] == "0.2"
    assert "changed.seed" not in run.data.tags
    assert run.info.status == "FINISHED"


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "FINISHED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(0), "FAILED"), (ValueError("x"), "FAILED")],
    ids=["none", "interrupted", "exit", "error"],
)
def test_a_run_ends_as_its_work_does(runs_root: str, error: BaseException | None, status: str) -> None:
    tracker = RunTracker(runs_root, system_metrics=False)
    try:
        with tracker.ends_with_block():
            tracker.start("boxsup", "ends")
            if error is not None:
                raise error
    except BaseException as raised:
        assert raised is error
    assert tracker.close(WAIT_S)
    run_id = tracker.run_id()
    assert open_client(tracker).get_run(run_id).info.status == status


def test_metrics_that_the_store_missed_arrive_once(runs_root: str) -> None:
    history = {0: {"loss": 3.0, "seconds": {"train": 1.5}}, 1: {"loss": 2.0, "text": "no number"}, 2: {"loss": 1.0}}
    tracker = RunTracker(runs_root, system_metrics=False)
    tracker.start("history", "late")
    tracker.log_metrics({"loss": 3.0}, step=0)
    tracker.log_metrics(history[2], step=2)
    tracker.log_history(history)
    tracker.log_history({})
    run_id = finish(tracker)
    client = open_client(tracker)
    losses = [(metric.step, metric.value) for metric in client.get_metric_history(run_id, "loss")]
    assert sorted(losses) == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert [metric.value for metric in client.get_metric_history(run_id, "seconds/train")] == [1.5]


def test_the_id_file_resumes_and_an_unknown_id_starts_a_new_run(runs_root: str, tmp_path: Path) -> None:
    id_uri = str(tmp_path / "run" / "mlflow_run_id")
    ids = []
    for _ in range(2):
        tracker = RunTracker(runs_root, system_metrics=False)
        tracker.start("boxsup tests", "by file", id_uri=id_uri)
        ids.append(finish(tracker))
    assert ids[0] == ids[1]

    Path(id_uri).write_text("0" * 32)
    tracker = RunTracker(runs_root, system_metrics=False)
    tracker.start("boxsup tests", "by file", id_uri=id_uri)
    new_id = finish(tracker)
    assert new_id not in (ids[0], "0" * 32)
    assert Path(id_uri).read_text().strip() == new_id

    open_client(tracker).delete_run(new_id)
    tracker = RunTracker(runs_root, system_metrics=False)
    tracker.start("boxsup tests", "by file", run_id=new_id)
    assert finish(tracker) != new_id


def test_system_metrics_are_logged(runs_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("boxsup_dist.tracking.tracker.SYSTEM_METRICS_EVERY_S", 0.2)
    tracker = RunTracker(runs_root)
    tracker.start("boxsup tests", "system")
    run_id = tracker.run_id(WAIT_S)
    client = open_client(tracker)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if "system/cpu_utilization_percentage" in client.get_run(run_id).data.metrics:
            break
        time.sleep(0.2)
    finish(tracker)
    metrics = client.get_run(run_id).data.metrics
    assert 0 <= metrics["system/cpu_utilization_percentage"] <= 100
    assert metrics["system/system_memory_usage_megabytes"] > 0


def test_a_refused_metric_does_not_stop_the_others(runs_root: str, caplog: pytest.LogCaptureFixture) -> None:
    tracker = RunTracker(runs_root, system_metrics=False)
    tracker.start("boxsup tests", "refused")
    tracker.log_metrics({"": 1.0}, step=0)
    tracker.log_metrics({"loss": 1.0}, step=0)
    tracker.end()
    assert not tracker.close(WAIT_S), "the lost metric must be reported"
    run = open_client(tracker).get_run(tracker.run_id())
    assert run.data.metrics == {"loss": 1.0}
    assert any("metrics of step 0 failed" in r.message for r in caplog.records)


def test_a_store_that_cannot_be_written_is_survived(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("not a folder")
    tracker = RunTracker(str(tmp_path), f"sqlite:///{tmp_path}/file/runs/mlflow.db")
    tracker.start("e", "r")
    for step in range(10):
        tracker.log_metrics({"loss": 1.0}, step)
    tracker.end("FAILED")
    assert not tracker.close(30)
    assert tracker.run_id() is None
    assert 1 <= sum(r.levelno >= logging.WARNING for r in caplog.records) <= 2


def test_keys_are_cleaned_and_nested() -> None:
    flat = flatten({"a": {"b": {"c": 1}}, "é&?": 2, "k" * 300: 3}, "/")
    assert flat == {"a/b/c": 1, "___": 2, "k" * 250: 3}


def test_the_default_store_is_in_the_runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_tracking_uri("runs") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert default_tracking_uri("s3://bucket/runs") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert default_tracking_uri("runs") == "http://127.0.0.1:5000"


def test_a_tracking_uri_with_a_password_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:hidden@host:5000/x")
    with pytest.raises(SettingError, match=r"holds credentials.*http://\*\*\*@host.*MLFLOW_TRACKING_TOKEN") as found:
        RunTracker("runs")
    assert "hidden" not in str(found.value)


@pytest.mark.parametrize("name", ["../x.json", "/x.json", "figures/../../x", "a\0b"])
def test_no_artifact_leaves_the_runs_folder(tmp_path: Path, name: str) -> None:
    tracker = RunTracker(str(tmp_path / "runs"), system_metrics=False)
    with pytest.raises(InputError, match="the name leaves its folder; field: artifact; found"):
        tracker.log_artifact(name, b"x")
    with pytest.raises(InputError, match="the name leaves its folder; field: artifact; found"):
        add_artifacts(tracker.tracking_uri, "id", {name: b"x"})
    tracker.close()


def test_git_revision_marks_a_changed_tree(tmp_path: Path) -> None:
    assert git_revision(str(tmp_path)) == "unknown"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    (tmp_path / "a").write_text("1")
    for command in (["init", "-q"], ["add", "a"], ["commit", "-qm", "a"], ["tag", "v1"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert git_revision(str(tmp_path)) == head
    (tmp_path / "a").write_text("2")
    assert git_revision(str(tmp_path)) == head + "-dirty"


def test_importing_the_module_imports_no_mlflow_and_sets_nothing() -> None:
    code = (
        "import os, sys; before = dict(os.environ); import boxsup_dist.tracking.tracker;"
        "assert 'mlflow' not in sys.modules; assert dict(os.environ) == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ), cwd=Path(__file__).parents[3])
