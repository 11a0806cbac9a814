"""Real Ray: a devkit with good and bad images becomes a table that says what it left out."""

import ctypes
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from boxsup_dist.data import tables
from boxsup_dist.data.schema import iter_records
from boxsup_dist.errors import InputError, RecordError, SettingError
from boxsup_dist.records import voc
from boxsup_dist.records.build import build_records
from boxsup_dist.runs.command_line import run
from jobs import build_records as build_records_job
from tests import devkit

REPO = Path(__file__).parents[2]
IDS = [f"id_{index:02d}" for index in (7, 3, 9, 1, 8, 2, 6, 4, 5, 0)]
BAD = {"id_09", "id_06"}


@pytest.fixture
def root(tmp_path) -> Path:
    """Ten images in an order of their own, two of them bad."""
    root = tmp_path / "VOC2012"
    for image_id in IDS:
        devkit.write(root, image_id, masks={"SegmentationClass": devkit.mask()})
    devkit.write(root, "id_09", image=devkit.jpeg()[:300])
    devkit.write(root, "id_06", annotation=devkit.xml([("unicorn", (1, 1, 5, 5))]))
    devkit.write_list(root, "\n".join(IDS))
    return root


def build(root: Path, out: Path, **settings):
    settings = {"rows_per_shard": 4, "row_group_size": 2, "max_skipped_share": 0.2} | settings
    return build_records(str(out), voc.open_splits(str(root), "train"), **settings)


def test_rows_keep_the_order_of_the_list_and_bad_images_are_named(ray_local, root, tmp_path):
    table = build(root, tmp_path / "t")
    records = [r for where in table.row_groups() for r in iter_records(table.read(where))]
    assert [r.image_id for r in records] == [f"voc2012/{i}" for i in IDS if i not in BAD]
    assert all(r.image == devkit.jpeg() and r.gt_label_map == devkit.mask() for r in records)
    problems = {p["image_id"]: p["problem"] for shard in table.shards for p in shard.problems}
    assert set(problems) == BAD
    assert "does not decode" in problems["id_09"] and "unicorn" in problems["id_06"]
    counts = {"images": 8, "skipped": 2, "boxes": 16, "boxes.dog": 8, "boxes.person": 8, "difficult": 8, "with_mask": 8}
    assert {**table.counts, **counts} == table.counts


def test_too_many_bad_images_refuse_the_table_until_repaired_or_tolerated(ray_local, root, tmp_path):
    out = tmp_path / "t"
    with pytest.raises(RecordError, match=r"2 of 10 images are unusable.*\n.*id_09.*\n.*id_06.*unicorn"):
        build(root, out, max_skipped_share=0.1)
    with pytest.raises(tables.TableError, match="unfinished"):
        tables.open_table(str(out), "records")
    with pytest.raises(RecordError, match="does not decode"):
        build(root, out, strict=True)
    devkit.write(root, "id_09")
    assert build(root, out, max_skipped_share=0.1).counts["skipped"] == 1
    with pytest.raises(RecordError, match="1 of 10 images"):
        build(root, out, strict=True)


def test_what_other_tools_write_is_left_out_by_name_or_cut_off_and_counted(ray_local, root, tmp_path):
    devkit.write(root, "id_07", annotation='<?xml version="1.0" encoding="foo-99"?>' + devkit.xml())
    (root / "JPEGImages" / "id_03.jpg").unlink()
    os.mkfifo(root / "JPEGImages" / "id_03.jpg")
    devkit.write(root, "id_01", annotation=devkit.xml([("dog", (1, 1, 60, 20)), ("dog", (1, 1, 9, 9))]))
    devkit.write(root, "id_08", annotation=devkit.xml([]))
    reader = voc.open_splits(str(root), "train", outside="clip")
    table = build_records(str(tmp_path / "t"), reader, rows_per_shard=4, row_group_size=2, max_skipped_share=0.5)
    problems = {p["image_id"]: p["problem"] for shard in table.shards for p in shard.problems}
    assert set(problems) == BAD | {"id_07", "id_03"}
    assert "foo-99" in problems["id_07"] and "a named pipe" in problems["id_03"]
    counts = {"images": 6, "skipped": 4, "clipped": 1, "with_boxes": 5}
    assert {**table.counts, **counts} == table.counts and table.settings["outside"] == "clip"


