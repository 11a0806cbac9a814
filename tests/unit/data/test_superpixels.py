"""Superpixel algebra against drawing every pixel: painting, boxes, encodings, decoding of image files."""

import io

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from boxsup_dist.data.images import decode_image, decode_png, encode_png
from boxsup_dist.data.painting import Segment, paint_rectangles, paint_segments, pixel_box
from boxsup_dist.data.schema import IGNORE_INDEX, PROPOSALS, proposals_from_table, proposals_to_table
from boxsup_dist.data.superpixels import decode_superpixels, encode_superpixels, superpixel_extents, union_boxes
from tests.random_proposals import proposals_of, random_proposals, random_superpixels

NONE = np.empty(0, np.uint16)


def slow_paint(superpixels, boxes, class_ids, crowd, segments, *, box_margin, ignore_outside, ignore_undecided):
    """Label of every pixel on its own: what the smallest box says whose segment or undecided part holds it, else void
    or background."""
    label_map = np.zeros(superpixels.shape, np.uint8)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for y, x in np.ndindex(superpixels.shape):
        owner, value, void = None, 0, False
        for k, (x0, y0, x1, y1) in enumerate(boxes):
            in_box = x + 1 > x0 and x < x1 and y + 1 > y0 and y < y1
            dx, dy = (0, 0) if box_margin is None else (box_margin * (x1 - x0), box_margin * (y1 - y0))
            near = x + 1 > x0 - dx and x < x1 + dx and y + 1 > y0 - dy and y < y1 + dy
            unsure = crowd[k] or segments[k] is None
            void |= in_box and (unsure or ignore_outside)
            if unsure:
                continue
            chosen = superpixels[y, x] in segments[k].superpixel_ids and (near or box_margin is None)
            undecided = ignore_undecided and in_box and superpixels[y, x] in segments[k].undecided_ids
            if (chosen or undecided) and (owner is None or areas[k] <= areas[owner]):
                owner, value = k, IGNORE_INDEX if undecided else class_ids[k]
        if owner is not None:
            label_map[y, x] = value
        elif void:
            label_map[y, x] = IGNORE_INDEX
    return label_map


def random_scene(seed, num_boxes=4):
    """Superpixels (H, W), their number, and boxes, classes, crowds and segments of num_boxes objects."""
    rng = np.random.default_rng(seed)
    height, width, count = (int(n) for n in rng.integers((1, 1, 1), (20, 20, 12)))
    superpixels = random_superpixels(rng, height, width, count)
    # Some boxes reach beyond the border; whole numbers make equal areas likely.
    boxes = np.sort(rng.uniform(-3, (width + 3, height + 3), (num_boxes, 2, 2)), axis=1).reshape(-1, 4)
    boxes = (np.round(boxes) if seed % 2 else boxes).astype(np.float32)
    segments = [
        None if rng.random() < 0.2 else Segment(*(np.flatnonzero(rng.random(count) < p) for p in (0.4, 0.2)))
        for _ in boxes
    ]
    return superpixels, count, boxes, rng.integers(1, 21, num_boxes), rng.random(num_boxes) < 0.2, segments


@pytest.mark.parametrize("box_margin", [None, 0.0, 0.25])
@pytest.mark.parametrize("ignore_outside", [False, True])
@pytest.mark.parametrize("ignore_undecided", [False, True])
def test_painting_equals_the_slow_painter(box_margin, ignore_outside, ignore_undecided):
    options = {"box_margin": box_margin, "ignore_outside": ignore_outside, "ignore_undecided": ignore_undecided}
    for seed in range(60):
        superpixels, count, boxes, class_ids, crowd, segments = random_scene(seed)
        found = paint_segments(superpixels, count, boxes, class_ids, crowd, segments, **options)
        assert found.dtype == np.uint8
        expected = slow_paint(superpixels, boxes, class_ids, crowd, segments, **options)
        np.testing.assert_array_equal(found, expected, err_msg=f"seed {seed}")


