"""Gradient boundaries lie on borders, and nowhere in an image without any."""

import numpy as np
import pytest

from boxsup_dist.proposals import edges


def test_strongest_on_the_border():
    image = np.full((40, 60, 3), 60, np.uint8)
    image[:, 30:] = (200, 90, 40)
    found = edges.gradient_boundaries(image)
    for boundaries in found:
        assert boundaries.dtype == np.float32 and boundaries.shape == (40, 60) and 0 < boundaries.max() <= 1
        assert set(boundaries.argmax(1)) <= {29, 30}
        assert boundaries[:, :10].max() < 0.05
    width = [(boundaries[20] > boundaries[20].max() / 2).sum() for boundaries in found]
    assert width[1] > width[0], "the coarse map is the wider one"


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 1), (30, 20)])
def test_uniform_images_of_any_size(shape):
    for boundaries in edges.gradient_boundaries(np.full((*shape, 3), 130, np.uint8)):
        assert boundaries.shape == shape and boundaries.max() < 1e-4
