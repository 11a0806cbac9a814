"""The PASCAL-Context reader on label maps as published: 459 names become 59 classes and background."""

import time

import numpy as np
import pytest

from boxsup_dist.data.images import decode_png
from boxsup_dist.data.schema import VOC_CLASSES
from boxsup_dist.errors import InputError, RecordError
from boxsup_dist.records import context
from tests import devkit, mat_sets

HEIGHT, WIDTH = devkit.HEIGHT, devkit.WIDTH
NAMES = [line.split(": ")[1] for line in mat_sets.labels_text().splitlines()]


def number(name: str) -> int:
    return NAMES.index(name) + 1


@pytest.fixture
def roots(tmp_path):
    """A devkit of VOC 2010 with two images, and label maps with names in and outside the 59."""
    year = tmp_path / "VOCdevkit" / "VOC2010"
    for image_id in "ab":
        devkit.write(year, image_id, annotation=None)
    devkit.write_list(year, "a\n", "train", folder="Main")
    devkit.write_list(year, "b\n", "val", folder="Main")
    devkit.write_list(year, "b\n", "train")
    values = np.full((HEIGHT, WIDTH), number("other 3"), np.uint16)
    values[:, :10] = number("sky")
    values[:5, 10:] = number("table")
    values[5:9, 10:] = number("tv monitor")
    values[20:] = 0
    for image_id in "ab":
        mat_sets.write_context(tmp_path / "context", image_id, values)
    return tmp_path / "context", year


def test_a_record_has_a_label_map_of_60_classes_and_no_box(roots):
    reader = context.open_splits(*map(str, roots), "train")
    assert [tuple(entry) for entry in reader.entries] == [("a", "train")], "of ImageSets/Main, not Segmentation"
    assert (reader.source, reader.published, len(reader.classes)) == ("context", 4998, 60)
    record = reader.read(reader.entries[0])
    assert record.image_id == "context/a" and record.image == devkit.jpeg()
    assert record.boxes_xyxy.shape == (0, 4) and len(record.class_ids) == 0 and record.instance_masks is None
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[:, :10] = reader.classes.index("sky")
    expected[:5, 10:] = reader.classes.index("diningtable")
    expected[5:9, 10:] = reader.classes.index("tvmonitor")
    expected[20:] = 0
    assert (decode_png(record.gt_label_map) == expected).all()


def test_splits_join_and_lists_are_taken(roots, tmp_path):
    folder, year = map(str, roots)
    assert context.open_splits(folder, year, "train+val").published == 4998 + 5105
    (tmp_path / "own.txt").write_text("b\n")
    own = context.open_splits(folder, year, str(tmp_path / "own.txt"))
    assert own.published is None and [tuple(entry) for entry in own.entries] == [("b", "own")]


def test_vocs_classes_come_first_and_the_59_are_the_published_ones(shared):
    assert context.CONTEXT_CLASSES[:21] == VOC_CLASSES and len(set(context.CONTEXT_CLASSES)) == 60
    file = shared / "published" / "pascal_context_59_classes.txt"
    if not file.is_file():
        pytest.skip(f"no list of classes at {file}")
    assert [line.split(": ")[1] for line in file.read_text().splitlines()] == list(context.CONTEXT_CLASSES)


def test_every_class_is_found_among_459_names(roots):
    class_of = context.read_label_names(str(roots[0] / "labels.txt"))
    assert class_of.shape == (460,) and class_of.dtype == np.uint8
    assert sorted(class_of[class_of > 0]) == list(range(1, 60))
    assert class_of[[0, number("other 0"), number("cloth"), number("bedclothes")]].tolist() == [
        0, 0, context.CONTEXT_CLASSES.index("clothes"), context.CONTEXT_CLASSES.index("bedcloth")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "variable", "match"),
    [
        (np.full((HEIGHT, WIDTH), 460, np.uint16), "LabelMap", r"unknown values.*a\.mat.*LabelMap.*\[460\].*0\.\.459"),
        (np.full((HEIGHT, WIDTH), 1.5), "LabelMap", r"unknown values.*\[1\.5\]"),
        (np.full((HEIGHT, WIDTH), np.nan), "LabelMap", "unknown values"),
        (np.zeros((WIDTH, HEIGHT), np.uint16), "LabelMap", "another size.*30 x 40.*40 x 30"),
        (np.zeros((HEIGHT, WIDTH), np.uint16), "Labels", r"lacks a value.*LabelMap; found: \['Labels'\]"),
    ],
)
def test_bad_maps_are_reported(roots, values, variable, match):
    mat_sets.write_context(roots[0], "a", values, variable)
    reader = context.open_splits(*map(str, roots), "train")
    with pytest.raises(RecordError, match=match):
        reader.read(reader.entries[0])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("1: accordion\n", r"lacks 59 names of classes, such as aeroplane.*labels\.txt; found: '1 names'"),
        ("accordion\n", r"not a list of names.*line 1; found: 'accordion'"),
        ("1: a\n1: b\n", "not a list of names.*line 2"),
        (mat_sets.labels_text() + "460: sky\n", r"names a class twice; file: .*labels\.txt; found: \['sky'\]"),
        ("9" * 5000 + ": a\n", "not a list of names.*line 1"),
        (None, r"no such file.*labels\.txt"),
    ],
)
def test_bad_lists_of_labels_are_reported(roots, text, match):
    file = roots[0] / "labels.txt"
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(InputError, match=match):
        context.open_splits(*map(str, roots), "train")


def test_a_folder_that_is_not_context_is_reported(roots):
    with pytest.raises(InputError, match="not the data set PASCAL-Context"):
        context.open_splits(str(roots[1]), str(roots[1]), "train")


def test_names_of_no_class_may_occur_twice_and_long_lists_take_a_moment(roots):
    others = "".join(f"{number}: other\n" for number in range(460, 2**16))
    (roots[0] / "labels.txt").write_text(mat_sets.labels_text() + others)
    started = time.monotonic()
    assert len(context.read_label_names(str(roots[0] / "labels.txt"))) == 2**16
    assert time.monotonic() - started < 10
