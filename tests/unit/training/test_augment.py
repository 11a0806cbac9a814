"""Scale, crop and flip: a function of its key that moves image and label map together."""

import numpy as np
import pytest
from PIL import Image

from boxsup_dist.config import AugmentSettings
from boxsup_dist.data.schema import IGNORE_INDEX
from boxsup_dist.training.augment import augment

KEY = {"seed": 0, "epoch": 1, "image_id": "test/0"}


def run(image, label_map, settings, **key):
    return augment(Image.fromarray(image), label_map, settings, **{**KEY, **key})


def blocks(height: int, width: int, size: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A label map of random size x size blocks of classes 0..20 and an image that shows ten times the class."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 21, (-(-height // size), -(-width // size))).astype(np.uint8)
    label_map = np.kron(coarse, np.ones((size, size), np.uint8))[:height, :width]
    return np.repeat(10 * label_map[..., None], 3, axis=2), label_map


def coordinates(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image whose red and green channels are the row and the column, and a label map that is nowhere ignored."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, 0 * rows], axis=2).astype(np.uint8), np.ones((height, width), np.uint8)


@pytest.mark.parametrize("scale", [(1, 1), (0.5, 0.5), (1.5, 1.5), (0.5, 1.5), (0.37, 1.93)])
@pytest.mark.parametrize("flip", [False, True])
def test_image_and_label_map_stay_aligned(scale, flip):
    # Away from the blocks' borders, where the image is interpolated, the image shows ten times the label.
    for seed in range(12):
        image, label_map = blocks(61 + seed, 83 - seed, size=12, seed=seed)
        settings = AugmentSettings(40, 56, *scale, flip)
        pixels, labels = run(image, label_map, settings, seed=seed)
        windows = np.lib.stride_tricks.sliding_window_view(labels, (5, 5))
        flat = np.zeros(labels.shape, bool)
        flat[2:-2, 2:-2] = (windows == windows[:, :, 2:3, 2:3]).all(axis=(2, 3)) & (labels[2:-2, 2:-2] != IGNORE_INDEX)
        assert flat.any()
        shown = pixels[flat].astype(int)
        assert np.abs(shown - 10 * labels[flat][:, None].astype(int)).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3), (33, 47), (200, 31)])
@pytest.mark.parametrize("crop", [(16, 16), (17, 31), (64, 20)])
def test_sizes_and_types_of_the_crop(size, crop):
    image, label_map = blocks(*size)
    for seed in range(6):
        pixels, labels = run(image, label_map, AugmentSettings(*crop), seed=seed)
        assert (pixels.shape, pixels.dtype) == ((*crop, 3), np.uint8)
        assert (labels.shape, labels.dtype) == (crop, np.uint8)
        assert set(np.unique(labels)) <= {*np.unique(label_map).tolist(), IGNORE_INDEX}
        assert (labels != IGNORE_INDEX).any()


def test_beyond_the_image_is_its_mean_colour_and_ignored():
    rng = np.random.default_rng(0)
    image, label_map = rng.integers(0, 256, (20, 24, 3), np.uint8), np.ones((20, 24), np.uint8)
    pixels, labels = run(image, label_map, AugmentSettings(50, 40, 1, 1))
    outside = labels == IGNORE_INDEX
    assert (~outside).sum() == 20 * 24
    assert (pixels[outside] == image.mean(axis=(0, 1)).round()).all()
    rows, columns = np.nonzero(~outside)
    inside = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    shown = pixels[inside]
    assert (shown == image).all() or (shown == image[:, ::-1]).all()


def test_where_the_crop_lies_varies_over_the_whole_range():
    image, label_map = coordinates(40, 50)
    settings = AugmentSettings(32, 32, 1, 1, flip=False)
    corners = np.array([run(image, label_map, settings, image_id=str(i))[0][0, 0, :2] for i in range(400)])
    assert set(corners[:, 0].tolist()) == set(range(9)) and set(corners[:, 1].tolist()) == set(range(19))
    assert abs(np.corrcoef(corners.T)[0, 1]) < 0.2
    # So does the place of an image that is smaller than the crop.
    settings = AugmentSettings(44, 60, 1, 1, flip=False)
    places = [np.argwhere(run(image, label_map, settings, image_id=str(i))[1] == 1)[0] for i in range(200)]
    rows, columns = np.transpose(places)
    assert set(rows.tolist()) == set(range(5)) and set(columns.tolist()) == set(range(11))


def test_half_of_the_images_are_mirrored():
    image, label_map = coordinates(20, 30)
    mirrored = 0
    for i in range(400):
        pixels, _ = run(image, label_map, AugmentSettings(20, 30, 1, 1), image_id=str(i))
        assert (pixels == image).all() or (pixels == image[:, ::-1]).all()
        mirrored += not (pixels == image).all()
    assert abs(mirrored - 200) < 50
    for i in range(20):
        assert (run(image, label_map, AugmentSettings(20, 30, 1, 1, False), image_id=str(i))[0] == image).all()


def test_scales_fill_their_range_and_keep_the_aspect():
    image, label_map = coordinates(100, 80)
    scales = []
    for i in range(300):
        _, labels = run(image, label_map, AugmentSettings(200, 200, 0.5, 1.5), image_id=str(i))
        rows, columns = np.nonzero(labels != IGNORE_INDEX)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert height / 100 == pytest.approx(width / 80, abs=0.02)
        scales.append(height / 100)
    assert 0.5 <= min(scales) < 0.52 and 1.48 < max(scales) <= 1.5
    counts = np.histogram(scales, bins=4, range=(0.5, 1.5))[0]
    assert np.abs(counts - 75).max() < 5 * 75**0.5


def test_it_is_a_function_of_its_key():
    rng = np.random.default_rng(0)
    image, label_map = rng.integers(0, 256, (60, 70, 3), np.uint8), rng.integers(0, 21, (60, 70), np.uint8)
    image.setflags(write=False)
    label_map.setflags(write=False)
    settings = AugmentSettings(48, 48)
    first = run(image, label_map, settings)
    np.random.seed(3)  # the global generator must not matter
    again = run(image, label_map, settings)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    others = [run(image, label_map, settings, **change) for change in ({"seed": 1}, {"epoch": 2}, {"image_id": "b"})]
    assert all((first[0] != other[0]).any() for other in others)


def test_ignored_pixels_stay_ignored():
    image, label_map = blocks(40, 40)
    label_map = np.full_like(label_map, IGNORE_INDEX)
    for seed in range(5):
        assert (run(image, label_map, AugmentSettings(32, 32), seed=seed)[1] == IGNORE_INDEX).all()


def test_a_second_map_moves_with_the_label_map():
    for seed in range(8):
        image, label_map = blocks(61, 83, seed=seed)
        settings = AugmentSettings(72, 40, 0.5, 1.5)
        pixels, alone = run(image, label_map, settings, seed=seed)
        same_pixels, both = run(image, np.dstack([label_map, 30 - label_map]), settings, seed=seed)
        np.testing.assert_array_equal(same_pixels, pixels)
        np.testing.assert_array_equal(both[..., 0], alone)
        inside = alone != IGNORE_INDEX
        assert (both[..., 1][inside] == 30 - alone[inside]).all() and (both[..., 1][~inside] == IGNORE_INDEX).all()
