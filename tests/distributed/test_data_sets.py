"""Real Ray: SBD, PASCAL-Context and image lists become tables through the same job, with exact counts where asked."""

import json
from pathlib import Path

import numpy as np
import pytest

from boxsup_dist.data import rle
from boxsup_dist.data.schema import iter_records
from boxsup_dist.errors import InputError, RecordError, SettingError
from boxsup_dist.records import sbd
from boxsup_dist.records.build import build_records
from jobs import build_records as job
from tests import devkit, mat_sets


@pytest.fixture
def folder(tmp_path) -> Path:
    """VOC 2010 and 2012, SBD and Context with the images a to e; VOC's train is a and b, its val c."""
    for year in ("VOC2010", "VOC2012"):
        root = tmp_path / year
        for image_id in "abcde":
            devkit.write(root, image_id, masks={"SegmentationClass": devkit.mask()} if image_id in "ab" else None)
        devkit.write_list(root, "a\nb\n", "train")
        devkit.write_list(root, "c\n", "val")
        devkit.write_list(root, "a\nb\nc\n", "train", folder="Main")
    for image_id in "bcde":
        mat_sets.write_sbd(tmp_path / "benchmark_RELEASE" / "dataset", image_id)
    (tmp_path / "benchmark_RELEASE" / "dataset" / "train.txt").write_text("b\nc\nd\n")
    (tmp_path / "benchmark_RELEASE" / "dataset" / "val.txt").write_text("e\n")
    values = np.full((devkit.HEIGHT, devkit.WIDTH), 2, np.uint16)
    for image_id in "abc":
        mat_sets.write_context(tmp_path / "context", image_id, values)
    return tmp_path


def settings(folder: Path, out: str, **changes) -> job.Settings:
    small = {"rows_per_shard": 2, "row_group_size": 1}
    return job.Settings(out=str(folder / out), **small, **changes)


def test_train_aug_of_voc_and_sbd(ray_local, folder, capsys):
    roots = {"voc_root": str(folder / "VOC2012"), "sbd_root": str(folder / "benchmark_RELEASE")}
    job.main(settings(folder, "t", split="train_aug", expect_images=4, **roots))
    assert "4 images, NOT the published (10582)" in " ".join(capsys.readouterr().out.split())
    summary = json.loads((folder / "t" / "summary.json").read_text())
    counts = {"images": 4, "with_boxes": 4, "with_mask": 4, "with_instances": 2, "boxes": 8, "skipped": 0}
    assert {**summary["counts"], **counts} == summary["counts"] and summary["published_images"] == 10582
    table, _ = job.build(settings(folder, "t", split="train_aug", **roots))
    records = [r for where in table.row_groups() for r in iter_records(table.read(where))]
    assert [(r.image_id, r.split) for r in records] == [
        ("voc2012/a", "train"),
        ("voc2012/b", "train"),
        ("voc2012/d", "aug"),
        ("voc2012/e", "aug"),
    ]
    mask = rle.decode(records[2].instance_masks[1], devkit.HEIGHT, devkit.WIDTH)
    assert (mask == (mat_sets.objects_map() == 2)).all()


def test_context_has_60_classes_and_no_boxes(ray_local, folder):
    roots = {"voc_root": str(folder / "VOC2010"), "context_root": str(folder / "context")}
    table, published = job.build(settings(folder, "t", split="train", **roots))
    assert (table.num_rows, published, len(table.classes)) == (3, 4998, 60)
    assert (table.counts["with_mask"], table.counts["with_boxes"], table.counts["boxes"]) == (3, 0, 0)


def test_images_only(ray_local, folder):
    table, _ = job.build(settings(folder, "t", split="val", voc_root=str(folder / "VOC2012"), images_only=True))
    assert (table.num_rows, table.counts["with_boxes"], table.counts["with_mask"]) == (1, 0, 0)


def test_exact_counts_refuse_what_differs(ray_local, folder):
    root = str(folder / "VOC2012")
    with pytest.raises(InputError, match=r"the wrong number of images.*train; found: 2; expected: 1464 images"):
        job.build(settings(folder, "t", split="train", voc_root=root, expect_images="published"))
    with pytest.raises(SettingError, match="no published count"):
        job.build(settings(folder, "t", split="Main/train", voc_root=root, expect_images="published"))
    reader = sbd.open_splits(str(folder / "benchmark_RELEASE"), "train")
    (folder / "benchmark_RELEASE" / "dataset" / "inst" / "c.mat").write_bytes(b"broken")
    with pytest.raises(RecordError, match=r"1 of 3 images are unusable.*\n.*c: not a readable MATLAB file"):
        build_records(str(folder / "u"), reader, expect_images=3, max_skipped_share=0.5)
    assert build_records(str(folder / "u"), reader, max_skipped_share=0.5).num_rows == 2
