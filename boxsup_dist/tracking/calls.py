"""What is written to an MLflow run, each by one plain call that raises where the server does not take it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PARAMS_PER_CALL = 100  # MLflow's limit


def write_artifact(client: Any, run_id: str, name: str, data: bytes) -> None:
    """A file of the run, in the folders that its name has."""
    folder, _, base = name.rpartition("/")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / base
        path.write_bytes(data)
        client.log_artifact(run_id, str(path), folder or None)


def write_params(client: Any, run_id: str, params: Mapping[str, str]) -> None:
    """Parameters that the run does not have yet; one that it has with another value becomes the tag `changed.KEY`."""
    from mlflow.entities import Param

    known = client.get_run(run_id).data.params
    new = [Param(key, value) for key, value in params.items() if key not in known]
    for start in range(0, len(new), PARAMS_PER_CALL):
        client.log_batch(run_id, params=new[start : start + PARAMS_PER_CALL])
    changed = {f"changed.{key}": value for key, value in params.items() if known.get(key, value) != value}
    write_tags(client, run_id, changed)


def write_tags(client: Any, run_id: str, tags: Mapping[str, str]) -> None:
    """Tags, as many as there are."""
    from mlflow.entities import RunTag

    rows = [RunTag(key, value) for key, value in tags.items()]
    for start in range(0, len(rows), PARAMS_PER_CALL):
        client.log_batch(run_id, tags=rows[start : start + PARAMS_PER_CALL])


def write_metrics(client: Any, run_id: str, values: Mapping[str, float], now_ms: int, step: int) -> None:
    """Metrics of one step."""
    from mlflow.entities import Metric

    client.log_batch(run_id, metrics=[Metric(key, value, now_ms, step) for key, value in values.items()])


def write_missing_metrics(client: Any, run_id: str, history: Mapping[int, Mapping[str, float]], now_ms: int) -> None:
    """Those of the metrics (step -> key -> value) that the run has no value of at that step."""
    keys = sorted({key for values in history.values() for key in values})
    known = {key: {metric.step for metric in client.get_metric_history(run_id, key)} for key in keys}
    for step, values in history.items():
        missing = {key: value for key, value in values.items() if step not in known[key]}
        if missing:
            write_metrics(client, run_id, missing, now_ms, step)


def write_dataset(client: Any, run_id: str, context: str, summary: Mapping[str, Any]) -> None:
    """A table that the run reads, as one of its data sets."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=f"{summary['kind']}: {summary['uri']}"[-500:],
        digest=summary["fingerprint"][:36],
        source_type="boxsup_table",
        source=json.dumps({"uri": summary["uri"]}),
        profile=json.dumps({"num_rows": summary["num_rows"], **summary["counts"]}),
    )
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])
