"""RUN/history.jsonl: what is known of each epoch, one line an epoch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from boxsup_dist.io import storage

History = dict[int, dict[str, Any]]


def read_history(run_dir: str) -> History:
    """What is known of each epoch so far."""
    uri = storage.join(run_dir, "history.jsonl")
    if not storage.exists(uri):
        return {}
    entries = [json.loads(line) for line in storage.read_bytes(uri).decode().splitlines()]
    return {entry["epoch"]: entry for entry in entries}


def entry_metrics(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What the tracking store gets of an epoch: all but its number."""
    return {key: value for key, value in entry.items() if key != "epoch"}
