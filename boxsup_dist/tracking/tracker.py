"""Tracks one training as one MLflow run; a server that is slow, down or dying never stops or delays the training.

Every method of `RunTracker` returns at once. One background thread talks to the server (`outbox.py`): it keeps what it
could not deliver, warns, and tries again later.
"""

from __future__ import annotations

import json
import logging
import math
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boxsup_dist
from boxsup_dist import interrupts
from boxsup_dist.data.tables import Table
from boxsup_dist.io import storage
from boxsup_dist.tracking.address import default_artifact_root, default_tracking_uri
from boxsup_dist.tracking.calls import (
    flatten,
    write_artifact,
    write_dataset,
    write_metrics,
    write_missing_metrics,
    write_params,
    write_tags,
)
from boxsup_dist.tracking.client import make_client, open_run
from boxsup_dist.tracking.outbox import Outbox

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

MAX_PARAM_CHARS = 500  # a parameter is for reading and comparing; the whole configuration is an artifact
SYSTEM_METRICS_EVERY_S = 15.0
CLOSE_S = 120.0  # the last call sends a network: 80 MB over a slow link
CLOSE_AFTER_SIGNAL_S = 4.0  # a part of interrupts.GRACE_S: Ray's session is closed after it
MAX_WAITING_FOR_SYSTEM_METRICS = 20  # with more calls waiting, the queue is kept for the training's metrics
CONFIG_ARTIFACT = "config.json"
# The server's codes for errors that stay on a second try; a server of MLflow 2 has no endpoint for models.
REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "ENDPOINT_NOT_FOUND"}


