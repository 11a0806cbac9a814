"""RAY_ADDRESS in every form in which it cannot be joined: one line, soon. Only the last tests need a Ray session."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from boxsup_dist.distributed import address, ray_internals
from boxsup_dist.distributed.address import check_address
from boxsup_dist.errors import SettingError

REPO = Path(__file__).parents[2]
SOON_S = 1.0  # of patience; a command has address.PATIENCE_S


@contextlib.contextmanager
def port(*, listening: bool) -> Iterator[int]:
    """A port that accepts connections and never answers, or that refuses them."""
    with socket.socket() as server:
        server.bind(("", 0))  # Ray turns localhost into the address of this machine
        if listening:
            server.listen()
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("10.0.0.1", "not an address"),
        ("head:6379x", "not an address"),
        ("head:99999", "not an address"),
        ("::", "not an address"),
        ("no such thing!", "not an address"),
        ("ray://10.0.0.1:10001", "a command joins a cluster on one of its nodes.*jobs.submit"),
        ("http://127.0.0.1:8265", "a command joins a cluster on one of its nodes.*jobs.submit"),
        ("nowhere.invalid:6379", "no host of this name is known"),
        (f"{'a' * 64}.invalid:6379", "no host of this name is known"),
    ],
)
def test_what_is_no_address_is_refused_at_once(text, problem):
    began = time.monotonic()
    with pytest.raises(SettingError, match=rf"cannot join the Ray cluster: {problem}") as found:
        check_address(text)
    assert found.value.field == "RAY_ADDRESS" and found.value.value == text and "\n" not in str(found.value)
    assert time.monotonic() - began < 20, "a name server may take its time"


@pytest.mark.parametrize("listening, problem", [(False, "Connection refused"), (True, "no reply within")])
def test_a_cluster_that_is_not_there_is_reported_within_the_patience(listening, problem, caplog):
    assert address.PATIENCE_S <= 30
    with port(listening=listening) as number:
        began = time.monotonic()
        with pytest.raises(SettingError, match=f"no Ray cluster answers .*{problem}.*'127.0.0.1:{number}'"):
            check_address(f"127.0.0.1:{number}", SOON_S)
        assert time.monotonic() - began < SOON_S + 5


def test_a_user_is_told_at_once_what_a_command_waits_for(caplog):
    with port(listening=False) as number:
        with pytest.raises(SettingError):
            check_address(f"127.0.0.1:{number}", 3.0)
        assert [record.getMessage().partition(";")[2] for record in caplog.records] == [" trying for 3 s"]


def test_auto_without_a_cluster_of_this_machine(monkeypatch):
    def nothing(address: str) -> str:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray_internals, "gcs_address", nothing)  # others may run clusters on this machine
    with pytest.raises(SettingError, match=r"no Ray cluster runs on this machine; .*found: 'auto'"):
        check_address("auto")


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"RAY_ADDRESS": "ray://127.0.0.1:10001"}, "a command joins a cluster on one of its nodes"),
        ({"RAY_ADDRESS": "127.0.0.1:9", "RAY_AUTH_MODE": "token"}, "it asks for a token"),
    ],
)
def test_a_command_ends_with_one_line(variables, problem, tmp_path):
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {**variables, "HOME": str(tmp_path)}
    code = "from boxsup_dist.distributed import session\nfrom boxsup_dist.runs.command_line import clear_errors\n"
    code += "with clear_errors():\n    session.start()"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(f"error: cannot join the Ray cluster: {problem}"), (
        done.stderr
    )


def test_a_cluster_that_answers_is_joined_from_one_of_its_nodes_only(ray_local, monkeypatch):
    place = ray.get_runtime_context().gcs_address
    check_address(place, SOON_S)
    ips = ", ".join(node["NodeManagerAddress"] for node in ray.nodes())
    monkeypatch.setattr(ray_internals, "local_node_ids", lambda: {"of-another-cluster"})
    with pytest.raises(
        SettingError, match=rf"no node of the cluster runs on this machine \(its nodes: {ips}\); .*submit"
    ):
        check_address(place, SOON_S)
