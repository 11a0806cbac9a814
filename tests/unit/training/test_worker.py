"""What a worker counts in its steps, and what it refuses to keep; one process that is its own rank 0, without Ray."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import ray.train.collective
import ray.train.torch
import torch

from boxsup_dist.data.labels import labels_table, store_labels
from boxsup_dist.data.schema import IGNORE_INDEX
from boxsup_dist.errors import InputError, NonFiniteLossError, RecordError, TableError
from boxsup_dist.model import checkpoint
from boxsup_dist.runs.inputs import open_inputs
from boxsup_dist.training.stream import Batch
from boxsup_dist.training.worker import TrainWorker
from tests.distributed import tiny
from tests.golden.values import only_worker

SIZE_PX = 64  # 8 x 8 pixels of the grid


@pytest.fixture
def worker(tmp_path: Path) -> TrainWorker:
    tiny.write_tables(tmp_path)
    config = tiny.make_config(tmp_path, tmp_path / "run")
    with only_worker():
        worker = TrainWorker(config, open_inputs(config).mixture)
    worker.model = worker.network
    return worker


def batch(step: int, label_map: np.ndarray) -> Batch:
    images = np.random.default_rng(step).integers(0, 256, (1, SIZE_PX, SIZE_PX, 3)).astype(np.uint8)
    return Batch(step, ["a"], images, label_map[None], np.array([False]))


def step(worker: TrainWorker, batch: Batch, num_steps: int) -> None:
    worker.train_step(batch, worker.place(batch), num_steps)


def label_map() -> np.ndarray:
    """A quarter ignored, an eighth object, the rest background."""
    found = np.zeros((SIZE_PX, SIZE_PX), np.uint8)
    found[:, : SIZE_PX // 4] = IGNORE_INDEX
    found[: SIZE_PX // 4, SIZE_PX // 2 :] = 3
    return found


def test_both_shares_of_foreground_count_the_labelled_pixels(worker: TrainWorker):
    metrics = worker.train_epoch(iter([batch(0, label_map())]), 1, lambda totals, num_steps: None)
    assert worker.totals.counted == 48 and worker.totals.label_foreground == 8
    assert metrics["label_foreground_share"] == pytest.approx(8 / 48)
    assert metrics["foreground_share"] == 0  # the score layer starts at zero: a tie, which background wins

    with torch.no_grad():
        worker.network.score.bias[3] = 100.0
    step(worker, batch(1, label_map()), 2)
    assert worker.totals.counted == 96 and worker.totals.foreground == 48


def test_an_epoch_without_a_label_ends_the_run(worker: TrainWorker):
    ignored = np.full((SIZE_PX, SIZE_PX), IGNORE_INDEX, np.uint8)
    with pytest.raises(InputError, match="nothing to learn in epoch 1: every pixel of its label maps is ignored"):
        worker.train_epoch(iter([batch(0, ignored)]), 1, lambda totals, num_steps: None)


def test_weights_that_are_not_finite_are_not_kept(worker: TrainWorker):
    def overflow(*_: object) -> None:
        with torch.no_grad():
            worker.network.score.bias[0] = torch.inf

    with pytest.raises(NonFiniteLossError, match=r"not finite after epoch 1, step 1; field: optimizer.lr; found: 0.01"):
        worker.train_epoch(iter([batch(0, label_map())]), 1, overflow)


def test_more_bad_records_than_allowed_are_named(worker: TrainWorker):
    worker.config = replace(worker.config, max_bad_records=1)
    bad = {"a": "does not decode: damaged", "b": "does not decode: cut"}
    expected = r"2 records are unusable: a, b; the last: does not decode: cut; field: max_bad_records; found: 1; .*>= 2"
    with pytest.raises(RecordError, match=expected):
        step(worker, replace(batch(0, label_map()), bad_records=bad), 1)


def test_a_loss_that_is_not_finite_names_its_record_and_leaves_everything_as_it_was(worker: TrainWorker):
    step(worker, batch(0, label_map()), 3)
    before = kept_state(worker)
    with torch.no_grad():
        worker.network.score.bias[3] = torch.nan  # and the loss with it
    with pytest.raises(NonFiniteLossError, match=r"epoch 1, step 2; field: image_id; found: \['a'\]"):
        step(worker, batch(1, label_map()), 3)
    after = kept_state(worker)
    after["model"]["score.bias"][3] = before["model"]["score.bias"][3]
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_the_failure_of_a_rank_is_raised_before_anything_is_updated(worker: TrainWorker):
    step(worker, batch(0, label_map()), 3)
    before = kept_state(worker)
    with pytest.raises(InputError, match="the disk is full"):
        step(worker, replace(batch(1, label_map()), error=InputError("the disk is full")), 3)
    torch.testing.assert_close(kept_state(worker), before, rtol=0, atol=0)


def kept_state(worker: TrainWorker) -> dict[str, Any]:
    """A copy of all that a checkpoint keeps, without the learning rates, which every step sets."""
    state = worker.training_state()
    kept = {"model": worker.weights(), "state": state["optimizer"]["state"], "totals": state["totals"]}
    return deepcopy(kept | {"average": state.get("average", {})})


def test_the_average_starts_at_the_first_weights_and_follows_them(worker: TrainWorker):
    worker.config = replace(worker.config, assignment=replace(worker.config.assignment, average_decay=0.75))
    worker.average = deepcopy(worker.network)
    expected: dict[str, torch.Tensor] = {}
    for index in range(3):
        step(worker, batch(index, label_map()), 3)
        newest = {name: value.detach() for name, value in worker.network.named_parameters()}
        expected = {name: 0.75 * expected.get(name, value) + 0.25 * value for name, value in newest.items()}
    average = {name: value for name, value in worker.assigning_weights().items() if name in expected}
    torch.testing.assert_close(average, expected)
    assert not torch.equal(expected["score.bias"], worker.weights()["score.bias"])


@pytest.mark.parametrize("compiles", [False, True])
def test_the_network_is_compiled_if_the_setting_says_so(
    worker: TrainWorker, monkeypatch: pytest.MonkeyPatch, compiles: bool
):
    compiled: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda call: compiled.append(call) or call)
    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(ray.train.collective, "broadcast_from_rank_zero", lambda value: value)
    monkeypatch.setattr(ray.train.torch, "prepare_model", lambda network, parallel_strategy_kwargs: network)
    resources = replace(worker.config.resources, compile=compiles)
    worker.config = replace(worker.config, resources=resources)
    worker.wrap()
    assert compiled == [worker.network._call_impl] * compiles
    step(worker, batch(0, label_map()), 1)
    assert worker.totals.images == 1


def test_a_checkpoint_whose_labels_were_replaced_does_not_resume(worker: TrainWorker):
    run_dir = worker.config.run_dir
    labels = store_labels(f"{run_dir}/labels/epoch-001", [labels_table([])])
    state = checkpoint.CheckpointState(
        0, 1, 0, worker.network.spec, worker.weights(), worker.training_state(), labels.named(run_dir)
    )
    uri = checkpoint.save(run_dir, state)
    worker.restore(uri)
    assert worker.step == 1
    store_labels(labels.uri, [labels_table([])] * 2)
    with pytest.raises(TableError, match=r"not the labels that the checkpoint was trained on.*labels/epoch-001; field"):
        worker.restore(uri)
