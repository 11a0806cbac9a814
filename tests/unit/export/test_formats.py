"""Masks in the formats of annotation tools: out, read by the format's library or our readers, and the same pixels."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from labelformat.formats import CVATObjectDetectionInput, YOLOv8InstanceSegmentationInput
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from boxsup_dist.data.images import decode_png
from boxsup_dist.data.palette import class_palette
from boxsup_dist.errors import InputError, SettingError
from boxsup_dist.export.coco import Category, CocoImage, CocoNames, ImagePlace, connected_regions, region
from boxsup_dist.export.formats import OUTPUT_OF, WRITERS, check_file_names, check_formats, write_formats
from boxsup_dist.export.legend import write_legend
from boxsup_dist.export.polygons import join, polygons
from boxsup_dist.records.own.formats import read_annotations
from boxsup_dist.records.own.reader import open_own

HEIGHT, WIDTH = 40, 60
CLASSES = ("background", "traffic light", "Bär & <cub>")


def hard_mask(seed: int = 0) -> np.ndarray:
    """A mask with two parts, holes, a gap of one pixel, pixels that share a corner, at the image's edges."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[:20, :25] = True
    mask[4:9, 4:9] = mask[12:15, 10:20] = False
    mask[:20, 12] = False
    mask[30:, 50:] = True
    mask[28, 48] = mask[29, 49] = True
    return mask if seed == 0 else np.roll(mask, (3 * seed, 5 * seed), (0, 1))


def filled(rings: list[np.ndarray]) -> np.ndarray:
    objects = coco_mask.frPyObjects([ring.ravel().tolist() for ring in rings], HEIGHT, WIDTH)
    return coco_mask.decode(coco_mask.merge(objects)).astype(bool)


@pytest.mark.parametrize("seed", range(6))
def test_polygons_filled_again_are_the_mask_with_its_holes(seed):
    mask = hard_mask(seed)
    if seed > 3:
        mask = np.random.default_rng(seed).random((HEIGHT, WIDTH)) < 0.1 * seed
    assert np.array_equal(filled(polygons(mask)), mask)
    assert np.array_equal(filled([join(polygons(mask))]), mask)
    assert len(polygons(mask)) == len(connected_regions(mask.astype(np.uint8)))
    assert polygons(np.zeros_like(mask)) == []
    assert sum(map(len, polygons(mask))) <= sum(map(len, polygons(mask, 0)))


