"""Suspicious boxes: each kind of wrong box is told from a right one, on predictions whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from boxsup_dist.data.schema import Record
from boxsup_dist.evaluation.suspicion import Suspicion, describe, doubts, find_missing, kind_of, suspect_boxes

HEIGHT, WIDTH, NUM_CLASSES = 100, 120, 4
NAMES = ("background", "cat", "dog", "car")
OBJECT = (30, 20, 70, 60)  # a cat


def record_of(*boxes: tuple[tuple[float, ...], int], crowd: bool = False) -> Record:
    return Record(
        "i", "own", "train", None, HEIGHT, WIDTH,
        np.array([box for box, _ in boxes], np.float32).reshape(-1, 4),
        np.array([class_id for _, class_id in boxes], np.int32),
        np.zeros(len(boxes), bool), np.full(len(boxes), crowd),
    )  # fmt: skip


def probs_of(*objects: tuple[tuple[int, ...], int], sure: float = 0.9) -> NDArray[np.float32]:
    """A network that is sure of these objects and of the background elsewhere."""
    probs = np.full((NUM_CLASSES, HEIGHT, WIDTH), (1 - sure) / (NUM_CLASSES - 1), np.float32)
    winner = np.zeros((HEIGHT, WIDTH), int)
    for (x0, y0, x1, y1), class_id in objects:
        winner[y0:y1, x0:x1] = class_id
    np.put_along_axis(probs, winner[None], sure, axis=0)
    return probs


def judge(box: tuple[float, ...], class_id: int, cost: float = 0.0):
    (entry,) = suspect_boxes(record_of((box, class_id)), probs_of((OBJECT, 1)), None, np.full((3, 1), cost))
    return entry


def test_a_right_box_raises_no_doubt():
    entry = judge(OBJECT, 1)
    assert entry.fit == 0
    assert entry.denial == pytest.approx(0.1, abs=1e-3)
    assert describe(entry, NAMES) == "no strong sign"


@pytest.mark.parametrize(
    ("box", "class_id", "kind", "words"),
    [
        (OBJECT, 2, "class", "the network sees cat (90%); hardly any dog (3%); it predicts no dog"),
        ((50, 40, 90, 80), 1, "place", "lies in another box"),  # shifted by half
        ((10, 0, 90, 80), 1, "place", "lies in another box (IoU 0.25)"),  # doubled
        ((80, 70, 110, 95), 1, "place", "it predicts no cat in or around the box"),  # of nothing
    ],
)
def test_each_kind_of_wrong_box_is_more_doubtful_than_a_right_one(box, class_id, kind, words):
    entry = judge(box, class_id)
    assert max(entry.fit, entry.denial) > 0.5
    assert kind_of(entry) == kind
    assert words in describe(entry, NAMES)


def test_doubt_is_measured_against_boxes_of_similar_size():
    """Small boxes are all badly predicted here: the one large box among good large ones is the most doubtful."""
    rng = np.random.default_rng(0)
    small = [entry_of(10 + n / 100, *rng.uniform(0.6, 0.9, 3)) for n in range(200)]
    large = [entry_of(80 + n / 100, *rng.uniform(0.0, 0.3, 3)) for n in range(200)]
    found = doubts([*small, *large, entry_of(81, 0.5, 0.5, 0.5)])
    assert int(np.argmax(found)) == 400 and all(0 <= doubt < 1 for doubt in found)
    assert abs(np.mean(found[:200]) - np.mean(found[200:400])) < 0.15  # of signs that differ by 0.6
    stronger = doubts([entry_of(20, 0.1, 0.2, 0.3), entry_of(20, 0.4, 0.5, 0.6), entry_of(20, 0.0, 0.0, 0.0)])
    assert stronger[1] > stronger[0] > stronger[2]
    assert doubts([entry_of(20, 0.1, 0.2, 0.3)]) == pytest.approx([0.5]) and doubts([]) == []


def entry_of(side: float, overlap: float, fit: float, denial: float) -> Suspicion:
    return Suspicion(0, 1, (0, 0, side, 2 * side), overlap, fit, denial, 1, 1 - denial)


def test_overlap_is_the_median_over_the_epochs():
    costs = np.array([[0.9], [0.1], [0.2]])
    (entry,) = suspect_boxes(record_of((OBJECT, 1)), probs_of((OBJECT, 1)), None, costs)
    assert entry.overlap == pytest.approx(0.2)
    (entry,) = suspect_boxes(record_of((OBJECT, 1)), probs_of((OBJECT, 1)), None, np.full((2, 1), np.nan))
    assert entry.overlap == 1  # no candidate at all


def test_a_neighbour_of_the_same_class_does_not_spoil_the_fit():
    other = (72, 20, 110, 60)
    record = record_of((OBJECT, 1), (other, 1))
    entries = suspect_boxes(record, probs_of((OBJECT, 1), (other, 1)), None, np.zeros((1, 2)))
    assert [round(entry.fit, 2) for entry in entries] == [0, 0]


def test_denial_is_measured_on_the_segment_and_not_on_what_else_is_in_the_box():
    thin = (30, 20, 34, 60)
    label_map = np.zeros((HEIGHT, WIDTH), np.uint8)
    label_map[20:60, 30:34] = 1
    probs, record = probs_of((thin, 1)), record_of((OBJECT, 1))
    (with_segment,) = suspect_boxes(record, probs, label_map, np.zeros((1, 1)))
    (without,) = suspect_boxes(record, probs, None, np.zeros((1, 1)))
    assert with_segment.denial < 0.2 < without.denial


def test_crowds_are_not_judged_but_explain_what_is_predicted():
    crowd = record_of((OBJECT, 1), crowd=True)
    assert suspect_boxes(crowd, probs_of((OBJECT, 1)), None, np.zeros((1, 1))) == []
    assert find_missing(crowd, probs_of((OBJECT, 1))) == []


def test_an_object_without_a_box_is_found_by_its_tight_box():
    dog = (75, 65, 115, 95)
    (entry,) = find_missing(record_of((OBJECT, 1)), probs_of((OBJECT, 1), (dog, 2)))
    assert (entry.box_index, entry.class_id, entry.box) == (None, 2, dog)
    assert kind_of(entry) == "missing" and doubts([entry]) == pytest.approx([0.9])
    assert describe(entry, NAMES) == "the network sees dog here (90%), and there is no box"
    # A box of its class explains it; in a box of another class it is that box's denial; crumbs are not named.
    assert find_missing(record_of((dog, 1)), probs_of((dog, 2))) == []
    assert find_missing(record_of((dog, 2)), probs_of((dog, 2))) == []
    assert find_missing(record_of(), probs_of(((5, 5, 15, 15), 3))) == []
