"""Own boxes: every format gives the same boxes, and what people get wrong is one clear line."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boxsup_dist.data import rle
from boxsup_dist.data.images import decode_image, decode_png
from boxsup_dist.errors import InputError, RecordError
from boxsup_dist.records.own.formats import read_annotations
from boxsup_dist.records.own.reader import open_own, read_record
from boxsup_dist.records.reader import draw
from tests import devkit
from tests.own_formats import WRITERS, classes_of

HEIGHT, WIDTH = devkit.HEIGHT, devkit.WIDTH
SIZE = (WIDTH, HEIGHT)
IMAGES = {
    "a/1.jpg": (SIZE, [("traffic light", (2.0, 3.0, 17.0, 21.0)), ("cat", (10.0, 6.0, 40.0, 30.0))]),
    "b/1.jpg": (SIZE, [("zebra", (0.0, 0.0, 8.0, 9.0))]),
    "c.jpg": (SIZE, []),
    "d.jpg": (SIZE, [("cat", (5.0, 4.0, 9.0, 30.0))]),
}


def put_images(root: Path, names=IMAGES, **options) -> Path:
    for name in names:
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(devkit.jpeg(**options))
    return root / "images"


def records(images: Path, boxes: Path, **options):
    reader = open_own(str(images), str(boxes), "train", **options)
    return reader, [reader.read(entry) for entry in reader.entries]


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_boxes_and_classes(tmp_path, name):
    images = put_images(tmp_path)
    reader, found = records(images, WRITERS[name](tmp_path / "boxes", IMAGES))
    assert reader.classes == ("background", *classes_of(IMAGES))
    assert [record.image_id for record in found] == ["own/a/1", "own/b/1", "own/c", "own/d"]
    kept = reader.input_names
    assert [kept.images[record.image_id].file_name for record in found] == list(IMAGES)
    first_id = {"coco": 10, "cvat": 0}.get(name)
    assert [image.id for image in kept.images.values()] == [
        None if first_id is None else first_id + n for n in range(4)
    ]
    assert kept.category_ids == ({"cat": 7, "traffic light": 10, "zebra": 13} if name == "coco" else {})
    for record, (_, boxes) in zip(found, IMAGES.values(), strict=True):
        assert [reader.classes[c] for c in record.class_ids] == [each for each, _ in boxes]
        expected = np.reshape([corners for _, corners in boxes], (-1, 4))
        assert np.abs(record.boxes_xyxy - expected).max(initial=0) < 0.01
        assert record.image == devkit.jpeg() and record.gt_label_map is None


def test_a_voc_file_with_a_zero_counts_from_zero(tmp_path):
    images = put_images(tmp_path, ["1.jpg"])
    (tmp_path / "xml").mkdir()
    (tmp_path / "xml" / "1.xml").write_text(devkit.xml([("cat", (0, 3, 10, 12)), ("dog", (4, 4, 9, 9))]))
    _, (record,) = records(images, tmp_path / "xml")
    assert record.boxes_xyxy.tolist() == [[0, 3, 10, 12], [4, 4, 9, 9]]
    (tmp_path / "xml" / "1.xml").write_text(devkit.xml([("cat", (1, 4, 10, 12)), ("dog", (5, 5, 9, 9))]))
    _, (record,) = records(images, tmp_path / "xml")
    assert record.boxes_xyxy.tolist() == [[0, 3, 10, 12], [4, 4, 9, 9]]


def test_polygons_become_masks_where_every_object_has_one(tmp_path):
    images = put_images(tmp_path, ["1.jpg", "2.jpg"])
    square = [[5, 5], [15, 5], [15, 15], [5, 15]]
    shapes = [{"label": "cat", "points": square, "shape_type": "polygon"}]
    rectangle = {"label": "cat", "points": [[1, 1], [3, 3]], "shape_type": "rectangle"}
    for name, content in (("1", shapes), ("2", [*shapes, rectangle])):
        (tmp_path / "json").mkdir(exist_ok=True)
        (tmp_path / "json" / f"{name}.json").write_text(json.dumps({"shapes": content}))
    _, (with_mask, without) = records(images, tmp_path / "json")
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[5:15, 5:15] = 1
    assert (decode_png(with_mask.gt_label_map) == expected).all()
    assert (rle.decode(with_mask.instance_masks[0], HEIGHT, WIDTH) == expected).all()
    assert without.gt_label_map is None and without.boxes_xyxy.tolist() == [[5, 5, 15, 15], [1, 1, 3, 3]]


def test_yolo_polygons_are_scaled_to_the_image(tmp_path):
    images = put_images(tmp_path, ["1.jpg"])
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "classes.txt").write_text("cat\n")
    (tmp_path / "labels" / "1.txt").write_text("0 0.125 0.2 0.375 0.2 0.375 0.5 0.125 0.5")
    _, (record,) = records(images, tmp_path / "labels")
    assert record.boxes_xyxy.tolist() == [[5, 6, 15, 15]]
    assert rle.decode(record.instance_masks[0], HEIGHT, WIDTH).sum() == 90


def test_boxes_that_are_turned_become_their_tight_boxes(tmp_path):
    images = put_images(tmp_path, ["1.jpg"])
    box = '<box label="cat" xtl="10" ytl="10" xbr="20" ybr="14" rotation="90"/>'
    file = tmp_path / "a.xml"
    file.write_text(
        f'<annotations><image id="0" name="1.jpg" width="{WIDTH}" height="{HEIGHT}">{box}</image></annotations>'
    )
    _, (record,) = records(images, file)
    assert np.allclose(record.boxes_xyxy, [[13, 7, 17, 17]])
    value = {"x": 50, "y": 20, "width": 25, "height": 10, "rotation": 90, "rectanglelabels": ["cat"]}
    region = {"type": "rectanglelabels", "original_width": WIDTH, "original_height": HEIGHT, "value": value}
    file = tmp_path / "b.json"
    file.write_text(json.dumps([{"id": 1, "data": {"image": "1.jpg"}, "annotations": [{"result": [region]}]}]))
    _, (record,) = records(images, file)  # turned around (20, 6): 10 wide and 3 high become 3 wide and 10 high
    assert np.allclose(record.boxes_xyxy, [[17, 6, 20, 16]], atol=1e-4)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_an_image_is_turned_as_the_annotation_saw_it(tmp_path, orientation):
    """The stated size tells whether the tool turned the image; without it, tools of today do."""
    images = put_images(tmp_path, ["1.jpg"], exif=devkit.exif(orientation))
    shown = (HEIGHT, WIDTH) if orientation > 4 else (WIDTH, HEIGHT)
    upright = decode_image(devkit.jpeg(exif=devkit.exif(orientation)), turn_by_exif=True)
    boxes = [("cat", (2.0, 3.0, 17.0, 21.0))]
    for name in ("coco", "csv"):  # with and without a size
        _, (record,) = records(images, WRITERS[name](tmp_path / name, {"1.jpg": (shown, boxes)}))
        assert (record.width, record.height) == shown and (decode_image(record.image) == upright).all()
        assert record.boxes_xyxy.tolist() == [[2, 3, 17, 21]]
    if orientation > 4:
        _, (record,) = records(images, WRITERS["coco"](tmp_path / "stored", {"1.jpg": (SIZE, boxes)}))
        assert (record.width, record.height) == SIZE and record.image == devkit.jpeg(exif=devkit.exif(orientation))


def test_a_heic_photo_has_the_size_at_which_tools_show_it(tmp_path):
    (tmp_path / "images").mkdir()
    data = devkit.heic(orientation=6)  # 40 x 30 as the camera stored it
    (tmp_path / "images" / "1.HEIC").write_bytes(data)
    boxes = [("cat", (2.0, 3.0, 17.0, 38.0))]
    for name in ("coco", "csv"):  # with and without a size
        _, (record,) = records(tmp_path / "images", WRITERS[name](tmp_path / name, {"1.HEIC": ((30, 40), boxes)}))
        assert (record.width, record.height) == (30, 40) and record.image == data
    with pytest.raises(RecordError, match=r"another size.*30 x 40.*40 x 30"):
        records(tmp_path / "images", WRITERS["coco"](tmp_path / "stored", {"1.HEIC": ((40, 30), boxes)}))


@pytest.mark.parametrize(
    "suffix, kind",
    [("JPG", "JPEG"), ("jpeg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"), ("tif", "TIFF"), ("avif", "AVIF")],
)
def test_images_of_any_kind_are_found_and_read(tmp_path, suffix, kind):
    (tmp_path / "images").mkdir()
    buffer = io.BytesIO()
    Image.open(io.BytesIO(devkit.jpeg())).save(buffer, format=kind)
    (tmp_path / "images" / f"1.{suffix}").write_bytes(buffer.getvalue())
    boxes = WRITERS["csv"](tmp_path / "boxes", {f"1.{suffix}": IMAGES["d.jpg"]})
    _, (record,) = records(tmp_path / "images", boxes)
    assert record.image == buffer.getvalue() and len(record.class_ids) == 1


@pytest.mark.parametrize(
    "named", [r"C:\Users\me\photos\d.jpg", "/home/me/photos/d.jpg", "file:///x/d.JPG", "d.png", "./d.jpg"]
)
def test_paths_of_another_machine_are_found_by_their_last_parts(tmp_path, named):
    images = put_images(tmp_path)
    _, found = records(images, WRITERS["csv"](tmp_path / "boxes", {named: IMAGES["d.jpg"]}))
    assert [record.image_id for record in found] == ["own/d"]


def test_yolo_images_without_a_text_file_have_no_objects_other_formats_leave_them_out(tmp_path):
    images = put_images(tmp_path)
    some = {"d.jpg": IMAGES["d.jpg"]}
    for name, count in (("yolo", 4), ("csv", 1), ("voc", 1)):
        reader = open_own(str(images), str(WRITERS[name](tmp_path / name, some)), "train")
        assert len(reader.entries) == count, name


def test_crowds_and_absent_classes_of_open_images(tmp_path):
    images = put_images(tmp_path, ["1.jpg"])
    file = tmp_path / "boxes.csv"
    file.write_text(
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf\n"
        "1,x,/m/cat,1,0.25,0.5,0.1,0.2,1\n1,x,/m/dog,0,0,1,0,1,0\n"
    )
    reader, (record,) = records(images, file)
    assert reader.classes == ("background", "/m/cat") and record.crowd.tolist() == [True]
    assert np.allclose(record.boxes_xyxy, [[10, 3, 20, 6]])


def _file(root: Path, name: str, text: str) -> Path:
    path = root / "in" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _yolo(root: Path, text: str, names: str = "cat\ndog\n") -> Path:
    _file(root, "classes.txt", names)
    return _file(root, "d.txt", text).parent


def _bytes(root: Path, name: str, data: bytes) -> Path:
    path = _file(root, name, "")
    path.write_bytes(data)
    return path


def _coco(root: Path, key: str, **values: object) -> Path:
    """A COCO file with values that are wrong in every item of a list."""
    path = WRITERS["coco"](root / "in", IMAGES)
    content = json.loads(path.read_text())
    content[key] = [{**item, **values} for item in content[key]]
    path.write_text(json.dumps(content))
    return path


LABELME_POINT = json.dumps({"shapes": [{"label": "cat", "points": [[5, 5]], "shape_type": "point"}]})
BRUSH = json.dumps(
    [{"id": 1, "data": {"image": "d.jpg"}, "annotations": [{"result": [{"type": "brushlabels", "value": {}}]}]}]
)
VIA = json.dumps(
    {"d.jpg1": {"filename": "d.jpg", "regions": [{"shape_attributes": {"name": "rect"}, "region_attributes": {}}]}}
)
CORNERS = {"d.jpg": (SIZE, [("cat", (10, 5, 45, 30))] * 5)}  # COCO's numbers are 10, 5, 35, 25
CSV = "image,x0,y0,x1,y1,class\n"
WRONG = {
    "an empty file": (lambda r: _file(r, "b.json", ""), "the file is empty"),
    "a folder without annotations": (lambda r: _file(r, "notes.md", "x").parent, "no annotations in this folder"),
    "no such file": (lambda r: r / "nothing.json", "no such file or folder"),
    "a picture": (lambda r: _file(r, "b.csv", "image\n"), "the first line does not name the columns"),
    "another format than its ending": (lambda r: _file(r, "b.json", "<html>no</html>"), "another kind of XML"),
    "coco results": (lambda r: _file(r, "b.json", '[{"image_id": 1, "category_id": 2}]'), "COCO results name neither"),
    "json of no tool": (lambda r: _file(r, "b.json", '{"a": 1}'), "a JSON file of no known tool"),
    "two formats": (lambda r: (_file(r, "b.json", "{}"), _file(r, "b.xml", "<a/>"))[0].parent, "several formats"),
    "no box": (lambda r: _file(r, "b.csv", CSV + "d.jpg,,,,,\n"), "no box in these annotations"),
    "text for a number": (lambda r: _file(r, "b.csv", CSV + "d.jpg,1,2,x,4,cat\n"), "not a number.*line 2, x1.*'x'"),
    "corners in another order": (lambda r: _file(r, "b.csv", CSV + "d.jpg,9,2,3,4,cat\n"), "another order.*line 2"),
    "a box without class": (lambda r: _file(r, "b.csv", CSV + "d.jpg,1,2,3,4,\n"), "the box has no class.*line 2"),
    "images of another folder": (lambda r: _file(r, "b.csv", CSV + "x.jpg,1,2,3,4,cat\n"), "none of the 1 annotated"),
    "an ambiguous path": (lambda r: _file(r, "b.csv", CSV + "1.jpg,1,2,3,4,cat\n"), "may mean several images.*a/1.jpg"),
    "two annotations of an image": (
        lambda r: _file(r, "b.csv", CSV + "d.jpg,1,2,3,4,cat\nx/d.jpg,1,2,3,4,cat\n"),
        "two annotations of one image",
    ),
    "a class list that is too short": (
        lambda r: _yolo(r, "2 .5 .5 .1 .1"),
        "a class that .*classes.txt lacks.*'2'.*0 to 1",
    ),
    "yolo without names": (lambda r: _file(r, "d.txt", "0 .5 .5 .1 .1").parent, "without their class names"),
    "yolo with pixels": (lambda r: _yolo(r, "0 20 20 10 10"), "the numbers are pixels.*line 1"),
    "yolo with a number too few": (lambda r: _yolo(r, "0 .5 .5 .1"), "not an object of YOLO.*line 1"),
    "a yaml without names": (lambda r: _file(r, "data.yaml", "nc: 3\n"), "no class names"),
    "classes of one name": (lambda r: _yolo(r, "0 .5 .5 .1 .1", "cat\ncat\n"), "two classes of one name"),
    "fewer names than nc": (lambda r: _file(r, "data.yaml", "nc: 3\nnames: [cat, dog]\n"), "nc is not .*found: 2"),
    "a class name in place of its number": (lambda r: _yolo(r, "cat .5 .5 .1 .1"), "not a number.*line 1.*'cat'"),
    "an archive": (lambda r: _bytes(r, "export.zip", b"PK\3\4"), "not a file of annotations.*PK.*unpack an archive"),
    "an image": (lambda r: _bytes(r, "b.png", b"\x89PNG\r\n"), "not a file of annotations.*annotations, not an image"),
    "a pointer of Git LFS": (lambda r: _bytes(r, "b.json", b"version https://git-lfs.github.com"), "run git lfs pull"),
    "another encoding": (lambda r: _bytes(r, "b.csv", (CSV + "d.jpg,1,2,3,4,ä").encode("latin1")), "not UTF-8.*38"),
    "a column too few": (lambda r: _file(r, "b.csv", "image,x0,y0,x1,y1\nd.jpg,1,2,3,4\n"), "not name the columns"),
    "a JSON file that is cut off": (lambda r: _file(r, "b.json", '{"images": [{'), "not valid JSON.*one whole JSON"),
    "an XML file that is cut off": (lambda r: _file(r, "d.xml", "<annotation><object>").parent, "not XML.*whole XML"),
    "ids with quotes": (lambda r: _coco(r, "images", id="10"), "id; found: '10'; expected: int without quotes"),
    "one id for two images": (lambda r: _coco(r, "images", id=1), "occurs twice.*images.id; found: .1"),
    "one file for two images": (lambda r: _coco(r, "images", file_name="d.jpg"), "occurs twice.*images.file_name"),
    "a category that is not listed": (
        lambda r: _coco(r, "annotations", category_id=99),
        r"annotation 1000, category_id; found: 99; expected: an id of the file's categories \(7, 10, 13\)",
    ),
    "corners in COCO": (lambda r: WRITERS["coco"](r / "in", CORNERS), "the boxes are corners.*found: .10, 5, 35, 25"),
    "an image that is not listed": (lambda r: _coco(r, "annotations", image_id=99), "image_id; found: 99"),
    "a track of CVAT's": (lambda r: _file(r, "a.xml", "<annotations><track/></annotations>"), "export the task as"),
    "points only": (lambda r: _file(r, "d.json", LABELME_POINT), "no box.*found: 'a point is left out"),
    "brush strokes only": (lambda r: _file(r, "b.json", BRUSH), "no box.*found: 'a region of brushlabels is left out"),
    "no class in VIA": (lambda r: _file(r, "v.json", VIA), "names no class; .*d.jpg, region 1, region_attributes"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_people_get_wrong_is_one_clear_line(tmp_path, case):
    images = put_images(tmp_path)
    make, expected = WRONG[case]
    with pytest.raises(InputError, match=expected) as caught:
        open_own(str(images), str(make(tmp_path)), "train")
    line = str(caught.value)
    assert "\n" not in line and "file: " in line and "expected: " in line


READ_WRONG = {
    "boxes of another image size": ((WIDTH * 2, HEIGHT), (5, 4, 9, 30), "coco", "another size.*40 x 30.*80 x 30"),
    "relative boxes in a format of pixels": (SIZE, (0.1, 0.2, 0.5, 0.6), "csv", "relative coordinates"),
    "a box outside": (SIZE, (5, 5, 70, 20), "csv", "the box lies outside.*line 2"),
    "corners in another order": (SIZE, (30, 20, 5, 5), "cvat", "another order.*field: image 0, d.jpg, box 1; found:"),
}  # fmt: skip


@pytest.mark.parametrize("case", READ_WRONG)
def test_an_image_that_does_not_fit_its_annotation_is_left_out_by_name(tmp_path, case):
    size, corners, name, expected = READ_WRONG[case]
    images, content = put_images(tmp_path), {"d.jpg": (size, [("cat", corners)])}
    with pytest.raises(RecordError, match=expected):
        records(images, WRITERS[name](tmp_path / "boxes", content))


def test_a_box_that_fits_the_image_as_stored_but_not_as_shown_is_named_with_its_exif(tmp_path):
    """A file without sizes does not tell that its tool ignored the EXIF orientation of some images."""
    images = put_images(tmp_path, ["1.jpg"], exif=devkit.exif(6))
    (images / "2.jpg").write_bytes(devkit.jpeg())
    boxes = [("cat", (30.0, 5.0, 39.0, 20.0))]
    reader = open_own(
        str(images), str(WRITERS["csv"](tmp_path / "boxes", {f"{n}.jpg": (SIZE, boxes) for n in (1, 2)})), "train"
    )
    turned, upright = reader.entries
    with pytest.raises(RecordError, match=r"image \(the image is turned by its EXIF.*1.jpg, line 2.*30 x 40"):
        reader.read(turned)
    assert reader.read(upright).boxes_xyxy.tolist() == [[30, 5, 39, 20]]


def test_spreadsheets_of_other_languages_are_read(tmp_path):
    images = put_images(tmp_path)
    text = "image;x0;y0;x1;y1;class\nd.jpg;1,5;2;9,25;9;Bär, klein\n"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        reader, (record,) = records(images, _bytes(tmp_path, "b.csv", text.encode(encoding)))
        assert record.boxes_xyxy.tolist() == [[1.5, 2, 9.25, 9]] and reader.classes == ("background", "Bär, klein")


def test_settings_clip_boxes_and_read_shares(tmp_path):
    images = put_images(tmp_path)
    boxes = WRITERS["csv"](tmp_path / "boxes", {"d.jpg": (SIZE, [("cat", (5, 5, 70, 20))])})
    _, (record,) = records(images, boxes, outside="clip")
    assert record.boxes_xyxy.tolist() == [[5, 5, 40, 20]] and record.num_clipped == 1
    boxes = WRITERS["csv"](tmp_path / "shares", {"d.jpg": (SIZE, [("cat", (0.125, 0.2, 0.5, 1.0))])})
    _, (record,) = records(images, boxes, relative=True)
    assert np.allclose(record.boxes_xyxy, [[5, 6, 20, 30]])


def test_a_missing_image_and_a_damaged_file_are_left_out_by_name(tmp_path):
    images = put_images(tmp_path)
    boxes = WRITERS["labelme"](tmp_path / "boxes", {**IMAGES, "gone.jpg": IMAGES["d.jpg"]})
    (boxes / "c.json").write_text('{"shapes": 3}')
    reader = open_own(str(images), str(boxes), "train")
    problems = {}
    for entry in reader.entries:
        try:
            reader.read(entry)
        except RecordError as error:
            problems[entry.name] = str(error)
    assert set(problems) == {"c", "gone"}
    assert re.search("not a file of LabelMe.*c.json", problems["c"]) and "the image is missing" in problems["gone"]


def test_a_box_without_area_and_shapes_that_are_no_box_are_named(tmp_path):
    images = put_images(tmp_path, ["1.jpg"])
    shapes = [
        {"label": "cat", "points": [[5, 5], [15, 15]], "shape_type": "rectangle"},
        {"label": "cat", "points": [[5, 5], [5, 15]], "shape_type": "rectangle"},
        {"label": "cat", "points": [[5, 5]], "shape_type": "point"},
    ]
    file = tmp_path / "1.json"
    file.write_text(json.dumps({"shapes": shapes}))
    reader, (record,) = records(images, file)
    assert record.boxes_xyxy.tolist() == [[5, 5, 15, 15]]
    left_out = reader.entries[0].left_out
    assert any("a point is left out" in text for text in left_out) and any("no area" in text for text in left_out)


def test_a_class_named_background_is_the_background(tmp_path):
    images = put_images(tmp_path, ["1.jpg"])
    boxes = WRITERS["csv"](
        tmp_path / "boxes", {"1.jpg": (SIZE, [("Background", (0, 0, 40, 30)), ("cat", (1, 2, 9, 9))])}
    )
    reader, (record,) = records(images, boxes)
    assert reader.classes == ("background", "cat") and record.class_ids.tolist() == [1]


def test_masks_of_cvat_are_read_row_by_row(tmp_path):
    images = put_images(tmp_path)
    shape = '<mask label="cat" rle="{}" left="5" top="4" width="3" height="2"/>'
    text = f'<annotations><image id="0" name="d.jpg" width="{WIDTH}" height="{HEIGHT}">{shape}</image></annotations>'
    _, (record,) = records(images, _file(tmp_path, "a.xml", text.format("1, 3, 2")))
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[4:6, 5:8] = [[0, 1, 1], [1, 0, 0]]
    assert record.boxes_xyxy.tolist() == [[5, 4, 8, 6]] and (decode_png(record.gt_label_map) == expected).all()
    with pytest.raises(RecordError, match=r"do not fit the mask.*image 0, d.jpg, mask 1, rle; found: \[1, 3\]"):
        read_annotations(str(_file(tmp_path, "a.xml", text.format("1, 3"))))
    with pytest.raises(RecordError, match=r"the mask lies outside.*found: \[5, 40, 3, 2\].*\(40, 30\)"):
        read_annotations(str(_file(tmp_path, "a.xml", text.format("6").replace('top="4"', 'top="40"'))))


def test_a_format_can_be_named(tmp_path):
    file = _file(tmp_path, "b.txt", CSV + "d.jpg,1,2,3,4,cat\n")
    assert read_annotations(str(file), "csv").format == "csv"
    with pytest.raises(RecordError, match="not XML"):
        read_annotations(str(file), "cvat")


def test_read_record_needs_no_reader(tmp_path):
    images = put_images(tmp_path)
    reader = open_own(str(images), str(WRITERS["csv"](tmp_path / "boxes", IMAGES)), "train", source="shop")
    record = read_record(reader.entries[0], {"cat": 4, "traffic light": 9, "zebra": 1}, source="shop")
    assert record.image_id == "shop/a/1" and record.class_ids.tolist() == [9, 4]


def test_some_images_are_drawn_by_their_names_alone(tmp_path):
    names = {f"{n}.png": IMAGES[next(iter(IMAGES))] for n in range(20)}
    images = put_images(tmp_path, names)
    reader = open_own(str(images), str(WRITERS["csv"](tmp_path / "boxes", names)), "train")
    drawn = [[entry.name for entry in draw(reader, count).entries] for count in (5, 5, 9, 99)]
    assert drawn[0] == drawn[1] and set(drawn[0]) < set(drawn[2]) and [len(each) for each in drawn] == [5, 5, 9, 20]
    assert drawn[0] == sorted(drawn[0]) != [entry.name for entry in reader.entries[:5]]
    assert draw(reader, 5).identity == {**reader.identity, "draw": 5}
    with pytest.raises(InputError, match="field: draw; found: 0"):
        draw(reader, 0)
