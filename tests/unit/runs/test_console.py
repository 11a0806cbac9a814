"""What a person reads of a run, and what its MLflow run gets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from boxsup_dist.config import Node, TrainConfig
from boxsup_dist.distributed.events import Stalled
from boxsup_dist.errors import InputError
from boxsup_dist.runs import console
from boxsup_dist.runs.events import Begun, Failed, Lost, Measured, Progress, Spent, Starting, Warned
from boxsup_dist.runs.history import HistoryEntry, write_history
from boxsup_dist.runs.inputs import open_inputs
from boxsup_dist.runs.timeline import Timeline
from tests.distributed import tiny


class Tracker:
    """Remembers what it was given."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, Any]]] = []

    def log_metrics(self, metrics: dict[str, Any], step: int) -> None:
        self.logged.append((step, metrics))


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    tiny.write_tables(tmp_path)
    return tiny.make_config(tmp_path, tmp_path / "box")


def handled(config: TrainConfig, *events: object) -> tuple[console.Console, Tracker]:
    tracker = Tracker()
    made = console.Console(config, tracker, Timeline(config.run_dir, 4, 0.0))  # type: ignore[arg-type]
    for event in events:
        made.handle(event)
    return made, tracker


def test_the_header_says_what_will_run(config: TrainConfig, capsys: pytest.CaptureFixture) -> None:
    config = replace(config, resources=config.resources.resolve([Node(2)]))
    console.print_header(config, open_inputs(config), "sqlite:////runs/mlflow.db")
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert config.run_dir in lines["run"]
    assert lines["images"] == f"{tiny.NUM_TRAIN} to train on, {tiny.NUM_VAL} to evaluate on"
    assert lines["classes"].startswith("21: background, aeroplane") and lines["supervision"] == "box"
    assert lines["steps"] == "4 per epoch, 8 in 2 epochs, 4 images each"  # 14 images: the last step has two
    assert lines["learning"] == "rate  0.01, falls to zero over the run"
    assert lines["labels"] == "by the boxes alone in the first 1 of 2 epochs, then with the network"
    assert lines["workers"] == "1, each on CPU, threads: 1" and lines["actors"] == "1, each on CPU, threads: 1"
    assert lines["MLflow"] == "sqlite:////runs/mlflow.db, experiment boxsup"


def test_the_header_says_how_the_schedule_fits_the_run(config: TrainConfig, capsys: pytest.CaptureFixture) -> None:
    """A warm-up of 50 steps in a run of 8, plateaus that the run never reaches, a network that never chooses."""
    inputs = open_inputs(config)

    def header(**changes: Any) -> dict[str, str]:
        options = replace(config.optimizer, **changes)
        shown = replace(config, optimizer=options, resources=config.resources.resolve([Node(2)]))
        console.print_header(shown, inputs, "")
        return dict(line.split("  ", maxsplit=1) for line in capsys.readouterr().out.splitlines() if "  " in line)

    found = header(kind="adamw")
    assert found["learning rate"] == "0.01, falls to zero over the run, warm-up in the first 1 of 8 steps"
    found = header(schedule="step", epochs=1)
    assert found["learning rate"] == "0.01, divided by 10 every 15 epochs: never in this run"
    assert found["labels"].strip().startswith("by the boxes alone in every epoch: the network does not take part")


def test_records_without_a_mask_are_not_evaluated_on(tmp_path: Path) -> None:
    tiny.write_tables(tmp_path)
    records = [tiny.make_record(i, "val", None if i < 2 else b"") for i in range(5)]
    tiny.write_records(tmp_path / "partly", records)
    config = tiny.make_config(tmp_path, tmp_path / "box", val_records=str(tmp_path / "partly"))
    assert open_inputs(config).num_val_images == 3


