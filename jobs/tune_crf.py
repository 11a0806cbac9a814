"""Grid search of the dense CRF on a seeded draw of images: python -m jobs.tune_crf --run-dir R --records VAL --out DIR.

The best set can be given to jobs.evaluate as --crf "4,67,3,3,1". Draw the images from a set that is not tested on.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import asdict, dataclass, field

from boxsup_dist.config import PredictionSettings
from boxsup_dist.data.schema import iter_records
from boxsup_dist.data.tables import open_table
from boxsup_dist.distributed import session
from boxsup_dist.errors import SettingError
from boxsup_dist.evaluation.confusion import mean_iou
from boxsup_dist.evaluation.evaluate import draw_slices, score_crfs
from boxsup_dist.model.crf import CrfSettings, crf_settings
from boxsup_dist.progress import ProgressMeter
from boxsup_dist.reporting.text_table import format_table
from boxsup_dist.runs.command_line import run
from boxsup_dist.runs.networks import predictor
from boxsup_dist.runs.summary import write_result


@dataclass(frozen=True)
class Settings:
    """Mean IoU of every combination of the values, on network predictions that are made once."""

    run_dir: str
    """Run directory of a training."""
    records: str
    """Records table with ground truth."""
    out: str
    """Folder or URI for summary.json."""
    num_images: int = 100
    """Images to draw."""
    seed: int = 0
    """Seed of the draw."""
    bilateral_weight: tuple[float, ...] = (4.0,)
    """Weights of the appearance potential."""
    bilateral_xy_std_px: tuple[float, ...] = (33.0, 49.0, 67.0)
    """Its widths over the image, in pixels."""
    bilateral_rgb_std: tuple[float, ...] = (3.0, 5.0, 8.0)
    """Its widths over the colours, on 0..255."""
    spatial_weight: tuple[float, ...] = (3.0,)
    """Weights of the smoothness potential."""
    spatial_xy_std_px: tuple[float, ...] = (1.0, 3.0)
    """Its widths, in pixels."""
    checkpoint: str | None = None
    """Checkpoint to predict with; by default the run's newest."""
    num_actors: int | None = None
    """Members of the pool. Not set: one per GPU, without GPUs one per CPU core. The result doesn't depend on it."""
    prediction: PredictionSettings = field(default_factory=PredictionSettings)
    """Test-time options of the predictions; crf stays none."""


def to_text(crf: CrfSettings) -> str:
    """The five numbers, as crf_settings reads them."""
    return ",".join(f"{value:g}" for name, value in asdict(crf).items() if name != "num_iterations")


def grid(settings: Settings) -> list[CrfSettings]:
    """All combinations. SettingError on a value that can't work, or if there is none."""
    names = ("bilateral_weight", "bilateral_xy_std_px", "bilateral_rgb_std", "spatial_weight", "spatial_xy_std_px")
    for name in names:
        if not getattr(settings, name):
            raise SettingError("an empty grid", field=name, expected="one value or more")
    combinations = itertools.product(*(getattr(settings, name) for name in names))
    return [crf_settings(",".join(map(repr, values))) for values in combinations]


def main(settings: Settings) -> None:
    """Search, write OUT/summary.json and print the table, best first."""
    started = time.monotonic()
    candidates = grid(settings)
    if settings.prediction.crf is not None:
        raise SettingError("the CRF is what is searched", field="crf", value=settings.prediction.crf, expected="none")
    settings.prediction.check()
    session.start()
    records = open_table(settings.records, "records")
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
            on_progress=lambda done, _: meter.advance(sizes[done - 1]),
        )
    without = 100 * mean_iou(plain.confusion)
    rows = [
        {**asdict(crf), "mean_iou": 100 * mean_iou(result.confusion), "crf": to_text(crf)}
        for crf, result in zip(candidates, results, strict=True)
    ]
    rows.sort(key=lambda row: -row["mean_iou"])  # a stable sort: the grid's order decides between equals
    summary = {
        "best": rows[0]["crf"],
        "best_mean_iou": rows[0]["mean_iou"],
        "mean_iou_without_crf": without,
        "rows": rows,
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
    shown = [{name: value for name, value in row.items() if name not in ("crf", "num_iterations")} for row in rows]
    table = format_table(shown, f"{plain.num_images} images, without CRF {without:.2f}")
    best = f"best: --crf {summary['best']}   mean IoU {without:.2f} -> {summary['best_mean_iou']:.2f}"
    write_result(settings.out, summary, [table, best])


if __name__ == "__main__":
    run(main)
