"""A real `mlflow server` on this machine, for drills and tests."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from boxsup_dist.io import storage
from boxsup_dist.runs.history import read_history
from boxsup_dist.runs.layout import RunFiles
from boxsup_dist.tracking.calls import flatten
from boxsup_dist.tracking.client import make_client

WAIT_S = 120.0
# No background jobs: none is needed, and each of its eight processes would import all of MLflow at every start.
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """An `mlflow server` process on a loopback port, over one SQLite store."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server, always at the same address, and return when it answers.

        Raises:
            TimeoutError: It does not answer in time; the error holds the end of its log.
        """
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db", "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that its workers are killed with it
                env={**os.environ, **QUIET},
            )
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
            time.sleep(0.2)
        raise TimeoutError((self.folder / "server.log").read_text()[-2000:])

    def kill(self) -> None:
        """Kill the server by SIGKILL, like a machine that loses power."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def untracked(run_dir: str, tracking_uri: str) -> list[str]:
    """The metrics of history.jsonl, KEY@EPOCH, that MLflow lacks or has with another value."""
    client = make_client(tracking_uri)
    run_id = storage.read_bytes(RunFiles(run_dir).mlflow_run_id).decode().strip()
    history = {epoch: flatten(entry.metrics(), "/") for epoch, entry in read_history(run_dir).items()}
    known = {
        key: {(metric.step, metric.value) for metric in client.get_metric_history(run_id, key)}
        for key in {key for entry in history.values() for key in entry}
    }
    return [
        f"{key}@{epoch}"
        for epoch, entry in history.items()
        for key, value in entry.items()
        if isinstance(value, (int, float)) and key != "epoch" and (epoch, value) not in known[key]
    ]
