"""One MLflow run per training; a tracking server that is slow, down or dies never stops or delays the training.

Every method returns at once: one background thread talks to the server, keeps what could not be delivered, warns and
tries again later (`outbox.py`). The store is MLFLOW_TRACKING_URI, or a SQLite file `mlflow.db` in the runs folder with
its artifacts beside it. MLflow's own usage telemetry is off unless MLFLOW_DISABLE_TELEMETRY says otherwise.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import boxsup_dist
from boxsup_dist.credentials import has_credentials
from boxsup_dist.data.tables import Table
from boxsup_dist.errors import InputError, SettingError
from boxsup_dist.io import storage
from boxsup_dist.tracking.calls import (
    write_artifact,
    write_dataset,
    write_metrics,
    write_missing_metrics,
    write_params,
    write_tags,
)
from boxsup_dist.tracking.outbox import Outbox

logger = logging.getLogger(__name__)

MAX_PARAM_CHARS = 500  # the whole configuration is an artifact; a parameter is for reading and comparing
MAX_KEY_CHARS = 250  # MLflow's limit
SYSTEM_METRICS_EVERY_S = 15.0
MAX_WAITING_FOR_SYSTEM_METRICS = 20  # above this the server is not keeping up: its queue is for the training's metrics
CONFIG_ARTIFACT = "config.json"
REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST"}  # the server's own codes for what no second try mends

# Short: the thread may be in one such call when the run ends. Retrying is the outbox's business.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def default_tracking_uri(runs_root: str) -> str:
    """MLFLOW_TRACKING_URI, else the SQLite store of the runs folder (of ./runs where that is an object store).

    SettingError if the variable holds credentials: summaries keep the URI, and MLflow's errors tell it.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_local_root(runs_root)}/mlflow.db"
    if has_credentials(uri):
        expected = "no user, password or token in it; MLFLOW_TRACKING_USERNAME and _PASSWORD, or MLFLOW_TRACKING_TOKEN"
        raise SettingError("the URI holds credentials", field="MLFLOW_TRACKING_URI", value=uri, expected=expected)
    return uri


def read_run(run_dir: str) -> tuple[str, str]:
    """Tracking URI and MLflow run id of a finished run, from its files. InputError if it has none."""
    uri = storage.join(storage.absolute(run_dir), "summary.json")
    found = storage.read_json(uri).get("mlflow") or {}
    if not found.get("run_id"):
        raise InputError(
            "the run has no MLflow run", file=uri, field="mlflow.run_id", expected="a run that was tracked"
        )
    return found["tracking_uri"], found["run_id"]


def add_artifacts(tracking_uri: str, run_id: str, artifacts: Mapping[str, bytes]) -> None:
    """Add files, by their names in the run's artifacts, to a run that has ended.

    InputError if the store refuses, or a name leaves the artifacts' folder.
    """
    from mlflow.exceptions import MlflowException

    for name in artifacts:
        storage.safe_name(name, field="artifact")
    try:
        client = make_client(tracking_uri)
        for name, data in artifacts.items():
            write_artifact(client, run_id, name, data)
    except MlflowException as error:
        raise InputError("MLflow does not take the files", field="run_id", value=f"{run_id}: {error}"[:300]) from None


def _local_root(runs_root: str) -> str:
    return storage.absolute(runs_root if storage.is_local(runs_root) else "runs")