def git_revision(folder: str | None = None) -> str:
    """Commit of the git checkout around a folder.

    Args:
        folder: A folder of the checkout; None is this package's.

    Returns:
        The commit, with "-dirty" if files have changed since; "unknown" outside git.
    """
    where = folder or str(Path(__file__).parent)
    try:
        command = ["git", "-C", where, "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return result.stdout.strip()


class RunTracker:
    """Writes one MLflow run. Call `start` first, then `end` and `close` last; no error of the server is raised."""

    def __init__(
        self,
        runs_root: str = "runs",
        tracking_uri: str | None = None,
        system_metrics: bool = True,
        warn_every_s: float = 600.0,
    ) -> None:
        """Start the background thread.

        Args:
            runs_root: Folder of the run directories; it holds the default store.
            tracking_uri: The store; None is `default_tracking_uri(runs_root)`.
            system_metrics: Whether to log load and memory of this node.
            warn_every_s: Shortest time between two warnings of failed calls.

        Raises:
            InputError: MLflow can never use the store at MLFLOW_TRACKING_URI, or the URI holds credentials.
        """
        self.tracking_uri = tracking_uri or default_tracking_uri(runs_root)
        self._artifact_root = default_artifact_root(runs_root, self.tracking_uri)
        self._system_metrics = system_metrics
        self._outbox = Outbox(
            f"MLflow at {self.tracking_uri}",
            is_refusal=_is_refusal,
            warn_every_s=warn_every_s,
            logger=logger,
        )
        self._experiment = self._run_name = ""
        self._wanted_run_id: str | None = None
        self._id_uri: str | None = None
        self._client: MlflowClient | None = None
        self._run_id: str | None = None
        self._has_run = threading.Event()
        self._closed = threading.Event()

    def start(self, experiment: str, run_name: str, run_id: str | None = None, id_uri: str | None = None) -> None:
        """Create a run, or resume one. If the store does not have that run, a new one is created, with a warning.

        Args:
            experiment: Name of the experiment.
            run_name: Name of a new run.
            run_id: Run to resume; None resumes the one in `id_uri`, if that file exists.
            id_uri: Small file, best in the run directory, that keeps the run's id: a later `start` with the same file
                resumes the same run, even if the server was down at the first start.
        """
        self._experiment, self._run_name, self._wanted_run_id, self._id_uri = experiment, run_name, run_id, id_uri
        self._put("opening the run", lambda client, run: None)
        self.set_tags({"git_revision": git_revision(), "boxsup_dist_version": boxsup_dist.__version__})

    def run_id(self, timeout_s: float = 0.0) -> str | None:
        """The run's id, waiting at most `timeout_s` for the store; None if the store has not answered by then."""
        self._has_run.wait(timeout_s)
        return self._run_id

    def log_params(self, config: Mapping[str, Any]) -> None:
        """Log the resolved configuration: every leaf as a parameter, and the whole as the artifact config.json.

        A parameter never changes in MLflow: if a resumed run has another value, that value becomes the tag
        `changed.KEY`.
        """
        params = {key: _param_text(value) for key, value in flatten(config, ".").items()}
        self._put("the configuration", lambda client, run: write_params(client, run, params))
        self.log_artifact(CONFIG_ARTIFACT, json.dumps(config, indent=2, default=str).encode())

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        """Log the numbers of one epoch or step.

        Args:
            metrics: Values by name. Nested mappings become `outer/inner`; values that are not finite numbers are left
                out.
            step: The epoch or step, as MLflow's x-axis shows it.
        """
        values, now_ms = _numbers(metrics), int(time.time() * 1000)
        if values:
            self._put(f"metrics of step {step}", lambda client, run: write_metrics(client, run, values, now_ms, step))

    def log_history(self, history: Mapping[int, Mapping[str, Any]]) -> None:
        """Log those metrics of earlier steps that the run lacks because the server was down; `history` is by step."""
        values, now_ms = {step: _numbers(metrics) for step, metrics in history.items()}, int(time.time() * 1000)
        if values:
            self._put("earlier metrics", lambda client, run: write_missing_metrics(client, run, values, now_ms))

    def log_artifact(self, name: str, data: bytes) -> None:
        """Log a file.

        Args:
            name: Its name in the run's artifacts, which may have folders: `figures/epoch_003.png`.
            data: Its content.

        Raises:
            InputError: The name leaves the artifacts' folder.
        """
        storage.safe_name(name, field="artifact")
        self._put(f"artifact {name}", lambda client, run: write_artifact(client, run, name, data), len(data))

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags of the run, such as the place of its checkpoint."""
        texts = {key: str(value) for key, value in flatten(tags, ".").items()}
        self._put("tags", lambda client, run: write_tags(client, run, texts))

    def log_table(self, context: str, table: Table) -> None:
        """Log the manifest of a table that the run reads; `context` is its use: training, evaluation."""
        summary = {
            "uri": table.uri,
            "kind": table.kind,
            "fingerprint": table.fingerprint,
            "num_rows": table.num_rows,
            "num_bytes": table.num_bytes,
            "counts": table.counts,
            "settings": table.settings,
        }
        self._put(f"data set {table.uri}", lambda client, run: write_dataset(client, run, context, table))
        data = json.dumps(summary, indent=2, default=str).encode()
        self.log_artifact(f"data/{context}_{table.kind}.json", data)

    def log_best_model(
        self, uri: str, class_names: Sequence[str], *, epoch: int, metrics: Mapping[str, float], data: Table
    ) -> None:
        """Log the run's best network as its model, unless that was done; see models.log_model."""
        from boxsup_dist.tracking.models import log_model  # here, because it imports torch

        self._put(
            "the best model",
            lambda client, run: log_model(client, run, uri, class_names, epoch=epoch, metrics=metrics, data=data),
        )

    @contextmanager
    def ends_with_block(self) -> Iterator[None]:
        """End the run as the block ends: FINISHED, KILLED if a person or a signal ended it, FAILED by another error."""
        try:
            yield
        except BaseException as error:
            self.end("KILLED" if interrupts.is_interruption(error) else "FAILED")
            raise
        self.end("FINISHED")

    def end(self, status: str = "FINISHED") -> None:
        """Mark the run FINISHED, FAILED or KILLED. Call `close` after it."""
        self._closed.set()
        end_ms = int(time.time() * 1000)
        self._put("the end of the run", lambda client, run: client.set_terminated(run, status, end_ms))

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is delivered; False if `timeout_s` passed first."""
        return self._outbox.flush(timeout_s)

    def close(self, timeout_s: float = CLOSE_S) -> bool:
        """Deliver the rest and stop; returns whether everything since the start was delivered.

        Takes at most `timeout_s`, and less if the server is down or a signal ends this process.
        """
        self._closed.set()
        return self._outbox.close(timeout_s if interrupts.received() is None else min(timeout_s, CLOSE_AFTER_SIGNAL_S))

    def _put(self, what: str, action: Callable[[MlflowClient, str], None], num_bytes: int = 0) -> None:
        def deliver() -> None:
            client, run_id = self._connect()
            try:
                action(client, run_id)
            except Exception as error:
                if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
                    self._wanted_run_id, self._run_id = self._run_id, None  # the store was emptied: look again
                raise

        self._outbox.put(what, deliver, num_bytes)

    def _connect(self) -> tuple[MlflowClient, str]:
        """The client and the id of the open run; runs in the outbox's thread only. Raises if the server is down."""
        if self._client is None:
            self._client = make_client(self.tracking_uri)
        if self._run_id is None:
            self._run_id = open_run(
                self._client,
                self._experiment,
                self._run_name,
                resume_id=self._wanted_run_id or _read_id(self._id_uri),
                artifact_root=self._artifact_root,
            )
            if self._id_uri:
                storage.write_bytes(self._id_uri, f"{self._run_id}\n".encode())
            self._has_run.set()
            self._start_system_metrics()
        return self._client, self._run_id

    def _start_system_metrics(self) -> None:
        if self._system_metrics:
            self._system_metrics = False  # one thread only, even if the run is opened a second time
            threading.Thread(target=self._watch_system, name="system-metrics", daemon=True).start()

    def _watch_system(self) -> None:
        """Log load and memory of this node under `system/`, where MLflow's own page looks for them."""
        monitors = _system_monitors()
        started = time.monotonic()
        while monitors and not self._closed.wait(SYSTEM_METRICS_EVERY_S):
            values = {}
            for monitor in monitors:
                monitor.collect_metrics()
                values.update(monitor.aggregate_metrics())
                monitor.clear_metrics()
            if self._outbox.num_waiting <= MAX_WAITING_FOR_SYSTEM_METRICS:
                self.log_metrics({"system": values}, step=int(time.monotonic() - started))


def _param_text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if len(text) <= MAX_PARAM_CHARS:
        return text
    note = f"... ({len(text)} characters, whole in {CONFIG_ARTIFACT})"
    return text[: MAX_PARAM_CHARS - len(note)] + note


def _is_refusal(error: Exception) -> bool:
    return getattr(error, "error_code", None) in REFUSALS


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of nested metrics, by their keys in MLflow."""
    return {key: float(v) for key, v in flatten(metrics, "/").items() if _is_number(v) and math.isfinite(v)}


def _is_number(value: Any) -> bool:
    return hasattr(value, "__float__") and not isinstance(value, str)


def _read_id(id_uri: str | None) -> str | None:
    if id_uri is None or not storage.exists(id_uri):
        return None
    found = storage.read_bytes(id_uri).decode(errors="replace").strip()
    if found and not re.fullmatch(r"[\w-]{1,256}", found, re.ASCII):
        logger.warning("%s is damaged: it holds no id of a run. A new MLflow run is created.", id_uri)
        return None
    return found or None


def _system_monitors() -> list[Any]:
    """MLflow's samplers of processor, memory, disk, network and, if NVML is installed, GPUs; none without psutil."""
    try:
        from mlflow.system_metrics.metrics import cpu_monitor, disk_monitor, gpu_monitor, network_monitor
    except ImportError:
        logger.warning("no system metrics are logged: psutil is not installed")
        return []
    kinds: list[Callable[[], Any]] = [
        cpu_monitor.CPUMonitor,
        disk_monitor.DiskMonitor,
        network_monitor.NetworkMonitor,
    ]
    monitors = [kind() for kind in kinds]
    try:
        make_gpu_monitor: Callable[[], Any] = gpu_monitor.GPUMonitor
        monitors.append(make_gpu_monitor())
    except (ImportError, RuntimeError):
        logger.debug("no GPU metrics are logged: NVML is not installed or finds no GPU")
    return monitors
