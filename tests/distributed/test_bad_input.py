"""Bad input on the command lines of train, reassign and evaluate: one clear line, exit status 2, no Ray started."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from boxsup_dist.data.schema import SCHEMA_VERSION, VOC_CLASSES
from boxsup_dist.io import storage
from boxsup_dist.runs.command_line import clear_errors
from boxsup_dist.runs.kept_config import write_config
from boxsup_dist.runs.layout import FORMAT
from jobs import evaluate, train
from tests import devkit
from tests.distributed import tiny

REPO = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    tiny.write_tables(folder)
    tiny.write_records(folder / "unmasked", [tiny.make_record(i, "other", None) for i in range(4)])
    bare = {"boxes_xyxy": np.empty((0, 4), np.float32), "class_ids": np.empty(0, np.int32)}
    flags = {"difficult": np.empty(0, bool), "crowd": np.empty(0, bool)}
    without = [replace(tiny.make_record(i, "bare", None), **bare, **flags) for i in range(4)]
    tiny.write_records(folder / "without_boxes", without)
    tiny.write_records(folder / "of_three", [tiny.make_record(i, "three") for i in range(4)], VOC_CLASSES[:3])
    tiny.write_records(folder / "unfinished", [tiny.make_record(i, "other") for i in range(4)])
    (folder / "unfinished" / "manifest.json").unlink()
    tiny.write_records(folder / "old", [tiny.make_record(i, "other") for i in range(4)])
    manifest = storage.read_json(str(folder / "old" / "manifest.json"))
    storage.write_json(str(folder / "old" / "manifest.json"), {**manifest, "schema_version": 0})
    return folder


def arguments(folder: Path, run_dir: Path, **changes: str | None) -> list[str]:
    """A command line of jobs.train; None leaves a flag out."""
    values: dict[str, str | None] = {
        "run-dir": str(run_dir),
        "records": str(folder / "records"),
        "proposals": str(folder / "proposals"),
        "val-records": str(folder / "val"),
        "network.name": tiny.NETWORK.name,
        "network.weights": "none",
    }
    values |= {name.replace("_", "-"): value for name, value in changes.items()}
    return ["mini", *(word for name, value in values.items() if value is not None for word in (f"--{name}", value))]


def error_line(call, capsys) -> str:
    """The one line on stderr of a call that exits with status 2."""
    with pytest.raises(SystemExit) as exit_, clear_errors():
        call()
    assert exit_.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1 and "Traceback" not in line
    return line


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"records": "absent"}, ["no table here", "absent", "python -m jobs.build_records makes it"]),
        ({"records": "unfinished"}, ["unfinished", "run the command that builds it again"]),
        ({"records": "old"}, ["schema of another version", "found: 0", f"expected: {SCHEMA_VERSION}"]),
        ({"records": "proposals"}, ["another kind of table", "found: 'proposals'", "expected: records"]),
        ({"records": "val"}, ["made from other records", "settings.records"]),
        ({"val_records": "without_boxes"}, ["no record has a mask or a box to evaluate with", "without_boxes"]),
        (
            {"proposals": None},
            ["box supervision needs a proposals", "field: proposals", "jobs.build_proposals makes"],
        ),
        (
            {"supervision": "rectangles"},
            ["rectangles supervision does not read", "field: proposals", "not set"],
        ),
        (
            {"records": "unmasked", "proposals": None, "supervision": "mask"},
            ["mask supervision needs", "unmasked", "0 of 4 records have one"],
        ),
        ({"optimizer.lr": "-1"}, ["optimizer.lr", "found: -1.0", "> 0"]),
        (
            {"assignment.form": "image"},
            ["assignment.logit_limit needs assignment.form centred: set it"],
        ),
        ({"val_records": "of_three"}, ["val_records has other classes", "3 classes", "expected: the 21 of"]),
        ({"network.name": "timm:resnet51"}, ["no such model", "network.name", "'timm:resnet51'", "timm:resnet50"]),
        ({"network.name": "fcn8_vgg16"}, ["unknown network", "network.name", "expected: fcn8s_vgg16?"]),
        ({"network.dropout": "1.5"}, ["network.dropout", "found: 1.5", "from 0 to below 1"]),
        ({"network.output-stride": "4"}, ["network.output_stride", "found: 4", "(8, 16)"]),
        ({"network.weights": "/nowhere.pth"}, ["cannot read the weight file", "/nowhere.pth"]),
        ({"network.weights": "torchvision:IMAGENET1K_V1"}, ["of another network", "network.name"]),
        ({"network.weights": "checkpoint:/nowhere"}, ["no checkpoint here", "/nowhere"]),
    ],
)
def test_train_reports_what_is_wrong_before_it_starts_anything(
    folder, tmp_path, monkeypatch, capsys, changes, expected
):
    uris = ("records", "val_records", "proposals")
    changes = {k: str(folder / v) if k in uris and v is not None else v for k, v in changes.items()}
    monkeypatch.setattr(sys, "argv", ["train", *arguments(folder, tmp_path / "run", **changes)])
    line = error_line(train.main, capsys)
    assert all(part in line for part in expected), line
    assert not (tmp_path / "run").exists()


def test_train_as_a_process_exits_with_status_2(folder, tmp_path):
    command = [sys.executable, "-m", "jobs.train", *arguments(folder, tmp_path / "run", records="/absent")]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: no table here; file: /absent")


@pytest.fixture
def run_without_checkpoint(folder, tmp_path) -> str:
    config = tiny.make_config(folder, tmp_path / "young")
    write_config(config)
    return config.run_dir


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"run_dir": "/absent"}, ["no such file", "/absent/config.json"]),
        ({}, ["no checkpoint here", "young"]),
        ({"checkpoint": "/absent"}, ["no checkpoint here", "/absent"]),
        ({"checkpoint": "/absent", "records": None}, ["set either records, or voc_root"]),
        ({"checkpoint": "/absent", "records": None, "voc_root": "x"}, ["voc_root needs a split", "field: split"]),
        ({"checkpoint": "/absent", "num_actors": 9}, ["resources.cpus_per_actor", "actor 9 of 9", "1 x (2 CPUs)"]),
    ],
)
def test_evaluate_reports_what_is_wrong(ray_local, folder, tmp_path, run_without_checkpoint, capsys, changes, expected):
    values = {"run_dir": run_without_checkpoint, "out": str(tmp_path), "records": str(folder / "val"), **changes}
    line = error_line(lambda: evaluate.main(evaluate.Settings(**values)), capsys)
    assert all(part in line for part in expected), line


def test_a_list_without_images_is_refused(ray_local, folder, tmp_path, run_without_checkpoint, capsys):
    root = tmp_path / "VOC2012"
    devkit.write(root, "a", masks={"SegmentationClass": devkit.mask()})
    devkit.write_list(root, "\n", "val")
    settings = evaluate.Settings(
        run_without_checkpoint, str(tmp_path / "out"), voc_root=str(root), split="val", checkpoint="/absent"
    )
    line = error_line(lambda: evaluate.main(settings), capsys)
    assert "val" in line and ("empty" in line or "no image" in line), line


def test_a_damaged_configuration_is_no_traceback(ray_local, folder, tmp_path, capsys):
    (tmp_path / "config.json").write_text("{half")
    settings = evaluate.Settings(str(tmp_path), str(tmp_path / "out"), records=str(folder / "val"))
    assert "not valid JSON" in error_line(lambda: evaluate.main(settings), capsys)
    (tmp_path / "config.json").write_text(json.dumps({"format": FORMAT, "run_dir": "x", "unknown": 1}))
    assert "config.json" in error_line(lambda: evaluate.main(settings), capsys)
