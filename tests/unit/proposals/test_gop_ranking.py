"""The ranking of GOP's levels: the means that it is made of, and regions without borders."""

import numpy as np
import pytest

from boxsup_dist.proposals import gop_ranking
from boxsup_dist.proposals.geodesic import Regions


def regions(areas: list[float], boxes: list[list[int]], outer: np.ndarray, inner: np.ndarray) -> Regions:
    return Regions(np.array(areas, float), np.array(boxes, np.int32), np.zeros(len(areas), np.uint64), outer, inner)


def test_borders_add_up_along_their_length():
    borders = gop_ranking.Borders(np.array([0.5, 1]), np.array([0.25, 0]), np.array([0, 2.0]))
    assert borders.sums(np.array([4.0, 3])).tolist() == [[4, 2, 1, 0], [3, 3, 0, 6]]


def test_means_along_the_contour_count_not_its_sums():
    boxes, outer = [[5, 5, 15, 15]] * 2, np.array([[20, 8, 6, 4.0]] * 2)
    once, twice = np.array([[10, 1, 1, 1.0]] * 2), np.array([[10, 1, 1, 1.0], [20, 2, 2, 2]])
    same = gop_ranking.density(regions([80, 80], boxes, outer, once), np.ones(2, int), (40, 50))
    assert gop_ranking.density(regions([80, 80], boxes, outer, twice), np.ones(2, int), (40, 50)) == pytest.approx(same)


def test_a_strong_contour_of_colour_inside_the_image_is_better():
    weak, strong = [20, 4, 4, 2.0], [20, 4, 4, 16]
    outer, inner = np.array([weak, strong, weak]), np.zeros((3, 4))
    boxes = [[5, 5, 15, 15], [5, 5, 15, 15], [0, 0, 10, 10]]
    found = gop_ranking.density(regions([80] * 3, boxes, outer, inner), np.ones(3, int), (40, 50))
    assert found[1] > found[0] > found[2]


def test_the_whole_image_has_no_contour():
    nothing = np.zeros((1, 4))
    found = gop_ranking.density(regions([2000], [[0, 0, 50, 40]], nothing, nothing), np.ones(1, int), (40, 50))
    assert np.isfinite(found).all()
