"""Trimap bands and Boundary IoU against their plain definitions, pixel by pixel."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boxsup_dist.data.images import encode_png
from boxsup_dist.data.schema import Record, records_to_table
from boxsup_dist.errors import RecordError, SettingError
from boxsup_dist.evaluation import trimap

VOID = 255


def plain_contour(label_map: np.ndarray) -> list[tuple[int, int]]:
    height, width = label_map.shape
    void = [(y, x) for y in range(height) for x in range(width) if label_map[y, x] == VOID]
    if void:
        return void
    found = []
    for y in range(height):
        for x in range(width):
            around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            inside = [(v, u) for v, u in around if 0 <= v < height and 0 <= u < width]
            if any(label_map[v, u] != label_map[y, x] for v, u in inside):
                found.append((y, x))
    return found


def plain_band(label_map: np.ndarray, width_px: int) -> np.ndarray:
    """A square of 2 w + 1 is painted around every contour pixel."""
    band = np.zeros(label_map.shape, bool)
    for y, x in plain_contour(label_map):
        band[max(0, y - width_px) : y + width_px + 1, max(0, x - width_px) : x + width_px + 1] = True
    return band


def plain_region(mask: np.ndarray, depth_px: int) -> np.ndarray:
    region = np.zeros(mask.shape, bool)
    padded = np.pad(mask, depth_px)
    for y, x in np.argwhere(mask):
        region[y, x] = not padded[y : y + 2 * depth_px + 1, x : x + 2 * depth_px + 1].all()
    return region


def blobs(rng: np.random.Generator, height: int, width: int, num_classes: int, void: bool) -> np.ndarray:
    label_map = np.zeros((height, width), np.uint8)
    for _ in range(4):
        y, x = rng.integers(0, height), rng.integers(0, width)
        label_map[y : y + rng.integers(1, height + 1), x : x + rng.integers(1, width + 1)] = rng.integers(num_classes)
    if void:
        label_map[plain_band(label_map, 1) & (rng.random(label_map.shape) < 0.7)] = VOID
    return label_map


def cases() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    maps = {f"blobs {i}": blobs(rng, 17 + i, 23 - i, 4, void=i % 2 == 0) for i in range(6)}
    maps["one pixel"] = np.array([[1]], np.uint8)
    maps["one void pixel"] = np.array([[VOID]], np.uint8)
    maps["no boundary"] = np.full((5, 7), 2, np.uint8)
    maps["all void"] = np.full((5, 7), VOID, np.uint8)
    maps["two columns"] = np.array([[0, 1]] * 4, np.uint8)
    return maps


@pytest.mark.parametrize("name", cases())
def test_bands_are_squares_around_the_contour(name: str) -> None:
    label_map = cases()[name]
    widths = (1, 2, 5, 40)
    found = trimap.bands(label_map, widths)
    assert found.shape == (len(widths), *label_map.shape)
    for band, width in zip(found, widths, strict=True):
        np.testing.assert_array_equal(band, plain_band(label_map, width))


def test_bands_of_real_masks_equal_the_definition(shared: Path) -> None:
    folder = shared / "voc-mini/VOCdevkit/VOC2012/SegmentationClass"
    files = sorted(folder.glob("*.png"))[::100][:5]
    if not files:
        pytest.skip(f"no masks in {folder}")
    for file in files:
        label_map = np.asarray(Image.open(file))
        for band, width in zip(trimap.bands(label_map, (2, 8, 32)), (2, 8, 32), strict=True):
            np.testing.assert_array_equal(band, plain_band(label_map, width), err_msg=file.name)
        # Both sides of the void are in the band, so it is wider than the void and not the whole image.
        assert (label_map == VOID).sum() < trimap.bands(label_map, (2,)).sum() < label_map.size


@pytest.mark.parametrize("name", cases())
def test_matrices_inside_and_outside_count_each_pixel_once(name: str) -> None:
    truth = cases()[name]
    prediction = np.random.default_rng(1).integers(0, 4, truth.shape).astype(np.uint8)
    result = trimap.measure(truth, prediction, 4, (1, 3))
    for inside, outside, width in zip(result.inside, result.outside, (1, 3), strict=True):
        band = plain_band(truth, width)
        expected = np.zeros((2, 4, 4), int)
        for (y, x), label in np.ndenumerate(truth):
            if label != VOID:
                expected[0 if band[y, x] else 1, label, prediction[y, x]] += 1
        np.testing.assert_array_equal(inside, expected[0])
        np.testing.assert_array_equal(outside, expected[1])


@pytest.mark.parametrize("name", cases())
@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_boundary_iou_equals_the_definition(name: str, share: float) -> None:
    truth = cases()[name]
    prediction = blobs(np.random.default_rng(2), *truth.shape, 4, void=False)
    depth = max(1, round(share * math.hypot(*truth.shape)))
    intersection, union = trimap.boundary_counts(truth, prediction, 4, share)
    for c in range(4):
        one = plain_region(truth == c, depth)
        other = plain_region((prediction == c) & (truth != VOID), depth)
        assert (intersection[c], union[c]) == ((one & other).sum(), (one | other).sum())


def test_a_right_prediction_has_boundary_iou_1_whatever_it_says_in_void() -> None:
    truth = cases()["blobs 0"]
    prediction = np.where(truth == VOID, 3, truth)
    result = trimap.measure(truth, prediction, 4, (2,))
    assert set(result.boundary_iou[np.unique(truth[truth != VOID])].tolist()) == {1.0}
    assert np.trace(result.inside[0]) == result.inside[0].sum()


def test_depth_is_two_percent_of_the_diagonal() -> None:
    assert trimap.boundary_distance_px(375, 500) == 12  # 12.5, which rounds to even as numpy and the authors do
    assert trimap.boundary_distance_px(1, 1) == 1


def test_a_shifted_edge_is_worse_near_the_contour() -> None:
    truth = np.zeros((40, 60), np.uint8)
    truth[:, 30:] = 1
    shifted = np.zeros_like(truth)
    shifted[:, 32:] = 1
    result = trimap.measure(truth, shifted, 2, (4,))
    # The contour is two columns wide, so the band has 10 columns; two of them are wrong, and none outside.
    assert result.inside[0].sum() == 40 * 10 and np.trace(result.inside[0]) == 40 * 8
    assert np.trace(result.outside[0]) == result.outside[0].sum() == 40 * 50


def record(index: int, truth: np.ndarray | None) -> Record:
    buffer = io.BytesIO()
    shape = (6, 8) if truth is None else truth.shape
    Image.fromarray(np.full((*shape, 3), index, np.uint8)).save(buffer, format="PNG")
    return Record(
        image_id=f"image_{index}",
        source="test",
        split="val",
        image=buffer.getvalue(),
        height=shape[0],
        width=shape[1],
        boxes_xyxy=np.zeros((0, 4), np.float32),
        class_ids=np.zeros(0, np.int32),
        difficult=np.zeros(0, bool),
        crowd=np.zeros(0, bool),
        gt_label_map=None if truth is None else encode_png(truth),
    )


def test_units_add_up_and_skip_records_without_ground_truth() -> None:
    maps = [cases()[f"blobs {i}"] for i in range(4)]
    table = records_to_table([record(i, m) for i, m in enumerate(maps)] + [record(9, None)])

    def predict(image: np.ndarray) -> np.ndarray:
        return np.full(image.shape[:2], int(image[0, 0, 0]) % 4)

    whole = trimap.boundary_unit(predict, table, 4, (1, 4))
    parts = [trimap.boundary_unit(predict, table.slice(start, 2), 4, (1, 4)) for start in (0, 2, 4)]
    total = sum(parts, trimap.BoundaryResult.empty(4, 2))
    alone = [trimap.measure(m, np.full(m.shape, i), 4, (1, 4)) for i, m in enumerate(maps)]
    for name in ("inside", "outside", "intersection", "union"):
        np.testing.assert_array_equal(getattr(total, name), getattr(whole, name))
        np.testing.assert_array_equal(getattr(whole, name), sum(getattr(a, name) for a in alone))
    assert (whole.num_images, whole.num_skipped) == (total.num_images, total.num_skipped) == (4, 1)
    with pytest.raises(RecordError, match="image_0"):
        trimap.boundary_unit(lambda image: np.zeros((1, 1), np.uint8), table, 4, (1,))


@pytest.mark.parametrize(("widths", "share"), [((), 0.02), ((0,), 0.02), ((2, -1), 0.02), ((2,), 0.0), ((2,), 1.0)])
def test_what_has_no_band_is_refused(widths: tuple[int, ...], share: float) -> None:
    with pytest.raises(SettingError):
        trimap.check_widths(widths, share)
