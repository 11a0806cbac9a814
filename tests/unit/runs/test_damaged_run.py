"""Damaged files of a run directory and of a command's output: their reader gives a value, or one line with the file."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boxsup_dist.config import SourceSettings, TrainConfig
from boxsup_dist.errors import CheckpointError, InputError
from boxsup_dist.evaluation.confusion import NamedConfusion, read_confusion, write_confusion
from boxsup_dist.export.files import keep_identity
from boxsup_dist.io import storage
from boxsup_dist.model import checkpoint
from boxsup_dist.runs.history import HistoryEntry, read_history, write_history
from boxsup_dist.runs.kept_config import check_resume, keep_config, read_config
from boxsup_dist.runs.layout import RunFiles
from boxsup_dist.runs.planning import Rates, read_rates, write_rates
from boxsup_dist.runs.report import write_report
from boxsup_dist.runs.summary import mlflow_run, read_summary, write_summary
from boxsup_dist.tracking.tracker import _read_id
from tests import networks
from tests.fuzz.mutators import damage
from tests.unit.runs.test_history import SUMMARY

NAMES = ["config", "resume", "history", "summary", "mlflow", "report", "confusion", "manifest", "state", "rates",
         "export", "id"]  # fmt: skip
# What chance does not hit: deep nesting, a number of 400 digits, other shapes, no UTF-8, nothing.
SHAPES = [b"[" * 100_000, b"9" * 400, b"[]", b"{}", b"null", b'"x"', b"\xff\xfe\x00", b"", b"NaN", b"[1, {}]", b"1"]


def make_files(root: Path) -> dict[str, tuple[str, Callable[[], Any]]]:
    """A small run with every file, and by name a file and how to read it."""
    run = str(root)
    files = RunFiles(run)
    config = TrainConfig(run, (SourceSettings("records", "box", "proposals"),), "val").check()
    keep_config(config)
    write_history(run, {1: HistoryEntry(1, {"train": 1.0}, mean_iou=40.5, iou={"cat": None}, warnings=("w",))})
    write_confusion(files.confusion, np.eye(2, dtype=np.int64), ["background", "cat"])
    network = networks.build_network("timm:test_resnet", 3, "none", head_channels=2)
    state = checkpoint.CheckpointState(0, 1, 0, network.spec, network.state_dict())
    uri = checkpoint.save(run, state)
    write_summary(run, SUMMARY | {"mlflow": {"tracking_uri": "sqlite:///x", "run_id": "a1"}})
    rates, identity = storage.join(run, "rates.json"), {"network": "n", "images": [1]}
    write_rates(rates, Rates(**{f.name: {"str": "mini", "bool": False}.get(str(f.type), 1) for f in fields(Rates)}))
    keep_identity(run, identity)
    storage.write_bytes(files.mlflow_run_id, b"0123456789abcdef\n")
    return {
        "config": (files.config, functools.partial(read_config, run)),
        "resume": (files.config, functools.partial(check_resume, config)),
        "history": (files.history, functools.partial(read_history, run)),
        "summary": (files.summary, functools.partial(read_summary, run)),
        "mlflow": (files.summary, functools.partial(mlflow_run, run)),
        "report": (files.summary, functools.partial(write_report, run)),
        "confusion": (files.confusion, functools.partial(read_confusion, files.confusion)),
        "manifest": (storage.join(uri, "manifest.json"), functools.partial(checkpoint.load, uri)),
        "state": (storage.join(uri, "state.json"), functools.partial(checkpoint.load, uri)),
        "rates": (rates, functools.partial(read_rates, rates, "mini")),
        "export": (storage.join(run, "export.json"), functools.partial(keep_identity, run, identity)),
        "id": (files.mlflow_run_id, functools.partial(_read_id, files.mlflow_run_id)),
    }


def read_damaged(file: str, read: Callable[[], Any], content: bytes) -> bool:
    """Whether the reader refuses this content, which it must do in one line that names a file."""
    Path(file).write_bytes(content)
    try:
        read()
    except InputError as error:
        text = str(error)
        assert "file: " in text and "\n" not in text and len(text) < 2000, text
        return True
    return False


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_of_a_run_give_a_value_or_one_line(tmp_path: Path, name: str) -> None:
    file, read = make_files(tmp_path)[name]
    good = Path(file).read_bytes()
    rng = np.random.default_rng(0)
    refused = sum(read_damaged(file, read, damage(good, rng)[1]) for _ in range(5 if name == "report" else 150))
    shapes = sum(read_damaged(file, read, content) for content in SHAPES)
    if name in ("history", "id"):  # the run continues without it
        assert refused == shapes == 0
    elif name != "report":
        assert refused > 20 and shapes >= len(SHAPES) - 1


def test_a_checkpoint_that_fits_no_shape_says_how_to_continue(tmp_path: Path) -> None:
    file, read = make_files(tmp_path)["manifest"]
    Path(file).write_text(json.dumps({"format_version": 1, "files": {"state.json": {"sha256": 5, "num_bytes": 1}}}))
    with pytest.raises(CheckpointError, match=r"delete its folder to continue from an earlier.*manifest\.json; field"):
        read()


@pytest.mark.parametrize("rows", [[[1, 0]], [[1, 2], [3]], [[-1, 0], [0, 1]], [[10**400, 0], [0, 1]]])
def test_a_matrix_of_another_shape_or_range_is_refused(tmp_path: Path, rows: list[list[int]]) -> None:
    uri = str(tmp_path / "confusion.json")
    storage.write_json(uri, {"class_names": ["background", "cat"], "confusion": rows})
    with pytest.raises(InputError, match=r"confusion.*confusion\.json"):
        read_confusion(uri)
    storage.write_json(uri, {"class_names": ["background", "cat"], "confusion": [[1, 2], [3, 4]]})
    found = read_confusion(uri)
    assert isinstance(found, NamedConfusion) and found.confusion.tolist() == [[1, 2], [3, 4]]
