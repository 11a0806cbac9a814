"""The COCO reader: what a record holds, and that an error names file, field, value and what was expected."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from boxsup_dist.data import rle
from boxsup_dist.data.images import decode_png
from boxsup_dist.data.schema import VOC_CLASSES, Record
from boxsup_dist.errors import InputError, RecordError, SettingError
from boxsup_dist.records import coco
from tests import coco_set, devkit
from tests.coco_set import annotation

HEIGHT, WIDTH = devkit.HEIGHT, devkit.WIDTH


def read(root, annotations, classes="voc", **options) -> Record:
    index = coco.read_index(coco_set.write(root, annotations), classes)
    return coco.read_record(str(root), index.images[0], "train", index.class_of, **options)


def square(y0=5, x0=5, y1=15, x1=15) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def counts_of(mask: np.ndarray) -> list[int]:
    """Plain run lengths, the slow way."""
    counts, value = [0], False
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


def test_a_record_holds_bytes_boxes_and_masks(tmp_path):
    record = read(tmp_path, [annotation(), annotation(category="couch", bbox=[0.5, 2, 39.5, 20.25])])
    assert record.image_id == "coco/000000000001" and (record.source, record.split) == ("coco", "train")
    assert record.image == devkit.jpeg() and (record.height, record.width) == (HEIGHT, WIDTH)
    assert record.boxes_xyxy.dtype == np.float32 and record.boxes_xyxy.tolist() == [[5, 5, 15, 15], [0.5, 2, 40, 22.25]]
    assert [VOC_CLASSES[c] for c in record.class_ids] == ["person", "sofa"]
    assert not record.difficult.any() and not record.crowd.any()
    masks = [rle.decode(counts, HEIGHT, WIDTH) for counts in record.instance_masks]
    assert len(masks) == 2 and (masks[0] == square()).all()


def test_polygons_of_several_parts_and_run_lengths_give_their_pixels(tmp_path):
    two = square(2, 2, 6, 6) | square(20, 30, 24, 36)
    parts = [[2, 2, 6, 2, 6, 6, 2, 6], [30, 20, 36, 20, 36, 24, 30, 24]]
    forms = [
        parts,
        {"size": [HEIGHT, WIDTH], "counts": counts_of(two)},
        {"size": [HEIGHT, WIDTH], "counts": rle.encode(two).decode()},
    ]
    record = read(tmp_path, [annotation(segmentation=form) for form in forms])
    for counts in record.instance_masks:
        assert (rle.decode(counts, HEIGHT, WIDTH) == two).all()


def test_a_ring_keeps_its_hole(tmp_path):
    ring = square(2, 2, 20, 20) & ~square(8, 8, 12, 12)
    record = read(tmp_path, [annotation(segmentation={"size": [HEIGHT, WIDTH], "counts": counts_of(ring)})])
    assert (rle.decode(record.instance_masks[0], HEIGHT, WIDTH) == ring).all()
    assert (decode_png(record.gt_label_map) == ring * VOC_CLASSES.index("person")).all()


def test_a_polygon_that_goes_round_a_hole_keeps_it(tmp_path):
    keyhole = [2, 2, 20, 2, 20, 20, 2, 20, 2, 2, 8, 8, 8, 12, 12, 12, 12, 8, 8, 8]
    record = read(tmp_path, [annotation(segmentation=[keyhole])])
    mask = rle.decode(record.instance_masks[0], HEIGHT, WIDTH)
    assert not (mask & square(8, 8, 12, 12)).any() and not (mask & ~square(2, 2, 20, 20)).any()
    assert mask.sum() >= 18 * 18 - 4 * 4 - 6, "all but the hole and the cut that leads to it"


def test_smaller_objects_lie_in_front_and_crowds_behind_as_ignored(tmp_path):
    large, small, crowd = square(2, 2, 20, 20), square(5, 5, 10, 10), square(0, 0, 25, 40)
    forms = [{"size": [HEIGHT, WIDTH], "counts": counts_of(mask)} for mask in (small, large, crowd)]
    record = read(
        tmp_path,
        [
            annotation(category="airplane", segmentation=forms[0]),
            annotation(segmentation=forms[1]),
            annotation(category="airplane", segmentation=forms[2], iscrowd=1),
        ],
    )
    expected = np.where(crowd, 255, 0)
    expected[large] = VOC_CLASSES.index("person")
    expected[small] = VOC_CLASSES.index("aeroplane")
    assert (decode_png(record.gt_label_map) == expected).all() and record.crowd.tolist() == [False, False, True]


def test_classes_are_vocs_or_all_of_the_file(tmp_path):
    items = [annotation(category="zebra"), annotation(category="couch")]
    assert read(tmp_path, items).class_ids.tolist() == [VOC_CLASSES.index("sofa")]
    index = coco.read_index(coco_set.write(tmp_path, items), "all")
    assert len(index.classes) == 22 and index.classes[0] == "background"
    ids = sorted(index.class_of)
    assert [index.class_of[i] for i in ids] == list(range(1, len(ids) + 1)), "in the order of the file's ids"
    assert [index.classes[c] for c in read(tmp_path, items, "all").class_ids] == ["zebra", "couch"]


def test_images_without_objects_stay_unless_asked(tmp_path):
    file = coco_set.write(tmp_path, [annotation(2), annotation(3, "zebra")], num_images=3)
    index = coco.read_index(file)
    assert [len(image.annotations) for image in index.images] == [0, 1, 0]
    assert [image.name[-1] for image in coco.read_index(file, only_with_objects=True).images] == ["2"]
    record = coco.read_record(str(tmp_path), index.images[0], "train", index.class_of)
    assert record.boxes_xyxy.shape == (0, 4) and record.instance_masks == []
    assert not decode_png(record.gt_label_map).any()


def test_an_annotation_without_segmentation_leaves_the_record_without_masks(tmp_path):
    record = read(tmp_path, [annotation(), annotation(segmentation=[])])
    assert len(record.boxes_xyxy) == 2 and record.gt_label_map is None and record.instance_masks is None


@pytest.mark.parametrize("bbox", [[5, 5, 0, 9], [5, 5, 9, 0], [40, 5, 3, 3], [5, -4, 3, 4]])
def test_boxes_without_area_are_left_out_and_named(tmp_path, bbox):
    index = coco.read_index(coco_set.write(tmp_path, [annotation(bbox=bbox), annotation(id=8)]))
    assert [a["id"] for a in index.images[0].annotations] == [8]
    assert index.images[0].left_out == [f"annotation 7 is left out: its box {bbox} has no area"]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"category_id": 999}, "unknown category.*annotation 7, category_id; found: 999"),
        ({"iscrowd": 2}, "annotation 7, iscrowd; found: 2; expected: 0 or 1"),
        ({"bbox": None}, "not four numbers.*annotation 7, bbox"),
        ({"bbox": [1, 2, 3]}, r"not four numbers.*found: \[1, 2, 3\]"),
        ({"bbox": [5, 5, 50, 10]}, r"box lies outside.*50, 10\].*in 40 x 30"),
        ({"bbox": [0.1, 0.1, 0.3, 0.2]}, r"all boxes .* within 0\.\.1: relative coordinates\?.*expected: pixels"),
        ({"bbox": [0, 0, 1, 1]}, r"within 0\.\.1: relative coordinates\?"),
        ({"bbox": [5, 5, 10**400, 10]}, "not four numbers.*annotation 7, bbox"),
        ({"segmentation": [[5, 5, 10**400, 5, 15, 15]]}, "not a polygon.*annotation 7"),
        ({"segmentation": [[5, 5, float("inf"), 5, 15, 15]]}, "not a polygon.*annotation 7"),
        ({"segmentation": {"size": [30, 40], "counts": [10**400]}}, r"run lengths.*counts"),
        ({"segmentation": [[5, 5, 15, 5]]}, "not a polygon.*three points"),
        ({"segmentation": [[5, 5, 15, 5, 15]]}, "not a polygon"),
        ({"segmentation": [[5, 5, 15, 5, "a", 3]]}, "not a polygon"),
        ({"segmentation": [[5, 5, 15, 5, 15, 35]]}, r"polygon lies outside.*35\.0.*in 40 x 30"),
        ({"segmentation": "square"}, "no mask.*polygons or"),
        ({"segmentation": {"counts": 3}}, "no mask"),
        (
            {"iscrowd": 1, "segmentation": {"size": [40, 30], "counts": [1200]}},
            r"another size.*segmentation.size; found: \[40, 30\]; expected: \[30, 40\]",
        ),
        ({"segmentation": {"size": [30, 40], "counts": [7, 3]}}, r"run lengths.*counts; found: \[7, 3\]"),
        ({"segmentation": {"size": [30, 40], "counts": "~~"}}, "run lengths"),
    ],
)
def test_bad_annotations_name_file_field_value_and_what_was_expected(tmp_path, changes, match):
    with pytest.raises(RecordError, match=match) as caught:
        read(tmp_path, [annotation(**changes)])
    assert caught.value.file.endswith("000000000001.jpg")


def test_bad_images_are_reported(tmp_path):
    index = coco.read_index(coco_set.write(tmp_path, [annotation()]))
    file = tmp_path / "000000000001.jpg"
    for data, match in ((devkit.jpeg(20, 40), "another size.*40 x 20.*40 x 30"), (b"no", "does not decode")):
        file.write_bytes(data)
        with pytest.raises(RecordError, match=match):
            coco.read_record(str(tmp_path), index.images[0], "train", index.class_of)
    file.unlink()
    with pytest.raises(RecordError, match=r"missing file.*000000000001\.jpg"):
        coco.read_record(str(tmp_path), index.images[0], "train", index.class_of)


def drawn_on_a_larger_canvas(polygon: list[float]) -> np.ndarray:
    larger = [value + 100 for value in polygon]
    runs = coco_mask.frPyObjects([larger], HEIGHT + 200, WIDTH + 200)
    return coco_mask.decode(coco_mask.merge(runs))[100 : 100 + HEIGHT, 100 : 100 + WIDTH].astype(bool)


@pytest.mark.parametrize(
    "polygon",
    [
        [10, 10, 140 - 100, 10, 70, 25],
        [-20, -7, 25, 12, 3, 40],
        [-30, -30, 70, -30, 70, 60, -30, 60],
        [50, 2, 60, 2, 60, 9],
    ],
)
def test_boxes_and_polygons_are_cut_off_and_counted_if_asked(tmp_path, polygon):
    items = [annotation(bbox=[-5, -5, 30, 60], segmentation=[polygon]), annotation(id=8)]
    with pytest.raises(RecordError, match=r"box lies outside.*annotation 7, bbox; found: .*; or set outside to clip"):
        read(tmp_path, items)
    record = read(tmp_path, items, outside="clip")
    assert record.boxes_xyxy.tolist() == [[0, 0, 25, 30], [5, 5, 15, 15]] and record.num_clipped == 1
    mask = rle.decode(record.instance_masks[0], HEIGHT, WIDTH)
    assert (mask == drawn_on_a_larger_canvas(polygon)).all()
    assert (rle.decode(record.instance_masks[1], HEIGHT, WIDTH) == square()).all()


@pytest.mark.parametrize("changes", [{"bbox": [5, 5, 100, 10]}, {"segmentation": [[5, 5, 15, 5, 15, -41]]}])
def test_what_reaches_further_than_the_image_is_long_is_no_matter_of_cutting(tmp_path, changes):
    with pytest.raises(RecordError, match=r"lies outside.*in 40 x 30$"):
        read(tmp_path, [annotation(**changes)], outside="clip")


def test_one_small_box_beside_another_is_no_relative_one(tmp_path):
    items = [annotation(bbox=[0, 0, 0.5, 0.5]), annotation()]
    assert read(tmp_path, items).boxes_xyxy.tolist() == [[0, 0, 0.5, 0.5], [5, 5, 15, 15]]


def test_a_category_named_background_is_the_background(tmp_path):
    whole = coco_set.content([annotation(category_id=2000), annotation(category="zebra")])
    for name in ("background", "Background", "__background__"):
        extra = [{"id": 0, "name": name}, {"id": 2000, "name": name + " "}]
        index = coco.read_index(coco_set.write(tmp_path, whole | {"categories": whole["categories"] + extra}), "all")
        assert index.classes.count("background") == 1 and len(index.classes) == 22
        assert index.class_of[0] == index.class_of[2000] == 0
        record = coco.read_record(str(tmp_path), index.images[0], "train", index.class_of)
        assert [index.classes[c] for c in record.class_ids] == ["zebra"]


@pytest.mark.parametrize("classes", ["voc", "all"])
def test_two_categories_of_one_name_are_refused_by_name(tmp_path, classes):
    whole = coco_set.content([annotation()])
    whole["categories"].append({"id": 999, "name": "zebra"})
    with pytest.raises(InputError, match=r"occurs twice; file: .*; field: categories.name; found: \['zebra'\]"):
        coco.read_index(coco_set.write(tmp_path, whole), classes)


def test_a_dot_in_a_file_name_is_the_folder_itself(tmp_path):
    whole = coco_set.content([annotation()])
    whole["images"][0]["file_name"] = "./a/././b.jpg"
    index = coco.read_index(coco_set.write(tmp_path, whole))
    assert (index.images[0].file_name, index.images[0].name) == ("a/b.jpg", "a/b")
    for name in ("./../b.jpg", "./", ".", "a//b.jpg"):
        whole["images"][0]["file_name"] = name
        with pytest.raises(InputError, match="leaves its folder"):
            coco.read_index(coco_set.write(tmp_path, whole))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_size_as_exif_turns_it_is_told(tmp_path, orientation):
    whole = coco_set.content([annotation()])
    whole["images"][0] |= {"height": WIDTH, "width": HEIGHT}
    index = coco.read_index(coco_set.write(tmp_path, whole))
    (tmp_path / f"{1:012d}.jpg").write_bytes(devkit.jpeg(exif=devkit.exif(orientation)))
    turned = "as its EXIF orientation turns it.*found: '40 x 30'; expected: 30 x 40: turn the image"
    with pytest.raises(RecordError, match=turned if orientation >= 5 else "another size than its annotation says"):
        coco.read_record(str(tmp_path), index.images[0], "train", index.class_of)
    index.images[0].height, index.images[0].width = HEIGHT, WIDTH
    record = coco.read_record(str(tmp_path), index.images[0], "train", index.class_of)
    assert (record.height, record.width) == (HEIGHT, WIDTH)


def broken(**changes) -> dict:
    return coco_set.content([annotation()]) | changes


@pytest.mark.parametrize(
    ("whole", "match"),
    [
        ([], "not an annotation file.*categories"),
        (broken(images=None), "not an annotation file.*images"),
        (broken(annotations={}), "not an annotation file.*annotations"),
        (broken(annotations=[3]), r"annotations\[0\]\.image_id"),
        (broken(annotations=[annotation(9)]), "does not list.*annotation 7, image_id; found: 9"),
        (broken(images=[{"id": 1, "file_name": "a.jpg", "height": 3}]), r"images\[0\]\.width; expected: int"),
        (broken(images=coco_set.content([])["images"] * 2), r"twice.*images\.id.*\[1\]"),
        (broken(categories=[{"id": 1, "name": "person"}]), r"lacks classes of VOC: aeroplane.*found: \['person'\]"),
        (broken(categories=coco_set.content([])["categories"] * 2), r"twice.*categories\.id"),
        (broken(images=[], annotations=[]), "no image to use"),
    ],
)
def test_wrong_files_are_refused(tmp_path, whole, match):
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(whole))
    with pytest.raises(InputError, match=match) as caught:
        coco.read_index(str(file))
    assert caught.value.file == str(file)


def test_ids_in_quotes_are_told(tmp_path):
    whole = broken()
    whole["images"][0]["id"] = "1"
    with pytest.raises(InputError, match=r"images\[0\]\.id; found: '1'; expected: int without quotes"):
        coco.read_index(coco_set.write(tmp_path, whole))


NO_JSON = {
    "nested 100,000 deep": (b"[" * 100_000 + b"]" * 100_000, "nested too deep"),
    "numbers of 5,000 digits": (b'{"images": [' + b"9" * 5000 + b"]}", "not valid JSON.*4300 digits"),
    "not UTF-8": (b'{"images": "\xff\xfe"}', "not valid JSON.*utf-8"),
    "another kind of file": (b"PK\x03\x04", "not valid JSON"),
}


@pytest.mark.parametrize("name", NO_JSON)
def test_what_is_no_json_at_all_is_one_line(tmp_path, name):
    content, match = NO_JSON[name]
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=match) as caught:
        coco.read_index(str(tmp_path / "a.json"))
    assert caught.value.file == str(tmp_path / "a.json") and len(str(caught.value).splitlines()) == 1


def test_what_is_no_json_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(InputError, match=r"not valid JSON.*a\.json"):
        coco.read_index(str(tmp_path / "a.json"))
    with pytest.raises(InputError, match="no such file"):
        coco.read_index(str(tmp_path / "b.json"))


def test_several_files_make_one_table(tmp_path):
    train = coco_set.write(tmp_path / "train2014", [annotation()])
    whole = coco_set.content([annotation(5, "couch")])
    whole["images"] = [{"id": 5, "file_name": "val_5.jpg", "height": HEIGHT, "width": WIDTH}]
    val = coco_set.write(tmp_path / "val2014", whole)
    (tmp_path / "val2014" / "val_5.jpg").write_bytes(devkit.jpeg())
    folders = [str(tmp_path / "train2014"), str(tmp_path / "val2014")]
    reader = coco.open_splits([train, val], folders, "train2014+val2014")
    assert reader.published == 123287 and reader.identity["annotations"].count("+") == 1
    records = [reader.read(entry) for entry in reader.entries]
    assert [(r.image_id, r.split) for r in records] == [
        ("coco/000000000001", "train2014"),
        ("coco/val_5", "val2014"),
    ]
    assert [VOC_CLASSES[r.class_ids[0]] for r in records] == ["person", "sofa"]
    one = coco.open_splits([train], folders[:1], "train2014")
    assert one.identity == {"annotations": coco.read_index(train).fingerprint} and one.published == 82783
    assert coco.open_splits([train], folders[:1], "train2014", only_with_objects=True).published is None


def test_files_that_do_not_go_together_are_refused(tmp_path):
    file = coco_set.write(tmp_path, [annotation()])
    folder = str(tmp_path)
    with pytest.raises(SettingError, match="coco_images; found: 1; expected: 2"):
        coco.open_splits([file, file], [folder], "a+b")
    with pytest.raises(SettingError, match="split; found: 1; expected: 2"):
        coco.open_splits([file, file], [folder, folder], "a")
    with pytest.raises(InputError, match=r"occurs twice.*000000000001"):
        coco.open_splits([file, file], [folder, folder], "a+b")
    other = coco_set.content([annotation()])
    other["categories"].append({"id": 999, "name": "unicorn"})
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(InputError, match=r"other categories than the first file:.*other\.json"):
        coco.open_splits([file, str(tmp_path / "other.json")], [folder, folder], "a+b", classes="all")
