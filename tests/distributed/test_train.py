"""Real Ray, whole runs on tiny tables: killed, resumed, refused, failing, with one worker and with two."""

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from mlflow.tracking import MlflowClient

from boxsup_dist.config import NetworkSettings, OptimizerSettings, ResourceSettings, SourceSettings, TrainConfig
from boxsup_dist.data.images import decode_png
from boxsup_dist.data.labels import open_labels
from boxsup_dist.data.painting import painter
from boxsup_dist.data.schema import IGNORE_INDEX, VOC_CLASSES, iter_records
from boxsup_dist.data.tables import open_table
from boxsup_dist.errors import (
    InputError,
    LeaseError,
    NonFiniteLossError,
    RecordError,
    SettingError,
    StorageError,
    StoreUnavailableError,
    TableError,
    UnwritableFileError,
    WeightsError,
)
from boxsup_dist.evaluation.confusion import mean_iou
from boxsup_dist.io import storage
from boxsup_dist.io.lease import Writer
from boxsup_dist.model import checkpoint
from boxsup_dist.runs import train as train_module
from boxsup_dist.runs.coordinator import Coordinator
from boxsup_dist.runs.evaluated import read_matrices
from boxsup_dist.runs.history import read_history
from boxsup_dist.runs.inputs import open_inputs
from boxsup_dist.runs.layout import RunFiles
from boxsup_dist.runs.timeline import COMMAND
from boxsup_dist.runs.train import train
from boxsup_dist.tracking.address import default_tracking_uri
from jobs import decompose, evaluate, reassign
from tests.distributed import tiny

REPO = Path(__file__).parents[2]
EPOCHS = 3
DECAY = 0.8
ONE = ResourceSettings(num_workers=1, num_actors=1)
TWO = ResourceSettings(num_workers=2, num_actors=1)
NO_SERVER = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The tables, and beside them all runs, so that they share one tracking store."""
    folder = tmp_path_factory.mktemp("loop")
    tiny.write_tables(folder)
    return folder


def long_config(folder: Path, name: str) -> TrainConfig:
    """Seven steps per epoch on two workers, with dropout, and an evaluation after every epoch."""
    return tiny.make_config(
        folder,
        folder / name,
        network=replace(tiny.NETWORK, dropout=0.1),
        assignment=replace(tiny.ASSIGNMENT, average_decay=DECAY),
        optimizer=OptimizerSettings(epochs=EPOCHS, global_batch_size=2, lr=0.01, schedule="poly"),
        resources=TWO,
        keep_checkpoints=EPOCHS * 7 + 1,
        evaluate_every=1,
    )


@pytest.fixture(scope="module")
def unbroken(ray_local, folder) -> TrainConfig:
    """A finished run, with a checkpoint after every step."""
    config = replace(long_config(folder, "unbroken"), checkpoint_every_steps=1)
    train(config)
    return config


def labels_of(run_dir: str) -> dict[int, str]:
    """The fingerprint of the labels of every epoch."""
    files = RunFiles(run_dir)
    return {epoch: open_labels(files.labels(epoch)).fingerprint for epoch in files.epochs_with_labels()}


def weights_of(run_dir: str, averaged: bool = False) -> dict[str, torch.Tensor]:
    """The network's weights at the end, or their average over the steps."""
    newest = checkpoint.latest(run_dir)
    assert newest is not None
    state = checkpoint.load(newest)
    assert state.step == 0
    return dict(state.assigning_model if averaged else state.model)


def summary_of(folder: Path | str) -> dict:
    return json.loads(Path(folder, "summary.json").read_text())


class FaultyCoordinator(Coordinator):
    """Rank 0 meets an error where no other rank can: after the first epoch, before its checkpoint."""

    def __init__(self, *args: Any, error: InputError, marker: str | None = None) -> None:
        super().__init__(*args)
        self.error, self.marker = error, marker

    def record(self, epoch: int, metrics: dict[str, float], bad_records: dict[str, str]) -> None:
        if self.marker is None:
            raise self.error
        if not Path(self.marker).exists():  # the first time only
            Path(self.marker).touch()
            raise self.error
        super().record(epoch, metrics, bad_records)


