"""Find the best parameters of the dense CRF for a trained network, by grid search.

    python -m jobs.tune_crf --run-dir R --records VAL --out DIR

It measures mean IoU of every combination of values, on predictions that are made once, and prints the best set: give
it to jobs.evaluate or jobs.predict as --crf "4,67,3,3,1". Draw the images from a set that you do not test on.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from boxsup_dist.config import PredictionSettings
from boxsup_dist.data.schema import iter_records
from boxsup_dist.data.tables import open_table
from boxsup_dist.errors import SettingError
from boxsup_dist.evaluation.confusion import mean_iou
from boxsup_dist.model.crf import CrfSettings, crf_settings
from boxsup_dist.progress import ProgressMeter, counted
from boxsup_dist.reporting.text_table import format_table
from boxsup_dist.runs.command_line import Checkpoint, NumActors, Prediction, RunDir, run
from boxsup_dist.runs.kept_config import read_config
from boxsup_dist.runs.summary import write_result


@dataclass(frozen=True)
class Settings:
    """Which network, on what, and the values to combine."""

    run_dir: RunDir
    records: str
    """Folder or URI of the records table; its images need ground truth."""
    out: str
    """Folder or URI of summary.json."""
    num_images: int = 100
    """Images to draw."""
    seed: int = 0
    """Seed of the draw."""
    bilateral_weight: tuple[float, ...] = (4.0,)
    """Weights of the appearance potential."""
    bilateral_xy_std_px: tuple[float, ...] = (33.0, 49.0, 67.0)
    """Widths of the appearance potential over the image, in pixels."""
    bilateral_rgb_std: tuple[float, ...] = (3.0, 5.0, 8.0)
    """Widths of the appearance potential over the colours, on 0..255."""
    spatial_weight: tuple[float, ...] = (3.0,)
    """Weights of the smoothness potential."""
    spatial_xy_std_px: tuple[float, ...] = (1.0, 3.0)
    """Widths of the smoothness potential, in pixels."""
    checkpoint: Checkpoint = None
    num_actors: NumActors = None
    prediction: Prediction = field(default_factory=PredictionSettings)


def to_text(crf: CrfSettings) -> str:
    """The five numbers, as crf_settings reads them."""
    return ",".join(f"{value:g}" for name, value in asdict(crf).items() if name != "num_iterations")


def grid(settings: Settings) -> list[CrfSettings]:
    """All combinations of the values.

    Raises:
        SettingError: A parameter has no value, or one that is out of range.
    """
    names = ("bilateral_weight", "bilateral_xy_std_px", "bilateral_rgb_std", "spatial_weight", "spatial_xy_std_px")
    for name in names:
        if not getattr(settings, name):
            raise SettingError("no value to try", field=name, expected="one value or more")
    combinations = itertools.product(*(getattr(settings, name) for name in names))
    return [crf_settings(",".join(map(repr, values))) for values in combinations]


def main(settings: Settings) -> None:
    """Search, write OUT/summary.json and print the table, best first."""
    candidates = grid(settings)
    if settings.prediction.crf is not None:
        expected = "none: this command searches it"
        raise SettingError("crf has no effect here", field="crf", value=settings.prediction.crf, expected=expected)
    settings.prediction.check()
    read_config(settings.run_dir)
    records = open_table(settings.records, "records")
    from boxsup_dist.distributed import session
    from boxsup_dist.evaluation.evaluate import score_crfs
    from boxsup_dist.evaluation.slices import draw_slices
    from boxsup_dist.runs.networks import predictor

    started = time.monotonic()
    session.start()
    slices = draw_slices(records, settings.num_images, settings.seed)
    sizes = [len(unit.rows or ()) for unit in slices]
    opened = predictor(settings.run_dir, settings.checkpoint, settings.num_actors, records)
    with opened as found, ProgressMeter("tune CRF", len(slices)) as meter:
        plain, results = score_crfs(
            found.pool,
            records,
            slices,
            candidates,
            weights=found.weights,
            version=found.version,
            num_classes=len(records.classes),
            settings=settings.prediction,
            on_progress=meter.advance_to(sizes),
        )
    scores = [100 * mean_iou(result.confusion) for result in results]
    summary = {
        **_ranked(candidates, scores, 100 * mean_iou(plain.confusion)),
        "num_images": plain.num_images,
        "image_ids": [
            record.image_id
            for unit in slices
            for record in iter_records(records.read(unit.where, ("image_id",)).take(list(unit.rows or ())))
        ],
        "seed": settings.seed,
        "prediction": asdict(settings.prediction),
        "checkpoint": found.version,
        "records": records.uri,
        "seconds": time.monotonic() - started,
    }
    write_result(settings.out, summary, _lines(summary))


def _ranked(candidates: list[CrfSettings], scores: list[float], without: float) -> dict[str, Any]:
    """A row per candidate, best first, equal ones in the grid's order; and the best of them."""
    rows = [
        {**asdict(crf), "mean_iou": score, "crf": to_text(crf)} for crf, score in zip(candidates, scores, strict=True)
    ]
    rows.sort(key=lambda row: -row["mean_iou"])
    return {
        "best": rows[0]["crf"],
        "best_mean_iou": rows[0]["mean_iou"],
        "mean_iou_without_crf": without,
        "rows": rows,
    }


def _lines(summary: dict[str, Any]) -> list[str]:
    hidden, without = ("crf", "num_iterations"), summary["mean_iou_without_crf"]
    rows = [{name: value for name, value in row.items() if name not in hidden} for row in summary["rows"]]
    return [
        format_table(rows, f"{counted(summary['num_images'], 'image')}, without CRF {without:.2f}"),
        f"best: --crf {summary['best']}   mean IoU {without:.2f} -> {summary['best_mean_iou']:.2f}",
    ]


if __name__ == "__main__":
    run(main)
