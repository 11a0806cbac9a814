"""What rank 0 warns of after an epoch, and its stages beside the training; without Ray, with an evaluation of ours."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from boxsup_dist.config import OptimizerSettings, Resources, SourceSettings, TrainConfig
from boxsup_dist.data.labels import open_labels
from boxsup_dist.data.sources import Mixture, Source, make_units
from boxsup_dist.errors import InputError
from boxsup_dist.evaluation.boxes import BoxResult
from boxsup_dist.evaluation.units import UnitResult
from boxsup_dist.model import checkpoint
from boxsup_dist.model.checkpoint import CheckpointState
from boxsup_dist.runs import coordinator as module
from boxsup_dist.runs.checkpoints import best_checkpoint
from boxsup_dist.runs.coordinator import (
    ALL_BACKGROUND_WARNING,
    COLLAPSE_WARNING,
    NO_OBJECT_WARNING,
    NOT_EVALUATED,
    Coordinator,
    foreground_warning,
)
from boxsup_dist.runs.events import Measured, Spent, Warned
from boxsup_dist.runs.history import HistoryEntry, read_history, write_history
from boxsup_dist.runs.layout import RunFiles
from boxsup_dist.runs.timeline import Clock
from tests import networks
from tests.distributed import tiny

SPEC = networks.spec("timm:resnet18", 3, head_channels=4)
METRICS = {"train_loss": 1.0, "foreground_share": 0.2, "label_foreground_share": 0.2}
EPOCHS = 4


@pytest.mark.parametrize(
    ("predicted", "labelled", "expected"),
    [
        (0.3, 0.3, None),
        (0.08, 0.3, None),
        (0.07, 0.3, COLLAPSE_WARNING),
        (0.0, 0.3, ALL_BACKGROUND_WARNING),
        (0.0, 0.0, NO_OBJECT_WARNING),
        (0.1, 0.0, NO_OBJECT_WARNING),
    ],
)
def test_predicted_foreground_is_compared_with_that_of_the_labels(predicted, labelled, expected):
    assert foreground_warning(predicted, labelled) == expected


class Bench:
    """A coordinator whose evaluation says which weights it got, and waits for `go`."""

    def __init__(self, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run_dir, self.go, self.evaluated = str(run_dir), threading.Event(), list[float]()
        self.go.set()
        self.error: InputError | None = None
        self.num_masks = 2  # of the validation records
        self.posted: list[Any] = []
        monkeypatch.setattr(module, "make_pool", lambda *_, **__: SimpleNamespace(close=lambda: None))
        monkeypatch.setattr(module, "StageRates", lambda: SimpleNamespace(set=lambda *_: None))
        monkeypatch.setattr(module, "evaluate", self.evaluate)
        monkeypatch.setattr(module, "evaluate_boxes", self.evaluate_boxes)
        monkeypatch.setattr(module.ray, "put", lambda weights: {name: value.clone() for name, value in weights.items()})

    def evaluate(self, pool: object, records: object, *, weights: dict[str, torch.Tensor], **_: Any) -> UnitResult:
        assert self.go.wait(60)
        if self.error is not None:
            raise self.error
        value = float(weights["w"])
        self.evaluated.append(value)
        confusion = np.array([[100 - int(value), int(value)], [0, 100]], np.int64)
        return replace(UnitResult.empty(2), confusion=confusion, num_images=2)

    def evaluate_boxes(self, *args: Any, **options: Any) -> BoxResult:
        value = np.array([0, 100 - self.evaluate(*args, **options).confusion[0, 0]], np.int64)
        return replace(BoxResult.empty(2), tight_px=value, box_px=np.array([0, 100], np.int64), num_images=2)

    def start(self, *, beside: bool = True, val: bool = True) -> Coordinator:
        """The coordinator of the next start of the workers."""
        config = TrainConfig(
            self.run_dir,
            (SourceSettings("records", "mask"),),
            evaluate_every=1 if val else 0,
            optimizer=OptimizerSettings(epochs=EPOCHS),
            resources=Resources(
                num_workers=1,
                cpus_per_worker=1,
                gpus_per_worker=0,
                num_actors=1,
                cpus_per_actor=1,
                gpus_per_actor=0,
                evaluate_beside=beside,
            ),
        )
        mixture = SimpleNamespace(with_supervision=lambda _: [], units=[])
        inputs = SimpleNamespace(
            network=SPEC,
            mixture=mixture,
            can_measure_labels=False,
            val_records=SimpleNamespace(counts={"boxes": 3, "with_mask": self.num_masks}) if val else None,
            num_val_images=2,
            class_names=("background", "cat"),
        )
        claim: Any = SimpleNamespace(check=lambda: None)
        return Coordinator(config, inputs, self.posted.append, claim)  # type: ignore[arg-type]

    def train(self, coordinator: Coordinator, epoch: int, **metrics: float) -> None:
        """Train an epoch, counted from 1, and keep its checkpoint; its one weight is the epoch's number."""
        coordinator.record(epoch - 1, METRICS | metrics, {})
        state = CheckpointState(epoch, 0, 0, SPEC, self.weights(epoch))
        checkpoint.save(self.run_dir, state, keep_last=1, keep_epochs=coordinator.epochs_to_keep())

    @staticmethod
    def weights(epoch: int) -> dict[str, torch.Tensor]:
        return {"w": torch.tensor(float(epoch))}

    def kept(self) -> list[str]:
        return [uri.rpartition("/")[2] for uri in checkpoint.list_checkpoints(self.run_dir)]

    def complete(self) -> list[int]:
        return [event.entry.epoch for event in self.posted if isinstance(event, Measured) and event.complete]

    def warnings(self) -> list[str]:
        return [event.text for event in self.posted if isinstance(event, Warned)]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_a_run_without_masks_is_warned(bench: Bench):
    """Data without any mask: nothing is measured or evaluated, and the warning comes from the training alone."""
    coordinator = bench.start(val=False)
    bench.train(coordinator, 1, foreground_share=0.0)
    assert bench.warnings() == [f"epoch 1: {ALL_BACKGROUND_WARNING}"]
    bench.train(coordinator, 2, foreground_share=0.0)
    assert len(bench.warnings()) == 1, "said once"
    history = read_history(bench.run_dir)
    assert history[2].warnings == (ALL_BACKGROUND_WARNING,)
    assert history[1].warnings == (ALL_BACKGROUND_WARNING,) and history[1].label_foreground_share == 0.2
    assert bench.complete() == [1, 2]