# -- a run that is killed ---------------------------------------------------------------------------------------------


def command_of(config: TrainConfig, checkpoint_every_steps: int) -> list[str]:
    """The command line whose settings are those of `config`."""
    words = [sys.executable, "-m", "jobs.train", "mini"]
    values = {**config.to_dict(), "checkpoint_every_steps": checkpoint_every_steps}
    (source,) = values.pop("sources")
    values |= source
    for section in ("network", "assignment", "optimizer", "augment", "resources"):
        values |= {f"{section}.{name}": value for name, value in values.pop(section).items()}
    for name, value in values.items():
        section, _, last = name.rpartition(".")
        flag = f"{section}{'.' if section else ''}{last}".replace("_", "-")
        if isinstance(value, bool):
            prefix = "" if value else "no-"
            words.append(f"--{section}{'.' if section else ''}{prefix}{last}".replace("_", "-"))
        else:
            words += [f"--{flag}", str(value)]
    return words


def start(config: TrainConfig, checkpoint_every_steps: int, log: Path) -> subprocess.Popen:
    """The run in a process of its own, with a tracking server that does not answer."""
    env = {**os.environ, "MLFLOW_TRACKING_URI": NO_SERVER}
    command = command_of(config, checkpoint_every_steps)
    with log.open("ab") as file:
        return subprocess.Popen(command, cwd=REPO, env=env, stdout=file, stderr=subprocess.STDOUT)


def kill_when(process: subprocess.Popen, appeared: Path, log: Path, before: Callable[[], None] = lambda: None) -> None:
    """kill -9 of the driver as soon as a file is there and `before` has run; returns when Ray's processes are gone.

    Ray's two agents are not waited for: they compute nothing, and end after a minute of looking for their node.
    """
    deadline = time.monotonic() + 300
    while not appeared.exists():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.002)
    before()
    children = [p for p in psutil.Process(process.pid).children(recursive=True) if "Agent" not in "".join(p.cmdline())]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(children) > 3
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive, alive


