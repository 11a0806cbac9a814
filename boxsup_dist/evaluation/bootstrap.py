"""Intervals by a paired bootstrap over images: how far would a result move, had other images of this kind been drawn?

N images are drawn from the N of the evaluation, with replacement, and their confusion matrices are added up. A metric
of this sum is one draw of the metric. Every network gets the same draws, so that a difference of two networks is a
difference on the same images: what is hard for both falls out. The 2.5th and the 97.5th percentile of the draws are the
95 % interval.

The interval speaks of the choice of images. It holds nothing of the chance of a training: that takes several seeds, of
which a metric is the mean.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.randomness import generator

if TYPE_CHECKING:
    from scipy.sparse import csr_array

NUM_DRAWS = 2000  # the ends of an interval then move by about 3 % of its width with the seed
PERCENTILES = (2.5, 97.5)
BLOCK = 2**22  # weights of images that are held at a time

Measure = Callable[[NDArray[np.int64]], NDArray[np.float64]]
"""From a confusion matrix (C, C) to M metrics (M,); nan for one that does not exist."""


class Estimate(NamedTuple):
    """A metric, and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """True if 0 is outside the interval; of a difference: these images tell which is larger."""
        return self.low > 0 or self.high < 0


def draw(
    runs: Sequence[csr_array], measure: Measure, *, num_draws: int = NUM_DRAWS, seed: int = 0
) -> NDArray[np.float64]:
    """Draw images again and again, and measure every run on the same draws.

    Args:
        runs: The confusion matrices of each run, int64 (N, C * C), with the same image in the same row (`paired`).
        measure: What to measure.
        num_draws: B.
        seed: Seed of the draws.

    Returns:
        (R, B, M): the metrics of every run in every draw.
    """
    random, num_images = generator("bootstrap", seed), runs[0].shape[0]
    found: list[list[NDArray[np.float64]]] = [[] for _ in runs]
    block = max(1, BLOCK // num_images)
    for start in range(0, num_draws, block):
        weights = np.stack(
            [
                np.bincount(random.integers(0, num_images, num_images), minlength=num_images)
                for _ in range(min(block, num_draws - start))
            ]
        )
        for measured, matrices in zip(found, runs, strict=True):
            measured += [measure(_square(total)) for total in weights @ matrices]
    return np.array(found)


def measure_all(runs: Sequence[csr_array], measure: Measure) -> NDArray[np.float64]:
    """The metrics of every run on all images, (R, M)."""
    return np.array([measure(_square(np.asarray(matrices.sum(axis=0)))) for matrices in runs])


def estimates(values: NDArray[np.float64], draws: NDArray[np.float64]) -> list[Estimate]:
    """Metrics with their intervals.

    Args:
        values: (M,), on all images.
        draws: (B, M). A draw in which a metric does not exist (nan) does not count for it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no draw has the metric
        low, high = np.nanpercentile(draws, PERCENTILES, axis=0)
    return [Estimate(*map(float, each)) for each in zip(values, low, high, strict=True)]


def _square(total: NDArray[np.int64]) -> NDArray[np.int64]:
    size = round(len(total) ** 0.5)
    return total.reshape(size, size)
