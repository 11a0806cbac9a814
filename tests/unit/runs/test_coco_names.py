"""Exported COCO files: the data set's own ids, and what pycocotools and our own reader make of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from boxsup_dist.data.images import decode_png
from boxsup_dist.data.input_names import (
    InputImage,
    InputNames,
    join_input_names,
    keep_input_names,
    names_of_files,
    read_input_names,
)
from boxsup_dist.data.schema import VOC_CLASSES, Record
from boxsup_dist.errors import InputError, TableError
from boxsup_dist.export.coco import CocoImage, connected_regions, region, write_coco
from boxsup_dist.export.images import ending_of
from boxsup_dist.records import coco
from boxsup_dist.runs.coco_names import coco_names
from tests import coco_set
from tests.coco_set import annotation


@pytest.fixture
def annotations(tmp_path: Path) -> str:
    """Two images whose ids are not the numbers of their names; one has an object without a polygon's straight edges."""
    ring = [2, 2, 20, 2, 20, 20, 2, 20, 2, 2, 8, 8, 8, 12, 12, 12, 12, 8, 8, 8]
    objects = [annotation(31), annotation(31, "couch", bbox=[2.25, 2, 17.5, 18.0], segmentation=[ring]), annotation(7)]
    file = Path(coco_set.write(tmp_path / "set", objects, num_images=2))
    content = json.loads(file.read_text())
    for image, image_id in zip(content["images"], (31, 7), strict=True):
        image["id"] = image_id
    file.write_text(json.dumps(content))
    return str(file)


def records_of(file: str) -> list[Record]:
    index = coco.read_index(file)
    return [coco.read_record(str(Path(file).parent), image, "train", index.class_of) for image in index.images]


def test_an_export_is_read_back_with_the_same_boxes_and_masks(annotations: str, tmp_path: Path):
    records = records_of(annotations)
    names = coco_names([record.image_id for record in records], VOC_CLASSES, (), have_source=True)
    images = []
    for record in records:
        masks = [coco.rle.decode(counts, record.height, record.width) for counts in record.instance_masks or []]
        boxes = [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in record.boxes_xyxy.tolist()]
        regions = [
            {**region(mask, class_id), "bbox": box}
            for mask, class_id, box in zip(masks, record.class_ids.tolist(), boxes, strict=True)
        ]
        images.append(CocoImage(record.image_id, ending_of(record.image or b""), record.height, record.width, regions))
    exported = str(Path(annotations).parent / "export.json")
    assert write_coco(exported, images, names) == 3
    for before, after in zip(records, records_of(exported), strict=True):
        assert after.image_id == before.image_id and after.image == before.image
        assert np.array_equal(after.boxes_xyxy, before.boxes_xyxy)
        assert np.array_equal(after.class_ids, before.class_ids)
        assert after.instance_masks == before.instance_masks


def test_pycocotools_loads_predictions_against_the_annotation_file(annotations: str, tmp_path: Path):
    records = records_of(annotations)
    names = coco_names([record.image_id for record in records], VOC_CLASSES, (annotations,), have_source=True)
    images = []
    for record in records:
        assert record.gt_label_map is not None
        regions = connected_regions(decode_png(record.gt_label_map))
        images.append(CocoImage(record.image_id, ".jpg", record.height, record.width, regions))
    exported = str(tmp_path / "coco.json")
    write_coco(exported, images, names)
    published = COCO(annotations)
    found = COCO(exported)
    assert {i: image["file_name"] for i, image in found.imgs.items()} == {
        31: "000000000001.jpg",
        7: "000000000002.jpg",
    }
    results = published.loadRes(found.dataset["annotations"])
    assert [(each["image_id"], published.cats[each["category_id"]]["name"]) for each in results.anns.values()] == [
        (31, "person"),
        (31, "couch"),
        (7, "person"),
    ]
    assert all(isinstance(image_id, int) for image_id in results.imgs)


def test_an_annotation_file_of_other_images_or_classes_is_refused(annotations: str):
    with pytest.raises(InputError, match=r"have no image coco/other.*found: \['000000000001.jpg', '"):
        coco_names(["coco/other"], VOC_CLASSES, (annotations,), have_source=True)
    with pytest.raises(InputError, match="no category for the class dragon"):
        coco_names(["coco/000000000001"], ("background", "dragon"), (annotations,), have_source=True)


def test_the_names_of_the_input_are_kept_where_they_are_complete_and_distinct():
    kept = InputNames({"own/a": InputImage(40, "x/a.jpg"), "own/b": InputImage(7, "b.png")}, {"cat": 13, "kite": 10})
    own, classes = ["own/a", "own/b"], ("background", "cat", "kite")
    names = coco_names(own, classes, (), have_source=True, kept=kept)
    assert [names.images[name] for name in own] == [(40, "x/a.jpg", True), (7, "b.png", True)]
    assert names.categories == {1: (13, "cat"), 2: (10, "kite")}
    other = coco_names([*own, "own/c"], (*classes, "new"), (), have_source=True, kept=kept)
    assert [other.images[name][:2] for name in (*own, "own/c")] == [(40, "x/a.jpg"), (7, "b.png"), (41, "c")]
    assert other.categories[1] == (1, "cat")
    twice = InputNames(kept.images | {"own/b": InputImage(40, "b.png")})
    assert coco_names(own, classes, (), have_source=True, kept=twice).images["own/b"] == (2, "b.png", True)


def test_files_of_a_training_are_found_in_its_folders_alone():
    first = InputNames({"own/a/1": InputImage(7, "x/1.jpg"), "own/b.png": InputImage(8, "b.png")}, {}, ("/p", "s3://p"))
    second = InputNames({"coco/a/1": InputImage(3, "1.jpg")}, {}, ("/q",))
    files = [
        "/p/a/1.jpg",
        "s3://p/a/1.jpg",
        "/p/b.png",
        "/p/b.jpg",
        "/p/1.jpg",
        "/other/a/1.jpg",
        "/q/a/1.png",
        "/pa/1",
    ]
    found = names_of_files(files, [first, second])
    assert {file: image.id for file, image in found.items()} == {
        "/p/a/1.jpg": 7,
        "s3://p/a/1.jpg": 7,
        "/p/b.png": 8,
        "/q/a/1.png": 3,
    }
    assert names_of_files(files, []) == {}


def test_names_of_several_tables_are_joined_and_a_damaged_file_is_one_line(tmp_path):
    first, second = (
        InputNames({"a/1": InputImage(1, "1.jpg")}, {"cat": 3}, ("/photos",)),
        InputNames({"b/1": InputImage(None, "1.png")}),
    )
    assert join_input_names([first, first]) == InputNames(first.images, first.category_ids)
    assert join_input_names([first, second]) == InputNames({**first.images, **second.images})
    assert read_input_names(str(tmp_path)) == InputNames()
    keep_input_names(str(tmp_path), first)
    assert read_input_names(str(tmp_path)) == first
    (tmp_path / "input_names.json").write_text('{"images": []}')
    with pytest.raises(TableError, match="input_names"):
        read_input_names(str(tmp_path))
