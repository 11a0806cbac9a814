"""jobs.submit without a cluster: which request it reads, which variables it passes on, and its errors."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from boxsup_dist.errors import InputError, SettingError
from jobs import submit

ROOT = Path(__file__).parents[3]
TRAIN = ["python", "-m", "jobs.train", "mini", "--run-dir", "/shared/a"]


def test_the_command_is_what_stands_after_the_dashes():
    settings, command = submit.parse(["--detach", "--env", "A", "B_*", "--", *TRAIN, "--", "x"])
    assert settings.detach and settings.upload and settings.env == ("A", "B_*")
    assert command == [*TRAIN, "--", "x"]


@pytest.mark.parametrize("arguments", [[], ["--follow", "a", "--stop", "b"], ["--follow", "a", "--", *TRAIN]])
def test_one_thing_at_a_time(arguments):
    with pytest.raises(SettingError, match="exactly one of a command"):
        submit.parse(arguments)


def test_a_job_that_the_working_tree_lacks_is_refused_before_anything_is_sent():
    with pytest.raises(SettingError, match=r"no such command.*'trian'.*train"):
        submit.parse(["--", "python", "-m", "jobs.trian"])
    submit.parse(["--no-upload", "--", "python", "-m", "jobs.of_the_image"])


def test_variables_are_chosen_by_name_or_pattern(monkeypatch):
    for name in ("AWS_KEY", "AWS_REGION", "OTHER", "RAY_ADDRESS"):
        monkeypatch.setenv(name, f"the-value-of-{name}")
    assert submit.chosen_environment(["OTHER"]) == {"OTHER": "the-value-of-OTHER"}
    assert {"AWS_KEY", "AWS_REGION"} <= set(submit.chosen_environment(["AWS_*"]))
    assert not any(name.startswith("RAY_") for name in submit.chosen_environment(["*"]))


@pytest.mark.parametrize("pattern", ["SECRET=hidden", "RAY_AUTH_TOKEN", "NOT_SET_ANYWHERE"])
def test_no_value_is_in_an_error(monkeypatch, pattern):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hidden")
    with pytest.raises(SettingError) as found:
        submit.chosen_environment([pattern])
    assert pattern.partition("=")[0] in str(found.value) and "hidden" not in str(found.value)


def test_relative_places_are_warned_of():
    command = [
        "python",
        "-m",
        "jobs.train",
        "--run-dir",
        "runs/a",
        "--records=/shared/r",
        "--out=s3://b/o",
        "--proposals=p",
    ]
    warnings = submit.find_relative_paths(command)
    assert [text.split(" is")[0] for text in warnings] == ["--run-dir runs/a", "--proposals p"]


def test_the_token_is_found_where_ray_looks_for_it(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert submit.find_token() is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of the home\n")
    assert submit.find_token() == "of the home"
    (tmp_path / "file").write_text("of the file\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "file"))
    assert submit.find_token() == "of the file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of the variable")
    assert submit.find_token() == "of the variable"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "absent"))
    with pytest.raises(InputError, match="absent"):
        submit.find_token()


def test_an_absent_cluster_is_reported_in_one_line(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"  # bound and not listening: nobody answers
        # Ray prefers these two to an address it is given; ours goes first.
        monkeypatch.setenv("RAY_ADDRESS", "ray://elsewhere:1")
        with pytest.raises(SettingError, match=f"no Ray job server answers.*{address}.*tunnel"):
            submit.main(["--address", address, "--", *TRAIN])
    with pytest.raises(SettingError, match="not a dashboard's URL"):
        submit.connect("ray://head:10001")


@pytest.mark.parametrize("code, status", [(7, 7), (-9, 137), (-15, 143), (None, 1), (0, 1)])
def test_a_failed_jobs_exit_status_is_never_zero(code, status):
    assert submit.exit_status(code) == status


FOLLOW = """
import asyncio, sys
from types import SimpleNamespace
sys.argv = ["boxsup", "--follow", "job-7"]
from jobs import submit
from ray.job_submission import JobStatus

class Client:
    def get_job_info(self, job_id):
        return SimpleNamespace(status=JobStatus.RUNNING)
    async def tail_job_logs(self, job_id):
        yield "ready\\n"
        await asyncio.sleep(60)

submit.connect = lambda address: Client()
sys.exit(submit.main(sys.argv[1:]))
"""


def test_a_job_that_is_no_longer_followed_is_said_to_continue():
    process = subprocess.Popen(
        [sys.executable, "-c", FOLLOW], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    line = "job-7 continues; --follow job-7 shows it again, --stop job-7 stops it\n"
    assert process.communicate(timeout=30) == ("", line) and process.returncode == 130
