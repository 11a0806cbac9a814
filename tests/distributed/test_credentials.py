"""A real training with secrets in its environment: none is in its log, its run directory or its MLflow store."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from boxsup_dist.errors import InputError
from boxsup_dist.runs.train import train
from tests.distributed import tiny

REPO = Path(__file__).parents[2]
SECRET = "hidden-value-that-nothing-may-keep-0123456789"
NAMES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "RAY_AUTH_TOKEN",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "POSTGRES_PASSWORD",
)
TRAIN = """
import sys
from pathlib import Path
from boxsup_dist.runs.train import train
from tests.distributed import tiny
folder = Path(sys.argv[1])
train(tiny.make_config(folder, folder / "runs" / "a"))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("secrets")
    tiny.write_tables(folder)
    return folder


def test_no_secret_of_the_environment_is_kept_or_printed(folder):
    """In a process of its own, whose environment holds all of them."""
    mine = {name: v for name, v in os.environ.items() if name not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    env = {**mine, **{name: f"{SECRET}-{name}" for name in NAMES}, "RAY_AUTH_MODE": "token"}
    command = [sys.executable, "-c", TRAIN, str(folder)]
    done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    left = {path.name: path for path in (folder / "runs").rglob("*") if path.is_file()}
    expected = {"config.json", "history.jsonl", "summary.json", "report.html", "mlflow.db", "model.pt", "training.pt"}
    assert expected <= set(left)
    for path in left.values():
        assert SECRET.encode() not in path.read_bytes(), path
        if path.suffix == ".pt":  # torch's files are archives
            with zipfile.ZipFile(path) as archive:
                assert all(SECRET.encode() not in archive.read(name) for name in archive.namelist()), path
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("change", "variables", "field"),
    [
        ({}, {"MLFLOW_TRACKING_URI": f"http://user:{SECRET}@127.0.0.1:9"}, "field: MLFLOW_TRACKING_URI"),
        ({"val_records": f"s3://KEY:{SECRET}@bucket/val"}, {}, "file: s3://***@bucket/val"),
        ({"run_dir": f"http://host/runs?token={SECRET}"}, {}, "file: http://host/runs?token=***"),
    ],
)
def test_a_uri_with_credentials_is_refused_before_anything_is_written(
    folder, tmp_path, monkeypatch, change, variables, field
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    config = replace(tiny.make_config(folder, tmp_path / "run"), **change)
    with pytest.raises(InputError, match="the URI holds credentials.*" + re.escape(field) + ".*expected:") as caught:
        train(config)
    assert SECRET not in str(caught.value) and not any(tmp_path.iterdir())
