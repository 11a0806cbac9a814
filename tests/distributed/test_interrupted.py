"""Real Ray, and signals in a build and in a training: one line, KILLED in MLflow, nothing left. And a bare machine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from mlflow.tracking import MlflowClient

from boxsup_dist.config import OptimizerSettings
from boxsup_dist.data.tables import open_table
from boxsup_dist.model import checkpoint
from boxsup_dist.records.synthetic import write_synthetic
from tests import bare
from tests.distributed import tiny
from tests.distributed.test_train import command_of

ROOT = Path(__file__).parents[2]


class Command:
    """A job as a terminal starts it: in a process group of its own."""

    def __init__(self, log: Path, *words: str) -> None:
        self._log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *words], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def lines(self) -> list[str]:
        return self._log.read_text().splitlines()

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 180
        while text not in self._log.read_text():
            assert self.process.poll() is None and time.monotonic() < deadline, self.lines
            time.sleep(0.02)

    def end_by(self, number: signal.Signals, group: bool) -> tuple[int, str]:
        """Send a signal; returns the exit status and the last line, when neither it nor Ray's processes are left."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        assert any("raylet" in child.name() for child in family)
        (os.killpg if group else os.kill)(self.process.pid, number)
        status = self.process.wait(timeout=30)
        alive = [child for child in family if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        assert not alive
        return status, self.lines[-1]


def no_trace(lines: list[str]) -> bool:
    return not any(word in line for line in lines for word in ("Traceback", "***", "Error", "File "))


def test_sigterm_while_the_demo_builds_a_table(tmp_path: Path) -> None:
    devkit, out = write_synthetic(str(tmp_path / "devkit"), num_train=12, num_val=2), tmp_path / "out"
    words = ("jobs.demo", "--voc-root", devkit, "--out", str(out), "--recipe", "demo")
    command = Command(tmp_path / "log", *words)
    command.wait_for("== proposals")
    time.sleep(1)  # the build is under way
    expected = (143, "interrupted by SIGTERM; the same command continues")
    assert command.end_by(signal.SIGTERM, group=False) == expected
    assert no_trace(command.lines), command.lines
    assert open_table(str(out / "records" / "train"), "records").num_rows == 12


def test_a_training_that_ctrl_c_ends_is_killed_in_mlflow_and_sigterm_saves_it(tmp_path: Path) -> None:
    """A terminal sends SIGINT to the whole group. The same command continues, and a batch system sends SIGTERM."""
    tiny.write_tables(tmp_path)
    optimizer = OptimizerSettings(epochs=200, global_batch_size=4, lr=0.01, schedule="poly")
    config = tiny.make_config(tmp_path, tmp_path / "run", optimizer=optimizer)
    command = Command(tmp_path / "log", *command_of(config, checkpoint_every_steps=1)[2:])
    command.wait_for("epoch 2/200")
    assert command.end_by(signal.SIGINT, group=True) == (130, "interrupted; the same command continues")
    assert no_trace(command.lines), command.lines
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert run.info.status == "KILLED" and run.info.end_time is not None
    assert json.loads((tmp_path / "run" / "writer.json").read_text())["released"], "the blocks were closed"

    again = Command(tmp_path / "log", *command_of(config, checkpoint_every_steps=0)[2:])
    again.wait_for("the first step is done")
    status, line = again.end_by(signal.SIGTERM, group=False)
    where = re.fullmatch(r"interrupted by SIGTERM; the same command continues at epoch (\d+), after (\d+) steps", line)
    assert status == 143 and where is not None, again.lines
    assert no_trace(again.lines), again.lines
    newest = checkpoint.checkpoint_name(int(where[1]) - 1, int(where[2]))
    assert checkpoint.latest(config.run_dir) == f"{config.run_dir}/checkpoints/{newest}"
    assert json.loads((tmp_path / "run" / "writer.json").read_text())["released"]


@pytest.mark.skipif(bare.why_not() is not None, reason=str(bare.why_not()))
def test_a_table_is_built_in_a_bare_container(tmp_path: Path) -> None:
    devkit, out = write_synthetic(str(tmp_path / "devkit"), num_train=4, num_val=2), tmp_path / "out" / "records"
    words = ("-m", "jobs.build_records", "--voc-root", devkit, "--split", "train", "--out", str(out))
    done = bare.run(tmp_path, *words, timeout_s=200)
    assert done.returncode == 0, done.stderr
    assert open_table(str(out), "records").num_rows == 4
    assert not list((tmp_path / "closed").iterdir()), "nothing is written where the command is called"