def test_the_end_repeats_the_warnings_of_the_last_epoch(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    entries = {1: HistoryEntry(1, warnings=("first",)), 2: HistoryEntry(2, warnings=("second",))}
    write_history(str(tmp_path), entries)
    mlflow = {"tracking_uri": "u", "run_id": "7"}
    summary: Any = {"supervision": "box", "mean_iou": None, "label_mean_iou": None, "mlflow": mlflow}
    console.print_result(str(tmp_path), summary)
    assert capsys.readouterr().out.splitlines()[1] == "warning        last epoch: second"


def test_an_epoch_has_one_line_once_it_is_complete(config: TrainConfig, capsys: pytest.CaptureFixture) -> None:
    trained = HistoryEntry(1, train_loss=0.25, images_per_s=12.0, foreground_share=0.1)
    evaluated = HistoryEntry(1, train_loss=0.25, images_per_s=12.0, foreground_share=0.1, mean_iou=46.2)
    _, tracker = handled(config, Measured(trained, complete=False), Measured(evaluated, complete=True))
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["epoch 1/2  loss 0.25  12.0 images/s  predicted foreground 10.0%  validation mean IoU 46.2"]
    assert [step for step, _ in tracker.logged] == [1, 1] and tracker.logged[1][1]["mean_iou"] == 46.2


def test_the_account_of_time_hears_of_starts_losses_and_what_rank_0_spends(
    config: TrainConfig, capsys: pytest.CaptureFixture
) -> None:
    """Four steps per epoch: after a loss in the second epoch, two steps are trained again."""
    events = [Begun(1, 0, 2), Spent(2, 3, {"steps": 7.0}), Lost("train worker 1 was lost: a"), Begun(2, 1, 2)]
    made, _ = handled(config, *events)
    account = made.timeline.finish()
    (restart,) = account["restarts"]
    assert (restart["reason"], restart["redone_steps"]) == ("train worker 1 was lost: a", 2)
    assert account["seconds"]["redone"] == 2 and account["seconds"]["steps"] == 5
    assert "warning: train worker 1 was lost: a\n" in capsys.readouterr().out


def test_the_end_says_where_the_time_went(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    restarts = [{"reason": "a", "seconds": 20.0, "redone_steps": 3}]
    seconds = {"start": 20.0, "steps": 170.0, "redone": 8.0, "rest": 1.0}
    time = {"wall_s": 200.0, "goodput": 0.85, "seconds": seconds, "redone_steps": 3, "restarts": restarts}
    mlflow = {"tracking_uri": "u", "run_id": "7"}
    summary: Any = {"supervision": "box", "mean_iou": None, "label_mean_iou": None, "mlflow": mlflow, "time": time}
    console.print_result(str(tmp_path), summary)
    assert capsys.readouterr().out.splitlines()[1] == (
        "time           3m20s, goodput 0.85: training 85%, starting 10%, training again after failures 4%; "
        "starts after the first: 1, steps trained again: 3"
    )


def test_where_the_training_begins(config: TrainConfig, capsys: pytest.CaptureFixture) -> None:
    handled(config, Begun(1, 0, 2), Begun(3, 8, 2), Begun(1, 4, 1))
    assert capsys.readouterr().out.splitlines() == [
        "training begins, workers: 2",
        "training continues at epoch 3, after 8 steps, workers: 2",
        "training continues at epoch 1, after 4 steps, workers: 1",
    ]


def test_progress_now_and_then(
    config: TrainConfig, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([0.0, 1.0, 20.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(now))
    handled(config, *(Progress(1, "train", done, 10, 5.0) for done in (1, 2, 4)))
    assert capsys.readouterr().out.splitlines() == [
        "  epoch 1, training: the first step is done",
        "  epoch 1, training: 4/10  5.0 images/s  left 30s",
    ]


def test_every_part_of_the_start_has_a_word(config: TrainConfig, capsys: pytest.CaptureFixture) -> None:
    """Up to the first step; later stages are quiet unless they take long."""
    stages = [Progress(1, "reassign", 1, 9), Progress(1, "reassign", 2, 9), Progress(1, "train", 1, 9)]
    handled(config, Starting("building the network"), Begun(1, 0, 1), *stages, Progress(2, "reassign", 1, 9))
    assert capsys.readouterr().out.splitlines() == [
        "  building the network",
        "training begins, workers: 1",
        "  epoch 1, choosing segments",
        "  epoch 1, training: the first step is done",
    ]


def test_progress_of_a_stage_beside_the_training(
    config: TrainConfig, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their events alternate; each has its own start and its own pause between two lines."""
    now = iter([0.0, 1.0, 20.0, 21.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(now))
    beside, training = Progress(1, "evaluate", 1, 10), Progress(2, "train", 1, 10)
    handled(config, training, beside, replace(training, done=5), replace(beside, done=5))
    assert capsys.readouterr().out.splitlines() == [
        "  epoch 2, training: the first step is done",
        "  epoch 2, training: 5/10  left 20s",
        "  epoch 1, evaluating: 5/10  left 20s",
    ]


def test_warnings_and_failures(
    config: TrainConfig, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.session, "describe", lambda: "nodes of the cluster: 1")
    error = InputError("no")
    made, _ = handled(config, Warned("a"), Stalled(61.0), Progress(2, "evaluate", 0, 3), Stalled(121.0), Failed(error))
    assert made.failure is error
    assert capsys.readouterr().out.splitlines() == [
        "warning: a",
        "warning: no message for 61 s, since the start of the workers; nodes of the cluster: 1",
        "  epoch 2, evaluating",
        "warning: no message for 121 s, since epoch 2, evaluating; nodes of the cluster: 1",
    ]
    with pytest.raises(TypeError, match="no event"):
        made.handle("rubbish")


LOCAL, PAGES = "http://127.0.0.1:5000", "#/experiments?workflowType=machine_learning"


@pytest.mark.parametrize(
    ("uri", "run_id", "expected"),
    [
        (
            "sqlite:////r/mlflow.db",
            "7",
            f"mlflow ui --backend-store-uri sqlite:////r/mlflow.db, then open {LOCAL}/{PAGES} (run 7)",
        ),
        ("https://host", "7", f"open https://host/{PAGES} (run 7)"),
        ("https://host", None, f"open https://host/{PAGES} (MLflow does not have this run yet)"),
    ],
)
def test_the_end_says_what_to_do(
    uri: str, run_id: str | None, expected: str, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    summary: Any = {
        "supervision": "box",
        "mean_iou": 46.2,
        "label_mean_iou": {"first": 57.0, "last": 71.5},
        "mlflow": {"tracking_uri": uri, "run_id": run_id},
    }
    console.print_result(str(tmp_path), summary)
    lines = [line[15:] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "supervision box, validation mean IoU 46.20, label maps' mean IoU 57.00 -> 71.50",
        f"{tmp_path}/report.html",
        expected,
        f"python -m jobs.gallery --run-dir {tmp_path} --out FOLDER",
        f"python -m jobs.predict --run-dir {tmp_path} --images FOLDER --out FOLDER --overlays",
    ]
