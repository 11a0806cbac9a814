"""Measure how much faster the CRF of predictions is than the plain one, and on how many pixels they agree.

    python -m jobs.bench crf --run-dir R --records T

The plain CRF is pydensecrf's inference over all labels with all iterations. The CRF of predictions drops labels that
are unlikely at every pixel (MIN_PROB) and stops once the label map has settled (SETTLED); a row with SETTLED 0 shows
what each shortcut gives. The last of the values given are those of the rows in the table of all measurements. Every
image goes through all ways in turn, in one process. CPU seconds of its one thread are counted, so that other work on
the machine matters little. The time of an image is the median of the rounds.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.data.images import decode_image
from boxsup_dist.data.schema import iter_records
from boxsup_dist.data.tables import Table, open_table
from boxsup_dist.model import checkpoint
from boxsup_dist.model.crf import CrfSettings, LikelyScores, crf_settings, likely_labels, mean_field
from boxsup_dist.model.inference import predict_log_probs
from boxsup_dist.reporting.text_table import format_table
from boxsup_dist.runs.checkpoints import find_checkpoint
from jobs.bench.rows import finish, row
from jobs.bench.settings import Crf

GOAL_RATIO, GOAL_OTHER_PERCENT = 2.5, 0.1


Way = tuple[float, float]
"""Values of MIN_PROB and SETTLED."""


@dataclass
class Measured:
    """What was measured on all images so far."""

    plain_s: list[float]
    pruned_s: dict[Way, list[float]]
    num_equal: dict[Way, int]
    num_labels: dict[Way, int]
    num_pixels: int = 0

    @classmethod
    def of(cls, ways: Sequence[Way]) -> Measured:
        """Nothing measured yet."""
        return cls([], {way: [] for way in ways}, dict.fromkeys(ways, 0), dict.fromkeys(ways, 0))

    def add(self, image: NDArray[np.uint8], log_probs: NDArray[np.float32], crf: CrfSettings, num_rounds: int) -> None:
        """Infer one image all ways, in turn, `num_rounds` times."""
        ways = list(self.pruned_s)
        rounds = [
            [_plain(image, log_probs, crf), *(_pruned(image, log_probs, crf, way) for way in ways)]
            for _ in range(num_rounds)
        ]
        seconds = [statistics.median(one[0] for one in times) for times in zip(*rounds, strict=True)]
        expected = rounds[0][0][1]
        self.plain_s.append(seconds[0])
        self.num_pixels += expected.size
        for way, own_s, (_, found) in zip(ways, seconds[1:], rounds[0][1:], strict=True):
            self.pruned_s[way].append(own_s)
            self.num_equal[way] += int((found == expected).sum())
            self.num_labels[way] += len(likely_labels(log_probs, way[0]))

    def row(self, way: Way) -> dict[str, Any]:
        """The result of one way beside the plain one."""
        plain, median = statistics.median(self.plain_s), statistics.median(self.pruned_s[way])
        equal = self.num_equal[way] / self.num_pixels
        return {
            "min_prob": way[0],
            "settled": way[1],
            "labels": self.num_labels[way] / len(self.plain_s),
            "median_s_plain": plain,
            "median_s": median,
            "ratio_of_medians": plain / median,
            "ratio_of_sums": sum(self.plain_s) / sum(self.pruned_s[way]),
            "equal_pixels": equal,
        }

    def goal_rows(self, way: Way) -> list[dict[str, Any]]:
        """The rows of one way in the table of all measurements; each image is a round."""
        ratios = [plain / own for plain, own in zip(self.plain_s, self.pruned_s[way], strict=True)]
        other = 100 * (1 - self.num_equal[way] / self.num_pixels)
        return [
            row("CRF of an image", "times as fast as the plain one", ratios, GOAL_RATIO),
            row("pixels with another label", "%", [other], GOAL_OTHER_PERCENT, at_most=True),
        ]


def main(settings: Crf) -> None:
    """Measure, write OUT/summary.json and print one row per way."""
    crf = crf_settings(settings.crf)
    uri = find_checkpoint(settings.run_dir, settings.checkpoint)
    network = checkpoint.load_network(uri)
    ways = list(itertools.product(settings.min_probs, settings.settled))
    measured = Measured.of(ways)
    for image in _images(open_table(settings.records, "records"), settings.num_images):
        measured.add(image, predict_log_probs(network, image), crf, settings.num_rounds)
    by_way, num_images = [measured.row(way) for way in ways], len(measured.plain_s)
    facts = {
        "ways": by_way,
        "num_rounds": settings.num_rounds,
        "num_images": num_images,
        "num_classes": network.spec.num_classes,
        "mean_pixels": measured.num_pixels / num_images,
        "crf": settings.crf,
        "checkpoint": uri,
        "records": settings.records,
    }
    title = f"{num_images} images of {facts['mean_pixels']:,.0f} pixels, {facts['num_classes']} classes"
    print(format_table([found | {"equal_pixels": f"{found['equal_pixels']:.5%}"} for found in by_way], title))
    finish(settings, "crf", measured.goal_rows(ways[-1]), facts)


def _images(records: Table, num_images: int) -> Iterator[NDArray[np.uint8]]:
    """The first images of the table."""
    for where in records.row_groups():
        for record in iter_records(records.read(where, ("image_id", "image"))):
            if num_images == 0:
                return
            assert record.image is not None
            yield decode_image(record.image)
            num_images -= 1


def _plain(
    image: NDArray[np.uint8], log_probs: NDArray[np.float32], crf: CrfSettings
) -> tuple[float, NDArray[np.int64]]:
    """CPU seconds from log-probabilities to the label map, and that."""
    started = time.thread_time()
    label_map = mean_field(image, log_probs, crf).argmax(0)
    return time.thread_time() - started, label_map


def _pruned(
    image: NDArray[np.uint8], log_probs: NDArray[np.float32], crf: CrfSettings, way: Way
) -> tuple[float, NDArray[Any]]:
    """As _plain, with values of MIN_PROB and SETTLED."""
    started = time.thread_time()
    label_map = LikelyScores.of(log_probs, way[0]).label_map(image, crf, way[1])
    return time.thread_time() - started, label_map
