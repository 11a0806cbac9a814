"""The dense CRF on pruned labels against all labels, side by side: python -m jobs.bench_crf --run-dir R --records T.

Every image is inferred both ways in turn, in one process, and CPU seconds of its one thread are counted: what else the
machine does shows in neither.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from boxsup_dist import storage
from boxsup_dist.errors import SettingError
from boxsup_dist.evaluation.text_table import format_table
from boxsup_dist.model import checkpoint
from boxsup_dist.model.crf import MIN_PROB, CrfSettings, LikelyScores, crf_settings, likely_labels
from boxsup_dist.model.inference import predict_log_probs
from boxsup_dist.regions import decode_image
from boxsup_dist.schema import iter_records
from boxsup_dist.tables import Table, open_table
from jobs._cli import run

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
    checkpoint: str | None = None
    """Checkpoint to predict with; by default the run's newest."""

    def check(self) -> None:
        """Raise SettingError on a value that can't work."""
        if self.num_images < 1:
            raise SettingError("nothing to measure", field="num_images", value=self.num_images, expected=">= 1")
        if not self.min_probs or not all(0 <= p <= 1 for p in self.min_probs):
            expected = "one or more, 0 <= threshold <= 1"
            raise SettingError("can't prune", field="min_probs", value=self.min_probs, expected=expected)


def main(settings: Settings) -> None:
    """Measure, write OUT/summary.json and print one row a threshold."""
    settings.check()
    crf = crf_settings(settings.crf)
    uri = checkpoint.newest(settings.checkpoint or settings.run_dir)
    network = checkpoint.load_network(uri)
    whole_s: list[float] = []
    pruned_s: dict[float, list[float]] = {p: [] for p in settings.min_probs}
    num_equal, num_labels = dict.fromkeys(settings.min_probs, 0), dict.fromkeys(settings.min_probs, 0)
    num_pixels = 0
    for image in _images(open_table(settings.records, "records"), settings.num_images):
        log_probs = predict_log_probs(network, image)
        seconds, expected = _timed(image, log_probs, crf, 0.0)
        whole_s.append(seconds)
        num_pixels += expected.size
        for min_prob in settings.min_probs:
            seconds, found = _timed(image, log_probs, crf, min_prob)
            pruned_s[min_prob].append(seconds)
            num_equal[min_prob] += int((found == expected).sum())
            num_labels[min_prob] += len(likely_labels(log_probs, min_prob))
    median_all = statistics.median(whole_s)
    rows = [
        {
            "min_prob": min_prob,
            "labels": num_labels[min_prob] / len(whole_s),
            "median_s_all": median_all,
            "median_s_pruned": (median := statistics.median(pruned_s[min_prob])),
            "ratio": median_all / median,
            "equal_pixels": f"{num_equal[min_prob] / num_pixels:.5%}",
            "reached": "yes"
            if median_all / median >= GOAL_RATIO and num_equal[min_prob] / num_pixels >= GOAL_EQUAL
            else "no",
        }
        for min_prob in settings.min_probs
    ]
    summary = {
        "rows": [row | {"equal_pixels": num_equal[p] / num_pixels} for p, row in zip(pruned_s, rows, strict=True)],
        "goal": {"ratio": GOAL_RATIO, "equal_pixels": GOAL_EQUAL},
        "num_images": len(whole_s),
        "num_classes": network.spec.num_classes,
        "mean_pixels": num_pixels / len(whole_s),
        "crf": settings.crf,
        "checkpoint": uri,
        "records": settings.records,
    }
    storage.write_json(storage.join(storage.absolute(settings.out), "summary.json"), summary)
    title = f"{len(whole_s)} images of {num_pixels / len(whole_s):,.0f} pixels, {network.spec.num_classes} classes"
    print(format_table(rows, title))


def _images(records: Table, num_images: int) -> Iterator[np.ndarray]:
    """The first images of the table."""
    for where in records.row_groups():
        for record in iter_records(records.read(where, ("image_id", "image"))):
            if num_images == 0:
                return
            assert record.image is not None
            yield decode_image(record.image)
            num_images -= 1


def _timed(image: np.ndarray, log_probs: np.ndarray, crf: CrfSettings, min_prob: float) -> tuple[float, np.ndarray]:
    """CPU seconds from log-probabilities to the label map, and that."""
    started = time.thread_time()
    label_map = LikelyScores.of(log_probs, min_prob).label_map(image, crf)
    return time.thread_time() - started, label_map


if __name__ == "__main__":
    run(main)
