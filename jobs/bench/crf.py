"""The CRF of predictions against the plain one, side by side: python -m jobs.bench.crf --run-dir R --records T.

The plain one is pydensecrf's inference over all labels with all its iterations. The predictions' leaves out labels that
are likely nowhere, and ends once the label map has settled; a row without the latter shows what each of them gives.
Every image is inferred all ways in turn, in one process, and CPU seconds of its one thread are counted: what else the
machine does hardly shows. An image's time is the median of the rounds.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from boxsup_dist.data.images import decode_image
from boxsup_dist.data.schema import iter_records
from boxsup_dist.data.tables import Table, open_table
from boxsup_dist.errors import SettingError
from boxsup_dist.model import checkpoint
from boxsup_dist.model.crf import MIN_PROB, SETTLED, CrfSettings, LikelyScores, crf_settings, likely_labels, mean_field
from boxsup_dist.model.inference import predict_log_probs
from boxsup_dist.reporting.text_table import format_table
from boxsup_dist.runs.command_line import run
from boxsup_dist.runs.summary import write_result

GOAL_RATIO, GOAL_EQUAL = 2.5, 0.999


@dataclass(frozen=True)
class Settings:
    """Time the CRF of the first images of a table, and count the pixels on which both ways agree."""

    run_dir: str
    """Run directory of a training."""
    records: str
    """Records table; labels are not read."""
    out: str = "runs/bench_crf"
    """Folder or URI for summary.json."""
    num_images: int = 20
    """Images to measure."""
    crf: str = "deeplab_v2"
    """Parameter set, or its five numbers."""
    min_probs: tuple[float, ...] = (MIN_PROB,)
    """Thresholds of pruning to compare; the predictions' own by default."""
    settled: tuple[float, ...] = (0.0, SETTLED)
    """Shares of changed pixels at which to stop; 0 never, and the predictions' own by default."""
    num_rounds: int = 3
    """Times that each image is measured."""
    checkpoint: str | None = None
    """Checkpoint to predict with; by default the run's newest."""

    def check(self) -> None:
        """Raise SettingError on a value that can't work."""
        if self.num_images < 1:
            raise SettingError("nothing to measure", field="num_images", value=self.num_images, expected=">= 1")
        if self.num_rounds < 1:
            raise SettingError("nothing to measure", field="num_rounds", value=self.num_rounds, expected=">= 1")
        for name in ("min_probs", "settled"):
            values = getattr(self, name)
            if not values or not all(0 <= p <= 1 for p in values):
                raise SettingError("can't prune", field=name, value=values, expected="one or more, 0 <= value <= 1")


def main(settings: Settings) -> None:
    """Measure, write OUT/summary.json and print one row a way."""
    settings.check()
    crf = crf_settings(settings.crf)
    uri = checkpoint.newest(settings.checkpoint or settings.run_dir)
    network = checkpoint.load_network(uri)
    ways = list(itertools.product(settings.min_probs, settings.settled))
    plain_s: list[float] = []
    pruned_s: dict[tuple[float, float], list[float]] = {way: [] for way in ways}
    num_equal, num_labels = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0)
    num_pixels = 0
    for image in _images(open_table(settings.records, "records"), settings.num_images):
        log_probs = predict_log_probs(network, image)
        rounds = [
            [_plain(image, log_probs, crf), *(_pruned(image, log_probs, crf, way) for way in ways)]
            for _ in range(settings.num_rounds)
        ]
        seconds = [statistics.median(one[0] for one in times) for times in zip(*rounds, strict=True)]
        expected = rounds[0][0][1]
        plain_s.append(seconds[0])
        num_pixels += expected.size
        for way, own_s, (_, found) in zip(ways, seconds[1:], rounds[0][1:], strict=True):
            pruned_s[way].append(own_s)
            num_equal[way] += int((found == expected).sum())
            num_labels[way] += len(likely_labels(log_probs, way[0]))
    rows = [
        {
            "min_prob": way[0],
            "settled": way[1],
            "labels": num_labels[way] / len(plain_s),
            "median_s_plain": (plain_median := statistics.median(plain_s)),
            "median_s": (median := statistics.median(pruned_s[way])),
            "ratio": plain_median / median,
            "ratio_of_sums": sum(plain_s) / sum(pruned_s[way]),
            "equal_pixels": (equal := num_equal[way] / num_pixels),
            "reached": "yes" if plain_median / median >= GOAL_RATIO and equal >= GOAL_EQUAL else "no",
        }
        for way in ways
    ]
    summary = {
        "rows": rows,
        "goal": {"ratio": GOAL_RATIO, "equal_pixels": GOAL_EQUAL},
        "num_rounds": settings.num_rounds,
        "num_images": len(plain_s),
        "num_classes": network.spec.num_classes,
        "mean_pixels": num_pixels / len(plain_s),
        "crf": settings.crf,
        "checkpoint": uri,
        "records": settings.records,
    }
    title = f"{len(plain_s)} images of {num_pixels / len(plain_s):,.0f} pixels, {network.spec.num_classes} classes"
    table = format_table([row | {"equal_pixels": f"{row['equal_pixels']:.5%}"} for row in rows], title)
    write_result(settings.out, summary, [table])


def _images(records: Table, num_images: int) -> Iterator[np.ndarray]:
    """The first images of the table."""
    for where in records.row_groups():
        for record in iter_records(records.read(where, ("image_id", "image"))):
            if num_images == 0:
                return
            assert record.image is not None
            yield decode_image(record.image)
            num_images -= 1


def _plain(image: np.ndarray, log_probs: np.ndarray, crf: CrfSettings) -> tuple[float, np.ndarray]:
    """CPU seconds from log-probabilities to the label map, and that."""
    started = time.thread_time()
    label_map = mean_field(image, log_probs, crf).argmax(0)
    return time.thread_time() - started, label_map


def _pruned(
    image: np.ndarray, log_probs: np.ndarray, crf: CrfSettings, way: tuple[float, float]
) -> tuple[float, np.ndarray]:
    """As _plain, with a threshold of pruning and a share of changed pixels to stop at."""
    started = time.thread_time()
    label_map = LikelyScores.of(log_probs, way[0]).label_map(image, crf, way[1])
    return time.thread_time() - started, label_map


if __name__ == "__main__":
    run(main)
