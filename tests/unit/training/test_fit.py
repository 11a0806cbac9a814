"""What becomes of a training that stopped before its last epoch, and what Ray Train starts besides the workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray.train
from ray.train.torch import TorchTrainer

from boxsup_dist import interrupts
from boxsup_dist.distributed.stopping import StopRequest
from boxsup_dist.training import fit
from boxsup_dist.training.loop import Stopped
from tests.distributed import tiny


def launch(monkeypatch: pytest.MonkeyPatch, folder: Path, *answers: Stopped | None) -> tuple[list[Any], list[str]]:
    """The settings of each launch, and what was reported, if the launches return these."""
    left, settings, reports = list(answers), [], []

    def once(config: Any, loop: Any, given: dict[str, Any], report: Any) -> Stopped | None:
        settings.append(given)
        return left.pop(0)

    monkeypatch.setattr(fit, "_launch_once", once)
    monkeypatch.setattr(StopRequest, "withdraw", lambda self, part="": None)
    fit.launch(tiny.make_config(folder, folder / "run"), lambda settings: None, {"a": 1}, reports.append)
    assert not left
    return settings, reports


def test_a_training_whose_node_is_taken_away_starts_again_at_once_and_counts_no_failure(monkeypatch, tmp_path):
    """Oftener than resources.max_failures, which is 3."""
    stops = [Stopped("preempted", 1, step) for step in (3, 9, 9, 12, 20)]
    settings, reports = launch(monkeypatch, tmp_path, *stops, None)
    assert len(settings) == 6 and len({id(each["stop"]) for each in settings}) == 1
    assert reports[0] == (
        "a node is being taken away: a checkpoint is saved at epoch 2, after 3 steps, other nodes continue"
    )
    assert len(reports) == 5


def test_a_training_that_sigterm_ended_is_not_started_again_and_says_where_it_continues(monkeypatch, tmp_path):
    lines: list[str] = []
    monkeypatch.setattr(interrupts, "set_last_line", lines.append)
    settings, reports = launch(monkeypatch, tmp_path, Stopped("terminated", 0, 14))
    assert len(settings) == 1 and not reports
    assert lines == ["interrupted by SIGTERM; the same command continues at epoch 1, after 14 steps"]


def test_the_trainer_starts_no_process_that_serves_no_run(tmp_path):
    """A callback that Ray renames would come back unseen: the names are those that Ray has."""

    def names(kind: type) -> list[str]:
        run = ray.train.RunConfig(storage_path=str(tmp_path))
        return [type(each).__name__ for each in kind(print, run_config=run)._create_default_callbacks()]

    theirs, ours = names(TorchTrainer), names(fit._Trainer)
    assert set(fit.UNUSED_CALLBACKS) <= set(theirs)
    assert ours == [name for name in theirs if name not in fit.UNUSED_CALLBACKS]
    assert {"BackendSetupCallback", "UserCallbackHandler"} <= set(ours)
