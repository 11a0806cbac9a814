"""The VOC reader: conventions, look-up rules, and every kind of bad input as a clear error."""

import os

import numpy as np
import pytest

from boxsup_dist.data import rle
from boxsup_dist.data.images import decode_image, decode_png
from boxsup_dist.data.palette import voc_palette
from boxsup_dist.data.schema import VOC_CLASSES
from boxsup_dist.errors import InputError, RecordError
from boxsup_dist.records import voc
from tests import devkit


def read(root, image_id="a"):
    return voc.read_record(str(root), image_id, "train", source="voc2012")


def test_a_record_holds_the_files_bytes_and_half_open_boxes(tmp_path):
    mask = devkit.mask()
    devkit.write(tmp_path, "a", masks={"SegmentationClass": mask})
    record = read(tmp_path)
    assert record.image_id == "voc2012/a" and record.source == "voc2012" and record.split == "train"
    assert record.image == devkit.jpeg() and record.gt_label_map == mask
    assert (record.height, record.width) == (devkit.HEIGHT, devkit.WIDTH)
    assert record.boxes_xyxy.tolist() == [[0, 0, 20, 30], [10, 5, 40, 25]]
    assert record.boxes_xyxy.dtype == np.float32
    assert [VOC_CLASSES[c] for c in record.class_ids] == ["dog", "person"]
    assert record.difficult.tolist() == [False, True] and not record.crowd.any()


@pytest.mark.parametrize(
    ("xml_box", "box"),
    [
        ((1, 1, 1, 1), (0, 0, 1, 1)),  # one pixel
        ((0, 0, 41, 31), (0, 0, 40, 30)),  # VOC's rounding: a pixel outside on every side
        ((2.5, 3.25, 10.5, 11), (1.5, 2.25, 10.5, 11)),
    ],
)
def test_boxes_are_converted_and_clamped_by_a_pixel_at_most(tmp_path, xml_box, box):
    devkit.write(tmp_path, "a", annotation=devkit.xml([("dog", xml_box)]))
    assert tuple(read(tmp_path).boxes_xyxy[0]) == box


def test_every_pixel_inside_an_xml_box_is_inside_ours(tmp_path):
    rng = np.random.default_rng(0)
    for _ in range(20):
        x0, x1 = np.sort(rng.integers(1, devkit.WIDTH + 1, 2))
        y0, y1 = np.sort(rng.integers(1, devkit.HEIGHT + 1, 2))
        devkit.write(tmp_path, "a", annotation=devkit.xml([("dog", (x0, y0, x1, y1))]))
        box = read(tmp_path).boxes_xyxy[0].astype(int)
        counted_from_one = np.arange(1, devkit.WIDTH + 1)
        assert (counted_from_one[box[0] : box[2]] == np.arange(x0, x1 + 1)).all()
        assert box[3] - box[1] == y1 - y0 + 1


def test_the_size_is_that_of_the_image_not_of_the_xml(tmp_path):
    devkit.write(tmp_path, "a", annotation=devkit.xml(size=(99, 77)))
    record = read(tmp_path)
    assert (record.height, record.width) == (devkit.HEIGHT, devkit.WIDTH)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_grey_cmyk_and_turned_images_keep_their_bytes(tmp_path, mode):
    data = devkit.jpeg(mode=mode, exif=devkit.exif(6))
    devkit.write(tmp_path, "a", image=data)
    record = read(tmp_path)
    assert record.image == data
    assert decode_image(record.image).shape == (devkit.HEIGHT, devkit.WIDTH, 3) == (record.height, record.width, 3)


def test_sbd_masks_stand_in_only_where_voc_has_none(tmp_path):
    zeros = np.zeros((devkit.HEIGHT, devkit.WIDTH), np.uint8)
    voc_mask, sbd_mask = devkit.mask(zeros + 1), devkit.mask(zeros + 2)
    devkit.write(tmp_path, "a", masks={"SegmentationClass": voc_mask, "SegmentationClassAug": sbd_mask})
    devkit.write(tmp_path, "b", masks={"SegmentationClassAug": sbd_mask})
    devkit.write(tmp_path, "c")
    assert [read(tmp_path, i).gt_label_map for i in "abc"] == [voc_mask, sbd_mask, None]


