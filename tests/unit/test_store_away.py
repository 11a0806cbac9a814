"""A store that does not answer: what a user reads, and that nobody takes it for a fault of the file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from boxsup_dist.config import SourceSettings, TrainConfig
from boxsup_dist.errors import StoreUnavailableError
from boxsup_dist.io import storage
from boxsup_dist.model.weights import read_state_dict
from boxsup_dist.proposals import hed_weights, mcg
from boxsup_dist.proposals.settings import McgSettings
from boxsup_dist.runs.kept_config import keep_config, write_config
from boxsup_dist.runs.layout import RunFiles
from boxsup_dist.runs.trained import with_names

WEIGHTS = "s3://bucket/weights.pth"
TRAINED = SimpleNamespace(uri="s3://b/run/checkpoints/x", spec=SimpleNamespace(num_classes=2))


def test_a_store_that_never_answered_is_announced_at_once_and_given_up_soon(tmp_path):
    command = [sys.executable, "-m", "jobs.build_label_maps", "--records", "s3://bucket/records", "--out"]
    command += [str(tmp_path / "out"), "--method", "grabcut"]
    aws = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    env = {**os.environ, **aws, "BOXSUP_STORE_PATIENCE_S": "3"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    warning, error = done.stderr.splitlines()
    store = r"s3://bucket/records/manifest.json"
    assert re.fullmatch(
        rf"warning: waiting for the store: {store}: EndpointConnectionError: .*; trying for another [23]s", warning
    )
    assert error.startswith("error: the store failed for 3s, in ")
    assert f"tries and has not answered since this command began; file: {store}; " in error
    assert "AWS_ENDPOINT_URL" in error and "BOXSUP_STORE_PATIENCE_S" in error


@pytest.fixture
def away(monkeypatch):
    def read(uri: str) -> bytes:
        raise StoreUnavailableError("the store failed for 10m00s", file=uri)

    monkeypatch.setattr(storage, "read_bytes", read)


@pytest.mark.parametrize(
    "use",
    [
        lambda: read_state_dict(WEIGHTS),
        lambda: hed_weights.weights_of_wheel(WEIGHTS),
        lambda: mcg.identity(McgSettings(edges="hed", hed_weights=WEIGHTS)),
        lambda: with_names(TRAINED),
    ],
    ids=["network weights", "HED's weights", "settings of MCG", "names of classes"],
)
def test_a_file_that_cannot_be_had_now_is_not_a_wrong_file(away, monkeypatch, use):
    """Ray Train starts a training again after this error, and not after a WeightsError."""
    monkeypatch.setattr(storage, "exists", lambda uri: True)
    with pytest.raises(StoreUnavailableError, match="the store failed"):
        use()


def test_a_run_directory_that_cannot_be_read_now_keeps_its_history(monkeypatch, tmp_path):
    config = TrainConfig(str(tmp_path / "run"), (SourceSettings("records", "box", "proposals"),), "val").check()
    write_config(config)
    history = RunFiles(config.run_dir).history
    storage.write_bytes(history, b"of the first attempt")

    def read(uri: str) -> bytes:
        raise StoreUnavailableError("the store failed for 10m00s", file=uri)

    monkeypatch.setattr(storage, "read_bytes", read)
    with pytest.raises(StoreUnavailableError):
        keep_config(config)
    assert storage.exists(history)
