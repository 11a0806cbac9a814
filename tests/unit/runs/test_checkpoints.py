"""`--checkpoint best`: found by the history, kept by the pruning, and refused in words where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from boxsup_dist.errors import CheckpointError, SettingError
from boxsup_dist.model import checkpoint
from boxsup_dist.model.checkpoint import CheckpointState
from boxsup_dist.model.networks import build_network
from boxsup_dist.runs.checkpoints import find_checkpoint
from boxsup_dist.runs.history import HistoryEntry, best_epoch, write_history
from boxsup_dist.runs.trained import find_network
from jobs import predict, submit
from tests import networks

SPEC = networks.spec("timm:resnet18", 3, head_channels=4)


def save(run_dir: Path, epoch: int, step: int = 0, **keep: object) -> str:
    state = CheckpointState(epoch, step, 0, SPEC, {"w": torch.zeros(1)})
    return checkpoint.save(str(run_dir), state, **keep)  # type: ignore[arg-type]


def write(run_dir: Path, *mean_ious: float | None) -> None:
    entries = {n: HistoryEntry(n, mean_iou=value) for n, value in enumerate(mean_ious, 1)}
    write_history(str(run_dir), entries)


def test_the_best_epoch_is_the_first_of_the_highest() -> None:
    history = {n: HistoryEntry(n, mean_iou=value) for n, value in enumerate([30.0, None, 40.0, 40.0], 1)}
    assert best_epoch(history) == 3 and best_epoch({1: HistoryEntry(1)}) is None and best_epoch({}) is None


def test_best_newest_and_named(tmp_path: Path) -> None:
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    inside = save(tmp_path, 2, 4)
    write(tmp_path, 41.0, 40.0)
    assert find_checkpoint(str(tmp_path), "best") == first
    assert find_checkpoint(str(tmp_path), None) == inside and find_checkpoint(str(tmp_path), second) == second


def test_the_checkpoints_of_some_epochs_are_kept_besides_the_newest(tmp_path: Path) -> None:
    for epoch, step in [(1, 0), (1, 2), (2, 0), (2, 2), (3, 0)]:
        save(tmp_path, epoch, step, keep_last=1, keep_epochs={1})
    names = [uri.rpartition("/")[2] for uri in checkpoint.list_checkpoints(str(tmp_path))]
    assert names == ["epoch-001-step-00000", "epoch-003-step-00000"]
    save(tmp_path, 4, keep_last=2, keep_epochs={3})
    names = [uri.rpartition("/")[2] for uri in checkpoint.list_checkpoints(str(tmp_path))]
    assert names == ["epoch-003-step-00000", "epoch-004-step-00000"]


def test_a_run_without_validation_has_no_best(tmp_path: Path) -> None:
    save(tmp_path, 1)
    write(tmp_path, None)
    with pytest.raises(CheckpointError, match=r"no checkpoint is the best: no epoch .* was evaluated.*history\.jsonl"):
        find_checkpoint(str(tmp_path), "best")


def test_a_best_checkpoint_that_is_gone_is_named(tmp_path: Path) -> None:
    save(tmp_path, 2)
    write(tmp_path, 41.0, 40.0)
    with pytest.raises(CheckpointError, match=r"checkpoint of the best epoch, 1, is not there.*epoch-001-step-00000"):
        find_checkpoint(str(tmp_path), "best")


def test_predict_needs_the_run_whose_best_it_shall_use(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"best checkpoint of which run.*run_dir"):
        predict.Settings("photos", "out", checkpoint="best").check()
    state = CheckpointState(1, 0, 0, SPEC, build_network(SPEC, "none").state_dict())
    best = checkpoint.save(str(tmp_path), state)
    save(tmp_path, 2)
    write(tmp_path, 41.0, 40.0)
    assert find_network(str(tmp_path), "best").trained.uri == best


def test_a_cluster_is_not_asked_for_the_path_of_the_best() -> None:
    assert submit.find_relative_paths(["--checkpoint", "best", "--run-dir", "/runs/a"]) == []
    assert len(submit.find_relative_paths(["--checkpoint", "runs/a", "--run-dir", "best"])) == 2
