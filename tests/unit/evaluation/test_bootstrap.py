"""Intervals against cases whose answer is known: all draws counted out, a simulation, and arms that are the same."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.sparse import csr_array

from boxsup_dist.evaluation import bootstrap
from boxsup_dist.evaluation.bootstrap import Estimate, draw, estimates, measure_all
from boxsup_dist.evaluation.confusion import mean_iou


def run_of(matrices: list[np.ndarray]) -> csr_array:
    return csr_array(np.array(matrices, np.int64).reshape(len(matrices), -1))


def accuracy(confusion: np.ndarray) -> np.ndarray:
    return np.array([np.trace(confusion) / confusion.sum()])


def mean_ious(confusion: np.ndarray) -> np.ndarray:
    return np.array([mean_iou(confusion)])


def test_draws_are_those_of_all_draws_counted_out():
    rng = np.random.default_rng(0)
    images = [[rng.integers(0, 50, (3, 3)) for _ in range(3)] for _ in range(2)]
    runs = [run_of(each) for each in images]
    drawn = draw(runs, mean_ious, num_draws=5_000)
    difference = (drawn[1] - drawn[0])[:, 0]
    exact = [
        mean_iou(sum(images[1][i] for i in chosen)) - mean_iou(sum(images[0][i] for i in chosen))
        for chosen in itertools.product(range(3), repeat=3)
    ]
    values, counts = np.unique(np.round(exact, 12), return_counts=True)
    found, frequency = np.unique(np.round(difference, 12), return_counts=True)
    np.testing.assert_array_equal(found, values)
    np.testing.assert_allclose(frequency / 5_000, counts / 27, atol=0.02)
    # 2.5 % lie inside the first of 27 equal parts, 97.5 % inside the last.
    (estimate,) = estimates(np.array([0.0]), difference[:, None])
    assert estimate[1:] == pytest.approx((min(exact), max(exact)))


def test_metrics_of_all_images_are_those_of_the_sum_bit_for_bit():
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 1000, (21, 21)) * (rng.random((21, 21)) < 0.1) for _ in range(50)]
    assert measure_all([run_of(images)], mean_ious)[0, 0] == mean_iou(sum(images))


def test_a_network_does_not_differ_from_itself_and_a_constant_gain_has_no_width():
    rng = np.random.default_rng(2)
    worse = [np.array([[60, 20], [10, 10]]) for _ in range(9)]
    better = [np.array([[70, 10], [10, 10]]) for _ in range(9)]
    noisy = run_of([rng.integers(1, 50, (2, 2)) for _ in range(9)])
    drawn = draw([noisy, noisy, run_of(worse), run_of(better)], accuracy, num_draws=50)
    assert not (drawn[1] - drawn[0]).any() and np.ptp(drawn[0]) > 0
    (estimate,) = estimates(np.array([0.1]), drawn[3] - drawn[2])
    assert estimate == pytest.approx((0.1, 0.1, 0.1)) and estimate.excludes_zero
    assert not Estimate(0.1, -0.1, 0.3).excludes_zero


def test_nine_in_ten_intervals_and_more_hold_the_truth():
    """95 % of them for many images; a percentile bootstrap of 60 reaches a little less."""
    rng = np.random.default_rng(3)
    truth, num_images, num_sets = 0.05, 60, 200

    def simulated() -> list[csr_array]:
        hardness = rng.beta(2, 2, num_images)  # shared: the difference is told more sharply than each accuracy
        hits = [rng.binomial(400, np.clip(0.3 + 0.5 * hardness + gain, 0, 1)) for gain in (0, truth)]
        return [run_of([np.diag([h, 0]) + np.array([[0, 400 - h], [0, 0]]) for h in each]) for each in hits]

    held, widths = 0, []
    for seed in range(num_sets):
        drawn = draw(simulated(), accuracy, num_draws=200, seed=seed)
        (estimate,) = estimates(np.zeros(1), drawn[1] - drawn[0])
        (alone,) = estimates(np.zeros(1), drawn[0])
        held += estimate.low <= truth <= estimate.high
        widths.append((estimate.high - estimate.low) / (alone.high - alone.low))
    assert 0.9 <= held / num_sets <= 0.985
    assert np.median(widths) < 0.3


def test_draws_depend_on_the_seed_alone(monkeypatch):
    rng = np.random.default_rng(4)
    runs = [run_of([rng.integers(0, 9, (2, 2)) for _ in range(20)])]
    whole = draw(runs, mean_ious, num_draws=30)
    monkeypatch.setattr(bootstrap, "BLOCK", 100)  # five draws at a time
    np.testing.assert_array_equal(draw(runs, mean_ious, num_draws=30), whole)
    assert not np.array_equal(draw(runs, mean_ious, num_draws=30, seed=1), whole)


def test_a_metric_that_some_draws_lack_is_of_the_others():
    drawn = np.array([[np.nan, np.nan], [0.2, np.nan], [0.2, np.nan]])
    some, none = estimates(np.array([0.2, np.nan]), drawn)
    assert some == pytest.approx((0.2, 0.2, 0.2)) and np.isnan(none).all() and not none.excludes_zero