def test_the_training_does_not_wait_for_an_evaluation_and_the_next_epoch_does(bench: Bench):
    coordinator = bench.start()
    bench.train(coordinator, 1)
    bench.go.clear()
    weights = bench.weights(1)
    coordinator.start_stages(1, weights)
    weights["w"] += 50  # the training goes on
    coordinator.on_step(1, 3, 0.0)
    coordinator.on_progress(1, 3, 9, 1.0)
    assert bench.complete() == [] and read_history(bench.run_dir)[1].mean_iou is None
    threading.Timer(0.05, bench.go.set).start()
    coordinator.finish_stages()
    assert bench.complete() == [1] and read_history(bench.run_dir)[1].mean_iou is not None
    assert bench.evaluated == [1.0], "the weights at the end of the epoch"
    spent = [event for event in bench.posted if isinstance(event, Spent)][-1]
    assert (spent.epoch, spent.step) == (2, 3) and spent.seconds["stages"] >= 0.05
    assert coordinator.stages_s == pytest.approx(spent.seconds["stages"], abs=1e-3)


def test_stages_that_may_not_run_beside_are_over_before_the_training(bench: Bench):
    coordinator = bench.start(beside=False)
    bench.train(coordinator, 1)
    coordinator.start_stages(1, bench.weights(1))
    assert bench.complete() == [1] and bench.evaluated == [1.0]