def test_rectangles_are_segments_of_everything_clipped_to_their_box():
    for seed in range(40):
        superpixels, count, boxes, class_ids, crowd, _ = random_scene(seed)
        crowd[:] = False
        segments = [Segment(np.arange(count), NONE)] * len(boxes)
        options = {"box_margin": 0.0, "ignore_outside": False, "ignore_undecided": True}
        painted = paint_segments(superpixels, count, boxes, class_ids, crowd, segments, **options)
        np.testing.assert_array_equal(
            paint_rectangles(superpixels.shape, boxes, class_ids, crowd), painted, err_msg=f"seed {seed}"
        )


def test_rectangles_of_crowds_are_ignored():
    boxes = np.array([[0, 0, 6, 6], [2, 2, 4, 4]], np.float32)
    label_map = paint_rectangles((6, 6), boxes, np.array([5, 7]), np.array([True, False]))
    assert (label_map == 7).sum() == 4 and (label_map == IGNORE_INDEX).sum() == 32
    label_map = paint_rectangles((6, 6), boxes, np.array([5, 7]), np.array([False, True]))
    assert (label_map == 5).sum() == 32 and (label_map == IGNORE_INDEX).sum() == 4


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_the_smaller_box_is_in_front_whatever_the_order(order):
    superpixels = np.zeros((6, 6), np.uint16)
    superpixels[2:4, 2:4] = 1
    boxes, class_ids = np.array([[0, 0, 6, 6], [2, 2, 4, 4]], np.float32), np.array([5, 7])
    segments = [Segment(np.array([0, 1]), NONE), Segment(np.array([1]), NONE)]
    label_map = paint_segments(
        superpixels,
        2,
        boxes[order],
        class_ids[order],
        np.zeros(2, bool),
        [segments[i] for i in order],
        box_margin=None,
        ignore_outside=False,
        ignore_undecided=True,
    )
    assert (label_map == np.where(superpixels == 1, 7, 5)).all()


def test_an_image_without_boxes_is_background():
    none = np.empty((0, 4), np.float32), np.empty(0, int), np.empty(0, bool)
    options = {"box_margin": 0.0, "ignore_outside": True, "ignore_undecided": True}
    assert not paint_segments(np.zeros((3, 4), np.uint16), 1, *none, [], **options).any()
    assert not paint_rectangles((3, 4), *none).any()


def test_extents_and_unions_equal_the_drawn_masks():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        height, width, count = (int(n) for n in rng.integers((1, 1, 1), (25, 25, 20)))
        proposals = random_proposals(rng, height, width, num_superpixels=count)
        extents = superpixel_extents(proposals.superpixels, count)
        for index, extent in enumerate(extents.tolist()):
            rows, columns = np.nonzero(proposals.superpixels == index)
            if len(rows):
                assert extent == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            else:
                assert extent == [width, height, 0, 0]
        boxes = union_boxes(extents, proposals.indptr, proposals.indices)
        np.testing.assert_array_equal(boxes, proposals.boxes)


def test_extents_of_an_empty_window():
    assert superpixel_extents(np.empty((0, 5), np.uint16), 2).tolist() == [[5, 0, 0, 0]] * 2
    assert union_boxes(np.empty((0, 4), np.int32), np.array([0]), np.empty(0, np.uint16)).shape == (0, 4)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    corners=st.tuples(*[st.floats(-40, 40, width=32) | st.integers(-40, 40).map(float)] * 4),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
)
def test_pixel_box_holds_the_pixels_that_the_box_touches(corners, height, width):
    box = np.array([*np.minimum(corners[:2], corners[2:]), *np.maximum(corners[:2], corners[2:])])
    x0, y0, x1, y1 = pixel_box(box, height, width)
    y, x = np.mgrid[:height, :width]
    touched = (x + 1 > box[0]) & (x < box[2]) & (y + 1 > box[1]) & (y < box[3])
    found = np.zeros((height, width), bool)
    found[y0:y1, x0:x1] = True
    np.testing.assert_array_equal(found, touched)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (9, 1), (13, 17)])
