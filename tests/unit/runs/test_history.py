"""History, summary and layout of a run directory: what is written comes back, and what does not fit is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from boxsup_dist.config import OptimizerSettings, SourceSettings, TrainConfig
from boxsup_dist.errors import InputError
from boxsup_dist.io import storage
from boxsup_dist.model import checkpoint
from boxsup_dist.runs.history import HistoryEntry, read_history, write_history
from boxsup_dist.runs.layout import RunFiles
from boxsup_dist.runs.summary import make_summary, read_summary, write_result, write_summary
from boxsup_dist.runs.timeline import account

ENTRY = HistoryEntry(2, {"reassign": 1.5}, train_loss=0.5, iou={"cat": None, "dog": 0.0}, warnings=("a", "b"))


def write(folder: Path, text: str) -> str:
    (folder / "history.jsonl").write_text(text)
    return str(folder)


def test_an_entry_comes_back_and_only_what_is_known_is_written(tmp_path: Path) -> None:
    assert read_history(str(tmp_path)) == {}
    write_history(str(tmp_path), {2: ENTRY, 1: HistoryEntry(1, share_changed=0.0)})
    assert read_history(str(tmp_path)) == {1: HistoryEntry(1, share_changed=0.0), 2: ENTRY}
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"epoch": 1, "share_changed": 0.0}
    assert "epoch" not in ENTRY.metrics() and ENTRY.metrics()["train_loss"] == 0.5


def test_history_of_a_killed_and_resumed_run(tmp_path: Path) -> None:
    """Half a line is passed over, and of two lines of an epoch the last counts."""
    lines = [
        '{"epoch": 1, "gap_s": 1}',
        '{"epoch": 2, "gap_s": 2}',
        "",
        '{"epoch": 2, "gap_s": 3}',
        '{"epoch": 3, "gap',
    ]
    found = read_history(write(tmp_path, "\n".join(lines)))
    assert found == {1: HistoryEntry(1, gap_s=1), 2: HistoryEntry(2, gap_s=3)}


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"epoch": 1, "train_loss": "high"}', "field: line 2, train_loss; found: 'high'"),
        ('{"epoch": 1, "surprise": 3}', "field: line 2, surprise; found: 3"),
        ('{"train_loss": 1.0}', "field: line 2, epoch"),
        ('{"epoch": 1, "seconds": {"train": null}}', "field: line 2, seconds.train"),
        ("[1]", "field: line 2; found: [1]"),
        ("rubbish \udcff", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"epoch": ' + "9" * 400 + ', "train_loss": "x"}', "field: line 2, train_loss"),
    ],
)
def test_a_damaged_line_is_named_and_stops_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, line: str, named: str
) -> None:
    """The training does not depend on it: the other epochs are read, and the user sees what is lost."""
    (tmp_path / "history.jsonl").write_bytes(
        f'{{"epoch": 1}}\n{line}\n{{"epoch": 3}}\n'.encode(errors="surrogateescape")
    )
    assert read_history(str(tmp_path)) == {1: HistoryEntry(1), 3: HistoryEntry(3)}
    (record,) = caplog.records
    text = record.getMessage()
    assert "metrics of one epoch are lost, the run itself is whole" in text and str(tmp_path / "history.jsonl") in text
    assert named in text and len(text) < 1000 and "\n" not in text


def test_a_run_whose_history_is_lost_still_has_a_result(tmp_path: Path) -> None:
    config = TrainConfig(str(tmp_path), (SourceSettings("records", "mask"),), optimizer=OptimizerSettings(epochs=3))
    write(tmp_path, "rubbish")
    summary = make_summary(
        config, tables={}, num_images=1, num_left_out=0, seconds=1.0, checkpoint="c", resumed_from="c",
        mlflow={"tracking_uri": "sqlite:///x", "run_id": None}, time=account([]),
    )  # fmt: skip
    assert (summary["mean_iou"], summary["epochs"], summary["seconds"]) == (None, 3, {"all": 1.0})


SUMMARY: Any = {
    "supervision": "box",
    "mean_iou": 46.2,
    "iou": {"cat": None},
    "label_mean_iou": {"first": 60, "last": 70.5},
    "epochs": 2,
    "train_loss": 0.1,
    "seconds": {"all": 3.0},
    "gap_s_median": None,
    "checkpoint": "/run/checkpoints/epoch-002-step-00000",
    "resumed_from": None,
    "bad_records": {},
    "data": {"training": {"uri": "/r", "num_rows": 3}},
    "num_images": 3,
    "num_left_out": 0,
    "mlflow": {"tracking_uri": "sqlite:///x", "run_id": None},
}


def test_a_summary_comes_back(tmp_path: Path) -> None:
    write_summary(str(tmp_path), SUMMARY)
    assert read_summary(str(tmp_path)) == SUMMARY


@pytest.mark.parametrize(("changes", "field"), [({"epochs": "two"}, "epochs"), ({"mlflow": {}}, "mlflow.tracking_uri")])
def test_a_summary_that_does_not_fit_is_named_with_its_field(tmp_path: Path, changes: dict, field: str) -> None:
    write_summary(str(tmp_path), {**SUMMARY, **changes})
    with pytest.raises(InputError, match=r"summary\.json") as caught:
        read_summary(str(tmp_path))
    assert caught.value.field == field


def test_the_result_of_a_command_is_kept_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_result(str(tmp_path / "out"), {"a": 1}, ["one", "two"])
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == {"a": 1}
    assert capsys.readouterr().out == "one\ntwo\n"


def test_labels_are_found_by_epochs_that_count_from_1(tmp_path: Path) -> None:
    files = RunFiles(str(tmp_path))
    assert files.epochs_with_labels() == []
    for epoch in (1, 12, 1000):
        storage.write_bytes(storage.join(files.labels(epoch), "manifest.json"), b"x")
    storage.write_bytes(files.labels(3) + "/part-00000-00001.parquet", b"x")  # without a manifest it is unfinished
    assert (tmp_path / "labels" / "epoch-001").exists()
    assert files.epochs_with_labels() == [1, 12, 1000]


def test_checkpoints_lie_where_the_model_layer_looks_for_them(tmp_path: Path) -> None:
    """`--network.weights checkpoint:RUN` finds them below runs/: the name is in both places."""
    assert RunFiles(str(tmp_path)).checkpoints == storage.join(str(tmp_path), checkpoint.FOLDER)
