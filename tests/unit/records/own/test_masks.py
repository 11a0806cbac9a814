"""Masks of some of the own images: PNG files and COCO segmentations, and what people get wrong."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boxsup_dist.data.images import decode_png, encode_png
from boxsup_dist.errors import InputError, RecordError
from boxsup_dist.records.own.reader import open_own
from tests import devkit
from tests.own_formats import WRITERS

SIZE = (devkit.WIDTH, devkit.HEIGHT)
CAT, DOG = ("cat", (5.0, 5.0, 15.0, 15.0)), ("dog", (20.0, 8.0, 30.0, 20.0))
IMAGES = {"a/1.jpg": (SIZE, [CAT]), "a/2.jpg": (SIZE, [CAT, DOG]), "b/1.jpg": (SIZE, [DOG])}
MASK = np.zeros(SIZE[::-1], np.uint8)
MASK[6:14, 6:15], MASK[9:19, 21:29] = 1, 2


def read(root: Path, masks: Path) -> dict[str, np.ndarray | None]:
    """Label map of every image; cat is class 1, dog is class 2."""
    for name in IMAGES:
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "images" / name).write_bytes(devkit.jpeg())
    boxes = WRITERS["yolo"](root / "boxes", IMAGES)
    reader = open_own(str(root / "images"), str(boxes), "train", masks=str(masks))
    found = [reader.read(entry) for entry in reader.entries]
    return {r.image_id: None if r.gt_label_map is None else decode_png(r.gt_label_map) for r in found}


def write(file: Path, data: bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def coloured(colours: list[tuple[int, int, int]]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.array(colours, np.uint8)[MASK]).save(buffer, "PNG")
    return buffer.getvalue()


def coco(file: Path, category: str = "dog", **changes) -> Path:
    square = {"segmentation": [[20, 8, 30, 8, 30, 20, 20, 20]], "bbox": [20, 8, 10, 12]}
    annotation = {"id": 1, "image_id": 7, "category_id": 3, "iscrowd": 0, **square, **changes}
    image = {"id": 7, "file_name": "somewhere/b/1.jpg", "width": SIZE[0], "height": SIZE[1]}
    content = {"images": [image], "annotations": [annotation], "categories": [{"id": 3, "name": category}]}
    return write(file, json.dumps(content).encode())


def test_the_images_with_a_png_have_its_class_ids(tmp_path):
    write(tmp_path / "masks" / "a" / "2.png", encode_png(MASK))
    found = read(tmp_path, tmp_path / "masks")
    assert found["own/a/1"] is None and found["own/b/1"] is None
    np.testing.assert_array_equal(found["own/a/2"], MASK)


def test_colours_mean_the_classes_that_cvat_lists(tmp_path):
    write(tmp_path / "m" / "SegmentationClass" / "a" / "2.png", coloured([(0, 0, 0), (9, 9, 9), (250, 50, 83)]))
    write(tmp_path / "m" / "SegmentationObject" / "a" / "2.png", coloured([(0, 0, 0), (1, 1, 1), (2, 2, 2)]))
    write(tmp_path / "m" / "labelmap.txt", b"# label:color_rgb\nbackground:0,0,0::\ndog:250,50,83::\ncat:9,9,9::\n")
    np.testing.assert_array_equal(read(tmp_path, tmp_path / "m")["own/a/2"], MASK)


def test_coco_segmentations_are_painted_with_the_class_of_their_name(tmp_path):
    found = read(tmp_path, coco(tmp_path / "masks.json"))
    expected = np.zeros_like(MASK)
    expected[8:20, 20:30] = 2
    assert found["own/a/2"] is None
    np.testing.assert_array_equal(found["own/b/1"], expected)


def _png(name: str, data: bytes | None = None):
    return lambda root: write(root / "m" / name, encode_png(MASK) if data is None else data).parents[name.count("/")]


def _colours(text: bytes):
    def make(root: Path) -> Path:
        write(root / "m" / "labelmap.txt", text)
        return write(root / "m" / "2.png", coloured([(0, 0, 0), (9, 9, 9), (250, 50, 83)])).parent

    return make


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda root: root / "nothing", r"no such file or folder.*field: masks"),
        (_png("3.png"), r"no mask of these images.*found: \['3.png'\]"),
        (_png("1.png"), r"may mean several images.*found: .1.png.*a/1.jpg, b/1.jpg"),
        (_png("2.jpg"), r"no PNG file below this folder.*found: \['2.jpg'\]"),
        (_png("2.png", encode_png(MASK[:9])), r"mask and image differ in size.*2.png"),
        (_png("2.png", encode_png(MASK * 2)), r"values that are no class id.*found: \[4\]; expected: 0..2"),
        (_png("2.png", encode_png(MASK // 2 * 255)), r"write the object's class id instead of 255"),
        (_png("2.png", b"no image"), r"the mask does not decode.*2.png"),
        (_colours(b"cat:9,9,9::\nbackground:0,0,0"), r"colour of the mask is not in labelmap.txt.*\[250, 50, 83\]"),
        (_colours(b"cat:9,9::"), r"not a colour of a class.*line 1; found: .cat:9,9::"),
        (
            _colours(b"cow:9,9,9::\ndog:250,50,83\nbackground:0,0,0"),
            r"class that the boxes lack.*cow.*cat, dog",
        ),
        (lambda root: coco(root / "m.json", "cow"), r"class that the boxes lack.*found: .cow"),
        (lambda root: coco(root / "m.json", segmentation=[]), r"the object has no mask.*annotation 1, segmentation"),
    ],
)
def test_a_wrong_mask_is_one_clear_line(tmp_path, make, message):
    with pytest.raises((InputError, RecordError), match=message) as caught:
        read(tmp_path, make(tmp_path))
    assert "\n" not in str(caught.value)