def write(out: Path, formats=tuple(WRITERS)) -> dict[str, np.ndarray]:
    """Two images, in a folder and beside it, in every format, with their ids; returns their label maps by file name."""
    maps, images, places = {}, [], {}
    for number, path in enumerate(("sub/a.png", "b.png")):
        first, second = hard_mask(number), np.zeros((HEIGHT, WIDTH), bool)
        second[33:37, 5:45] = True
        label_map = np.where(second, 2, np.where(first, 1, 0)).astype(np.uint8)
        (out / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(label_map).save(out / "images" / path)
        masks = [region(second, 2), region(first, 1), region(first & False, 1, crowd=True)]
        boxes = [[5, 33, 40, 4], [0, 0, WIDTH, HEIGHT], [0, 0, 3, 3]]
        annotations = [{**mask, "bbox": box} for mask, box in zip(masks, boxes, strict=True)]
        images.append(CocoImage(f"own/{path[:-4]}", ".png", HEIGHT, WIDTH, annotations))
        places[f"own/{path[:-4]}"] = ImagePlace(70 + number, path, True)
        maps[path] = label_map
    names = CocoNames(places, {1: Category(31, CLASSES[1]), 2: Category(5, CLASSES[2])})
    assert write_formats(str(out), formats, images, names) == 6
    return maps


@pytest.mark.parametrize("name", ["coco", "coco_polygons"])
def test_pycocotools_reads_the_masks_with_the_ids_of_the_input(tmp_path, name):
    maps = write(tmp_path)
    found = COCO(str(tmp_path / OUTPUT_OF[name]))
    assert {i: image["file_name"] for i, image in found.imgs.items()} == {70: "sub/a.png", 71: "b.png"}
    assert {i: category["name"] for i, category in found.cats.items()} == {31: CLASSES[1], 5: CLASSES[2]}
    for image_id, label_map in zip((70, 71), maps.values(), strict=True):
        annotations = found.loadAnns(found.getAnnIds([image_id]))
        assert len(annotations) == (3 if name == "coco" else 2)  # the third has no pixel
        painted = np.zeros_like(label_map)
        for annotation in sorted(annotations, key=lambda each: -each["area"]):
            painted[found.annToMask(annotation) == 1] = {31: 1, 5: 2}[annotation["category_id"]]
        assert np.array_equal(painted, label_map)
        if name == "coco_polygons":
            assert all(isinstance(each["segmentation"], list) for each in annotations)


@pytest.mark.parametrize(("name", "num_objects"), [("coco_polygons", 2), ("yolo", 2), ("labelme", 4), ("cvat", 4)])
def test_the_readers_of_own_boxes_read_the_same_label_maps(tmp_path, name, num_objects):
    maps = write(tmp_path)
    reader = open_own(str(tmp_path / "images"), str(tmp_path / OUTPUT_OF[name]), "train")
    assert set(reader.classes) == set(CLASSES)
    if name == "yolo":
        assert reader.classes == CLASSES
    for record, path in zip(map(reader.read, reader.entries), sorted(maps), strict=True):
        assert record.image_id == f"own/{path[:-4]}" and record.gt_label_map is not None
        ours = np.array([CLASSES.index(each) for each in reader.classes])
        assert np.array_equal(ours[decode_png(record.gt_label_map)], maps[path])
        if path == "sub/a.png":  # LabelMe and CVAT have a shape per connected part, joined by a group
            assert len(record.class_ids) == num_objects
    images = read_annotations(str(tmp_path / OUTPUT_OF[name])).images
    assert {image.id for image in images} == ({70, 71} if name in ("coco_polygons", "cvat") else {None})


def test_labelformat_reads_the_masks_of_yolo(tmp_path):
    """`labelformat` is a reader of YOLO's segmentations by others; it looks for the images beside the labels."""
    maps = write(tmp_path, ("yolo",))
    shutil.copytree(tmp_path / "images", tmp_path / "yolo" / "images")
    found = YOLOv8InstanceSegmentationInput(tmp_path / "yolo" / "data.yaml", "train")
    assert [category.name for category in found.get_categories()] == [*CLASSES[1:]]
    painted = {}
    for labels in found.get_labels():
        painted[labels.image.filename] = label_map = np.zeros((labels.image.height, labels.image.width), np.uint8)
        for item in labels.objects:
            label_map[filled([np.array(item.segmentation.polygons[0])])] = item.category.id + 1
    assert set(painted) == set(maps)
    assert all(np.array_equal(painted[path], maps[path]) for path in maps)


# Attributes and fields that the tools document: CVAT's "XML annotation format" for images 1.1, and what LabelMe's own
# loader demands of a file and of a shape. Their libraries weigh 300 MB and are no dependency of the tests.
CVAT_IMAGE = {"id", "name", "width", "height"}
CVAT_POLYGON = {"label", "source", "occluded", "points", "z_order"}
LABELME_FILE = {"version": str, "flags": dict, "shapes": list, "imagePath": str, "imageHeight": int, "imageWidth": int}
LABELME_SHAPE = {"label": str, "points": list, "shape_type": str, "flags": dict, "description": str}


def test_cvat_has_the_frame_that_labelformat_reads_and_the_attributes_that_cvat_documents(tmp_path):
    write(tmp_path, ("cvat",))
    found = CVATObjectDetectionInput(tmp_path / "cvat.xml")
    assert [category.name for category in found.get_categories()] == [*CLASSES[1:]]
    frames = [(image.id, image.filename, image.width, image.height) for image in found.get_images()]
    assert frames == [(70, "sub/a.png", WIDTH, HEIGHT), (71, "b.png", WIDTH, HEIGHT)]
    root = ET.parse(tmp_path / "cvat.xml").getroot()
    assert root.tag == "annotations" and root.findtext("version") == "1.1"
    for image in root.findall("image"):
        assert set(image.attrib) == CVAT_IMAGE and len(image) >= 4
        for polygon in image:
            assert polygon.tag == "polygon" and set(polygon.attrib) - {"group_id"} == CVAT_POLYGON
            points = [pair.split(",") for pair in polygon.attrib["points"].split(";")]
            assert all(0 <= float(x) <= WIDTH and 0 <= float(y) <= HEIGHT for x, y in points) and len(points) >= 3


def test_labelme_has_the_fields_that_its_loader_demands(tmp_path):
    write(tmp_path, ("labelme",))
    for file in (tmp_path / "labelme").rglob("*.json"):
        content = json.loads(file.read_text())
        assert {key: type(content[key]) for key in LABELME_FILE} == LABELME_FILE and content["imageData"] is None
        for shape in content["shapes"]:
            assert {key: type(shape[key]) for key in LABELME_SHAPE} == LABELME_SHAPE
            assert shape["shape_type"] == "polygon" and isinstance(shape["group_id"], int | None)
            assert len(shape["points"]) >= 3 and all(len(point) == 2 for point in shape["points"])


def test_parts_of_an_object_share_a_group_and_large_objects_come_first(tmp_path):
    write(tmp_path, ("labelme",))
    content = json.loads((tmp_path / "labelme" / "sub" / "a.json").read_text())
    shapes = [(shape["label"], shape["group_id"]) for shape in content["shapes"]]
    assert shapes == [(CLASSES[1], 1)] * 3 + [(CLASSES[2], None)]
    assert (content["imagePath"], content["imageHeight"], content["imageWidth"]) == ("a.png", HEIGHT, WIDTH)


def test_wrong_formats_and_file_names_that_a_format_cannot_keep_are_one_line():
    with pytest.raises(SettingError, match=r"formats.*voc"):
        check_formats(["coco", "voc"])
    with pytest.raises(SettingError, match="repeated"):
        check_formats(["yolo", "yolo"])
    names = CocoNames({"own/a": ImagePlace(1, "a.png", True), "own/b": ImagePlace(2, "a.jpg", True)}, {})
    check_file_names(["coco", "cvat"], names)
    with pytest.raises(InputError, match=r"ending.*a\.png.*a\.jpg"):
        check_file_names(["labelme"], names)
    with pytest.raises(InputError, match="file_name"):
        check_file_names(["yolo"], CocoNames({"x": ImagePlace(1, "../a.png", True)}, {}))


def test_the_legend_has_the_colours_of_the_label_maps(tmp_path):
    names = [*CLASSES, *(f"class {n}" for n in range(40))]
    write_legend(str(tmp_path), names)
    entries = json.loads((tmp_path / "legend.json").read_text())
    assert [entry["name"] for entry in entries[:3]] == list(CLASSES) and entries[-1]["value"] == 255
    assert all(entry["colour"] == class_palette(names)[entry["value"]].tolist() for entry in entries)
    shown = {tuple(pixel) for pixel in np.asarray(Image.open(tmp_path / "legend.png")).reshape(-1, 3).tolist()}
    assert {tuple(entry["colour"]) for entry in entries} <= shown
