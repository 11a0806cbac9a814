"""Real Ray: proposals stay aligned with their records whatever fails, with the same bytes on any number of CPUs."""

import ctypes
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from boxsup_dist.assignment import static
from boxsup_dist.assignment.build import build_label_maps
from boxsup_dist.data import rle, tables
from boxsup_dist.data.images import decode_image, decode_png, encode_png
from boxsup_dist.data.schema import Record, iter_records, proposals_from_table, records_to_table
from boxsup_dist.data.tables import Table
from boxsup_dist.distributed import crashes
from boxsup_dist.errors import RecordError, SettingError, TableError, WeightsError
from boxsup_dist.proposals import hed, prompted
from boxsup_dist.proposals.build import build_proposals
from boxsup_dist.proposals.methods import METHODS
from boxsup_dist.proposals.settings import McgSettings, NativeMethod, PromptedSettings, SelectiveSearchSettings
from boxsup_dist.runs.command_line import run
from jobs import build_proposals as build_proposals_job
from tests.onnx_pairs import write_pair
from tests.unit.proposals.pictures import blobs

REPO = Path(__file__).parents[2]
SETTINGS = SelectiveSearchSettings(min_leaf_px=10, max_candidates=50)


def record(number: int, **changes) -> Record:
    image = blobs(30 + number, 40, number)
    fields = {
        "image_id": f"r{number}",
        "source": "test",
        "split": "train",
        "image": encode_png(image),
        "height": image.shape[0],
        "width": image.shape[1],
        "boxes_xyxy": np.array([[0, 0, 5, 5]]),
        "class_ids": np.array([1]),
        "difficult": np.zeros(1, bool),
        "crowd": np.zeros(1, bool),
    }
    return Record(**fields | changes)


@pytest.fixture
def records(tmp_path) -> Table:
    """Three shards of 5, 2 and 3 records; one image is cut short and one record states another size."""
    rows = [record(number) for number in range(10)]
    rows[3] = record(3, image=rows[3].image[:400])
    rows[8] = record(8, height=99)
    uri = str(tmp_path / "records")
    parts = [rows[:5], rows[5:7], rows[7:]]
    shards = [tables.write_shard(uri, i, records_to_table(p), "records", row_group_size=2) for i, p in enumerate(parts)]
    return tables.publish(uri, "records", {"row_group_size": 2}, shards)


def build(records: Table, out: Path, **settings) -> Table:
    settings = {"settings": SETTINGS, "max_failed_share": 0.2} | settings
    return build_proposals(str(out), records.uri, "selective_search", **settings)


def test_rows_are_those_of_the_records_and_failures_are_reported(ray_local, records, tmp_path):
    table = build(records, tmp_path / "p")
    tables.check_paired(records, table)
    for where in records.row_groups():
        ours = proposals_from_table(table.read(where))
        theirs = list(iter_records(records.read(where)))
        assert [p.image_id for p in ours] == [r.image_id for r in theirs]
        assert [p.superpixels.shape for p in ours] == [(r.height, r.width) for r in theirs]
        assert all((len(p) == 0) == (p.image_id in ("r3", "r8")) for p in ours)
    problems = {p["image_id"]: p["problem"] for shard in table.shards for p in shard.problems}
    assert set(problems) == {"r3", "r8"} and "another size" in problems["r8"]
    assert table.counts["images"] == 10 and table.counts["failed"] == 2 and table.counts["candidates"] > 100


def propose_or_crash(propose, image, settings, *, image_id: str, **given):
    """Propose as `propose`; image r5 ends the process by SIGSEGV."""
    if image_id == "r5":
        ctypes.string_at(0)
    return propose(image, settings, image_id=image_id, **given)


