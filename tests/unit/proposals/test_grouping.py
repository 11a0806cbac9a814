"""Grouping against a plain greedy merge that recomputes everything in every step."""

import itertools

import numpy as np
import pytest

from boxsup_dist.proposals.grouping import RegionFeatures, group, merged_features
from boxsup_dist.proposals.settings import SIMILARITIES

WEIGHTS = {"all": "ctsfb", "paper": "ctsf", "border": "b", "size": "s", "shape": "sf"}


def random_features(num_regions: int, seed: int) -> RegionFeatures:
    """A connected random graph with features that leave no ties."""
    rng = np.random.default_rng(seed)
    chain = {(i, i + 1) for i in range(num_regions - 1)}
    extra = {p for p in itertools.combinations(range(num_regions), 2) if rng.random() < 0.2}
    pairs = np.array(sorted(chain | extra), np.int32).reshape(-1, 2)
    low = rng.integers(0, 30, (num_regions, 2))
    return RegionFeatures(
        sizes=rng.integers(5, 60, num_regions).astype(np.float64),
        boxes=np.concatenate([low, low + rng.integers(3, 12, (num_regions, 2))], 1).astype(np.int32),
        colour=rng.dirichlet(np.ones(12), num_regions).astype(np.float32),
        texture=rng.dirichlet(np.ones(16), num_regions).astype(np.float32),
        pairs=pairs,
        lengths=rng.integers(1, 20, len(pairs)).astype(np.float64),
        contrast=rng.random(len(pairs)),
    )


def greedy(features: RegionFeatures, weights: np.ndarray) -> list[tuple[int, int]]:
    """The paper's algorithm 1 word for word: sets of regions, all similarities computed again in every step."""
    regions = {i: [i] for i in range(len(features.sizes))}
    borders = {tuple(p): k for k, p in enumerate(features.pairs.tolist())}
    total = features.sizes.sum()

    def mean(values: np.ndarray, members: list[int]) -> np.ndarray:
        return np.average(values[members].astype(np.float64), axis=0, weights=features.sizes[members])

    def similarity(a: list[int], b: list[int]) -> float:
        shared = [borders[p] for x in a for y in b if (p := (min(x, y), max(x, y))) in borders]
        if not shared:
            return -np.inf
        both = features.sizes[a + b].sum()
        boxes = features.boxes[a + b]
        width, height = boxes[:, 2:].max(0) - boxes[:, :2].min(0)
        terms = [
            np.minimum(mean(features.colour, a), mean(features.colour, b)).sum(),
            np.minimum(mean(features.texture, a), mean(features.texture, b)).sum(),
            1 - both / total,
            1 - (width * height - both) / total,
            1 - np.average(features.contrast[shared], weights=features.lengths[shared]),
        ]
        return float(weights @ terms)

    merges = []
    new = len(regions)
    while len(regions) > 1:
        a, b = max(itertools.combinations(sorted(regions), 2), key=lambda p: similarity(regions[p[0]], regions[p[1]]))
        merges.append((a, b))
        regions[new] = regions.pop(a) + regions.pop(b)
        new += 1
    return merges


@pytest.mark.parametrize("letters", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_plain_greedy_merge(letters, seed):
    features = random_features(5 + 4 * seed, seed)
    # One more, hardly weighing similarity breaks the ties of the purely geometric combinations.
    weights = np.array([float(letter in letters) for letter in SIMILARITIES]) + np.array([1e-3, 0, 0, 0, 0])
    assert group(features, weights).tolist() == [list(pair) for pair in greedy(features, weights)]


def test_equal_similarities_merge_lowest_numbers_first():
    features = random_features(4, 0)._replace(
        pairs=np.array([[0, 1], [1, 2], [2, 3]], np.int32), lengths=np.ones(3), contrast=np.zeros(3)
    )
    assert group(features, np.array([0, 0, 0, 0, 1.0])).tolist() == [[0, 1], [2, 3], [4, 5]]


def test_one_region_has_no_merge():
    features = random_features(1, 0)
    assert group(features, np.ones(5)).shape == (0, 2)


def test_merged_features_are_those_of_the_union():
    features = random_features(12, 5)
    groups = np.array([0, 0, 1, 2, 2, 2, 3, 1, 1, 0, 3, 4])
    merged = merged_features(features, groups)
    pair_groups = np.sort(groups[features.pairs], 1)
    for g in range(5):
        members = np.flatnonzero(groups == g)
        assert merged.sizes[g] == features.sizes[members].sum()
        assert merged.boxes[g, :2].tolist() == features.boxes[members, :2].min(0).tolist()
        assert merged.boxes[g, 2:].tolist() == features.boxes[members, 2:].max(0).tolist()
        expected = np.average(features.colour[members], axis=0, weights=features.sizes[members])
        np.testing.assert_allclose(merged.colour[g], expected, rtol=1e-5)
    for k, (a, b) in enumerate(merged.pairs):
        between = (pair_groups == [a, b]).all(1)
        assert a < b and merged.lengths[k] == features.lengths[between].sum()
        expected = np.average(features.contrast[between], weights=features.lengths[between])
        assert merged.contrast[k] == pytest.approx(expected)
    assert merged.lengths.sum() == features.lengths[pair_groups[:, 0] != pair_groups[:, 1]].sum()
