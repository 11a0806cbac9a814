"""`jobs.verify` reads tables and runs in full: it passes what is whole and names each damaged file on a line."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from boxsup_dist.assignment.assign import assign_row_group
from boxsup_dist.data import tables
from boxsup_dist.data.labels import labels_table, open_labels, store_labels
from boxsup_dist.data.schema import proposals_to_table
from boxsup_dist.data.tables import check_paired, open_table
from boxsup_dist.errors import TableError
from boxsup_dist.io import storage
from boxsup_dist.io.typed_json import write_sealed
from boxsup_dist.model import checkpoint
from boxsup_dist.runs.command_line import clear_errors
from boxsup_dist.runs.history import HistoryEntry, write_history
from boxsup_dist.runs.kept_config import write_config
from boxsup_dist.runs.layout import RunFiles
from jobs import verify
from tests.distributed import tiny


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Tables, and a run of two epochs on them: the box-supervised records and the validation records as rectangles."""
    folder = tmp_path_factory.mktemp("whole")
    records, proposals, val = tiny.write_tables(folder)
    config = tiny.make_config(
        folder,
        folder / "run",
        sources=(tiny.make_source(folder), tiny.make_source(folder, "rectangles", records=val.uri)),
        val_records=None,
    )
    write_config(config)
    network = tiny.build_network()
    rest = [labels_table([])] * len(val.row_groups())
    for epoch in (0, 1):
        parts = [
            assign_row_group(None, records.read(w), proposals.read(w), tiny.ASSIGNMENT, seed=epoch, epoch=epoch)
            for w in records.row_groups()
        ]
        labels = store_labels(RunFiles(config.run_dir).labels(epoch + 1), [*parts, *rest])
    named = labels.named(config.run_dir)
    state = checkpoint.CheckpointState(2, 0, 0, network.spec, network.state_dict(), labels=named)
    checkpoint.save(config.run_dir, state)
    write_history(config.run_dir, {1: HistoryEntry(1), 2: HistoryEntry(2)})
    return folder


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    """A copy to damage. The run's configuration names its tables by absolute paths."""
    shutil.copytree(whole, tmp_path / "copy")
    config = tmp_path / "copy" / "run" / "config.json"
    config.write_text(config.read_text().replace(str(whole), str(tmp_path / "copy")))
    return tmp_path / "copy"


def call(monkeypatch, capsys, *words: object) -> tuple[int, list[str]]:
    """Exit status and lines on stdout of the command."""
    monkeypatch.setattr(sys, "argv", ["verify", *map(str, words)])
    status = 0
    try:
        with clear_errors():
            verify.main(verify.run.__globals__["read"](verify.Settings, ""))
    except SystemExit as error:
        status = int(error.code or 0)
    return status, capsys.readouterr().out.splitlines()


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_what_is_whole_passes_with_one_line(whole, monkeypatch, capsys):
    found = call(monkeypatch, capsys, "--tables", whole / "records", whole / "proposals", "--run-dir", whole / "run")
    rows = 2 * tiny.NUM_TRAIN + tiny.NUM_VAL
    assert found == (0, [f"whole: 3 tables with {rows} rows, 1 run directory"])


def test_a_partner_without_its_records_is_told(whole, monkeypatch, capsys):
    status, lines = call(monkeypatch, capsys, "--tables", whole / "proposals")
    assert status == 0 and len(lines) == 2
    assert lines[0] == f"not compared with its records, which are not among --tables: {whole / 'proposals'}"


def shorten_history(folder: Path) -> None:
    (folder / "run" / "history.jsonl").write_text('{"epoch": 1}\n{"epoch": "x"}\n')


def labels_of_other_records(folder: Path) -> None:
    labels = open_labels(str(folder / "run" / "labels" / "epoch-001"))
    parts = [labels.read(unit) for unit in range(labels.num_units)]
    ids = parts[0]["image_id"].to_pylist()
    parts[0] = parts[0].set_column(0, parts[0].schema.field(0), pa.array(["other", *ids[1:]]))
    store_labels(labels.uri, parts)


def fewer_units(folder: Path) -> None:
    labels = open_labels(str(folder / "run" / "labels" / "epoch-001"))
    store_labels(labels.uri, [labels.read(0)])


def replace_labels(folder: Path) -> None:
    """Whole labels of the same boxes, but not those that the checkpoint was trained on."""
    labels = open_labels(str(folder / "run" / "labels" / "epoch-001"))
    store_labels(RunFiles(str(folder / "run")).labels(2), [labels.read(unit) for unit in range(labels.num_units)])