def test_an_image_that_crashes_the_method_keeps_its_row(ray_local, records, tmp_path, monkeypatch):
    monkeypatch.setattr(crashes, "MAX_RETRIES", 1)
    unbroken = build(records, tmp_path / "u")
    method = METHODS["selective_search"]
    crashing = replace(method, propose=partial(propose_or_crash, method.propose))
    monkeypatch.setitem(METHODS, "selective_search", crashing)
    with pytest.raises(RecordError, match=r"3 of 10 images failed.*\n(.*\n)*  r5: LostWorkError: ended its process 2 "):
        build(records, tmp_path / "p")
    table = build(records, tmp_path / "p", max_failed_share=0.3)
    tables.check_paired(records, table)
    assert table.counts["failed"] == 3
    assert [p["image_id"] for shard in table.shards for p in shard.problems] == ["r3", "r5", "r8"]
    same = [ours.sha256 == theirs.sha256 for ours, theirs in zip(table.shards, unbroken.shards, strict=True)]
    assert same == [True, False, True]
    (r5, r6), (_, other) = (proposals_from_table(t.read(tables.RowGroup(1, 0, 2))) for t in (table, unbroken))
    assert len(r5) == 0 and r5.superpixels.shape == (35, 40)
    assert (r6.superpixels == other.superpixels).all() and (r6.indices == other.indices).all()


def cut_or_crash(cut, image, box):
    """Cut as `cut`; the image of 35 rows, which is r5, ends the process by SIGSEGV."""
    if len(image) == 35:
        ctypes.string_at(0)
    return cut(image, box)


def test_an_image_that_crashes_grabcut_gets_a_label_map_that_training_ignores(
    ray_local, records, tmp_path, monkeypatch
):
    monkeypatch.setitem(static.METHODS, "grabcut", partial(cut_or_crash, static.METHODS["grabcut"]))
    monkeypatch.setattr(crashes, "MAX_RETRIES", 1)
    table = build_label_maps(str(tmp_path / "p"), records.uri, "grabcut", max_failed_share=0.2)
    tables.check_paired(records, table)
    rows = [row for where in table.row_groups() for row in table.read(where).to_pylist()]
    ignored = [row["image_id"] for row in rows if (decode_png(row["label_map"]) == 255).all()]
    assert ignored == ["r3", "r5"] and table.counts["failed"] == 2
    assert decode_png(rows[5]["label_map"]).shape == (35, 40)


def test_same_bytes_on_any_number_of_cpus(ray_local, records, tmp_path):
    """The session has two CPUs; without it, a job with one builds the same table."""
    two = build(records, tmp_path / "two")
    command = f"""
from boxsup_dist.proposals import hed, prompted
from boxsup_dist.proposals.build import build_proposals
from boxsup_dist.proposals.settings import McgSettings
from boxsup_dist.proposals.methods import METHODS
from boxsup_dist.proposals.settings import SelectiveSearchSettings
build_proposals({str(tmp_path / "one")!r}, {records.uri!r}, "selective_search",
    SelectiveSearchSettings(min_leaf_px=10, max_candidates=50), max_failed_share=0.2, num_cpus=1)
"""
    subprocess.run([sys.executable, "-c", command], cwd=REPO, check=True, timeout=200)
    one = tables.open_table(str(tmp_path / "one"), "proposals")
    assert one.fingerprint == two.fingerprint
    assert [shard.sha256 for shard in one.shards] == [shard.sha256 for shard in two.shards]


def test_a_second_call_continues_and_other_settings_are_refused(ray_local, records, tmp_path):
    out = tmp_path / "p"
    whole = build(records, out)
    (out / "manifest.json").unlink()
    (out / "part-00001.json").unlink()
    kept = (out / "part-00000.parquet").stat().st_mtime_ns
    assert build(records, out).fingerprint == whole.fingerprint
    assert (out / "part-00000.parquet").stat().st_mtime_ns == kept
    with pytest.raises(TableError, match="method_settings"):
        build(records, out, settings=SelectiveSearchSettings(max_candidates=7))


