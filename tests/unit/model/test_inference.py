"""Prediction of single images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from boxsup_dist.config import PredictionSettings
from boxsup_dist.errors import SettingError
from boxsup_dist.model.grids import CellGrid
from boxsup_dist.model.inference import (
    average_log_probs,
    class_scores,
    predict_label_map,
    predict_log_probs,
    predict_probs,
)
from boxsup_dist.model.networks import SegmentationNetwork
from tests import networks
from tests.networks import build_network


@pytest.fixture(scope="module")
def network() -> SegmentationNetwork:
    torch.manual_seed(0)
    network = build_network("timm:tf_efficientnet_lite0", 5, head_channels=8)
    torch.nn.init.normal_(network.score.weight)
    return network.eval()


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (33, 32), (47, 60)])
def test_log_probabilities_at_image_size_equal_the_forward_pass(network, size):
    picture = image(*size)
    log_probs = predict_log_probs(network, picture)
    assert log_probs.dtype == np.float32 and log_probs.shape == (5, *size)
    assert np.allclose(np.exp(log_probs).sum(0), 1, atol=1e-5)
    with torch.inference_mode():
        logits = network(torch.from_numpy(picture.transpose(2, 0, 1)[None].copy()))
    assert np.allclose(log_probs, torch.log_softmax(logits, 1)[0].numpy(), atol=1e-4)


def test_read_only_and_strided_images(network):
    picture = image(20, 24)
    expected = predict_log_probs(network, picture)
    frozen = picture.copy()
    frozen.flags.writeable = False
    strided = np.ascontiguousarray(picture[:, ::-1])[:, ::-1]
    for other in (frozen, strided):
        assert np.array_equal(predict_log_probs(network, other), expected)


def test_mixed_precision_is_close_and_stays_float32(network):
    picture = image(33, 49)
    with torch.autocast("cpu", torch.bfloat16):
        log_probs = predict_log_probs(network, picture)
    assert log_probs.dtype == np.float32
    assert np.abs(np.exp(log_probs) - np.exp(predict_log_probs(network, picture))).mean() < 0.05


def test_untrained_network_is_uniform():
    network = build_network("timm:tf_efficientnet_lite0", 5, head_channels=8).eval()
    assert np.allclose(predict_log_probs(network, image(9, 9)), -np.log(5))


def test_refuses_training_mode_and_other_arrays(network):
    training = build_network("timm:tf_efficientnet_lite0", 5, head_channels=8)
    with pytest.raises(ValueError, match="training mode"):
        predict_log_probs(training, image(4, 4))
    for bad in (image(4, 4).astype(np.float32), image(4, 4)[..., 0], image(4, 4)[:0]):
        with pytest.raises(ValueError, match="uint8"):
            predict_log_probs(network, bad)


def logits_of(log_probs: np.ndarray) -> np.ndarray:
    """Logits up to a constant of the pixel."""
    return log_probs - log_probs.mean(0)


@pytest.mark.parametrize("size", [(1, 1), (33, 47), (64, 50)])
def test_plain_settings_are_the_plain_prediction(network, size):
    picture = image(*size)
    plain = predict_log_probs(network, picture)
    assert np.array_equal(average_log_probs(network, picture, PredictionSettings()), plain)
    assert np.array_equal(predict_label_map(network, picture, PredictionSettings()), plain.argmax(0))
    assert np.array_equal(predict_probs(network, picture, PredictionSettings()), np.exp(plain))


@pytest.mark.parametrize("scales", [(1.0,), (0.8, 1.0, 1.2)])
def test_mirrored_image_has_the_mirrored_prediction(network, scales):
    # 16 k + 1 pixels: the grid of cells is symmetric.
    picture = image(33, 49)
    settings = PredictionSettings(scales=scales, flip=True)
    found = average_log_probs(network, picture, settings)
    mirrored = average_log_probs(network, picture[:, ::-1], settings)[..., ::-1]
    assert np.allclose(found, mirrored, atol=1e-4)
    plain = PredictionSettings(scales=scales)
    assert not np.allclose(found, average_log_probs(network, picture, plain), atol=1e-2)


def test_scales_and_mirrorings_are_averaged_as_logits(network):
    picture = image(40, 56)
    parts = [average_log_probs(network, picture, PredictionSettings(scales=(scale,))) for scale in (0.8, 1.0, 1.2)]
    together = average_log_probs(network, picture, PredictionSettings(scales=(0.8, 1.0, 1.2)))
    assert together.shape == (5, 40, 56)
    assert np.allclose(logits_of(together), np.mean([logits_of(part) for part in parts], axis=0), atol=1e-4)
    # The same view twice is that view.
    twice = average_log_probs(network, picture, PredictionSettings(scales=(0.8, 0.8)))
    assert np.allclose(twice, parts[0], atol=1e-5)


class LocalNetwork(torch.nn.Module):
    """Sees 3 cells of 16 pixels, so its reach is known; otherwise what average_log_probs uses of a network."""

    def __init__(self, patch_px: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cells = torch.nn.Conv2d(3, 4, 17, stride=16, padding=8)
        self.mix = torch.nn.Conv2d(4, 5, 3, padding=1)
        self.grid = CellGrid(16, patches=False)
        self.spec = networks.spec("timm:resnet18", 5)
        if patch_px is not None:  # as a transformer's
            self.cells = torch.nn.Conv2d(3, 4, patch_px, stride=patch_px)
            self.grid = CellGrid(patch_px, patches=True)
            self.spec = networks.spec("timm:vit_small_patch14_dinov2", 5)
        self.device = torch.device("cpu")
        self.eval()

    def score_map(self, images):
        return self.mix(torch.tanh(self.cells(self.grid.pad(images.float() / 128 - 1))))

    def upsample(self, score_map, height, width):
        return self.grid.upsample(score_map, height, width)


@pytest.mark.parametrize("size", [(300, 500), (321, 481), (257, 130), (128, 700), (640, 33)])
def test_tiles_give_the_whole_image_to_a_network_that_sees_less_than_their_margin(size):
    # Reach: a cell's 8 px, a neighbour cell of 16, up to 16 to the cell that a pixel is interpolated from: 40 px.
    network, picture = LocalNetwork(), image(*size)
    whole = average_log_probs(network, picture, PredictionSettings())
    for tile_px in (320, 321, 352):
        tiled = average_log_probs(network, picture, PredictionSettings(tile_px=tile_px))
        assert np.allclose(tiled, whole, atol=1e-4)
    small = average_log_probs(network, picture, PredictionSettings(tile_px=128))  # a margin of 16 px
    assert (np.abs(small - whole).max(0) < 1e-4).mean() > 0.3
    assert np.array_equal(average_log_probs(network, picture, PredictionSettings(tile_px=max(size))), whole)


@pytest.mark.parametrize("size", [(300, 500), (257, 130), (128, 700)])
def test_tiles_lie_on_patches_whose_side_divides_no_power_of_two(size):
    """Reach: half a patch of 14 px, a neighbour patch, up to one more to the cell of a pixel: 35 px."""
    network, picture = LocalNetwork(14), image(*size)
    whole = average_log_probs(network, picture, PredictionSettings())
    for tile_px in (320, 333):
        tiled = average_log_probs(network, picture, PredictionSettings(tile_px=tile_px))
        assert np.allclose(tiled, whole, atol=1e-4)


def test_tiles_of_a_real_network_are_close_and_go_with_scales_and_mirroring(network):
    picture = image(150, 210)
    settings = PredictionSettings(scales=(1.0, 1.2), flip=True)
    whole = average_log_probs(network, picture, settings)
    tiled = average_log_probs(network, picture, PredictionSettings(scales=(1.0, 1.2), flip=True, tile_px=160))
    assert np.isfinite(tiled).all() and tiled.shape == whole.shape
    # The corner is of one tile and far from its inner border.
    assert np.abs(tiled - whole)[:, :20, :20].mean() < 0.2 * np.abs(whole).mean()


@pytest.mark.parametrize("options", [{}, {"scales": (0.8, 1.2), "flip": True}])
def test_the_logit_of_the_background_moves_its_odds_alone(network, options):
    picture = image(24, 30)
    plain = average_log_probs(network, picture, PredictionSettings(**options))
    moved = average_log_probs(network, picture, PredictionSettings(**options, background_logit=-1.5))
    odds, moved_odds = plain[1:] - plain[:1], moved[1:] - moved[:1]
    np.testing.assert_allclose(moved_odds, odds + 1.5, atol=1e-5)
    np.testing.assert_allclose(np.exp(moved).sum(0), 1, atol=1e-5)


def test_the_crf_decides_last(network):
    picture = image(24, 30)
    settings = PredictionSettings(crf="deeplab_vgg")
    probs = predict_probs(network, picture, settings)
    assert np.allclose(probs.sum(0), 1, atol=1e-3)
    assert np.array_equal(predict_label_map(network, picture, settings), probs.argmax(0))
    with pytest.raises(SettingError, match="deeplab_vgg"):
        predict_label_map(network, picture, PredictionSettings(crf="best"))


@pytest.mark.parametrize(
    "bad", [{"tile_px": 100}, {"scales": ()}, {"scales": (0.0,)}, {"background_logit": float("nan")}]
)
def test_settings_that_cannot_work_are_refused(bad):
    with pytest.raises(SettingError):
        PredictionSettings(**bad).check()


SIZES = [(40, 50), (33, 32), (40, 50), (1, 1), (40, 50), (33, 32)]
CLASSES = [[0, 2], [0, 1, 4], [0], [0, 3], [0, 1], [0, 2, 3]]


@pytest.mark.parametrize("batch_pixels", [0, 2 * 40 * 50, 2**21])
def test_scores_of_some_classes_are_those_of_the_image_alone(network, batch_pixels):
    """Images of one size share a pass, in fixed groups; other images of the unit change nothing but the last digits."""
    pictures = [np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8) for i, size in enumerate(SIZES)]
    for normalise in (True, False):
        options = {"normalise": normalise, "batch_pixels": batch_pixels}
        found = dict(class_scores(network, pictures, CLASSES, **options))
        again = dict(class_scores(network, pictures, CLASSES, **options))
        assert sorted(found) == list(range(len(pictures)))
        for i, picture in enumerate(pictures):
            expected = predict_log_probs(network, picture)[CLASSES[i]]
            scores = found[i].numpy()
            assert np.array_equal(scores, again[i].numpy()) and scores.shape == expected.shape
            if normalise:
                np.testing.assert_allclose(scores, expected, atol=1e-5)
                assert batch_pixels or np.array_equal(scores, expected)  # alone: bit by bit
            np.testing.assert_allclose(scores - scores[0], expected - expected[0], atol=1e-5)


def test_scores_of_no_image_and_of_a_network_in_training(network):
    assert list(class_scores(network, [], [], normalise=True)) == []
    with pytest.raises(ValueError, match="training mode"):
        next(class_scores(build_network("timm:test_resnet", 5, weights="none"), [image(4, 4)], [[0]], normalise=True))
