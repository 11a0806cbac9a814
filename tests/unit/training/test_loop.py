"""When a worker saves and when it stops; one process that is its own rank 0, without Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from boxsup_dist.distributed import ray_internals
from boxsup_dist.errors import UnwritableFileError
from boxsup_dist.model import checkpoint
from boxsup_dist.model.checkpoint import CheckpointState
from boxsup_dist.runs.inputs import open_inputs
from boxsup_dist.training import loop
from boxsup_dist.training.loop import Stopped, _StoppedEarly, _Watch
from boxsup_dist.training.saving import Saver
from boxsup_dist.training.stream import Batch
from boxsup_dist.training.worker import GO_ON, STOP, TrainWorker
from tests.distributed import tiny
from tests.golden.values import only_worker

NUM_STEPS = 6


class Rig:
    """A worker, its watch, and what happens from outside."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        tiny.write_tables(folder)
        config = tiny.make_config(folder, folder / "run", keep_checkpoints=9, **settings)
        with only_worker():
            self.worker = TrainWorker(config, open_inputs(config).mixture)
        self.worker.model = self.worker.network
        self.leader = mock.MagicMock()
        self.leader.listener.cause = None
        self.leader.saver = Saver(config.run_dir, 9, lambda: None)
        self.now = 0.0
        self.is_preempted = False
        monkeypatch.setattr(loop.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(ray_internals, "is_preempted", lambda: self.is_preempted)
        self.events: dict[int, Any] = {}  # after this many steps

    def train(self) -> list[str]:
        """The steps of the epoch's checkpoints, as their folders name them."""
        watch = _Watch(self.worker, self.leader, None)

        def on_step(totals: Any, num_steps: int) -> None:
            self.now += 10.0
            self.events.get(self.worker.step, lambda: None)()
            watch(totals, num_steps)

        images = np.zeros((1, 64, 64, 3), np.uint8)
        batches = (
            Batch(step, ["a"], images, np.zeros((1, 64, 64), np.uint8), np.array([False]))
            for step in range(self.worker.step, NUM_STEPS)
        )
        try:
            self.worker.train_epoch(batches, NUM_STEPS, on_step)
        finally:
            self.leader.saver.finish()
            self.saved = [uri[-5:] for uri in checkpoint.list_checkpoints(self.worker.config.run_dir)]
        return self.saved


@pytest.mark.parametrize(
    ("every_steps", "every_s", "expected"),
    [
        (0, 0.0, []),
        (2, 0.0, ["00002", "00004"]),
        (0, 20.0, ["00003"]),  # due after 2 steps, agreed in the third; then in the last, after which the epoch saves
        (0, 1000.0, []),
        (4, 20.0, ["00003", "00004"]),  # any save starts the time again
    ],
)
def test_checkpoints_come_after_steps_and_after_a_time(tmp_path, monkeypatch, every_steps, every_s, expected):
    rig = Rig(tmp_path, monkeypatch, checkpoint_every_steps=every_steps, checkpoint_every_s=every_s)
    assert rig.train() == expected


def test_a_node_that_is_taken_away_costs_no_step(tmp_path, monkeypatch):
    """The notice comes after the second step: a checkpoint is whole after the third, and the training stops there."""
    rig = Rig(tmp_path, monkeypatch)

    def notice() -> None:
        rig.is_preempted = True

    rig.events[2] = notice
    with pytest.raises(_StoppedEarly) as caught:
        rig.train()
    assert caught.value.args == (Stopped("preempted", 0, 3),) and rig.saved == ["00003"]
    assert checkpoint.load(checkpoint.latest(rig.worker.config.run_dir)).training["totals"]["images"] == 3


def test_the_notice_of_another_rank_stops_this_one_at_the_same_step(tmp_path, monkeypatch):
    """The other rank says in its fourth step that it stops; both know it after that step."""
    rig = Rig(tmp_path, monkeypatch)
    rig.worker.num_workers = 2

    def add_other_rank(sums: torch.Tensor) -> None:
        sums *= 2  # it trains on the same images
        sums[-1] += STOP if rig.worker.step == 3 else GO_ON

    monkeypatch.setattr(torch.distributed, "all_reduce", add_other_rank)
    with pytest.raises(_StoppedEarly) as caught:
        rig.train()
    assert caught.value.args == (Stopped("preempted", 0, 4),) and rig.saved == ["00004"]


def test_a_request_stops_with_its_cause_and_not_inside_the_last_step(tmp_path, monkeypatch):
    rig = Rig(tmp_path, monkeypatch)

    def ask() -> None:
        rig.leader.listener.cause = "terminated"

    rig.events[NUM_STEPS - 1] = ask
    assert rig.train() == [], "the end of the epoch saves, and then the training stops"
    rig.worker.step = 0
    with pytest.raises(_StoppedEarly) as caught:
        rig.train()
    assert caught.value.args[0].cause == "terminated"


def test_a_store_that_fails_in_the_background_ends_the_run_at_the_next_step(tmp_path, monkeypatch):
    rig = Rig(tmp_path, monkeypatch, checkpoint_every_steps=2)
    error = UnwritableFileError("no room", file="s3://bucket/run")

    def fail(run_uri: str, state: CheckpointState, **_: Any) -> str:
        raise error

    monkeypatch.setattr(checkpoint, "save", fail)
    rig.events[3] = lambda: rig.leader.saver._running and rig.leader.saver._running.exception()  # has failed by now
    with pytest.raises(UnwritableFileError, match="no room"):
        rig.train()
    assert rig.worker.step in (2, 3), "the next step raises it before it changes anything"


def test_weights_that_are_not_finite_are_not_saved_on_request(tmp_path, monkeypatch):
    rig = Rig(tmp_path, monkeypatch, checkpoint_every_s=20.0)
    rig.worker.config = replace(rig.worker.config, optimizer=replace(rig.worker.config.optimizer, lr=1e38))
    rig.worker.base_lrs = [1e38 for _ in rig.worker.base_lrs]
    with pytest.raises(Exception, match="not finite"):
        rig.train()
    assert rig.saved == []
