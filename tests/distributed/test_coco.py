"""Real Ray: a COCO annotation file with good and bad images becomes a table, each task with its own part of it."""

import json
from pathlib import Path

import pytest

from boxsup_dist.data.schema import iter_records
from boxsup_dist.errors import RecordError, SettingError
from boxsup_dist.records import coco
from boxsup_dist.records.build import build_records
from jobs import build_records as job
from tests import coco_set
from tests.coco_set import annotation


@pytest.fixture
def root(tmp_path) -> Path:
    """Ten images: one has no object, one a bad polygon, one is missing, one has a box without area besides."""
    items = [annotation(i, ("person", "couch", "zebra")[i % 3], id=100 + i) for i in range(1, 11) if i != 4]
    items[2]["segmentation"] = [[1, 2]]
    items.append(annotation(9, id=200, bbox=[3, 3, 0, 5]))
    root = tmp_path / "coco"
    coco_set.write(root, items, num_images=10)
    (root / f"{6:012d}.jpg").unlink()
    return root


def build(root: Path, out: Path, **settings):
    settings = {"rows_per_shard": 4, "row_group_size": 2, "max_skipped_share": 0.2, "classes": "all"} | settings
    chosen = {name: settings.pop(name) for name in ("classes", "only_with_objects") if name in settings}
    reader = coco.open_splits([str(root / "instances.json")], [str(root)], "train2017", **chosen)
    return build_records(str(out), reader, **settings)


def test_rows_keep_the_order_of_the_file_and_problems_are_named(ray_local, root, tmp_path):
    table = build(root, tmp_path / "t")
    records = [r for where in table.row_groups() for r in iter_records(table.read(where))]
    assert [int(r.image_id.split("/")[1]) for r in records] == [1, 2, 4, 5, 7, 8, 9, 10]
    assert [len(r.boxes_xyxy) for r in records] == [1, 1, 0, 1, 1, 1, 1, 1]
    assert {r.split for r in records} == {"train2017"} and "zebra" in table.classes
    assert all(len(r.instance_masks) == len(r.boxes_xyxy) for r in records)
    counts = {"images": 8, "skipped": 2, "left_out_boxes": 1, "boxes": 7, "with_mask": 8, "with_instances": 8}
    assert {**table.counts, **counts} == table.counts
    problems = {int(p["image_id"]): p["problem"] for shard in table.shards for p in shard.problems}
    assert set(problems) == {3, 6, 9}
    assert "not a polygon" in problems[3] and "missing file" in problems[6] and "annotation 200" in problems[9]


def test_boxes_without_area_never_refuse_a_table(ray_local, root, tmp_path):
    with pytest.raises(RecordError, match="2 of 10 images are unusable"):
        build(root, tmp_path / "t", max_skipped_share=0.1)
    with pytest.raises(RecordError, match="not a polygon"):
        build(root, tmp_path / "u", strict=True)
    assert (
        build(root, tmp_path / "v", classes="voc", only_with_objects=True, max_skipped_share=0.4).counts["images"] == 4
    )


def test_the_job_leaves_a_summary(ray_local, root, tmp_path, capsys):
    settings = job.Settings(
        split="train2017",
        out=str(tmp_path / "t"),
        coco_annotations=(str(root / "instances.json"),),
        coco_images=(str(root),),
        only_with_objects=True,
        max_skipped_share=0.4,
    )
    job.main(settings)
    summary = json.loads((tmp_path / "t" / "summary.json").read_text())
    assert summary["counts"]["boxes.sofa"] == 3 and summary["settings"]["classes"][20] == "tvmonitor"
    assert "000000000003: not a polygon" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({}, "no data set to read.*voc_root; .*coco_annotations and coco_images"),
        ({"coco_annotations": ("a.json",)}, "found: 'coco_annotations'"),
        ({"context_root": "c"}, "found: 'context_root'; .*voc_root and context_root"),
        (
            {"voc_root": "v", "coco_annotations": ("a",), "coco_images": ("b",)},
            "found: 'voc_root, coco_annotations, coco_images'",
        ),
        ({"voc_root": "v", "classes": "all"}, "no effect on this data set; field: classes"),
        ({"voc_root": "v", "only_with_objects": True}, "field: only_with_objects"),
        ({"voc_root": "v", "sbd_root": "s", "images_only": True}, "field: images_only"),
    ],
)
def test_the_job_wants_one_data_set(given, problem):
    with pytest.raises(SettingError, match=problem):
        job.open_reader(job.Settings(split="s", out="t", **given))
