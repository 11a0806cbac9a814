"""A real Ray head with job server and token authentication: jobs.submit sends jobs to it, finds them and is refused."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from boxsup_dist.data.tables import open_table
from boxsup_dist.distributed import session
from boxsup_dist.errors import SettingError
from boxsup_dist.io import remote
from boxsup_dist.records.synthetic import write_synthetic
from jobs import submit

REPO = Path(__file__).parents[2]
WAIT_S = 120.0
TOKEN = "a-token-that-only-this-test-knows-0123456789"


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@dataclass(frozen=True)
class Head:
    """A running head: the URL of its dashboard, and the address that drivers join."""

    address: str
    ray_address: str


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """`ray start --head` with its own ports and folder; at the end its processes, and no others, are ended."""
    folder = Path(tempfile.mkdtemp(prefix="boxsup-ray-"))  # short: the path of a socket has 107 characters at most
    names = ("port", "dashboard-port", "ray-client-server-port", "metrics-export-port", "dashboard-agent-listen-port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += ["--node-ip-address", "127.0.0.1", "--dashboard-host", "127.0.0.1", "--include-dashboard", "true"]
    command += ["--num-cpus", "2", "--object-store-memory", "200000000", "--temp-dir", str(folder / "ray")]
    command += ["--object-spilling-directory", str(folder / "spill")]
    command += [f"--{name}={port}" for name, port in ports.items()]
    mine = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{mine['PATH']}"
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_worker_niceness": "0"}
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env={**mine, **auth, "PATH": path}, start_new_session=True
        )
    try:
        wait_for_port(process, ports["dashboard-port"], folder / "head.log")
        yield Head(f"http://127.0.0.1:{ports['dashboard-port']}", f"127.0.0.1:{ports['port']}")
    finally:
        end(process)
        shutil.rmtree(folder, ignore_errors=True)


def wait_for_port(process: subprocess.Popen, port: int, log: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)
    raise TimeoutError(f"the head does not answer:\n{log.read_text()[-3000:]}")


def end(process: subprocess.Popen) -> None:
    """Kill a process and all that it started; its folder is thrown away, so nothing needs to end in order."""
    members = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for member in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(members, timeout=10)
    process.wait()


class Tunnel:
    """Forwards connections to a port of this machine, as `ssh -L` does, and can be cut and opened again."""

    def __init__(self, target: int) -> None:
        self.target, (self.port,) = target, free_ports(1)
        self.ends: list[socket.socket] = []
        self.open()

    def open(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def cut(self) -> None:
        for end_ in (self.listener, *self.ends):
            with contextlib.suppress(OSError):
                end_.shutdown(socket.SHUT_RDWR)
            end_.close()
        self.ends = []

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, far = listener.accept()[0], socket.create_connection(("127.0.0.1", self.target))
                self.ends += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._copy, args=pair, daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def with_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)


def test_a_job_of_the_working_tree_runs_on_the_cluster(head, with_token, tmp_path, capsys):
    root = write_synthetic(str(tmp_path / "devkit"), 2, 1)
    out = str(tmp_path / "records")
    command = ["python", "-m", "jobs.build_records", "--voc-root", root, "--split", "train", "--out", out]
    assert submit.main(["--address", head.address, "--", *command]) == 0
    assert open_table(out, "records").num_rows == 2
    shown = capsys.readouterr()
    assert "succeeded" in shown.err and TOKEN not in shown.out + shown.err


def test_the_exit_status_is_the_jobs(head, with_token, capsys):
    command = ["python", "-c", "print('going wrong'); raise SystemExit(7)"]
    assert submit.main(["--address", head.address, "--no-upload", "--", *command]) == 7
    assert "going wrong" in capsys.readouterr().out


def test_a_detached_job_is_followed_and_stopped(head, with_token, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:hidden@tracking")
    code = "import os, time; print('name', len(os.environ['MLFLOW_TRACKING_URI'])); time.sleep({}); print('the end')"
    ids = []
    for seconds in (1, 600):
        options = ["--address", head.address, "--detach", "--no-upload", "--env", "MLFLOW_TRACKING_URI"]
        assert submit.main([*options, "--", "python", "-c", code.format(seconds)]) == 0
        ids.append(capsys.readouterr().out.strip())
    assert submit.main(["--address", head.address, "--follow", ids[0]]) == 0
    shown = capsys.readouterr()
    assert "name 27\n" in shown.out and "the end\n" in shown.out
    assert submit.main(["--address", head.address, "--follow", ids[0]]) == 0  # again, after its end
    again = capsys.readouterr()
    assert again.out == shown.out and "hidden" not in again.out + again.err + shown.err
    assert submit.main(["--address", head.address, "--stop", ids[1]]) == 0
    assert submit.main(["--address", head.address, "--follow", ids[1]]) == submit.STOPPED_STATUS
    with pytest.raises(SettingError, match=f"no such job.*{ids[0]}"):
        submit.main(["--address", head.address, "--follow", "nobody"])


def test_a_job_is_followed_to_its_end_though_the_tunnel_drops(head, with_token, capsys):
    tunnel = Tunnel(int(head.address.rpartition(":")[2]))
    code = "import time\nfor i in range(16): print('line', i, flush=True); time.sleep(0.5)\nraise SystemExit(5)"
    for wait_s, call in ((3.0, tunnel.cut), (8.0, tunnel.open)):  # it drops for 5 s
        timer = threading.Timer(wait_s, call)
        timer.daemon = True
        timer.start()
    address = f"http://127.0.0.1:{tunnel.port}"
    assert submit.main(["--address", address, "--no-upload", "--", "python", "-c", code]) == 5
    shown = capsys.readouterr()
    tunnel.cut()
    assert re.findall(r"line \d+", shown.out) == [f"line {i}" for i in range(16)], "each line once"
    assert re.search(r"the connection is lost, \S+ continues; .*10 minutes\nconnected again\n", shown.err)


def test_a_cluster_that_stays_away_ends_the_command_and_not_the_job(head, with_token, monkeypatch, capsys):
    monkeypatch.setattr(submit, "RECONNECT_S", 2.0)
    tunnel = Tunnel(int(head.address.rpartition(":")[2]))
    address = f"http://127.0.0.1:{tunnel.port}"
    assert submit.main(["--address", address, "--detach", "--no-upload", "--", "sleep", "60"]) == 0
    job_id = capsys.readouterr().out.strip()
    threading.Timer(1.0, tunnel.cut).start()
    with pytest.raises(
        SettingError, match=f"does not answer any more; field: ID; found: '{job_id}'.*--follow {job_id}"
    ):
        submit.main(["--address", address, "--follow", job_id])
    assert submit.main(["--address", head.address, "--stop", job_id]) == 0


@pytest.mark.parametrize(
    "token, problem", [("another-token-0123456789", "refuses our token"), (None, "asks for a token")]
)
def test_without_the_clusters_token_nothing_runs(head, monkeypatch, tmp_path, token, problem):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    if token:
        (tmp_path / "token").write_text(f"{token}\n")
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(SettingError, match=problem) as found:
        submit.main(["--address", head.address, "--", "python", "-m", "jobs.demo"])
    assert "another-token" not in str(found.value)


def build_records(head: Head, folder: Path, **auth: str) -> subprocess.CompletedProcess:
    """A driver of its own that joins the head by RAY_ADDRESS with these variables, and no token of this machine."""
    root = write_synthetic(str(folder / "devkit"), 2, 1)
    command = [sys.executable, "-m", "jobs.build_records", "--voc-root", root, "--split", "train"]
    mine = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env = {**mine, "HOME": str(folder), "RAY_ADDRESS": head.ray_address, **auth}
    command += ["--out", str(folder / "records")]
    return subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=300)


def test_a_driver_with_the_token_builds_on_the_cluster(head, tmp_path):
    done = build_records(head, tmp_path, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert open_table(str(tmp_path / "records"), "records").num_rows == 2
    assert TOKEN not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "auth", [{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "another-token-0123456789"}, {"RAY_AUTH_MODE": "token"}]
)
def test_a_driver_without_the_token_is_refused(head, tmp_path, auth):
    done = build_records(head, tmp_path, **auth)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and re.match(
        rf"error: cannot join the Ray cluster: .*; field: RAY_ADDRESS; found: '{head.ray_address}'; ", done.stderr
    )
    assert "RAY_AUTH_TOKEN" in done.stderr and "another-token" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "records" / "manifest.json").exists()


# -- what the workers of a joined cluster get --------------------------------------------------------------------------


def test_workers_of_a_cluster_get_the_patience_once(monkeypatch):
    """Ray refuses a variable that both the submitted job and its driver pass on."""
    monkeypatch.delenv(remote.PATIENCE_VARIABLE, raising=False)
    assert "env_vars" not in session._runtime_env()
    monkeypatch.setenv(remote.PATIENCE_VARIABLE, "45")
    assert session._runtime_env()["env_vars"] == {remote.PATIENCE_VARIABLE: "45"}
    job = {"runtime_env": {"env_vars": {remote.PATIENCE_VARIABLE: "45"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    assert "env_vars" not in session._runtime_env()