@pytest.mark.timeout(900)  # two launches, and the unbroken run
def test_a_killed_run_continues_and_ends_as_an_unbroken_one(unbroken, folder, monkeypatch, caplog):
    """Killed in its second epoch while checkpoints come once per epoch, then in its third while it writes a checkpoint.

    That one is torn, unless it became whole before the kill. The same command continues it first, then the same call
    from this process. While it runs, no other may write there.
    """
    config, log = long_config(folder, "killed"), folder / "killed.log"
    run_dir = Path(config.run_dir)
    process = start(config, 0, log)

    def start_another() -> None:
        with pytest.raises(
            LeaseError, match=rf"another command writes into this folder; .*process {process.pid}, since"
        ):
            train(config)

    kill_when(process, run_dir / "labels" / "epoch-002" / "manifest.json", log, start_another)
    assert checkpoint.latest(config.run_dir).endswith("epoch-001-step-00000")
    middle = run_dir / "checkpoints" / "epoch-002-step-00002"
    kill_when(start(config, 2, log), middle / "model.pt", log)
    resumed_from = checkpoint.latest(config.run_dir)
    assert "epoch-002-step-0000" in resumed_from
    assert not (run_dir / "summary.json").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NO_SERVER)
    train(config)

    assert labels_of(config.run_dir) == labels_of(unbroken.run_dir)
    assert len(labels_of(config.run_dir)) == EPOCHS
    for averaged in (False, True):
        ours, theirs = (weights_of(each, averaged) for each in (config.run_dir, unbroken.run_dir))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    summary, expected = summary_of(config.run_dir), summary_of(unbroken.run_dir)
    assert summary["resumed_from"] == resumed_from and expected["resumed_from"] is None
    assert summary["mean_iou"] == expected["mean_iou"] and summary["label_mean_iou"] == expected["label_mean_iou"]
    lines = [json.loads(line) for line in (run_dir / "history.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, EPOCHS + 1))
    history = read_history(unbroken.run_dir)
    for line in lines:
        assert line["train_loss"] == history[line["epoch"]].train_loss
        assert line["foreground_share"] == history[line["epoch"]].foreground_share
        assert line["mean_iou"] == history[line["epoch"]].mean_iou
        assert line["label_mean_iou"] == history[line["epoch"]].label_mean_iou
    assert summary["best_epoch"] == expected["best_epoch"] is not None
    assert [restart["reason"] for restart in summary["time"]["restarts"]] == [COMMAND, COMMAND]
    assert all(restart["redone_steps"] <= 7 for restart in summary["time"]["restarts"])
    assert "MLflow" in caplog.text

    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # a store that answers, at last
    assert (run_dir / "mlflow_pending").exists() and summary["mlflow"]["run_id"] is None
    train(config)
    assert not (run_dir / "mlflow_pending").exists()
    sent = MlflowClient(default_tracking_uri(str(folder))).get_metric_history(
        summary_of(config.run_dir)["mlflow"]["run_id"], "train_loss"
    )
    assert {metric.step: metric.value for metric in sent} == {line["epoch"]: line["train_loss"] for line in lines}


def test_a_run_that_loses_its_store_and_then_its_controller_ends_as_an_unbroken_one(
    unbroken, folder, monkeypatch, tmp_path, capsys
):
    """A store that stays away in the first epoch starts the workers again, from the beginning.

    Ray ends its own processes, too, where memory is short: here Ray Train's controller and the mailbox of events, after
    the first epoch. The run continues from the newest checkpoint.
    """
    error = StoreUnavailableError("the store failed for 10m00s, in 70 tries", file="s3://bucket/run")
    faulty = partial(FaultyCoordinator, error=error, marker=str(tmp_path / "failed"))
    monkeypatch.setattr(train_module, "Coordinator", faulty)
    config = long_config(folder, "uncontrolled")
    killed = []

    def kill_ray() -> None:
        while not (Path(config.run_dir) / "checkpoints" / "epoch-001-step-00000" / "manifest.json").exists():
            time.sleep(0.01)
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.name().startswith(("ray::TrainContr", "ray::_Mailbox")):
                    process.kill()
                    killed.append(process)

    killer = threading.Thread(target=kill_ray, daemon=True)
    killer.start()
    train(config)
    killer.join()
    assert len(killed) == 2
    shown = capsys.readouterr().out
    # Every rank ends with the error that rank 0 met; the one whose end is seen first is named.
    assert re.search(r"warning: train worker \d .*: StoreUnavailableError: the store failed", shown)
    assert shown.count("training begins") == 2
    assert re.search(r"warning: the controller of the train workers was lost: .* lack of memory .*num_actors", shown)
    assert "training continues at epoch 2, after 0 steps" in shown
    account = summary_of(config.run_dir)["time"]
    reasons = [restart["reason"] for restart in account["restarts"]]
    assert "the store failed" in reasons[0] and "the controller of the train workers was lost" in reasons[1]
    assert account["redone_steps"] == 7, "the first epoch, which had no checkpoint"
    assert account["seconds"]["redone"] > 0 and all(restart["seconds"] > 0 for restart in account["restarts"])
    assert labels_of(config.run_dir) == labels_of(unbroken.run_dir)
    ours, theirs = weights_of(config.run_dir), weights_of(unbroken.run_dir)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.timeout(300)
def test_a_machine_without_memory_ends_a_run_with_one_line(folder):
    """Ray's memory monitor with a threshold below what the machine uses: it ends every process of the run."""
    config = replace(long_config(folder, "no_memory"), resources=replace(ONE, max_failures=1))
    env = {**os.environ, "RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "100"}
    done = subprocess.run(command_of(config, 0), cwd=REPO, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and re.match(
        r"error: the training lost processes more than 1 times, the last: .*node \S+ ran out of memory \(.*"
        r"field: resources.max_failures; found: 1; .*lower resources.num_actors.*run the same command again",
        done.stderr,
    )


# -- a finished run ---------------------------------------------------------------------------------------------------


def test_a_finished_run_is_complete_and_the_second_call_returns_at_once(unbroken, folder):
    summary = summary_of(unbroken.run_dir)
    assert 0 <= summary["mean_iou"] <= 100 and summary["data"]["training"]["num_rows"] == tiny.NUM_TRAIN
    assert Path(unbroken.run_dir, "report.html").exists() and any(Path(unbroken.run_dir, "figures").iterdir())
    assert json.loads(Path(unbroken.run_dir, "writer.json").read_text())["released"]
    started = time.monotonic()
    assert train(unbroken) == summary
    assert time.monotonic() - started < 2


def test_a_run_accounts_for_its_time(unbroken):
    """By the clock that runs around the stages; the history has the seconds of each on its own."""
    account, history = summary_of(unbroken.run_dir)["time"], read_history(unbroken.run_dir)
    seconds = account["seconds"]
    assert sum(seconds.values()) == pytest.approx(account["wall_s"], rel=0.001)
    assert account["goodput"] == seconds["steps"] / account["wall_s"] and not account["restarts"]
    trained_s = sum(entry.train_s + entry.first_batch_s for entry in history.values())
    # The stages also hold what happens around the steps, which on a busy machine takes a while.
    assert 0.95 * trained_s <= seconds["steps"] + seconds["data"] <= trained_s + 1.0 * EPOCHS
    reassign_s = sum(entry.seconds["reassign"] for entry in history.values())
    assert seconds["reassign"] == pytest.approx(reassign_s, rel=0.1, abs=0.5)
    assert seconds["save"] > 0 and seconds["start"] > 0 and "redone" not in seconds


def test_the_average_takes_in_the_weights_after_every_step(unbroken):
    states = [checkpoint.load(uri) for uri in checkpoint.list_checkpoints(unbroken.run_dir)]
    assert len(states) == EPOCHS * 7
    average = dict(states[0].model)
    for state in states[1:]:
        average = {name: DECAY * average[name] + (1 - DECAY) * value for name, value in state.model.items()}
    for name, value in states[-1].assigning_model.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, average[name])
    assert not torch.allclose(average["score.weight"], states[-1].model["score.weight"])


def test_other_settings_are_refused_except_those_that_decide_nothing(unbroken):
    for change in ({"seed": 1}, {"optimizer": replace(unbroken.optimizer, lr=0.02)}):
        with pytest.raises(SettingError, match=f"other settings.*config.json.*field: {next(iter(change))}"):
            train(replace(unbroken, **change))
    train(replace(unbroken, resources=ONE, keep_checkpoints=1, checkpoint_every_steps=3))


def test_reassign_and_evaluate_alone_give_what_the_run_gave(unbroken, folder, tmp_path):
    """By two actors; the run had one."""
    start_of_last = storage.join(unbroken.run_dir, "checkpoints", f"epoch-{EPOCHS - 1:03d}-step-00000")
    out = str(tmp_path / "labels")
    reassign.main(reassign.Settings(unbroken.run_dir, out, checkpoint=start_of_last, num_actors=2))
    assert open_labels(f"{out}/labels").fingerprint == labels_of(unbroken.run_dir)[EPOCHS]
    last = read_history(unbroken.run_dir)[EPOCHS]
    for name in ("label_mean_iou", "share_changed", "mean_overlap_cost", "mean_regression_cost"):
        assert summary_of(out)[name] == getattr(last, name)

    refined = str(tmp_path / "refined")
    reassign.main(reassign.Settings(unbroken.run_dir, refined, refine=True, checkpoint=start_of_last, num_actors=2))
    before, after = (open_labels(f"{folder}/labels").read_all() for folder in (out, refined))
    assert before.column("proposal_index").equals(after.column("proposal_index"))
    assert not before.column("superpixel_ids").equals(after.column("superpixel_ids"))
    assert 0 < summary_of(refined)["label_mean_iou"] != summary_of(out)["label_mean_iou"]

    out = str(tmp_path / "metrics")
    evaluate.main(evaluate.Settings(unbroken.run_dir, out, records=str(folder / "val"), num_actors=2))
    expected = summary_of(unbroken.run_dir)
    assert summary_of(out)["mean_iou"] == expected["mean_iou"] and summary_of(out)["iou"] == expected["iou"]
    assert summary_of(out)["num_images"] == tiny.NUM_VAL
    here, there = read_matrices(out), read_matrices(unbroken.run_dir)  # also that they add up to confusion.json
    assert here.image_ids == there.image_ids and (here.matrices != there.matrices).nnz == 0
    assert 100 * mean_iou(here.total) == expected["mean_iou"] and len(here.image_ids) == tiny.NUM_VAL
    with pytest.raises(SettingError, match="replace files of a run"):
        evaluate.main(evaluate.Settings(unbroken.run_dir, unbroken.run_dir, records=str(folder / "val")))


def test_the_networks_between_boxes_and_masks_have_the_labels_they_say(unbroken, tmp_path):
    """jobs.decompose: each arm's label maps, and a training on them that knows how good they are."""
    arms = decompose.arms_of(unbroken.run_dir, str(tmp_path))
    assert tuple(arms) == decompose.ARMS
    mixture = open_inputs(unbroken).mixture
    labels = open_labels(RunFiles(unbroken.run_dir).labels(EPOCHS))
    seen = 0
    for index, unit in enumerate(mixture.units):
        paint = painter(unit, labels.segments(index), mixture.assignment)
        for row, record in enumerate(iter_records(unit.source.records.read(unit.where))):
            trained, truth = paint(record), decode_png(record.gt_label_map)
            is_open = trained == IGNORE_INDEX
            assert record.image_id.startswith("tiny/") and row in unit.rows
            expected = np.where(is_open, IGNORE_INDEX, truth), np.where(is_open, truth, trained), trained
            for config, wanted in zip(arms.values(), expected, strict=True):
                (source,) = config.sources
                assert source.supervision == "label_maps" and source.proposals is None
                table = open_table(source.label_maps, "label_maps").read(unit.where)
                np.testing.assert_array_equal(decode_png(table.column("label_map")[row].as_py()), wanted)
            seen += is_open.any()
    assert seen
    config = replace(arms["boxes, undecided from masks"], resources=ONE)
    config = replace(config, optimizer=replace(config.optimizer, epochs=1))
    assert train(config)["label_mean_iou"]["last"] > summary_of(unbroken.run_dir)["label_mean_iou"]["last"]


def test_jobs_on_a_run_say_what_is_missing(ray_local, folder, tmp_path):
    with pytest.raises(InputError, match=r"no such file.*config\.json"):
        evaluate.main(evaluate.Settings(str(tmp_path), str(tmp_path), records=str(folder / "val")))


# -- workers and supervisions -----------------------------------------------------------------------------------------


def train_without_labels(config: TrainConfig, supervision: str) -> None:
    """Train with a supervision whose labels never change."""
    summary = train(config)
    assert summary["supervision"] == supervision and summary["mean_iou"] is not None
    assert not Path(config.run_dir, "labels").exists()
    assert (summary["label_mean_iou"] is None) == (supervision != "rectangles")
    assert summary["train_loss"] > 0


def test_another_supervision_runs_through(ray_local, folder):
    """Rectangles: the test of what rank 0 cannot write. Masks: test_reproduce.py, test_mixture.py."""
    sources = (tiny.make_source(folder, "wssl_em"),)
    train_without_labels(tiny.make_config(folder, folder / "wssl_em", sources=sources), "wssl_em")


# -- a run that begins from another ------------------------------------------------------------------------------------


def test_a_run_fine_tunes_the_network_of_another_run_to_other_classes(unbroken, folder):
    """At a learning rate of nearly nothing all layers stay the other run's; only the score layer is a new one."""
    classes = (*VOC_CLASSES, "sky")
    tiny.write_records(folder / "context", [tiny.make_record(i, "train") for i in range(tiny.NUM_TRAIN)], classes)
    config = tiny.make_config(
        folder,
        folder / "fine-tuned",
        sources=(tiny.make_source(folder, "mask", records=str(folder / "context")),),
        val_records=None,
        network=replace(tiny.NETWORK, weights=f"checkpoint:{unbroken.run_dir}"),
        optimizer=OptimizerSettings(epochs=1, global_batch_size=4, lr=1e-12, weight_decay=0.0),
    )
    train(config)
    ours, theirs = weights_of(config.run_dir), weights_of(unbroken.run_dir)
    assert ours.keys() == theirs.keys() and ours["score.weight"].shape[0] == len(classes)
    assert all(torch.allclose(ours[name], theirs[name]) for name in ours if not name.startswith("score."))
    assert read_history(config.run_dir)[1].train_loss == pytest.approx(math.log(len(classes)), rel=1e-5)

    small = replace(config.network, name="timm:resnet18")
    another = replace(config, run_dir=str(folder / "another-network"), network=small)
    assert_fails_at_once(another, WeightsError, r"another network.*timm:test_resnet.*timm:resnet18")


# -- errors of the user, met by any rank -----------------------------------------------------------------------------


def assert_fails_at_once(config: TrainConfig, kind: type[InputError], match: str) -> None:
    """The run raises this error itself: its workers ended normally, and Ray restarted nothing."""
    with pytest.raises(kind, match=match) as caught:
        train(config)
    assert type(caught.value) is kind and "Traceback" not in str(caught.value)
    assert not Path(config.run_dir, "summary.json").exists()


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_records(ray_local, folder):
    options = OptimizerSettings(epochs=2, global_batch_size=4, lr=1e30)
    sources = (tiny.make_source(folder, "rectangles"),)
    config = tiny.make_config(folder, folder / "nan", sources=sources, optimizer=options, resources=TWO)
    assert_fails_at_once(config, NonFiniteLossError, r"not finite in epoch 1, step \d.*image_id.*tiny/train_")
    assert checkpoint.latest(config.run_dir) is None


@pytest.mark.parametrize("every", [0, 2])
def test_what_rank_0_cannot_write_ends_the_run_on_all_ranks(ray_local, folder, every):
    """At the end of an epoch and inside it: the other rank must not wait. The same command continues."""
    sources = (tiny.make_source(folder, "rectangles"),)
    config = tiny.make_config(
        folder, folder / f"unwritable-{every}", sources=sources, resources=TWO, checkpoint_every_steps=every
    )
    in_the_way = Path(config.run_dir, "checkpoints")
    in_the_way.parent.mkdir()
    in_the_way.write_text("a file in place of a folder")
    message = r"the file cannot be written; file: .*checkpoints/epoch-.*one of them is a file"
    assert_fails_at_once(config, UnwritableFileError, message)
    if every:
        in_the_way.unlink()
        train_without_labels(config, "rectangles")


def test_weights_that_are_not_there_end_the_run(ray_local, folder):
    network = NetworkSettings(tiny.NETWORK.name, weights="/nowhere/weights.pth", output_stride=16)
    config = tiny.make_config(folder, folder / "no-weights", network=network)
    assert_fails_at_once(config, WeightsError, r"cannot read the weight file; file: /nowhere/weights.pth")
    assert not Path(config.run_dir).exists(), "the corrected command must find no trace of the wrong one"


@pytest.mark.timeout(200)
def test_an_error_that_rank_0_alone_meets_ends_all_ranks(ray_local, folder, monkeypatch):
    """The other rank must not wait for it, and nothing is started again."""
    error = StorageError("the store refuses access", file="s3://bucket/run")
    monkeypatch.setattr(train_module, "Coordinator", partial(FaultyCoordinator, error=error))
    config = tiny.make_config(folder, folder / "refused", resources=TWO)
    assert_fails_at_once(config, StorageError, "the store refuses access; file: s3://bucket/run")
    assert checkpoint.latest(config.run_dir) is None


def test_a_run_whose_directory_was_taken_over_stops(ray_local, folder):
    config = replace(long_config(folder, "taken"), checkpoint_every_steps=1)
    other = replace(Writer.here(), host="node-7", process=4711, since="2026-11-28 20:15:00 UTC")

    def take_over() -> None:
        while not checkpoint.list_checkpoints(config.run_dir):
            time.sleep(0.01)
        Path(config.run_dir, "writer.json").write_bytes(other.encode())

    taking = threading.Thread(target=take_over)
    taking.start()
    message = "another command has taken this folder over, so this one stops; .*host node-7, process 4711, since 2026"
    assert_fails_at_once(config, LeaseError, message)
    taking.join()
    assert len(checkpoint.list_checkpoints(config.run_dir)) < EPOCHS * 7
    assert Path(config.run_dir, "writer.json").read_bytes() == other.encode()


@pytest.fixture
def damaged(folder) -> SourceSettings:
    """A box-supervised source of which two images don't decode, and the superpixel map of a third."""
    records = [tiny.make_record(i, "train") for i in range(tiny.NUM_TRAIN)]
    records = [replace(r, image=b"no image %d" % i) if i in (4, 7) else r for i, r in enumerate(records)]
    table = tiny.write_records(folder / "damaged", records)
    proposals = tiny.write_proposals(folder / "damaged-proposals", table, records, damaged="tiny/train_09")
    return tiny.make_source(folder, records=table.uri, proposals=proposals.uri)


def test_records_that_do_not_decode_are_named_and_left_out(ray_local, folder, damaged):
    """The stream of both epochs meets them, and the assignment of the second; each is reported once."""
    config = tiny.make_config(folder, folder / "three-damaged", sources=(damaged,), max_bad_records=3, resources=TWO)
    summary = train(config)
    names = ["tiny/train_04", "tiny/train_07", "tiny/train_09"]
    assert sorted(summary["bad_records"]) == names and summary["num_images"] == tiny.NUM_TRAIN
    history = read_history(config.run_dir)
    warnings = [text for epoch in history.values() for text in epoch.warnings if "does not decode" in text]
    assert len(warnings) == 3 and all("left out" in text and "damaged" in text for text in warnings)
    labels = open_labels(RunFiles(config.run_dir).labels(2)).read_all().to_pylist()
    assert {row["image_id"] for row in labels if row["proposal_index"] < 0} >= set(names)
    assert "does not decode" in Path(config.run_dir, "report.html").read_text()
    assert math.isfinite(summary["train_loss"])


def test_more_damaged_records_than_allowed_end_the_run(ray_local, folder, damaged):
    """One rank of two meets them in its stream; the other must not wait."""
    config = tiny.make_config(folder, folder / "too-many", sources=(damaged,), max_bad_records=1, resources=TWO)
    message = r"[23] records are unusable.*does not decode.*damaged.*max_bad_records; found: 1; expected: >= [23]"
    assert_fails_at_once(config, RecordError, message)


def test_a_table_that_lost_a_shard_ends_the_run(ray_local, folder):
    records = [tiny.make_record(i, "train") for i in range(tiny.NUM_TRAIN)]
    table = open_table(str(folder / "records"), "records")
    proposals = tiny.write_proposals(folder / "lost", table, records)
    Path(proposals.uri, proposals.shards[1].file).unlink()
    config = tiny.make_config(
        folder, folder / "lost-shard", sources=(tiny.make_source(folder, proposals=proposals.uri),)
    )
    assert_fails_at_once(config, TableError, r"a shard of the table is missing: delete .*file: .*part-00001\.parquet")
