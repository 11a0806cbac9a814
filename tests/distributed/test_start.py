"""jobs.start: from a folder and boxes of an annotation tool to masks, and again from where it stopped."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import matplotlib
import nbformat
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from boxsup_dist.export.formats import OUTPUT_OF
from boxsup_dist.records.own.reader import open_own
from boxsup_dist.records.synthetic import scene_of
from boxsup_dist.records.synthetic_scene import tight_box
from boxsup_dist.runs import start as choices
from boxsup_dist.runs.history import read_history
from jobs import export_labels, predict, start
from tests.docs_blocks import ROOT
from tests.own_formats import WRITERS

NUM_IMAGES = 6


def write_photos(root: Path, box_format: str = "yolo") -> tuple[Path, Path]:
    """Synthetic photos in two folders, and their boxes in a format."""
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
    return root / "images", WRITERS[box_format](root / "boxes", images)


def names_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))


def test_a_folder_of_photos_and_boxes_becomes_masks(tmp_path, ray_local, capsys, monkeypatch):
    images, boxes = write_photos(tmp_path)
    out = tmp_path / "mine"
    settings = start.Settings(str(images), str(boxes), str(out), epochs=1)
    monkeypatch.setattr(choices, "FEW_IMAGES", NUM_IMAGES)  # two of six images are enough to evaluate on
    monkeypatch.setattr(choices, "MIN_HELD_OUT", 2)
    start.main(settings)
    shown = capsys.readouterr().out
    assert "6 images (4 to train on, 2 held out to evaluate on), 1 epochs, 1 steps: about" in shown
    assert "validation box score" in shown and "validation mean IoU" not in shown and "fewer than 10 boxes" in shown
    label_maps = names_below(out / "masks" / "label_maps")
    held_out = names_below(out / "masks_held_out" / "label_maps")
    assert sorted(label_maps + held_out) == [f"own/{folder}/{n}.png" for folder in "ab" for n in range(3)]
    assert len(held_out) == 2
    entry = read_history(str(out / "run"))[1]
    assert entry.mean_iou is None and entry.box_score is not None and entry.num_images == 2
    coco = json.loads((out / "masks" / "coco.json").read_text())
    assert all(category["name"].startswith("my ") for category in coco["categories"]) and coco["annotations"]
    assert sorted(f"own/{image['file_name']}" for image in coco["images"]) == label_maps
    page, listed = (out / "gallery" / "index.html").read_text(), (out / "gallery" / "suspicious_boxes.csv").read_text()
    assert all(f'"own/{folder}/{n}' in page for folder in "ab" for n in range(3)) and '"part": "validation"' in page
    assert all(name[4:] in listed for name in label_maps) and not any(name[4:] in listed for name in held_out)
    label_map = np.asarray(Image.open(out / "masks" / "label_maps" / label_maps[0]))
    formats = ("coco_polygons", "yolo", "labelme", "cvat")
    export_labels.main(export_labels.Settings(str(out / "run"), str(tmp_path / "tools"), formats=formats))
    for name in formats:
        reader = open_own(str(images), str(tmp_path / "tools" / OUTPUT_OF[name]), "train")
        assert all(each.startswith("my ") for each in reader.classes[1:])
        found = [record for record in map(reader.read, reader.entries) if record.gt_label_map is not None]
        assert len(found) == len(label_maps)
    assert label_map.any() and (out / "contact_sheet.jpg").exists() and (out / "run" / "report.html").exists()
    run_tutorial(monkeypatch, images, boxes, tmp_path, ["--optimizer.epochs", "1"])
    shown = capsys.readouterr().out
    assert shown.count("this run is finished") == 1 and "4 photos" in shown and "mean IoU on" not in shown


def run_tutorial(monkeypatch: pytest.MonkeyPatch, images: Path, boxes: Path, out: Path, options: list[str]) -> None:
    """Run every cell of docs/tutorial.ipynb in this process; the run in OUT/out is the one that it would make.

    tests/distributed/test_tutorial.py runs the notebook as people do, in a kernel, from the first photo.
    """
    notebook = nbformat.read(ROOT / "docs" / "tutorial.ipynb", as_version=4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    names: dict[str, object] = {}

    def command(job: str, *words: object) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [job, *map(str, words)])
            runpy.run_module(f"jobs.{job}", run_name="__main__", alter_sys=True)

    matplotlib.use("agg")
    for source in cells:
        exec(compile(source, source.partition("\n")[0], "exec"), names)
        if "command" in names:
            names["command"] = command
        if "images" in names and "command" not in names:  # the parameters
            names |= {"images": str(images), "boxes": str(boxes), "out": str(out), "options": options}


def test_masks_of_some_images_train_with_the_boxes_of_the_others(tmp_path, ray_local, capsys):
    images, boxes = write_photos(tmp_path, "coco")
    for number in (1, 3):
        instances = scene_of(0, "start", number).instances
        (tmp_path / "masks" / "a").mkdir(parents=True, exist_ok=True)
        Image.fromarray((instances > 0).astype(np.uint8)).save(tmp_path / "masks" / "a" / f"{number // 2}.png")
    out = tmp_path / "out"
    start.main(start.Settings(str(images), str(boxes), str(out), masks=str(tmp_path / "masks"), epochs=1))
    assert "learns from the masks of 2 images, and from the boxes of 4" in capsys.readouterr().out
    label_maps = names_below(out / "masks" / "label_maps")
    assert label_maps == ["own/a/2.png", "own/b/0.png", "own/b/1.png", "own/b/2.png"]
    check_the_prediction_of_the_folder_has_its_ids(images, boxes, out)


def check_the_prediction_of_the_folder_has_its_ids(images: Path, boxes: Path, out: Path) -> None:
    (images / "new.png").write_bytes((images / "a" / "0.png").read_bytes())  # one that nobody annotated
    predict.main(predict.Settings(str(images), str(out / "all"), run_dir=str(out / "run"), coco_json=True))
    given, predicted = COCO(str(boxes)), COCO(str(out / "all" / "coco.json"))
    assert predicted.cats == given.cats
    named = {i: image["file_name"] for i, image in given.imgs.items()}
    assert {i: image["file_name"] for i, image in predicted.imgs.items()} == named | {max(named) + 1: "new.png"}
