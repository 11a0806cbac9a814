"""jobs.start on real photos with YOLO boxes: the mean IoU of a network that never saw a mask. Takes a quarter hour."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from boxsup_dist.data.schema import VOC_CLASSES
from boxsup_dist.records import voc
from jobs import evaluate, start
from tests.own_formats import WRITERS

MINI_MEAN_IOU, SPREAD = 46.2, 2.0  # of the recipe `mini` on the same images as VOC records; of its seeds


def write_yolo(voc2012: str, folder: Path) -> tuple[Path, Path]:
    """The training images of a devkit, without their masks, and their boxes as YOLO's files."""
    photos = folder / "photos"
    photos.mkdir()
    images = {}
    for image_id in voc.read_split(voc2012, "train"):
        record = voc.read_record(voc2012, image_id, "train", source="voc2012")
        shutil.copy(f"{voc2012}/JPEGImages/{image_id}.jpg", photos)
        names = [VOC_CLASSES[class_id] for class_id in record.class_ids]
        boxes = [tuple(float(value) for value in box) for box in record.boxes_xyxy]
        images[f"{image_id}.jpg"] = ((record.width, record.height), list(zip(names, boxes, strict=True)))
    return photos, WRITERS["yolo"](folder / "boxes", images)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_boxes_of_an_annotation_tool_train_as_well_as_the_voc_devkit(ray_local, shared, tmp_path, capsys):
    voc2012 = str(shared / "voc-mini" / "VOCdevkit" / "VOC2012")
    photos, boxes = write_yolo(voc2012, tmp_path)
    start.main(start.Settings(str(photos), str(boxes), str(tmp_path / "out")))
    run_dir, out = str(tmp_path / "out" / "run"), tmp_path / "evaluation"
    evaluate.main(evaluate.Settings(run_dir, str(out), voc_root=voc2012, split="val"))
    mean_iou = json.loads((out / "summary.json").read_text())["mean_iou"]
    with capsys.disabled():
        print(f"\nmean IoU on voc-mini val after jobs.start with YOLO boxes: {mean_iou:.1f} (mini: {MINI_MEAN_IOU})")
    assert mean_iou >= MINI_MEAN_IOU - SPREAD
