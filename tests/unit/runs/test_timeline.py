"""Where the time of a run goes: rank 0's clock, the driver's account over all starts, and what is read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from boxsup_dist.runs.timeline import COMMAND, UNKNOWN, Account, Clock, Stretch, Timeline, account, read_timeline

NUM_STEPS = 10


class Now:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


def total(found: Account) -> float:
    return sum(found["seconds"].values())


def test_each_moment_belongs_to_one_activity() -> None:
    now = Now()
    clock = Clock(now)
    now.s += 1
    clock.switch("steps")
    now.s += 5
    with clock.during("save"):
        now.s += 2
        with clock.during("reassign"):
            now.s += 3
    now.s += 4
    clock.move(1.5, "steps", "data")
    assert clock.seconds() == {"rest": 1, "steps": 7.5, "save": 2, "reassign": 3, "data": 1.5}


def test_a_clock_survives_an_error_in_its_block() -> None:
    now = Now()
    clock = Clock(now)
    with pytest.raises(ValueError, match="no"), clock.during("save"):
        now.s += 2
        raise ValueError("no")
    now.s += 1
    assert clock.seconds() == {"rest": 1, "save": 2}


def test_an_undisturbed_run(tmp_path: Path) -> None:
    now = Now()
    timeline = Timeline(str(tmp_path), NUM_STEPS, 90.0, now)
    timeline.begin(1, 0, 2)
    now.s += 50
    timeline.spend(2, NUM_STEPS, {"steps": 40.0, "reassign": 8.0})
    now.s += 10
    found = timeline.finish()
    assert found == {
        "wall_s": 70,
        "goodput": 40 / 70,
        "seconds": {"start": 10, "steps": 40, "reassign": 8, "rest": 12},
        "redone_steps": 0,
        "restarts": [],
    }
    assert account(read_timeline(str(tmp_path))) == found


def test_steps_that_a_killed_worker_loses_are_counted_as_redone(tmp_path: Path) -> None:
    """Killed after 7 steps of the second epoch, with a checkpoint after 4: three steps are trained again."""
    now = Now()
    timeline = Timeline(str(tmp_path), NUM_STEPS, now.s, now)
    timeline.begin(1, 0, 2)
    now.s += 34
    timeline.spend(2, 7, {"steps": 34.0})
    now.s += 3  # until Ray Train notices
    timeline.lose("train worker 0 was lost: killed")
    timeline.lose("train worker 1 was lost: its group ended")
    timeline.spend(2, 8, {"steps": 36.0})  # the last word of a worker that is gone
    now.s += 20
    timeline.begin(2, 4, 2)
    now.s += 32
    timeline.spend(2, NUM_STEPS, {"steps": 12.0, "reassign": 20.0})
    found = timeline.finish()
    assert found["redone_steps"] == 3
    assert found["restarts"] == [
        {
            "reason": "train worker 0 was lost: killed; train worker 1 was lost: its group ended",
            "seconds": 20,
            "redone_steps": 3,
        }
    ]
    assert found["seconds"] == {"steps": 40, "redone": 6, "rest": 3, "restart": 20, "reassign": 20}
    assert total(found) == found["wall_s"] == 89 and found["goodput"] == 40 / 89


def test_a_killed_command_continues_the_account_and_the_pause_is_not_counted(tmp_path: Path) -> None:
    now = Now()
    timeline = Timeline(str(tmp_path), NUM_STEPS, now.s, now)
    timeline.begin(1, 0, 1)
    now.s += 20
    timeline.spend(1, 6, {"steps": 12.0})  # written, and the driver is killed
    now.s += 10_000
    again = Timeline(str(tmp_path), NUM_STEPS, now.s, now)
    now.s += 5
    again.begin(1, 0, 1)
    now.s += 20
    again.spend(1, NUM_STEPS, {"steps": 20.0})
    found = again.finish()
    assert found["wall_s"] == total(found) == 45 and found["redone_steps"] == 6
    assert found["restarts"] == [{"reason": COMMAND, "seconds": 5, "redone_steps": 6}]
    assert found["goodput"] == 20 / 45


def test_workers_that_start_again_without_a_loss(tmp_path: Path) -> None:
    """Ray Train adds workers: no process was lost, and no step where a checkpoint came before."""
    now = Now()
    timeline = Timeline(str(tmp_path), NUM_STEPS, now.s, now)
    timeline.begin(1, 0, 1)
    timeline.spend(1, 4, {"steps": 0.0})
    now.s += 6
    timeline.begin(1, 4, 4)
    found = timeline.finish()
    assert [each["reason"] for each in found["restarts"]] == [UNKNOWN] and found["redone_steps"] == 0
    assert [each.num_workers for each in timeline.stretches] == [1, 4]


def test_steps_count_once_where_a_run_falls_back_twice() -> None:
    """Steps 0-8, again from 4 to 6, again from 2 to 10: of the first stretch 2 steps count, of the second none."""
    found = account(
        [
            Stretch(0, 8, "", 0, 8, 1, {"steps": 8.0}),
            Stretch(8, 10, "a", 4, 6, 1, {"steps": 2.0}),
            Stretch(10, 18, "b", 2, 10, 1, {"steps": 8.0}),
        ]
    )
    assert found["seconds"] == {"steps": 10, "redone": 8} and found["redone_steps"] == 8
    assert [each["redone_steps"] for each in found["restarts"]] == [4, 4]


def test_a_start_that_never_came(tmp_path: Path) -> None:
    now = Now()
    timeline = Timeline(str(tmp_path), NUM_STEPS, now.s, now)
    now.s += 30
    timeline.lose("a starting train worker was lost")
    now.s += 10
    timeline.begin(1, 0, 1)
    found = timeline.finish()
    assert found["seconds"] == {"start": 30, "restart": 10} and found["goodput"] == 0


def test_a_damaged_line_costs_its_part_only(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    now = Now()
    timeline = Timeline(str(tmp_path), NUM_STEPS, now.s, now)
    timeline.begin(1, 0, 1)
    now.s += 5
    timeline.lose("a")
    timeline.begin(1, 0, 1)
    now.s += 7
    timeline.finish()
    file = tmp_path / "timeline.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(["{rubbish", *lines[1:]]))
    assert account(read_timeline(str(tmp_path)))["wall_s"] == 7
    shown = capsys.readouterr().out
    assert "the account of time is lost" in shown and f"{file}" in shown and "line 1" in shown


def test_a_store_that_refuses_the_account_stops_no_training(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = Now()
    timeline = Timeline(str(tmp_path / "run"), NUM_STEPS, now.s, now)
    (tmp_path / "run").write_text("a file where the folder should be")
    timeline.begin(1, 0, 1)
    now.s += 60
    timeline.spend(1, 2, {"steps": 60.0})
    assert capsys.readouterr().out.count("warning: the account of time is not stored") == 1