CASES = {
    "a bit of an image": (
        lambda f: flip(f / "records" / "part-00001.parquet", 500),
        "records/part-00001.parquet",
        "sha256",
    ),
    "a shard cut short": (
        lambda f: shutil.copy(f / "val" / "manifest.json", f / "proposals" / "part-00000.parquet"),
        "proposals/part-00000.parquet",
        "num_bytes",
    ),
    "a shard gone": (
        lambda f: (f / "records" / "part-00000.parquet").unlink(),
        "records/part-00000.parquet",
        "a shard of the table is missing: delete part-00000.json and manifest.json",
    ),
    "a manifest": (lambda f: flip(f / "records" / "manifest.json", 30), "records/manifest.json", "delete this file"),
    "labels": (
        lambda f: flip(f / "run" / "labels" / "epoch-001" / "part-00000-00000.parquet", 90),
        "labels/epoch-001/part-00000-00000.parquet",
        "the shard is damaged, or another file: to make the labels again, delete",
    ),
    "a manifest of labels": (
        lambda f: flip(f / "run" / "labels" / "epoch-001" / "manifest.json", 30),
        "labels/epoch-001/manifest.json",
        "to make the labels again, delete",
    ),
    "labels of other records": (
        labels_of_other_records,
        "labels/epoch-001/part-00000-00000.parquet",
        "field: image_id, row 0; found: 'other'",
    ),
    "labels of other units": (fewer_units, "labels/epoch-001", "field: units; found: '1 units"),
    "a checkpoint": (
        lambda f: flip(next(f.glob("run/checkpoints/*/model.pt")), 999),
        "model.pt",
        "a file of the checkpoint is damaged",
    ),
    "a checkpoint's labels": (replace_labels, "labels/epoch-002", "not the labels that the checkpoint was trained on"),
    "a checkpoint's state": (
        lambda f: next(f.glob("run/checkpoints/*/state.json")).unlink(),
        "state.json",
        "of the checkpoint is missing",
    ),
    "history": (shorten_history, "run/history.jsonl", "line 2, epoch"),
    "settings": (lambda f: (f / "run" / "config.json").write_text("{"), "run/config.json", "not valid JSON"),
}


@pytest.mark.parametrize("case", CASES)
def test_each_damage_is_a_line_that_names_the_file(folder, monkeypatch, capsys, case):
    damage, file, words = CASES[case]
    damage(folder)
    status, lines = call(monkeypatch, capsys, "--run-dir", folder / "run")
    found = [line for line in lines if line.startswith("damaged: ")]
    assert status == 1 and len(found) == 1 and lines[-1].startswith("1 of "), lines
    assert f"{file};" in f"{found[0]};" and words in found[0], found


def test_images_of_partner_tables_are_compared_by_the_manifests_alone(tmp_path):
    records = tiny.write_records(tmp_path / "records", [tiny.make_record(i, "train") for i in range(4)])
    other = [tiny.make_record(i, "train") for i in (0, 1, 3, 2)]
    partner = tiny.write_proposals(tmp_path / "proposals", records, other)
    for table in (records, partner):
        Path(table.shard_uri(0)).unlink()
    match = rf"other image ids than its records: build .* from {records.uri}; file: {partner.shard_uri(0)}; field: ids"
    with pytest.raises(TableError, match=match):
        check_paired(records, partner)


def test_a_manifest_that_is_not_that_of_its_rows_is_found(folder, monkeypatch, capsys):
    """As a faulty writer would leave it: whole files, another statement."""
    path = folder / "proposals" / "manifest.json"
    values = json.loads(path.read_text())
    del values["seal"]
    values["shards"][0]["ids"] = "0" * 16
    write_sealed(str(path), values)
    status, lines = call(monkeypatch, capsys, "--tables", folder / "records", folder / "proposals")
    assert status == 1 and len(lines) == 3 and all("part-00000.parquet; field: ids" in line for line in lines[:2])


def test_tables_on_a_store(monkeypatch, capsys):
    uri = "memory://verify/records"
    rows = proposals_to_table([tiny.make_proposals(tiny.make_record(i, "train")) for i in range(4)])
    tables.begin(uri, "proposals", {})
    tables.publish(uri, "proposals", {}, [tables.write_shard(uri, 0, rows, "proposals", row_group_size=2)])
    assert call(monkeypatch, capsys, "--tables", uri)[0] == 0
    data = bytearray(storage.read_bytes(open_table(uri, None).shard_uri(0)))
    data[77] ^= 4
    storage.write_bytes(f"{uri}/part-00000.parquet", data)
    status, lines = call(monkeypatch, capsys, "--tables", uri)
    assert status == 1 and f"file: {uri}/part-00000.parquet; field: sha256" in lines[0]
    fsspec.get_filesystem_class("memory").store.clear()


def test_nothing_to_verify_is_a_users_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["verify"])
    with pytest.raises(SystemExit) as ended, clear_errors():
        verify.main(verify.Settings())
    assert ended.value.code == 2 and "nothing to verify" in capsys.readouterr().err