def test_maps_survive_their_encoding(shape):
    rng = np.random.default_rng(0)
    for array in (rng.integers(0, 256, shape, np.uint8), rng.integers(0, 2**16, shape, np.uint16)):
        decoded = decode_png(encode_png(array))
        assert decoded.dtype == array.dtype and (decoded == array).all()
    superpixels = rng.integers(0, 2**16, shape, np.uint16)
    for given_as in (superpixels, superpixels.astype(np.int64)):
        decoded = decode_superpixels(encode_superpixels(given_as))
        assert decoded.dtype == np.uint16 and (decoded == superpixels).all()


def test_bytes_that_are_no_superpixel_map_are_refused():
    whole = encode_superpixels(np.arange(600, dtype=np.uint16).reshape(20, 30))
    foreign = encode_png(np.zeros((4, 4), np.uint8))  # its first bytes, read as a size, are many terabytes
    for bad in (b"", b"abc", whole[:-3], whole[:9], foreign, b"\1" + whole[1:]):
        with pytest.raises(OSError, match="not an encoded superpixel map"):
            decode_superpixels(bad)


@pytest.mark.parametrize("counts", [[5], [0], [3, 0, 4], [0, 0], []])
@pytest.mark.parametrize("chunked", [False, True])
def test_proposals_survive_their_table(counts, chunked):
    before = [
        random_proposals(np.random.default_rng(i), 9, 11, num_proposals=n, image_id=f"test/{i}")
        if n
        else proposals_of(np.zeros((4, 5), np.uint16), 1, [], f"test/{i}")
        for i, n in enumerate(counts)
    ]
    table = proposals_to_table(before)
    assert table.schema == PROPOSALS
    if chunked and counts:
        table = pa.concat_tables([table, table]).slice(len(counts))
    after = proposals_from_table(table)
    assert len(after) == len(before)
    for old, new in zip(before, after, strict=True):
        assert (new.image_id, new.num_superpixels, len(new)) == (old.image_id, old.num_superpixels, len(old))
        for name in ("superpixels", "indptr", "indices", "objectness", "boxes"):
            a, b = getattr(old, name), getattr(new, name)
            assert b.dtype == a.dtype and b.shape == a.shape and (b == a).all(), name


def test_rows_of_a_proposals_table_can_be_taken_one_by_one():
    before = [random_proposals(np.random.default_rng(i), 9, 11, image_id=str(i)) for i in range(4)]
    table = proposals_to_table(before)
    for i, old in enumerate(before):
        (new,) = proposals_from_table(table.slice(i, 1))
        assert new.image_id == old.image_id and (new.indices == old.indices).all() and (new.indptr == old.indptr).all()


def encode(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


COLOURS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
GREY = COLOURS[..., 0]


def test_colour_and_alpha_images():
    assert (decode_image(encode(Image.fromarray(COLOURS))) == COLOURS).all()
    with_alpha = np.concatenate([COLOURS, GREY[..., None]], axis=2)
    assert (decode_image(encode(Image.fromarray(with_alpha))) == COLOURS).all()


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_grey_images_have_three_equal_channels(mode):
    if mode == "I;16":
        image = Image.fromarray(GREY.astype(np.uint16) * 256 + 77)
    else:
        image = Image.fromarray(GREY).convert(mode)
    decoded = decode_image(encode(image))
    assert decoded.dtype == np.uint8 and (decoded == GREY[..., None]).all() and decoded.shape == (6, 9, 3)


def test_one_bit_images():
    bits = GREY > 127
    assert (decode_image(encode(Image.fromarray(bits))) == 255 * bits[..., None]).all()


def test_palette_images_give_colours_and_palette_masks_give_indices():
    indices = np.arange(54, dtype=np.uint8).reshape(6, 9)
    palette = np.random.default_rng(1).integers(0, 256, (256, 3), np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putpalette(palette.tobytes())
    assert (decode_image(encode(image)) == palette[indices]).all()
    assert (decode_png(encode(image)) == indices).all()


def test_cmyk_jpegs_keep_their_colours():
    smooth = np.full((16, 16, 3), (200, 80, 30), np.uint8)
    decoded = decode_image(encode(Image.fromarray(smooth).convert("CMYK"), "JPEG"))
    assert decoded.shape == (16, 16, 3) and np.abs(decoded.astype(int) - smooth).max() <= 6
