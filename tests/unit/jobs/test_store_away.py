"""What a user reads whose command names a store that does not answer."""

from __future__ import annotations

import os
import re
import subprocess
import sys


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
