"""Prediction of single images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from boxsup_dist.model.inference import predict_log_probs
from boxsup_dist.model.networks import SegmentationNetwork, build_network


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
    log_probs = predict_log_probs(network, picture, autocast_dtype=torch.bfloat16)
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
