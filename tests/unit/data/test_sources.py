"""Sources: the label map of every supervision, what it may read for it, and images that two tables share."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pytest

from boxsup_dist.config import AssignmentSettings, AugmentSettings, Supervision
from boxsup_dist.data import tables
from boxsup_dist.data.images import encode_png
from boxsup_dist.data.painting import GRANTED_COLUMNS, Segment, painter
from boxsup_dist.data.schema import LABEL_MAPS, Proposals, Record, iter_records, proposals_to_table, records_to_table
from boxsup_dist.data.shared_images import find_duplicates, published_name
from boxsup_dist.data.sources import Mixture, Source, balanced_weights, make_units
from boxsup_dist.data.tables import Table
from boxsup_dist.errors import InputError, TableError

SUPERVISIONS = get_args(Supervision)
TRUTH = np.array([[2, 2, 2, 0, 0, 0], [2, 2, 2, 0, 0, 0], [0] * 6, [0] * 6], np.uint8)
STATIC = np.array([[0, 2, 2, 0, 0, 0]] + [[0] * 6] * 3, np.uint8)
RECTANGLE = np.array([[2] * 6, [2] * 6, [0] * 6, [0] * 6], np.uint8)
POISON = b"poison"


def make_record(name: str = "a", crowd: bool = False, image: bytes | None = None) -> Record:
    """A 4x6 image with one box of class 2 over its upper half."""
    return Record(
        image_id=name,
        source="test",
        split="train",
        image=image or name.encode(),
        height=4,
        width=6,
        boxes_xyxy=np.array([[0, 0, 6, 2]], np.float32),
        class_ids=np.array([2], np.int32),
        difficult=np.zeros(1, bool),
        crowd=np.array([crowd]),
        gt_label_map=encode_png(TRUTH),
        instance_masks=[POISON],
    )


def write(folder: Path, kind: str, table: pa.Table, settings: dict) -> Table:
    uri = str(folder)
    tables.begin(uri, kind, settings)
    return tables.publish(uri, kind, settings, [tables.write_shard(uri, 0, table, kind, row_group_size=2)])


def write_records(folder: Path, records: list[Record]) -> Table:
    return write(folder, "records", records_to_table(records), {"classes": ["background", "one", "two"]})


def quadrants(record: Record) -> Proposals:
    """Four superpixels, one a quarter of the image, each a proposal."""
    rows, columns = np.indices((record.height, record.width))
    superpixels = 2 * (rows >= record.height // 2) + (columns >= record.width // 2)
    return Proposals(
        image_id=record.image_id,
        superpixels=superpixels.astype(np.uint16),
        num_superpixels=4,
        indptr=np.arange(5),
        indices=np.arange(4, dtype=np.uint16),
        objectness=np.zeros(4, np.float32),
        boxes=np.zeros((4, 4), np.uint16),
    )


def make_source(folder: Path, supervision: str, records: list[Record]) -> Source:
    table = write_records(folder / "records", records)
    partner = {"records": table.fingerprint}
    proposals = label_maps = None
    if supervision == "box":
        rows = proposals_to_table([quadrants(record) for record in records])
        proposals = write(folder / "proposals", "proposals", rows, partner)
    if supervision in ("grabcut", "wssl"):
        maps = [{"image_id": record.image_id, "label_map": encode_png(STATIC)} for record in records]
        label_maps = write(folder / "maps", "label_maps", pa.Table.from_pylist(maps, schema=LABEL_MAPS), partner)
    return Source(table, supervision, proposals, label_maps)


def segment_of(*superpixel_ids: int, undecided: tuple[int, ...] = ()) -> Segment:
    return Segment(np.array(superpixel_ids, np.uint16), np.array(undecided, np.uint16))


def paint(source: Source, segments: dict, assignment: AssignmentSettings | None = None, **options) -> np.ndarray:
    """Label map of the first record, read with the columns that its supervision grants."""
    (unit,) = make_units([source])
    found = painter(unit, segments, assignment or AssignmentSettings(), **options)
    columns = GRANTED_COLUMNS[source.supervision]
    return found(next(iter_records(source.records.read(unit.where, columns))))


EXPECTED = {
    "mask": TRUTH,
    "rectangles": RECTANGLE,
    "wssl_em": RECTANGLE,
    "grabcut": STATIC,
    "wssl": STATIC,
    "box": TRUTH,
}


@pytest.mark.parametrize("supervision", SUPERVISIONS)
def test_every_supervision_paints_from_what_it_is_granted(tmp_path, supervision):
    source = make_source(tmp_path, supervision, [make_record()])
    np.testing.assert_array_equal(paint(source, {"a": [segment_of(0)]}), EXPECTED[supervision])


@pytest.mark.parametrize("supervision", SUPERVISIONS)
def test_only_masks_read_ground_truth(supervision):
    granted = set(GRANTED_COLUMNS[supervision])
    assert "instance_masks" not in granted
    assert ("gt_label_map" in granted) == (supervision == "mask")


def test_rectangles_against_a_pixel_loop(tmp_path):
    rng = np.random.default_rng(0)
    low = rng.integers(0, 12, (6, 2))
    boxes = np.concatenate([low, np.minimum(low + rng.integers(1, 9, (6, 2)), 15)], 1).astype(np.float32)
    record = replace(
        make_record(),
        height=15,
        width=15,
        boxes_xyxy=boxes,
        class_ids=np.arange(1, 7, dtype=np.int32),
        crowd=np.zeros(6, bool),
        difficult=np.zeros(6, bool),
    )
    found = paint(make_source(tmp_path, "rectangles", [record]), {})
    for (y, x), value in np.ndenumerate(found):
        # The smallest box that holds the pixel wins; the later one of two equally large ones.
        holding = [
            ((x1 - x0) * (y1 - y0), -k) for k, (x0, y0, x1, y1) in enumerate(boxes) if x0 <= x < x1 and y0 <= y < y1
        ]
        assert value == (1 - min(holding)[1] if holding else 0)


def test_a_segment_that_leaves_its_box_is_clipped_on_demand(tmp_path):
    source = make_source(tmp_path, "box", [make_record()])
    chosen = {"a": [segment_of(0, 2)]}
    loose, near, clipped = (paint(source, chosen, AssignmentSettings(box_margin=m)) for m in (None, 0.5, 0.0))
    assert (loose[2:, :3] == 2).all() and not clipped[2:].any()
    assert (near[2, :3] == 2).all() and not near[3:].any()


def test_undecided_and_uncovered_pixels_are_ignored_in_training_and_decided_when_measured(tmp_path):
    source = make_source(tmp_path, "box", [make_record()])
    chosen = {"a": [segment_of(0, undecided=(1,))]}
    outside = AssignmentSettings(ignore_outside=True)
    assert (paint(source, chosen)[:2, 3:] == 255).all()
    assert (paint(source, {"a": [segment_of(0)]}, outside)[:2, 3:] == 255).all()
    for settings in (AssignmentSettings(), outside):
        np.testing.assert_array_equal(paint(source, chosen, settings, decided=True), TRUTH)


@pytest.mark.parametrize("crowd, segments", [(True, [segment_of(0)]), (False, [None])])
def test_the_box_of_a_crowd_or_without_a_candidate_is_ignored(tmp_path, crowd, segments):
    found = paint(make_source(tmp_path, "box", [make_record(crowd=crowd)]), {"a": segments})
    assert (found[:2] == 255).all() and not found[2:].any()


def test_tables_that_do_not_belong_together_are_an_error(tmp_path):
    source = make_source(tmp_path / "a", "box", [make_record()])
    with pytest.raises(TableError, match="differ in the number of boxes"):
        paint(source, {"a": [None, None]})
    other = make_source(tmp_path / "b", "box", [make_record("b")])
    with pytest.raises(TableError, match="made from other records"):
        Source(source.records, "box", other.proposals)
    maps = make_source(tmp_path / "c", "grabcut", [make_record("c")])
    with pytest.raises(TableError, match="label maps were made from other records"):
        Source(source.records, "grabcut", label_maps=maps.label_maps)


def test_units_keep_the_order_of_the_sources_and_know_their_supervision(tmp_path):
    first = make_source(tmp_path / "a", "mask", [make_record(name) for name in "abc"])
    second = make_source(tmp_path / "b", "rectangles", [make_record(name) for name in "de"])
    units = make_units([first, second], [frozenset({1, 2}), frozenset()])
    assert [(unit.source is first, unit.where.row_group, unit.rows) for unit in units] == [
        (True, 0, (0,)),
        (True, 1, ()),
        (False, 0, (0, 1)),
    ]
    mixture = Mixture(units, AssignmentSettings(), AugmentSettings(), 0)
    assert mixture.sources == [first, second]
    assert mixture.with_supervision("rectangles", "box") == [2] and mixture.with_supervision("mask") == [0, 1]


def test_rare_classes_weigh_more_and_no_class_more_than_the_limit(tmp_path):
    def source(name: str, class_ids: list[int], sides: list[int]) -> Source:
        boxes = np.array([[0, 0, side, side] for side in sides], np.float32).reshape(-1, 4)
        none = np.zeros(len(sides), bool)
        record = replace(make_record(name), boxes_xyxy=boxes, class_ids=np.array(class_ids), difficult=none, crowd=none)
        return Source(write_records(tmp_path / name, [record]), "rectangles")

    sources = [source("a", [1, 1], [6, 8]), source("b", [2], [10]), source("c", [], [])]
    assert balanced_weights(sources, 1.0) == (1.0, 1.0, 1.0)
    sources = [source("d", [1, 1, 2], [6, 8, 5])]  # summed areas 100 and 25, their mean 62.5
    assert balanced_weights(sources, 1.0) == pytest.approx((1.0, 0.625, 2.5))
    assert balanced_weights(sources, 0.5) == pytest.approx((1.0, 0.625**0.5, 2.5**0.5))
    assert balanced_weights(sources, 9.0) == (1.0, pytest.approx(0.2), 5.0)
    assert balanced_weights([source("e", [2], [4])], 1.0) == (1.0, 1.0, 1.0)


def test_an_image_of_two_tables_is_dropped_from_the_later_one_and_from_training(tmp_path):
    def table(name: str, images: list[bytes]) -> Table:
        return write_records(tmp_path / name, [make_record(f"{name}{i}", image=b) for i, b in enumerate(images)])

    first, second = table("first", [b"1", b"2", b"3"]), table("second", [b"4", b"2", b"5", b"4"])
    val = table("val", [b"3", b"9"])
    assert find_duplicates([first, second], val, "drop") == [frozenset({2}), frozenset({1, 3})]
    assert find_duplicates([first], table("other", [b"8"]), "refuse") == [frozenset()]
    with pytest.raises(InputError, match=r"3 images are in two tables.*first2 \(also in val_records\)"):
        find_duplicates([first, second], val, "refuse")


@pytest.mark.parametrize(
    "image_id, name",
    [
        ("voc2007/000032", "2007_000032"),
        ("voc2012/2007_000032", "2007_000032"),
        ("context/2008_000123", "2008_000123"),
        ("coco/COCO_train2014_000000000009", "000000000009"),
        ("coco/000000000009", "000000000009"),
        ("mine/000032", None),
        ("mine/photo_000000000009", None),
    ],
)
def test_editions_of_a_data_set_name_an_image_alike(image_id, name):
    assert published_name(image_id) == name


def test_the_same_photo_under_the_names_of_two_editions_is_found(tmp_path):
    old = write_records(tmp_path / "old", [make_record("voc2007/000032", image=b"1")])
    new = write_records(tmp_path / "new", [make_record("voc2012/2007_000032", image=b"re-encoded")])
    assert find_duplicates([old], new, "drop") == [frozenset({0})]
