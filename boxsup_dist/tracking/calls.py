"""The calls that write to an MLflow run. Each waits for the server and raises if the server does not accept it.

`flatten` brings keys into the form that MLflow accepts; the `write_*` functions take MLflow's client and a run id.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boxsup_dist.data.tables import Table

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

PARAMS_PER_CALL = 100  # MLflow's limit, for tags too
MAX_KEY_CHARS = 250  # MLflow's limit


def flatten(values: Mapping[str, Any], separator: str, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one flat mapping with keys that MLflow accepts.

    Args:
        values: The nested mappings.
        separator: Text between the keys of two levels: `.` for parameters and tags, `/` for metrics.
        prefix: Text before every key.

    Returns:
        The leaves by their joined keys. Characters that MLflow refuses become `_`; a key has at most MAX_KEY_CHARS.
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = prefix + re.sub(r"[^\w\-. /:]", "_", str(key), flags=re.ASCII)
        if isinstance(value, Mapping):
            flat.update(flatten(value, separator, name + separator))
        else:
            flat[name[:MAX_KEY_CHARS]] = value
    return flat


def write_artifact(client: MlflowClient, run_id: str, name: str, data: bytes) -> None:
    """Write a file to the run's artifacts; `name` may have folders."""
    folder, _, base = name.rpartition("/")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / base
        path.write_bytes(data)
        client.log_artifact(run_id, str(path), folder or None)


def write_params(client: MlflowClient, run_id: str, params: Mapping[str, str]) -> None:
    """Write the parameters that the run does not have yet.

    A parameter never changes in MLflow: one that the run has with another value becomes the tag `changed.KEY`.
    """
    from mlflow.entities import Param

    known = client.get_run(run_id).data.params
    new = [Param(key, value) for key, value in params.items() if key not in known]
    for start in range(0, len(new), PARAMS_PER_CALL):
        client.log_batch(run_id, params=new[start : start + PARAMS_PER_CALL])
    changed = {f"changed.{key}": value for key, value in params.items() if known.get(key, value) != value}
    write_tags(client, run_id, changed)


def write_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Write tags, PARAMS_PER_CALL per call."""
    from mlflow.entities import RunTag

    rows = [RunTag(key, value) for key, value in tags.items()]
    for start in range(0, len(rows), PARAMS_PER_CALL):
        client.log_batch(run_id, tags=rows[start : start + PARAMS_PER_CALL])


def write_metrics(client: MlflowClient, run_id: str, values: Mapping[str, float], now_ms: int, step: int) -> None:
    """Write the metrics of one step, with the time `now_ms` since 1970."""
    from mlflow.entities import Metric

    client.log_batch(run_id, metrics=[Metric(key, value, now_ms, step) for key, value in values.items()])


def write_missing_metrics(
    client: MlflowClient, run_id: str, history: Mapping[int, Mapping[str, float]], now_ms: int
) -> None:
    """Write the metrics of earlier steps that the run does not have yet.

    Args:
        client: Client of the store.
        run_id: The run.
        history: Metrics by step and key.
        now_ms: Time of the metrics that are written, since 1970.
    """
    keys = sorted({key for values in history.values() for key in values})
    known = {key: {metric.step for metric in client.get_metric_history(run_id, key)} for key in keys}
    for step, values in history.items():
        missing = {key: value for key, value in values.items() if step not in known[key]}
        if missing:
            write_metrics(client, run_id, missing, now_ms, step)


def dataset_key(table: Table) -> tuple[str, str]:
    """Name and digest of a table among MLflow's data sets."""
    return f"{table.kind}: {table.uri}"[-500:], table.fingerprint[:36]


def write_dataset(client: MlflowClient, run_id: str, context: str, table: Table) -> None:
    """Write a table that the run reads as one of MLflow's data sets; `context` is its use: training, evaluation."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    name, digest = dataset_key(table)
    dataset = Dataset(
        name=name,
        digest=digest,
        source_type="boxsup_table",
        source=json.dumps({"uri": table.uri}),
        profile=json.dumps({"num_rows": table.num_rows, **table.counts}),
    )
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])
