"""Measure accuracy near object boundaries: mean IoU in bands, and Boundary IoU.

    python -m jobs.trimap --run-dir A B --records VAL --widths 2 4 8 16 32 --out DIR

It measures mean IoU inside and outside bands around contours: the paper's Figure 4, for one run or several, on the same
records. boxsup_dist/evaluation/trimap.py defines both measures.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from boxsup_dist.config import PredictionSettings
from boxsup_dist.data.tables import Table, open_table
from boxsup_dist.errors import SettingError
from boxsup_dist.evaluation.trimap import BOUNDARY_SHARE, check_widths
from boxsup_dist.io import storage
from boxsup_dist.progress import ProgressMeter, counted
from boxsup_dist.reporting.text_table import format_table
from boxsup_dist.runs.command_line import NumActors, Prediction, RunDirs, run
from boxsup_dist.runs.kept_config import read_config
from boxsup_dist.runs.summary import write_result


@dataclass(frozen=True)
class Settings:
    """Which networks, on what."""

    run_dirs: RunDirs
    records: str
    """Folder or URI of the records table; its images need ground truth."""
    out: str
    """Folder or URI of summary.json and trimap.png."""
    widths: tuple[int, ...] = (2, 4, 8, 16, 32)
    """Widths of the bands, in pixels to either side of the contour."""
    boundary_share: float = BOUNDARY_SHARE
    """Depth of the regions of Boundary IoU, as a share of the image's diagonal."""
    num_actors: NumActors = None
    prediction: Prediction = field(default_factory=PredictionSettings)


def main(settings: Settings) -> None:
    """Measure one run after the other, write the results and print a row per run and width."""
    if not settings.run_dirs:
        raise SettingError("no run to measure", field="run_dir", expected="one run directory or more")
    check_widths(settings.widths, settings.boundary_share)
    settings.prediction.check()
    for run_dir in settings.run_dirs:
        read_config(run_dir)
    records = open_table(settings.records, "records")
    from boxsup_dist.distributed import session
    from boxsup_dist.reporting.figures import trimap_figure

    started = time.monotonic()
    session.start()
    runs = {name: _measure(uri, records, settings) for name, uri in _names(settings.run_dirs).items()}
    out = storage.absolute(settings.out)
    summary = {
        "widths_px": settings.widths,
        "boundary_share": settings.boundary_share,
        "runs": runs,
        "prediction": asdict(settings.prediction),
        "records": records.uri,
        "seconds": time.monotonic() - started,
    }
    storage.write_bytes(storage.join(out, "trimap.png"), trimap_figure(settings.widths, runs))
    rows = [
        {"run": name, "width_px": width, "inside": inside, "outside": outside, "band, % of the pixels": share}
        for name, found in runs.items()
        for width, inside, outside, share in zip(
            settings.widths, found["inside"], found["outside"], found["band_share"], strict=True
        )
    ]
    (num_images,) = {found["num_images"] for found in runs.values()}
    title = f"mean IoU (%) inside and outside the bands, {counted(num_images, 'image')} with ground truth"
    table = format_table(rows, title)
    means = [
        f"{name}: mean IoU {found['mean_iou']:.2f}   Boundary IoU {found['mean_boundary_iou']:.2f}"
        for name, found in runs.items()
    ]
    write_result(out, summary, [table, *means])


def _names(run_dirs: tuple[str, ...]) -> dict[str, str]:
    """A name for each run: its folder's, or the whole URI where two folders have one name."""
    last = [uri.rstrip("/").rsplit("/", 1)[-1] for uri in run_dirs]
    return {name if last.count(name) == 1 else uri: uri for name, uri in zip(last, run_dirs, strict=True)}


def _measure(run_dir: str, records: Table, settings: Settings) -> dict[str, Any]:
    from boxsup_dist.evaluation.evaluate import measure_boundaries
    from boxsup_dist.evaluation.trimap import boundary_summary
    from boxsup_dist.runs.networks import predictor

    groups = records.row_groups()
    opened = predictor(run_dir, None, settings.num_actors, records)
    with opened as found, ProgressMeter("trimap", len(groups)) as meter:
        result = measure_boundaries(
            found.pool,
            records,
            weights=found.weights,
            version=found.version,
            num_classes=len(records.classes),
            widths_px=settings.widths,
            boundary_share=settings.boundary_share,
            settings=settings.prediction,
            on_progress=meter.advance_to([group.num_rows for group in groups]),
        )
    return boundary_summary(result, records.classes) | {"checkpoint": found.version}


if __name__ == "__main__":
    run(main)