@pytest.mark.parametrize("method", get_args(NativeMethod))
def test_every_method_makes_a_table(ray_local, records, tmp_path, method):
    table = build_proposals(str(tmp_path / "p"), records.uri, method, max_failed_share=0.2)
    assert table.counts["failed"] == 2 and table.counts["candidates"] > 8
    assert table.settings["method"] == method


def test_weights_that_are_not_there_stop_the_build(ray_local, records, tmp_path):
    settings = McgSettings(edges="hed", hed_weights=str(tmp_path / "absent.pth"))
    with pytest.raises(WeightsError, match=r"absent\.pth"):
        build_proposals(str(tmp_path / "p"), records.uri, "mcg", settings)


def test_the_same_weights_elsewhere_are_the_same_build(ray_local, records, tmp_path):
    weights, moved = tmp_path / "hed.pth", tmp_path / "moved.pth"
    torch.manual_seed(0)
    torch.save(hed.Hed().state_dict(), weights)
    settings = McgSettings(edges="hed", hed_weights=str(weights), max_candidates=20)
    table = build_proposals(str(tmp_path / "p"), records.uri, "mcg", settings, max_failed_share=0.2)
    weights.rename(moved)
    again = replace(settings, hed_weights=str(moved))
    assert (
        build_proposals(str(tmp_path / "p"), records.uri, "mcg", again, max_failed_share=0.2).fingerprint
        == table.fingerprint
    )
    torch.save({**hed.Hed().state_dict(), "fuse.bias": torch.ones(1)}, moved)
    with pytest.raises(TableError, match="hed_weights"):
        build_proposals(str(tmp_path / "p"), records.uri, "mcg", again, max_failed_share=0.2)


def test_files_of_other_programs_go_through_the_same_job(ray_local, records, tmp_path, capsys, monkeypatch):
    """Masks from one file per image; one file is missing, two images are damaged."""
    masks = {f"r{n}": np.arange((30 + n) * 40).reshape(30 + n, 40) % (n + 3) > 1 for n in range(10) if n != 5}
    for name, mask in masks.items():
        result = {"segmentation": {"size": list(mask.shape), "counts": rle.encode(mask).decode()}, "score": 0.5}
        (tmp_path / f"{name}.json").write_text(json.dumps([result]))
    command = ["build_proposals", "--records", records.uri, "--out", str(tmp_path / "p"), "--method", "imported"]
    command += ["--format", "rle", "--folder", str(tmp_path), "--max-failed-share", "0.3"]
    monkeypatch.setattr(sys, "argv", command)
    run(build_proposals_job.main, build_proposals_job.with_method_settings)
    assert "failed r5: RecordError: no proposal file of this image" in capsys.readouterr().out
    table = tables.open_table(str(tmp_path / "p"), "proposals")
    tables.check_paired(records, table)
    assert table.counts["failed"] == 3 and [len(shard.row_ms) for shard in table.shards] == [5, 2, 3]
    for found in (p for where in table.row_groups() for p in proposals_from_table(table.read(where))):
        drawn = [np.isin(found.superpixels, found.members(j)) for j in range(len(found))]
        expected = [] if found.image_id in ("r3", "r5", "r8") else [masks[found.image_id]]
        assert len(drawn) == len(expected) and all((a == b).all() for a, b in zip(drawn, expected, strict=True))


