"""Real photos with their boxes in every format of annotation tools: the same boxes, and the same labels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from boxsup_dist.data.schema import VOC_CLASSES, VOC_NAME_OF_COCO, Record, proposals_to_table, records_to_table
from boxsup_dist.records.own.reader import open_own
from jobs import start
from tests.golden import values
from tests.own_formats import WRITERS, Images, classes_of

LARGEST_ERROR_PX = 0.5  # of tools that write whole pixels
SAME_BOXES = ("coco", "csv", "csv of TensorFlow", "csv without header", "cvat", "labelme")  # written without rounding
NUM_LABELLED, NUM_EPOCHS = 3, 2  # photos and epochs whose labels are compared: a second for the proposals of each


@pytest.fixture(scope="module")
def photos(shared) -> Path:
    return shared / "coco-mini" / "train2017"


@pytest.fixture(scope="module")
def images(shared) -> Images:
    """All 128 photos of coco-mini with the boxes of COCO's own classes."""
    content = json.loads((shared / "coco-mini" / "annotations" / "instances_train2017.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    found = {i["id"]: (i["file_name"], (i["width"], i["height"]), []) for i in content["images"]}
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        found[annotation["image_id"]][2].append((names[annotation["category_id"]], (x, y, x + width, y + height)))
    return {file_name: (size, boxes) for file_name, size, boxes in sorted(found.values())}


def read(photos: Path, boxes: Path) -> tuple[tuple[str, ...], list[Record]]:
    reader = open_own(str(photos), str(boxes), "train")
    return reader.classes, [reader.read(entry) for entry in reader.entries]


def boxes_of(records: list[Record]) -> np.ndarray:
    """All boxes (K, 4), in the order of the records."""
    return np.concatenate([record.boxes_xyxy for record in records])


def foreign_classes(images: Images) -> list[str]:
    return [name for name in classes_of(images) if VOC_NAME_OF_COCO.get(name, name) not in VOC_CLASSES]


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_boxes_of_the_original(photos, images, tmp_path, name):
    classes, records = read(photos, WRITERS[name](tmp_path / "boxes", images))
    assert classes == ("background", *classes_of(images)) and len(foreign_classes(images)) >= 3
    assert [record.image_id for record in records] == [f"own/{Path(file).stem}" for file in images]
    expected = [box for _, boxes in images.values() for box in boxes]
    found = [classes[class_id] for record in records for class_id in record.class_ids]
    assert found == [class_name for class_name, _ in expected]
    error_px = np.abs(boxes_of(records) - np.array([corners for _, corners in expected])).max()
    assert error_px <= (LARGEST_ERROR_PX if name in ("voc", "via") else 0.01)


@pytest.fixture
def some(photos, images, tmp_path) -> tuple[Path, Images]:
    """A folder with the photos of fewest boxes that have one of a class that VOC lacks, and their boxes."""
    foreign = set(foreign_classes(images))
    found = {file: each for file, each in images.items() if {name for name, _ in each[1]} & foreign}
    found = dict(sorted(found.items(), key=lambda item: len(item[1][1]))[:NUM_LABELLED])
    assert len(foreign & set(classes_of(found))) >= 3
    (tmp_path / "photos").mkdir()
    for file in found:
        shutil.copy(photos / file, tmp_path / "photos")
    return tmp_path / "photos", found


def test_formats_with_the_same_boxes_give_the_same_labels(some, tmp_path):
    """Labels of the warm-up and of a choice by scores, as tests/golden computes them."""
    photos, images = some
    found: dict[str, tuple[np.ndarray, list[pa.Table]]] = {}
    proposals = None
    for name in SAME_BOXES:
        _, records = read(photos, WRITERS[name](tmp_path / name, images))
        if proposals is None:
            proposals = proposals_to_table([values.propose(record, values.LABELLED_BY) for record in records])
        labels = [values.assign(records_to_table(records), proposals, epoch) for epoch in range(NUM_EPOCHS)]
        found[name] = boxes_of(records), labels
    boxes, labels = found["coco"]
    assert all(np.array_equal(found[name][0], boxes) and found[name][1] == labels for name in SAME_BOXES)
    chosen = np.concatenate([table.column("proposal_index").to_numpy() for table in labels])
    assert (chosen >= 0).mean() > 0.9


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_jobs_start_goes_from_every_format_to_masks(ray_local, some, tmp_path):
    """The same label maps after training from every format that has the same boxes."""
    photos, images = some
    masks = {}
    for name, write in WRITERS.items():
        out = tmp_path / f"out {name}"
        boxes = write(tmp_path / f"boxes {name}", images)
        start.main(start.Settings(str(photos), str(boxes), str(out), epochs=2))
        folder = out / "masks" / "label_maps"
        masks[name] = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("own/*.png"))}
        assert list(masks[name]) == [f"own/{Path(file).stem}.png" for file in sorted(images)]
    assert all(masks[name] == masks["coco"] for name in SAME_BOXES)
