"""Refined segments follow the image where the votes are unsure, and stay in their boxes."""

from __future__ import annotations

import numpy as np

from boxsup_dist.assignment.consensus import find_undecided
from boxsup_dist.assignment.refine import find_cut, refine_segments

CELL = 4  # pixels of a superpixel's side


def scene(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image with a bright disc, superpixels (a grid of cells), and the share of the disc in every superpixel."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:48, :60]
    disc = (y - 24) ** 2 + (x - 28) ** 2 < 15**2
    colours = np.where(disc[..., None], (200, 150, 60), (50, 80, 120))
    image = np.clip(colours + rng.normal(0, 4, (48, 60, 3)), 0, 255).astype(np.uint8)
    superpixels = (y // CELL * (60 // CELL) + x // CELL).astype(np.uint16)
    return image, superpixels, np.bincount(superpixels.ravel(), weights=disc.ravel()) / CELL**2


BOX = np.array([[13.0, 9.0, 44.0, 40.0]], np.float32)


def test_unsure_votes_follow_the_image():
    image, superpixels, truth = scene()
    rng = np.random.default_rng(1)
    wrong = rng.random(len(truth)) < 0.2
    votes = np.where(wrong, 0.55, np.where(truth > 0.5, 0.7, 0.3))
    (share,) = refine_segments(image, superpixels, BOX, np.array([3]), [votes])
    inside = np.isin(np.arange(len(truth)), superpixels[9:40, 13:44])
    sure = inside & ((truth > 0.9) | (truth < 0.1))
    before = ((votes >= 0.5) == (truth > 0.5))[sure].mean()
    after = ((share >= 0.5) == (truth > 0.5))[sure].mean()
    assert before < 0.95 and after > 0.98
    assert (share[~inside] == 0).all()


def test_what_the_refinement_puts_right_is_decided_and_what_its_outline_cuts_is_not():
    image, superpixels, truth = scene()
    votes = np.where(truth > 0.5, 0.8, 0.2)
    wrong = np.isin(np.arange(len(truth)), [(24 // CELL) * 15 + 28 // CELL, (16 // CELL) * 15 + 28 // CELL])
    votes[wrong] = 0.35  # two superpixels in the middle of the disc
    (share,) = refine_segments(image, superpixels, BOX, np.array([3]), [votes])
    segment = np.flatnonzero(share >= 0.5)
    assert np.isin(np.flatnonzero(wrong), segment).all()
    assert wrong[find_undecided(votes, segment.astype(np.uint16), 0.15)].any()  # by the votes they would be ignored
    cut = find_cut(share, 0.15)
    assert not wrong[cut].any() and len(cut)
    assert ((truth[cut] > 0) & (truth[cut] < 1)).all()  # the disc's own outline goes through each of them


def test_a_superpixel_is_cut_if_both_parts_are_large():
    share = np.array([0.0, 0.15, 0.16, 0.5, 0.84, 0.85, 1.0])
    assert find_cut(share, 0.15).tolist() == [2, 3, 4] and find_cut(share, 0.15).dtype == np.uint16
    assert find_cut(share, None).tolist() == [] == find_cut(share, 0.5).tolist()


def halves() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image with a dark upper half, one superpixel per half, and a box around both."""
    image = np.full((16, 16, 3), 128, np.uint8)
    image[:8] = 60
    return image, np.arange(256).reshape(16, 16) // 128, np.array([[0, 0, 16, 16]], np.float32)


def test_a_static_map_votes_for_its_class_only():
    image, superpixels, box = halves()
    votes = np.array([0.4, 0.4])
    upper = np.zeros((16, 16), np.uint8)
    upper[:8] = 5
    (alone,) = refine_segments(image, superpixels, box, np.array([5]), [votes])
    (helped,) = refine_segments(image, superpixels, box, np.array([5]), [votes], static_map=upper)
    (other,) = refine_segments(image, superpixels, box, np.array([6]), [votes], static_map=upper)
    assert (alone < 0.5).all() and (other < 0.5).all()
    assert helped[0] > 0.5 > helped[1]


def test_the_network_votes_among_the_classes_of_the_boxes():
    image, superpixels, box = halves()
    votes = np.array([0.45, 0.45])
    log_probs = np.full((7, 16, 16), np.log(0.001), np.float32)
    log_probs[0] = np.log(0.04)
    log_probs[6] = np.log(0.6)  # no box has this class: in the upper half 0.36 against 0.04 counts
    log_probs[5, :8] = np.log(0.36)
    (alone,) = refine_segments(image, superpixels, box, np.array([5]), [votes])
    (helped,) = refine_segments(image, superpixels, box, np.array([5]), [votes], log_probs=log_probs)
    assert (alone < 0.5).all() and helped[0] > 0.5 > helped[1]


def test_a_box_without_a_segment_stays_without():
    image, superpixels, truth = scene()
    boxes = np.concatenate([BOX, [[0, 0, 20, 20]]]).astype(np.float32)
    alone = refine_segments(image, superpixels, BOX, np.array([3]), [truth])
    both = refine_segments(image, superpixels, boxes, np.array([3, 4]), [truth, None])
    assert both[1] is None and np.array_equal(both[0], alone[0])
    assert refine_segments(image, superpixels, boxes, np.array([3, 4]), [None, None]) == [None, None]


def test_the_smaller_of_two_boxes_takes_what_both_want():
    image = np.full((16, 16, 3), 128, np.uint8)
    superpixels = np.arange(256).reshape(16, 16) // 16 // 4  # four bands
    boxes = np.array([[0, 0, 16, 16], [0, 8, 16, 16]], np.float32)
    votes = [np.full(4, 0.9), np.array([0, 0, 0.9, 0.9])]
    large, small = refine_segments(image, superpixels, boxes, np.array([1, 2]), votes)
    assert (large[:2] > 0.5).all() and (large[2:] < 0.5).all() and (small[2:] > 0.5).all()