def read_or_crash(read, crasher: str, entry):
    """Read an entry as `read`; one ends the process by SIGSEGV."""
    if entry.name == crasher:
        ctypes.string_at(0)
    return read(entry)


def test_an_image_that_crashes_its_reader_is_left_out_within_the_tolerated_share(ray_local, root, tmp_path):
    reader = voc.open_splits(str(root), "train")
    crashing = replace(reader, read=partial(read_or_crash, reader.read, "id_08"))
    sizes = {"rows_per_shard": 4, "row_group_size": 2}
    with pytest.raises(RecordError, match=r"3 of 10 images are unusable.*\n(.*\n)*  id_08: ended its process 4 times"):
        build_records(str(tmp_path / "t"), crashing, **sizes, max_skipped_share=0.2)
    table = build_records(str(tmp_path / "t"), crashing, **sizes, max_skipped_share=0.3)
    problems = {p["image_id"]: p["problem"] for shard in table.shards for p in shard.problems}
    assert set(problems) == {*BAD, "id_08"} and table.counts["skipped"] == 3
    assert problems["id_08"] == "ended its process 4 times: native code crashed in it, or the system ended it" + (
        " for lack of memory (see `dmesg`)"
    )
    (root / "JPEGImages" / "id_08.jpg").unlink()
    without = build_records(str(tmp_path / "u"), reader, **sizes, max_skipped_share=0.3)
    assert [shard.sha256 for shard in table.shards] == [shard.sha256 for shard in without.shards]


def test_splits_join_and_keep_their_names(ray_local, root, tmp_path):
    devkit.write_list(root, "id_01\nid_02", "val")
    devkit.write_list(root, "id_03", "extra")
    table = build_records(str(tmp_path / "t"), voc.open_splits(str(root), "val+extra", source="mine"))
    records = list(iter_records(table.read(table.row_groups()[0])))
    assert [(r.image_id, r.split) for r in records] == [
        ("mine/id_01", "val"),
        ("mine/id_02", "val"),
        ("mine/id_03", "extra"),
    ]
    with pytest.raises(InputError, match=r"share images.*id_01"):
        voc.open_splits(str(root), "val+train")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"rows_per_shard": 0}, "rows_per_shard"),
        ({"row_group_size": 5}, "row_group_size"),
        ({"max_skipped_share": 1.0}, "max_skipped_share"),
    ],
)
def test_settings_are_checked(root, tmp_path, settings, match):
    with pytest.raises(SettingError, match=match):
        build(root, tmp_path / "t", **settings)


def test_the_job_leaves_a_summary(root, tmp_path):
    out = tmp_path / "t"
    command = [sys.executable, "-m", "jobs.build_records", "--voc-root", str(root), "--split", "train"]
    command += ["--out", str(out), "--max-skipped-share", "0.2", "--num-cpus", "1"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["num_images"] == 8 and summary["counts"]["skipped"] == 2 and len(summary["problems"]) == 2
    assert "skipped id_09" in done.stdout and "person" in done.stdout


def test_the_job_reports_an_error_in_one_line(root, tmp_path, capsys, monkeypatch):
    command = ["build_records", "--voc-root", str(root), "--split", "nope", "--out", str(tmp_path / "u")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as exit_:
        run(build_records_job.main)
    printed = capsys.readouterr().err
    assert exit_.value.code == 2 and printed.startswith("error: no such split") and printed.count("\n") == 1
    assert not (tmp_path / "u").exists()