@pytest.mark.parametrize("meet", [lambda c: c.on_progress(1, 3, 9, 1.0), lambda c: c.finish_stages()])
def test_an_error_beside_the_training_comes_out_when_the_ranks_meet(bench: Bench, meet: Callable[[Coordinator], None]):
    coordinator = bench.start()
    bench.train(coordinator, 1)
    bench.error = InputError("a validation image is damaged")
    coordinator.start_stages(1, bench.weights(1))
    while not coordinator.beside._started[0].done():
        pass
    with pytest.raises(InputError, match="damaged"):
        meet(coordinator)


def test_without_validation_masks_the_box_score_is_kept_and_chooses_the_checkpoint(bench: Bench):
    bench.num_masks = 0
    coordinator = bench.start(beside=False)
    for epoch, value in ((1, 1.0), (2, 1.0)):
        bench.train(coordinator, epoch)
        coordinator.start_stages(epoch, {"w": torch.tensor(30.0 * (epoch == 1) + value)})
    entry = read_history(bench.run_dir)[1]
    assert (entry.mean_iou, entry.iou, entry.box_score, entry.box_iou) == (None, None, 31, 31)
    assert entry.box_scores == {"cat": 31} and bench.complete() == [1, 2]
    assert not Path(RunFiles(bench.run_dir).confusion).exists()
    assert best_checkpoint(bench.run_dir).endswith("epoch-001-step-00000")
    bench.train(coordinator, 3)
    assert bench.kept() == ["epoch-001-step-00000", "epoch-003-step-00000"]


@pytest.mark.parametrize("at", ["in the next epoch", "after the next epoch", "before the next epoch"])
def test_a_run_that_is_killed_in_an_evaluation_evaluates_from_the_kept_checkpoint(bench: Bench, at: str):
    """Only the newest checkpoint is kept besides; the numbers are those of the epoch's own weights."""
    coordinator = bench.start()
    bench.train(coordinator, 1)
    coordinator.start_stages(1, bench.weights(1))
    coordinator.finish_stages()
    expected = read_history(bench.run_dir)
    write_history(bench.run_dir, {1: replace(expected[1], mean_iou=None, iou=None)})  # as if it had been killed before

    again, step = bench.start(), 0 if at == "before the next epoch" else 3
    if at == "after the next epoch":
        bench.train(again, 2)
        assert bench.kept() == ["epoch-001-step-00000", "epoch-002-step-00000"]
    elif step:
        state = CheckpointState(1, step, 0, SPEC, bench.weights(9))
        checkpoint.save(bench.run_dir, state, keep_last=1, keep_epochs=again.epochs_to_keep())
    finished = 2 if at == "after the next epoch" else 1
    again.finish_stages()
    again.start_stages(finished, None if step and finished == 1 else bench.weights(finished))
    again.finish_stages()
    assert bench.evaluated == [1.0, 1.0, *([2.0] if finished == 2 else [])]
    assert read_history(bench.run_dir)[1].mean_iou == expected[1].mean_iou


def test_the_best_checkpoint_is_kept_and_the_former_best_is_not(bench: Bench):
    """Of these evaluations a smaller weight is better: epoch 1 is the best."""
    coordinator = bench.start()
    for epoch in range(1, EPOCHS):
        bench.train(coordinator, epoch)
        coordinator.start_stages(epoch, bench.weights(epoch))
        coordinator.finish_stages()
    assert bench.kept() == ["epoch-001-step-00000", "epoch-003-step-00000"]
    write_history(bench.run_dir, {n: HistoryEntry(n, mean_iou=10.0 * n, train_loss=1.0) for n in range(1, EPOCHS)})
    again = bench.start()
    bench.train(again, EPOCHS)
    assert bench.kept() == ["epoch-003-step-00000", "epoch-004-step-00000"]


