"""What a worker counts in its steps, and what it refuses to keep; one process that is its own rank 0, without Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
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
    worker.train_step(batch(1, label_map()), 2)
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
        worker.train_step(replace(batch(0, label_map()), bad_records=bad), 1)


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