def test_a_prompted_segmenter_belongs_to_its_files_and_to_the_boxes(ray_local, records, tmp_path, capsys, monkeypatch):
    """The boxes reach the tasks; a table of other boxes or of another decoder is refused."""
    encoder, decoder = write_pair(tmp_path / "onnx", "sam")
    command = ["build_proposals", "--records", records.uri, "--out", str(tmp_path / "p"), "--method", "prompted"]
    command += ["--onnx-encoder", encoder, "--onnx-decoder", decoder, "--also", "gop", "--max-failed-share", "0.2"]
    monkeypatch.setattr(sys, "argv", command)
    run(build_proposals_job.main, build_proposals_job.with_method_settings)
    assert "failed r3" in capsys.readouterr().out
    table = tables.open_table(str(tmp_path / "p"), "proposals")
    assert set(table.settings["method_settings"]) == {"onnx_encoder", "onnx_decoder", "also"}
    settings = PromptedSettings(encoder, decoder)
    where = records.row_groups()[0]
    first = next(iter_records(records.read(where)))
    alone = prompted.prompted(decode_image(first.image), settings, boxes_xyxy=first.boxes_xyxy, image_id="r0")
    stored = proposals_from_table(table.read(where))[0]
    assert len(alone) == 3 and [stored.boxes[j].tolist() for j in range(3)] == alone.boxes.tolist()
    assert len(stored) > 3

    moved = str(tmp_path / "moved")
    rows = [record(number, boxes_xyxy=np.array([[1, 1, 6, 6]])) for number in range(10)]
    shard = tables.write_shard(moved, 0, records_to_table(rows), "records", row_group_size=2)
    other = tables.publish(moved, "records", {"row_group_size": 2}, [shard])
    with pytest.raises(TableError, match="made from other records"):
        tables.check_paired(other, table)
    with pytest.raises(TableError, match=r"other settings.*records"):
        build_proposals(str(tmp_path / "p"), moved, "prompted", replace(settings, also="gop"))
    changed = replace(settings, onnx_decoder=write_pair(tmp_path / "other", "sam_normalised")[1], also="gop")
    Path(changed.onnx_decoder).write_bytes(Path(decoder).read_bytes() + b"\x0a\x00")  # an empty name of the producer
    with pytest.raises(TableError, match=r"other settings.*method_settings"):
        build_proposals(str(tmp_path / "p"), records.uri, "prompted", changed)


def test_what_is_refused(ray_local, records, tmp_path):
    with pytest.raises(RecordError, match=r"2 of 10 images failed.*\n  r3: .*\n  r8: "):
        build(records, tmp_path / "p", max_failed_share=0.1)
    with pytest.raises(TableError, match="unfinished"):
        tables.open_table(str(tmp_path / "p"), "proposals")
    with pytest.raises(SettingError, match="no such proposal method"):
        build_proposals(str(tmp_path / "q"), records.uri, "magic")
    with pytest.raises(SettingError, match="not the settings of the method"):
        build(records, tmp_path / "q", settings=3)
    shutil.rmtree(records.uri)
    with pytest.raises(TableError, match="no table here"):
        build(records, tmp_path / "q")


def test_the_job_leaves_a_summary(records, tmp_path):
    out = tmp_path / "p"
    command = [sys.executable, "-m", "jobs.build_proposals", "--records", records.uri, "--out", str(out)]
    command += ["--max-candidates", "20", "--max-failed-share", "0.2", "--num-cpus", "1"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["num_images"] == 10 and summary["num_failed"] == 2 and 0 < summary["mean_candidates"] <= 20
    assert summary["bytes_per_image"] > 0 and summary["seconds_per_image"]["p90"] > 0
    assert "failed r3" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--strategies", "lab:xyz"), "lab:xyz"),
        (("--edges", "gradient"), "--edges"),
        (("--method", "mcg", "--edges", "hed"), "hed_weights"),
        (("--method", "mcg", "--edges", "hed", "--hed-weights", "/absent.pth"), "absent.pth"),
    ],
)
def test_the_job_reports_an_error_in_one_line(records, tmp_path, capsys, monkeypatch, arguments, named):
    command = ["build_proposals", "--records", records.uri, "--out", str(tmp_path / "q"), *arguments]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as exit_:
        run(build_proposals_job.main, build_proposals_job.with_method_settings)
    printed = capsys.readouterr().err
    assert exit_.value.code == 2 and named in printed and "Traceback" not in printed
