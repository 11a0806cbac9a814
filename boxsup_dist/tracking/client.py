"""The client of an MLflow store, and plain calls that wait for its answer.

Nothing here starts a thread: calls return when the store has answered, and raise if it does not. MLflow's usage
telemetry is off unless MLFLOW_DISABLE_TELEMETRY says otherwise.
"""

from __future__ import annotations

import logging
import os
import re
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from boxsup_dist.errors import InputError
from boxsup_dist.io import storage
from boxsup_dist.tracking.address import sqlite_path, sqlite_uri
from boxsup_dist.tracking.calls import write_artifact

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

# The kind of an experiment, by the name and value in the sources of MLflow 3's pages. Pages with a switch between GenAI
# and training (3.17) follow the switch instead: runs/console prints the address that sets it.
EXPERIMENT_KIND, MODEL_TRAINING = "mlflow.experimentKind", "custom_model_development"

# The timeout is short because one such call may be under way when the run ends. Retries are the outbox's work.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def make_client(tracking_uri: str) -> MlflowClient:
    """MLflow's client of a store, with this package's time limits.

    Sets the variables of ENVIRONMENT that are not set yet, and creates a SQLite store that is absent.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Imported here because it takes seconds, and only tracking needs MLflow.
    from mlflow.tracking import MlflowClient

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)  # a new SQLite store logs 40 migrations
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # logs a page of trace beside what it raises
    if (path := sqlite_path(tracking_uri)) is not None and not os.path.exists(path):
        _create_database(path)
    return MlflowClient(tracking_uri)


def _create_database(path: str) -> None:
    """Make MLflow's tables under another name first.

    MLflow can neither use nor repair tables that are half made, so after a full disk or a kill in these seconds the
    same command would not continue.
    """
    from mlflow.tracking import MlflowClient

    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.tmp-{uuid.uuid4().hex}"
    try:
        MlflowClient(sqlite_uri(temporary)).search_experiments(max_results=1)
        if not os.path.exists(path):  # another run may have been faster
            os.replace(temporary, path)
    finally:
        for rest in (temporary, f"{temporary}-journal"):
            with suppress(OSError):
                os.unlink(rest)


def open_run(
    client: MlflowClient, experiment: str, run_name: str, *, resume_id: str | None, artifact_root: str | None
) -> str:
    """Resume an MLflow run, or create one.

    Args:
        client: Client of the store (`make_client`).
        experiment: Name of the experiment; it is created, or restored if it was deleted.
        run_name: Name of a new run.
        resume_id: Run to resume. If the store does not have it, a new run is created and a warning logged.
        artifact_root: Folder for the artifacts of a new experiment; None lets the store choose.

    Returns:
        The id of the run, whose status is RUNNING.

    Raises:
        MlflowException: The store does not answer, or refuses.
    """
    if resume_id is not None and _resume(client, resume_id):
        return resume_id
    experiment_id = _experiment_id(client, experiment, artifact_root)
    return str(client.create_run(experiment_id, run_name=run_name).info.run_id)


def _resume(client: MlflowClient, run_id: str) -> bool:
    """Set a run to RUNNING; False, with a warning, if the store does not have it."""
    from mlflow.exceptions import MlflowException

    try:
        gone = client.get_run(run_id).info.lifecycle_stage == "deleted"
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise  # the server may be down: the outbox tries again
        gone = True
    if gone:
        logger.warning("MLflow has no run %s: it was deleted, or is in another store. A new run is created.", run_id)
        return False
    client.update_run(run_id, status="RUNNING")
    return True


def _experiment_id(client: MlflowClient, name: str, artifact_root: str | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        folder = re.sub(r"[^\w\-.]", "_", name)
        location = None if artifact_root is None else Path(artifact_root, folder).as_uri()
        return client.create_experiment(name, artifact_location=location, tags={EXPERIMENT_KIND: MODEL_TRAINING})
    if EXPERIMENT_KIND not in found.tags:  # what a person has chosen there stands
        client.set_experiment_tag(found.experiment_id, EXPERIMENT_KIND, MODEL_TRAINING)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def add_artifacts(tracking_uri: str, run_id: str, artifacts: Mapping[str, bytes]) -> None:
    """Add files to the artifacts of a run that has ended.

    Args:
        tracking_uri: The store.
        run_id: The run.
        artifacts: Content of each file by its name, which may have folders: `figures/epoch_003.png`.

    Raises:
        InputError: The store refuses or does not answer, or a name leaves the artifacts' folder.
    """
    from mlflow.exceptions import MlflowException

    for name in artifacts:
        storage.safe_name(name, field="artifact")
    try:
        client = make_client(tracking_uri)
        for name, data in artifacts.items():
            write_artifact(client, run_id, name, data)
    except MlflowException as error:
        raise InputError("MLflow did not store the files", field="run_id", value=f"{run_id}: {error}"[:300]) from None