def test_an_epoch_whose_checkpoint_is_gone_stays_without_a_result_and_that_is_said_once(bench: Bench):
    coordinator = bench.start()
    coordinator.record(0, METRICS, {})
    for _ in range(2):
        coordinator.start_stages(1, None)
        coordinator.finish_stages()
    assert bench.warnings() == [f"epoch 1: {NOT_EVALUATED}"] and bench.evaluated == []
    bench.train(coordinator, 2)
    assert coordinator.epochs_to_keep() == {2}


class PoolHere:
    """Runs the units in this process, and knows what came back to it."""

    def __init__(self) -> None:
        self.returned: list[Any] = []

        torch.manual_seed(0)
        self.network = tiny.build_network().eval()
        torch.nn.init.normal_(self.network.score.weight)  # it starts at zero, and all classes would be alike

    def map(self, function, units, *, weights, version, read, then, then_in_tasks, on_progress, on_lost, **kwargs):
        for unit in units:
            self.returned += then([unit], [function(self.network, read(unit, **kwargs), **kwargs)], **kwargs)
            yield self.returned[-1]


def test_labels_of_each_epoch_are_tables_and_this_process_holds_none(tmp_path: Path, monkeypatch):
    """Epoch 2 repeats the labels of epoch 1 (the cheapest candidate in the warm-up); epoch 3 asks the network."""
    monkeypatch.setattr(module.ray, "put", lambda value: value)
    records, proposals, _ = tiny.write_tables(tmp_path)
    assignment = replace(tiny.ASSIGNMENT, top_k=1, warmup_epochs=2)
    mixture = Mixture(make_units([Source(records, "box", proposals)]), assignment, tiny.AUGMENT, seed=0)
    coordinator = object.__new__(Coordinator)
    coordinator.config = SimpleNamespace(run_dir=str(tmp_path / "run"))  # type: ignore[assignment]
    coordinator.files = RunFiles(coordinator.config.run_dir)
    coordinator.inputs = SimpleNamespace(mixture=mixture, can_measure_labels=False)  # type: ignore[assignment]
    coordinator.claim = SimpleNamespace(check=lambda: None)  # type: ignore[assignment]
    coordinator.rates = SimpleNamespace(set=lambda *_: None, set_boxes=lambda _: None)  # type: ignore[assignment]
    coordinator.post, coordinator.history = lambda _: None, {}  # type: ignore[assignment]
    coordinator._lock, coordinator.clock = threading.RLock(), Clock()
    coordinator.position, coordinator._posted = (0, 0), 0.0
    coordinator.pool = pool = PoolHere()  # type: ignore[assignment]
    tables = [coordinator.labels(epoch, {}) for epoch in range(3)]

    assert tables == [open_labels(coordinator.files.labels(number)) for number in (1, 2, 3)]
    assert coordinator.stored_labels(1) == tables[1] and coordinator.files.epochs_with_labels() == [1, 2, 3]
    assert tables[0].fingerprint == tables[1].fingerprint != tables[2].fingerprint
    assert [path.name for path in Path(tables[1].uri).iterdir()] == ["manifest.json"]
    assert tables[0].num_rows == records.counts["boxes"]
    boxes, repeated = tables[0].read_all(), tables[1].read_all()
    assert boxes.select(["image_id", "superpixel_ids"]).equals(repeated.select(["image_id", "superpixel_ids"]))

    history = read_history(coordinator.config.run_dir)
    found = boxes["proposal_index"].to_numpy() >= 0
    assert history[1].mean_overlap_cost == pytest.approx(boxes["overlap_cost"].to_numpy()[found].mean(), rel=1e-6)
    assert history[1].share_without_candidate == 1 - found.mean()
    changed = boxes["proposal_index"].to_numpy() != tables[2].read_all()["proposal_index"].to_numpy()
    assert [history[number].share_changed for number in (1, 2, 3)] == [None, 0.0, changed.mean()]
    assert changed.any()
    # What came back has names, hashes and sums: its size does not depend on the boxes of a unit.
    assert {type(each).__name__ for each in pool.returned} <= {"LabelsShard", "NoneType"}
    assert all(len(repr(each)) < 1500 for each in pool.returned)
