"""jobs.start: from a folder and boxes of an annotation tool to masks, and again from where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from boxsup_dist.export.formats import OUTPUT_OF
from boxsup_dist.records.own.reader import open_own
from boxsup_dist.records.synthetic import scene_of
from boxsup_dist.records.synthetic_scene import tight_box
from jobs import export_labels, start
from tests.own_formats import WRITERS

NUM_IMAGES = 6


def write_photos(root: Path) -> tuple[Path, Path]:
    """Synthetic photos in two folders, and their boxes as YOLO's files."""
    images = {}
    for number in range(NUM_IMAGES):
        scene = scene_of(0, "start", number)
        path = root / "images" / ("a" if number % 2 else "b") / f"{number // 2}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.image).save(path)
        boxes = [tuple(map(float, tight_box(scene.instances == k + 1))) for k in range(len(scene.names))]
        height, width = scene.instances.shape
        names = [f"my {name}" for name in scene.names]
        images[str(path.relative_to(root / "images"))] = ((width, height), list(zip(names, boxes, strict=True)))
    return root / "images", WRITERS["yolo"](root / "boxes", images)


def test_a_folder_of_photos_and_boxes_becomes_masks(tmp_path, ray_local, capsys):
    images, boxes = write_photos(tmp_path)
    out = tmp_path / "out"
    settings = start.Settings(str(images), str(boxes), str(out), epochs=1)
    start.main(settings)
    shown = capsys.readouterr().out
    assert "6 images, 1 epochs, 2 steps: about" in shown and "fewer than 10 boxes" in shown
    label_maps = sorted(
        str(path.relative_to(out / "masks" / "label_maps")) for path in out.glob("masks/label_maps/**/*.png")
    )
    assert label_maps == [f"own/{folder}/{n}.png" for folder in "ab" for n in range(3)]
    coco = json.loads((out / "masks" / "coco.json").read_text())
    assert all(category["name"].startswith("my ") for category in coco["categories"]) and coco["annotations"]
    names = sorted(image["file_name"] for image in coco["images"])
    assert names == [f"{folder}/{n}.png" for folder in "ab" for n in range(3)]
    label_map = np.asarray(Image.open(out / "masks" / "label_maps" / "own" / "a" / "0.png"))
    formats = ("coco_polygons", "yolo", "labelme", "cvat")
    export_labels.main(export_labels.Settings(str(out / "run"), str(tmp_path / "tools"), formats=formats))
    for name in formats:
        reader = open_own(str(images), str(tmp_path / "tools" / OUTPUT_OF[name]), "train")
        assert all(each.startswith("my ") for each in reader.classes[1:])
        found = [reader.read(entry) for entry in reader.entries]
        assert len(found) == NUM_IMAGES and any(record.gt_label_map is not None for record in found)
    assert label_map.any() and (out / "contact_sheet.jpg").exists() and (out / "run" / "report.html").exists()
    start.main(settings)
    assert "this run is finished" in capsys.readouterr().out
