"""Metrics against a plain implementation that counts pixels in Python sets."""

from __future__ import annotations

import math

import numpy as np
import pytest

from boxsup_dist.data.schema import IGNORE_INDEX
from boxsup_dist.errors import InputError
from boxsup_dist.evaluation import confusion as metrics


def plain_iou(pairs: list[tuple[np.ndarray, np.ndarray]], num_classes: int) -> list[float]:
    """IoU by class from sets of pixel addresses over all images."""
    truth: list[set] = [set() for _ in range(num_classes)]
    found: list[set] = [set() for _ in range(num_classes)]
    for image, (ground_truth, prediction) in enumerate(pairs):
        for y in range(ground_truth.shape[0]):
            for x in range(ground_truth.shape[1]):
                if ground_truth[y, x] == 255:
                    continue
                truth[int(ground_truth[y, x])].add((image, y, x))
                found[int(prediction[y, x])].add((image, y, x))
    return [len(t & f) / len(t | f) if t | f else math.nan for t, f in zip(truth, found, strict=True)]


def random_pair(rng: np.random.Generator, num_classes: int, void_share: float) -> tuple[np.ndarray, np.ndarray]:
    shape = tuple(rng.integers(1, 24, 2))
    ground_truth = rng.integers(0, num_classes, shape).astype(np.uint8)
    ground_truth[rng.random(shape) < void_share] = IGNORE_INDEX
    return ground_truth, rng.integers(0, num_classes, shape).astype(np.uint8)


@pytest.mark.parametrize("num_classes", [1, 2, 5, 21, 60, 255])
@pytest.mark.parametrize("void_share", [0.0, 0.3, 1.0])
def test_random_maps_equal_the_plain_count(num_classes: int, void_share: float) -> None:
    rng = np.random.default_rng([num_classes, int(10 * void_share)])
    pairs = [random_pair(rng, num_classes, void_share) for _ in range(4)]
    total = np.sum([metrics.confusion_matrix(*pair, num_classes) for pair in pairs], axis=0)
    expected = plain_iou(pairs, num_classes)

    np.testing.assert_allclose(metrics.iou_per_class(total), expected, rtol=0, atol=1e-12)
    present = [value for value in expected if not math.isnan(value)]
    mean = metrics.mean_iou(total)
    assert math.isnan(mean) if not present else abs(mean - sum(present) / len(present)) < 1e-12
    counted = [(t, p) for gt, pred in pairs for t, p in zip(gt.flat, pred.flat, strict=True) if t != IGNORE_INDEX]
    assert total.sum() == len(counted)
    if counted:
        assert np.trace(total) == sum(t == p for t, p in counted)
        assert total[:, 1:].sum() == sum(p > 0 for _, p in counted)
        assert total[1:].sum() == sum(t > 0 for t, _ in counted)


ADVERSARIAL = {
    "all void": (np.full((3, 4), 255), np.zeros((3, 4)), [math.nan] * 3),
    "perfect, one class": (np.full((2, 2), 2), np.full((2, 2), 2), [math.nan, math.nan, 1.0]),
    "a class only predicted counts as 0": (np.zeros((2, 2)), np.array([[0, 1], [0, 0]]), [0.75, 0.0, math.nan]),
    "a class only in ground truth counts as 0": (np.array([[0, 1]]), np.zeros((1, 2)), [0.5, 0.0, math.nan]),
    "prediction in void is free": (np.array([[0, 255]]), np.array([[0, 2]]), [1.0, math.nan, math.nan]),
    "nothing right": (np.array([[0, 1, 2]]), np.array([[1, 2, 0]]), [0.0, 0.0, 0.0]),
    "one pixel": (np.array([[1]]), np.array([[1]]), [math.nan, 1.0, math.nan]),
    "empty map": (np.zeros((0, 5)), np.zeros((0, 5)), [math.nan] * 3),
}


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversarial_maps(name: str) -> None:
    ground_truth, prediction, expected = ADVERSARIAL[name]
    ground_truth, prediction = ground_truth.astype(np.uint8), prediction.astype(np.uint8)
    confusion = metrics.confusion_matrix(ground_truth, prediction, 3)
    assert confusion.dtype == np.int64
    assert confusion.shape == (3, 3)
    np.testing.assert_allclose(metrics.iou_per_class(confusion), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(plain_iou([(ground_truth, prediction)], 3), expected, rtol=0, atol=1e-12)


def test_rows_are_ground_truth_and_columns_prediction() -> None:
    confusion = metrics.confusion_matrix(np.array([[1, 1, 0]], np.uint8), np.array([[2, 2, 0]], np.uint8), 3)
    assert confusion.tolist() == [[1, 0, 0], [0, 0, 2], [0, 0, 0]]


def test_matrices_of_parts_add_up_to_the_matrix_of_the_whole() -> None:
    rng = np.random.default_rng(3)
    ground_truth, prediction = rng.integers(0, 4, (30, 40)), rng.integers(0, 4, (30, 40))
    whole = metrics.confusion_matrix(ground_truth, prediction, 4)
    for cut in (1, 7, 29):
        parts = [
            metrics.confusion_matrix(ground_truth[part], prediction[part], 4) for part in (np.s_[:cut], np.s_[cut:])
        ]
        np.testing.assert_array_equal(sum(parts), whole)


def test_inputs_are_left_as_they_are() -> None:
    ground_truth, prediction = np.array([[0, 255]], np.int64), np.array([[1, 1]], np.int64)
    metrics.confusion_matrix(ground_truth, prediction, 2)
    assert ground_truth.tolist() == [[0, 255]]
    assert prediction.tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("ground_truth", "prediction", "field"),
    [
        (np.zeros((2, 2), np.uint8), np.full((2, 2), 3, np.uint8), "prediction"),
        (np.full((2, 2), 255, np.uint8), np.full((2, 2), 255, np.uint8), "prediction"),
        (np.zeros((2, 2), np.int64), np.full((2, 2), -1, np.int64), "prediction"),
        (np.full((2, 2), 3, np.uint8), np.zeros((2, 2), np.uint8), "ground truth"),
        (np.full((2, 2), 254, np.uint8), np.zeros((2, 2), np.uint8), "ground truth"),
        (np.full((2, 2), 256, np.int64), np.zeros((2, 2), np.uint8), "ground truth"),
        (np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.float32), "prediction"),
        (np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8), "prediction"),
        (np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), "prediction"),
    ],
)
def test_what_cannot_be_counted_is_an_error(ground_truth: np.ndarray, prediction: np.ndarray, field: str) -> None:
    with pytest.raises(InputError) as caught:
        metrics.confusion_matrix(ground_truth, prediction, 3)
    assert caught.value.field == field
    assert caught.value.expected


def test_recall_and_precision_are_shares_of_rows_and_columns() -> None:
    confusion = np.array([[70, 5, 0, 0], [10, 20, 10, 0], [0, 5, 30, 0], [0, 0, 0, 0]])
    recall, precision = metrics.recall_per_class(confusion), metrics.precision_per_class(confusion)
    np.testing.assert_allclose(recall, [70 / 75, 0.5, 30 / 35, math.nan])
    np.testing.assert_allclose(precision, [70 / 80, 20 / 30, 0.75, math.nan])
    found = metrics.foreground_shares(confusion)
    assert found == pytest.approx((65 / 75, 65 / 70, 15 / 65))
    assert np.isnan(metrics.foreground_shares(np.diag([9, 0]))).all()
    missed = metrics.foreground_shares(np.array([[9, 0], [3, 0]]))
    assert missed.recall == 0 and np.isnan(missed[1:]).all()