def git_revision(folder: str | None = None) -> str:
    """Commit of the checkout around `folder` (default: this package), "-dirty" if changed; "unknown" outside git."""
    where = folder or str(Path(__file__).parent)
    try:
        command = ["git", "-C", where, "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return result.stdout.strip()


def flatten(values: Mapping[str, Any], separator: str, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined and cleaned to the characters and length that MLflow takes."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = prefix + re.sub(r"[^\w\-. /:]", "_", str(key), flags=re.ASCII)
        if isinstance(value, Mapping):
            flat.update(flatten(value, separator, name + separator))
        else:
            flat[name[:MAX_KEY_CHARS]] = value
    return flat


def _param_text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if len(text) <= MAX_PARAM_CHARS:
        return text
    note = f"... ({len(text)} characters, whole in {CONFIG_ARTIFACT})"
    return text[: MAX_PARAM_CHARS - len(note)] + note


def _is_refusal(error: Exception) -> bool:
    return getattr(error, "error_code", None) in REFUSALS


class RunTracker:
    """Writes one run. Call `start` first, `end` and `close` last; nothing here raises because of the server."""

    def __init__(
        self,
        runs_root: str = "runs",
        tracking_uri: str | None = None,
        system_metrics: bool = True,
        warn_every_s: float = 600.0,
    ) -> None:
        """`runs_root` is the folder that runs are in, and holds the default store."""
        self.tracking_uri = tracking_uri or default_tracking_uri(runs_root)
        self._artifact_root = (
            f"{_local_root(runs_root)}/mlartifacts" if self.tracking_uri.startswith("sqlite:") else None
        )
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
        self._client: Any = None
        self._run_id: str | None = None
        self._has_run = threading.Event()
        self._closed = threading.Event()

    def start(self, experiment: str, run_name: str, run_id: str | None = None, id_uri: str | None = None) -> None:
        """Open a run, or go on with `run_id`; a run that the store does not know is begun anew, with a warning.

        `id_uri` is a small file, best in the run directory, that keeps the run's id: a later `start` with the same
        file resumes the same run. So it does even where the server was down at the first start.
        """
        self._experiment, self._run_name, self._wanted_run_id, self._id_uri = experiment, run_name, run_id, id_uri
        self._put("opening the run", lambda client, run: None)
        self.set_tags({"git_revision": git_revision(), "boxsup_dist_version": boxsup_dist.__version__})

    def run_id(self, timeout_s: float = 0.0) -> str | None:
        """The run's id once the store has given it; waits at most `timeout_s`. None if it has not answered yet."""
        self._has_run.wait(timeout_s)
        return self._run_id

    def log_params(self, config: Mapping[str, Any]) -> None:
        """The resolved configuration: every leaf as a parameter, the whole as the artifact config.json.

        Parameters of a run never change in MLflow: where a resumed run has another value it is kept as the tag
        `changed.KEY`.
        """
        params = {key: _param_text(value) for key, value in flatten(config, ".").items()}
        self._put("the configuration", lambda client, run: write_params(client, run, params))
        self.log_artifact(CONFIG_ARTIFACT, json.dumps(config, indent=2, default=str).encode())

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        """Numbers of one epoch or step; nested mappings become `outer/inner`. None and non-finite are left out."""
        values, now_ms = _numbers(metrics), int(time.time() * 1000)
        if values:
            self._put(f"metrics of step {step}", lambda client, run: write_metrics(client, run, values, now_ms, step))

    def log_history(self, history: Mapping[int, Mapping[str, Any]]) -> None:
        """Metrics of earlier epochs, as far as the run lacks them: what a server that was down did not get."""
        values, now_ms = {step: _numbers(metrics) for step, metrics in history.items()}, int(time.time() * 1000)
        if values:
            self._put("earlier metrics", lambda client, run: write_missing_metrics(client, run, values, now_ms))

    def log_artifact(self, name: str, data: bytes) -> None:
        """A file of the run, `name` relative to the run's artifacts, may have folders: `figures/epoch_003.png`.

        InputError if the name leaves the artifacts' folder.
        """
        storage.safe_name(name, field="artifact")
        self._put(f"artifact {name}", lambda client, run: write_artifact(client, run, name, data), len(data))

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Tags of the run, such as the checkpoint's place."""
        texts = {key: str(value) for key, value in flatten(tags, ".").items()}
        self._put("tags", lambda client, run: write_tags(client, run, texts))

    def log_table(self, context: str, table: Table) -> None:
        """The manifest of a table that the run reads; `context` says what for: training, evaluation."""
        summary = {
            "uri": table.uri,
            "kind": table.kind,
            "fingerprint": table.fingerprint,
            "num_rows": table.num_rows,
            "num_bytes": table.num_bytes,
            "counts": table.counts,
            "settings": table.settings,
        }
        self._put(f"data set {table.uri}", lambda client, run: write_dataset(client, run, context, summary))
        data = json.dumps(summary, indent=2, default=str).encode()
        self.log_artifact(f"data/{context}_{table.kind}.json", data)

    def end(self, status: str = "FINISHED") -> None:
        """Mark the run FINISHED, FAILED or KILLED. Call `close` after it."""
        self._closed.set()
        end_ms = int(time.time() * 1000)
        self._put("the end of the run", lambda client, run: client.set_terminated(run, status, end_ms))

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is delivered; False if time ran out."""
        return self._outbox.flush(timeout_s)

    def close(self, timeout_s: float = 30.0) -> bool:
        """Deliver what is left within `timeout_s`, sooner if the server is down. True if nothing at all was lost."""
        self._closed.set()
        return self._outbox.close(timeout_s)

    def _put(self, what: str, action: Any, num_bytes: int = 0) -> None:
        def deliver() -> None:
            client, run_id = self._connect()
            try:
                action(client, run_id)
            except Exception as error:
                if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
                    self._wanted_run_id, self._run_id = self._run_id, None  # the store was emptied: look again
                raise

        self._outbox.put(what, deliver, num_bytes)

    def _connect(self) -> tuple[Any, str]:
        """The client and the opened run; raises while the server does not answer. Runs in the outbox's thread only."""
        if self._client is None:
            self._client = make_client(self.tracking_uri)
        if self._run_id is None:
            wanted = self._wanted_run_id or _read_id(self._id_uri)
            self._run_id = _resume(self._client, wanted) if wanted else None
            if self._run_id is None:
                experiment_id = _experiment_id(self._client, self._experiment, self._artifact_root)
                self._run_id = self._client.create_run(experiment_id, run_name=self._run_name).info.run_id
            if self._id_uri:
                storage.write_bytes(self._id_uri, f"{self._run_id}\n".encode())
            self._has_run.set()
            self._start_system_metrics()
        return self._client, self._run_id

    def _start_system_metrics(self) -> None:
        if self._system_metrics:
            self._system_metrics = False  # one thread, also when the run is opened again
            threading.Thread(target=self._watch_system, name="system-metrics", daemon=True).start()

    def _watch_system(self) -> None:
        """Log load and memory of this node under `system/`, as MLflow's own page expects them."""
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


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of nested metrics, by their keys in MLflow."""
    return {key: float(v) for key, v in flatten(metrics, "/").items() if _is_number(v) and math.isfinite(v)}


def _is_number(value: Any) -> bool:
    return hasattr(value, "__float__") and not isinstance(value, str)


def _read_id(id_uri: str | None) -> str | None:
    if id_uri is None or not storage.exists(id_uri):
        return None
    return storage.read_bytes(id_uri).decode(errors="replace").strip() or None


def make_client(tracking_uri: str) -> Any:
    """MLflow's client of a store, with this package's time limits."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if tracking_uri.startswith("sqlite:///"):
        Path(tracking_uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    # Seconds of import and a dependency that only tracking has: not at this module's import.
    from mlflow.tracking import MlflowClient

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)  # a new SQLite store narrates 40 migrations
    return MlflowClient(tracking_uri)


def _experiment_id(client: Any, name: str, artifact_root: str | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        folder = re.sub(r"[^\w\-.]", "_", name)
        return client.create_experiment(name, artifact_location=artifact_root and Path(artifact_root, folder).as_uri())
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def _resume(client: Any, run_id: str) -> str | None:
    """The id if the run can be written to, else None with a warning. Other errors go up: the server may be down."""
    from mlflow.exceptions import MlflowException

    try:
        gone = client.get_run(run_id).info.lifecycle_stage == "deleted"
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise
        gone = True
    if gone:
        logger.warning("MLflow has no run %s (deleted, or another store): a new one is begun", run_id)
        return None
    client.update_run(run_id, status="RUNNING")
    return run_id


def _system_monitors() -> list[Any]:
    """MLflow's samplers of processor, memory, disk, network and, where NVML is installed, GPUs; none without psutil."""
    try:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
    except ImportError:
        logger.warning("no system metrics: psutil is not installed")
        return []
    monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        monitors.append(GPUMonitor())
    except (ImportError, RuntimeError):
        logger.debug("no GPU metrics: NVML is not installed or finds no GPU")
    return monitors