@pytest.mark.parametrize(("mode", "dtype"), [("P", np.uint8), ("L", np.uint8), ("I;16", np.uint16)])
def test_masks_keep_their_values(tmp_path, mode, dtype):
    values = np.random.default_rng(0).choice([*range(21), 255], (devkit.HEIGHT, devkit.WIDTH)).astype(dtype)
    data = devkit.mask(values, mode)
    devkit.write(tmp_path, "a", masks={"SegmentationClass": data})
    stored = read(tmp_path).gt_label_map
    assert (decode_png(stored) == values).all() and decode_png(stored).dtype == np.uint8
    assert (stored == data) == (mode != "I;16")


_ZEROS = np.zeros((devkit.HEIGHT, devkit.WIDTH), np.uint8)


def _mask_of(value, shape=(devkit.HEIGHT, devkit.WIDTH)):
    return {"masks": {"SegmentationClass": devkit.mask(np.full(shape, value, np.uint8))}}


_COLOUR_MASK = devkit.mask(np.full((devkit.HEIGHT, devkit.WIDTH, 3), (128, 64, 7), np.uint8), mode="RGB")
_TURNED = {
    "image": devkit.jpeg(exif=devkit.exif(6)),
    "annotation": devkit.xml(size=(devkit.HEIGHT, devkit.WIDTH)),
}
BAD = {
    "truncated image": ({"image": devkit.jpeg()[: len(devkit.jpeg()) // 2]}, r"does not decode.*a\.jpg"),
    "image cut in its header": ({"image": devkit.jpeg()[:20]}, r"does not decode.*a\.jpg"),
    "not an image": ({"image": b"<html>404</html>"}, r"does not decode.*a\.jpg"),
    "no image": ({"image": None}, r"missing file.*a\.jpg"),
    "no annotation": ({"annotation": None}, r"missing file.*a\.xml"),
    "broken xml": ({"annotation": "<annotation><object>"}, r"not XML.*a\.xml"),
    "other xml": ({"annotation": "<html><body>404</body></html>"}, r"not an annotation of VOC.*a\.xml.*'html'"),
    "unknown encoding": (
        {"annotation": '<?xml version="1.0" encoding="foo-99"?>' + devkit.xml()},
        r"not XML.*a\.xml.*foo-99",
    ),
    "encoding of two bytes": (
        {"annotation": '<?xml version="1.0" encoding="cp932"?>' + devkit.xml()},
        r"not XML.*a\.xml",
    ),
    "number of 400 digits": ({"annotation": devkit.xml([("dog", (1, 1, "9" * 400, 9))])}, "not four numbers"),
    "relative boxes": (
        {"annotation": devkit.xml([("dog", (0.1, 0.2, 0.5, 0.75)), ("person", (0, 0, 1, 1))])},
        r"within 0\.\.1: relative coordinates\?.*a\.xml.*\[0\.1, 0\.2, 0\.5, 0\.75\]; expected: pixels",
    ),
    "size as EXIF turns it": (_TURNED, r"as its EXIF orientation turns it.*a\.xml.*40 x 30.*30 x 40: turn the image"),
    "box outside": (
        {"annotation": devkit.xml([("dog", (1, 1, 43, 9))])},
        r"outside the image.*object 1.*'43'.*40 x 30",
    ),
    "box left of 0": ({"annotation": devkit.xml([("dog", (-1, 1, 4, 9))])}, "outside the image"),
    "no width": ({"annotation": devkit.xml([("dog", (9, 1, 8, 9))])}, r"no area.*object 1, dog"),
    "no height": ({"annotation": devkit.xml([("dog", (1, 9, 8, 8))])}, "no area"),
    "area only outside": ({"annotation": devkit.xml([("dog", (41, 1, 41, 9))])}, "no area"),
    "swapped": ({"annotation": devkit.xml([("dog", (20, 9, 2, 12))])}, "no area"),
    "no number": ({"annotation": devkit.xml([("dog", ("x", 1, 2, 3))])}, r"not four numbers.*'x'"),
    "nan": ({"annotation": devkit.xml([("dog", ("nan", 1, 2, 3))])}, "not four numbers"),
    "unknown class": ({"annotation": devkit.xml([("doge", (1, 1, 2, 3))])}, r"unknown class.*'doge'.*aeroplane"),
    "background box": ({"annotation": devkit.xml([("background", (1, 1, 2, 3))])}, "unknown class"),
    "mask size": (_mask_of(0, (devkit.WIDTH, devkit.HEIGHT)), r"differ in size.*a\.png.*30 x 40.*40 x 30"),
    "mask value 21": (_mask_of(21), r"no class.*\[21\].*0\.\.20 or 255"),
    "mask value 254": (_mask_of(254), r"no class.*\[254\]"),
    "broken mask": ({"masks": {"SegmentationClass": devkit.mask()[:70]}}, r"mask does not decode.*a\.png"),
    "colour mask": ({"masks": {"SegmentationClass": _COLOUR_MASK}}, "no class indices.*RGB"),
    "object of 0 and 255": (
        {"masks": {"SegmentationClass": devkit.mask(np.eye(devkit.HEIGHT, devkit.WIDTH, dtype=np.uint8) * 255)}},
        r"0 and 255 only, which are background and void: write the object's class id.*a\.png",
    ),
    "jpeg as mask": ({"masks": {"SegmentationClass": devkit.jpeg(mode="L")}}, "no class indices"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_a_record_error_that_names_it(tmp_path, name):
    files, match = BAD[name]
    devkit.write(tmp_path, "a", **files)
    with pytest.raises(RecordError, match=match):
        read(tmp_path)


@pytest.mark.parametrize(
    "encoding", ["foo-99", "utf-16", "utf-7", "cp932", "idna", "base64", "punycode", "utf-32", "x" * 300]
)
def test_an_encoding_that_the_parser_does_not_know_or_that_is_another_is_named(tmp_path, encoding):
    devkit.write(tmp_path, "a", annotation=f'<?xml version="1.0" encoding="{encoding}"?>{devkit.xml()}')
    with pytest.raises(RecordError, match=r"the annotation is not XML; file: .*a\.xml; found: .") as found:
        voc.read_record(str(tmp_path), "a", "train")
    assert "\n" not in str(found.value)


def test_an_annotation_without_objects_is_a_negative_image(tmp_path):
    devkit.write(tmp_path, "a", annotation=devkit.xml([]), masks={"SegmentationClass": devkit.mask(_ZEROS)})
    record = read(tmp_path)
    assert record.boxes_xyxy.shape == (0, 4) and record.boxes_xyxy.dtype == np.float32
    assert record.class_ids.tolist() == record.difficult.tolist() == []
    assert not decode_png(record.gt_label_map).any()


def test_boxes_are_cut_off_and_counted_if_asked(tmp_path):
    boxes = [("dog", (10, 10, 49, 30)), ("dog", (-20, 1, 5, 50)), ("person", (0, 0, 41, 31))]
    devkit.write(tmp_path, "a", annotation=devkit.xml(boxes))
    with pytest.raises(RecordError, match=r"outside the image.*object 1, dog.*in 40 x 30; or set outside to clip"):
        read(tmp_path)
    record = voc.read_record(str(tmp_path), "a", "train", outside="clip")
    assert record.boxes_xyxy.tolist() == [[9, 9, 40, 30], [0, 0, 5, 30], [0, 0, 40, 30]]
    assert record.num_clipped == 2, "the third box is outside by rounding only"
    for box in ((1, 1, 81, 9), (-40, 1, 9, 9)):
        devkit.write(tmp_path, "a", annotation=devkit.xml([("dog", box)]))
        with pytest.raises(RecordError, match=r"outside the image.*in 40 x 30$"):
            voc.read_record(str(tmp_path), "a", "train", outside="clip")


def test_outside_is_part_of_the_tables_identity(tmp_path):
    (tmp_path / "JPEGImages").mkdir()
    devkit.write_list(tmp_path, "a")
    readers = [voc.open_splits(str(tmp_path), "train", outside=outside) for outside in ("refuse", "clip")]
    assert [reader.identity.get("outside") for reader in readers] == [None, "clip"]


def test_the_first_pixel_is_no_relative_box(tmp_path):
    devkit.write(tmp_path, "a", annotation=devkit.xml([("dog", (1, 1, 1, 1))]))
    assert read(tmp_path).boxes_xyxy.tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_an_annotation_of_the_stored_image_is_read_whatever_exif_says(tmp_path, orientation):
    devkit.write(tmp_path, "a", image=devkit.jpeg(exif=devkit.exif(orientation)))
    assert len(read(tmp_path).boxes_xyxy) == 2
    turned = devkit.xml(size=(devkit.HEIGHT, devkit.WIDTH))
    if orientation < 5:  # the size in the XML is of no meaning then
        devkit.write(tmp_path, "a", image=devkit.jpeg(exif=devkit.exif(orientation)), annotation=turned)
        assert len(read(tmp_path).boxes_xyxy) == 2


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_masks_in_vocs_colours_are_read(tmp_path, mode):
    ids = np.random.default_rng(0).choice([*range(21), 255], (devkit.HEIGHT, devkit.WIDTH)).astype(np.uint8)
    colours = voc_palette()[ids]
    if mode == "RGBA":
        colours = np.dstack([colours, np.full_like(ids, 255)])
    devkit.write(tmp_path, "a", masks={"SegmentationClass": devkit.mask(colours, mode)})
    assert (decode_png(read(tmp_path).gt_label_map) == ids).all()
    colours[3, 4, 0] ^= 1
    devkit.write(tmp_path, "a", masks={"SegmentationClass": devkit.mask(colours, mode)})
    with pytest.raises(RecordError, match=rf"no class indices.*a\.png.*{mode} with the colour \[\d+, \d+, \d+\]"):
        read(tmp_path)


def test_files_that_are_no_files_are_left_out_by_name(tmp_path):
    """A pipe has no end: reading it would wait for ever."""
    devkit.write(tmp_path, "a", masks={"SegmentationClass": devkit.mask()})
    for path in ("JPEGImages/a.jpg", "Annotations/a.xml", "SegmentationClass/a.png"):
        good = (tmp_path / path).read_bytes()
        (tmp_path / path).unlink()
        for found, make in (("a named pipe", os.mkfifo), ("a folder", os.mkdir), ("a device", link_to_zero)):
            make(tmp_path / path)
            with pytest.raises(RecordError, match=rf"not a file; file: .*{path}; found: '{found}'; expected: a file"):
                read(tmp_path)
            (tmp_path / path).rmdir() if found == "a folder" else (tmp_path / path).unlink()
        (tmp_path / path).write_bytes(good)


def link_to_zero(path) -> None:
    path.symlink_to("/dev/zero")


def test_any_cut_of_an_image_is_an_error_or_decodes_whole(tmp_path):
    data = devkit.jpeg()
    for length in range(0, len(data), 97):
        devkit.write(tmp_path, "a", image=data[:length] or b"\x00")
        with pytest.raises(RecordError, match="does not decode"):
            read(tmp_path)


def test_splits_are_found_in_segmentation_then_main_or_by_path(tmp_path):
    (tmp_path / "JPEGImages").mkdir()
    devkit.write_list(tmp_path, "a\nb\n", "train")
    devkit.write_list(tmp_path, "c\n", "train", folder="Main")
    devkit.write_list(tmp_path, "d 1\ne -1\nf  0\n\n", "dog_val", folder="Main")
    devkit.write_list(tmp_path, "\ufeffg\r\nh\r\n", "own", folder="elsewhere")
    root = str(tmp_path)
    assert voc.read_split(root, "train") == ["a", "b"]
    assert voc.read_split(root, "Main/train") == ["c"]
    assert voc.read_split(root, "dog_val") == ["d", "f"]
    assert voc.read_split(root, str(tmp_path / "ImageSets/elsewhere/own.txt")) == ["g", "h"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", r"names no image.*train\.txt"),
        ("\n \n", "names no image"),
        ("a\nb\na\n", r"an image twice.*\['a'\]"),
        ("/JPEGImages/a.jpg /SegmentationClass/a.png", "not a list of image ids.*line 1"),
        ("a\nb 7\n", "not a list of image ids.*line 2"),
    ],
)
def test_bad_lists_are_errors(tmp_path, text, match):
    (tmp_path / "JPEGImages").mkdir()
    devkit.write_list(tmp_path, text)
    with pytest.raises(InputError, match=match):
        voc.read_split(str(tmp_path), "train")


def test_an_unknown_split_is_answered_with_the_known_ones(tmp_path):
    (tmp_path / "JPEGImages").mkdir()
    devkit.write_list(tmp_path, "a", "val")
    for split in ("trian", "Other/val", "no/list.txt"):
        with pytest.raises(InputError, match=r"no such split.*one of val"):
            voc.read_split(str(tmp_path), split)


def test_the_root_is_the_year_folder_or_holds_just_one(tmp_path):
    year = tmp_path / "VOCdevkit" / "VOC2012"
    devkit.write(year, "a")
    for root in (year, tmp_path / "VOCdevkit", tmp_path):
        assert voc.find_root(str(root)) == str(year)
    devkit.write(tmp_path / "VOCdevkit" / "VOC2007", "a")
    with pytest.raises(InputError, match=r"several.*VOC2007.*VOC2012"):
        voc.find_root(str(tmp_path))
    for other in (year / "JPEGImages", tmp_path / "absent"):
        with pytest.raises(InputError, match="not a VOC devkit"):
            voc.find_root(str(other))


def _rectangle(values, number, y0, x0, y1, x1):
    values[y0:y1, x0:x1] = 255
    values[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2] = number


def test_objects_go_to_the_boxes_that_fit_them_best_whatever_their_order(tmp_path):
    boxes = [("dog", (1, 1, 14, 30)), ("dog", (11, 1, 24, 30)), ("person", (21, 6, 40, 25)), ("dog", (30, 2, 33, 4))]
    objects, classes = (np.zeros((devkit.HEIGHT, devkit.WIDTH), np.uint8) for _ in range(2))
    drawn = ((3, 12, (0, 0, 14, 30)), (2, 12, (10, 0, 24, 30)), (7, 15, (20, 5, 40, 25)))
    for number, class_id, (x0, y0, x1, y1) in drawn:
        _rectangle(objects, number, y0, x0, y1, x1)
        _rectangle(classes, class_id, y0, x0, y1, x1)
    masks = {"SegmentationObject": devkit.mask(objects), "SegmentationClass": devkit.mask(classes)}
    devkit.write(tmp_path, "a", annotation=devkit.xml(boxes), masks=masks)
    record = read(tmp_path)
    found = [rle.decode(counts, devkit.HEIGHT, devkit.WIDTH) for counts in record.instance_masks]
    assert [int(mask.sum()) for mask in found] == [int((objects == number).sum()) for number in (3, 2, 7)] + [0]
    assert (found[2] == (objects == 7)).all()


def test_instance_masks_come_only_from_a_devkit_that_has_them(tmp_path):
    devkit.write(tmp_path, "a", masks={"SegmentationClass": devkit.mask()})
    assert read(tmp_path).instance_masks is None
    empty = devkit.mask(np.zeros((devkit.HEIGHT, devkit.WIDTH), np.uint8))
    devkit.write(tmp_path, "a", masks={"SegmentationClass": devkit.mask(), "SegmentationObject": empty})
    masks = read(tmp_path).instance_masks
    assert len(masks) == 2 and not any(rle.decode(counts, devkit.HEIGHT, devkit.WIDTH).any() for counts in masks)
    turned = devkit.mask(np.zeros((devkit.WIDTH, devkit.HEIGHT), np.uint8))
    devkit.write(tmp_path, "a", masks={"SegmentationClass": devkit.mask(), "SegmentationObject": turned})
    with pytest.raises(RecordError, match=r"differ in size.*SegmentationObject/a\.png"):
        read(tmp_path)


def test_a_test_list_without_annotations_gives_images_only_when_asked(tmp_path):
    root = tmp_path / "VOC2012"
    devkit.write(root, "a", annotation=None)
    devkit.write(root, "b", masks={"SegmentationClass": devkit.mask()})
    devkit.write_list(root, "a\nb\n", "test")
    reader = voc.open_splits(str(root), "test", images_only=True)
    assert (reader.published, reader.identity["images_only"]) == (1456, True)
    for entry in reader.entries:
        record = reader.read(entry)
        assert record.image == devkit.jpeg() and record.boxes_xyxy.shape == (0, 4) and record.gt_label_map is None
    plain = voc.open_splits(str(root), "test")
    assert "images_only" not in plain.identity
    with pytest.raises(RecordError, match=r"missing file.*a\.xml.*images_only"):
        plain.read(plain.entries[0])


def test_published_counts_are_those_of_the_list_that_is_read(tmp_path):
    for year, lists in (("VOC2012", ("Segmentation/train", "Segmentation/val", "Main/train")),
                        ("VOC2007", ("Main/trainval", "Main/test", "Segmentation/trainval"))):  # fmt: skip
        (tmp_path / year / "JPEGImages").mkdir(parents=True)
        for k, name in enumerate(lists):
            devkit.write_list(tmp_path / year, f"{k}\n", name.split("/")[1], folder=name.split("/")[0])
    own = tmp_path / "own.txt"
    own.write_text("x\n")
    for year, split, name, published in (
        ("VOC2012", "train", "train", 1464),
        ("VOC2012", "train+val", "train+val", 2913),
        ("VOC2012", f"train+{own}", "train+own", None),
        ("VOC2012", "Main/train", "train", None),
        ("VOC2007", "Main/trainval+Main/test", "trainval+test", 9963),
        ("VOC2007", "trainval", "trainval", None),
    ):
        reader = voc.open_splits(str(tmp_path / year), split)
        assert (reader.source, reader.split, reader.published) == (year.lower(), name, published)
        assert reader.identity.keys() == {"ids"}
