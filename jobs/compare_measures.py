"""How well measures on boxes alone follow the true mean IoU, over the checkpoints of runs.

    python -m jobs.compare_measures --run-dir RUNS --records VAL --out DIR

Evaluates every checkpoint of the runs on records that have masks and boxes: mean IoU with the masks, and each measure
of evaluation/boxes.py with the boxes alone. Prints the rank correlations of each measure with mean IoU, over all
checkpoints and as the mean within a run. docs/box-score.md has a result.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from boxsup_dist.config import PredictionSettings
from boxsup_dist.data.tables import open_table
from boxsup_dist.errors import SettingError
from boxsup_dist.progress import ProgressMeter
from boxsup_dist.runs.command_line import NumActors, run
from boxsup_dist.runs.kept_config import read_config
from boxsup_dist.runs.summary import write_result

if TYPE_CHECKING:
    from boxsup_dist.evaluation.boxes import BoxResult
    from boxsup_dist.evaluation.units import UnitResult


@dataclass(frozen=True)
class Settings:
    """Which runs, on what."""

    run_dir: tuple[str, ...]
    """Run directories. Train them with a large --keep-checkpoints."""
    records: str
    """Folder or URI of a records table with masks and boxes."""
    out: str
    """Folder or URI of summary.json."""
    num_actors: NumActors = None


def judge(predict: Callable[[Any], Any], rows: pa.Table, num_classes: int) -> tuple[UnitResult, BoxResult]:
    """Counts of both kinds of a row group, from one prediction of each image."""
    from boxsup_dist.evaluation.boxes import box_unit
    from boxsup_dist.evaluation.units import evaluate_unit

    known: dict[bytes, Any] = {}

    def once(image: NDArray[np.uint8]) -> Any:
        key = image.tobytes()
        if key not in known:
            known[key] = predict(image)
        return known[key]

    return evaluate_unit(once, rows, num_classes), box_unit(once, rows, num_classes)


def measure(run_dir: str, settings: Settings) -> list[dict[str, Any]]:
    """One row per epoch with a checkpoint: the measures in percent, higher is better."""
    import ray

    from boxsup_dist.evaluation.boxes import BOX_COLUMNS, BoxResult, box_summary
    from boxsup_dist.evaluation.evaluate import map_label_maps, to_summary
    from boxsup_dist.evaluation.units import UnitResult
    from boxsup_dist.model import checkpoint
    from boxsup_dist.runs.networks import predictor

    records = open_table(settings.records, "records")
    names = records.classes
    ends = [uri for uri in checkpoint.list_checkpoints(run_dir) if re.search(r"-step-0+$", uri)]
    rows = []
    with predictor(run_dir, None, settings.num_actors, records) as found, ProgressMeter(run_dir, len(ends)) as meter:
        for uri in sorted(ends):
            weights = ray.put(checkpoint.load_weights(uri)[1])
            results = list(
                map_label_maps(
                    found.pool,
                    records,
                    partial(judge, num_classes=len(names)),
                    settings=PredictionSettings(),
                    crf_in_tasks=None,
                    columns=(*BOX_COLUMNS, "gt_label_map"),
                    weights=weights,
                    version=uri,
                )
            )
            mean_iou = to_summary(sum((each for each, _ in results), UnitResult.empty(len(names))), names)["mean_iou"]
            boxes = box_summary(sum((each for _, each in results), BoxResult.empty(len(names))), names)
            rows.append(
                {
                    "run": run_dir,
                    "checkpoint": uri,
                    "mean_iou": mean_iou,
                    "box_score": boxes["box_score"],
                    "box_iou": boxes["box_iou"],
                    "box_recall": boxes["box_recall"],
                    "inside_share": 100 - 100 * (boxes["outside_share"] or 0.0),
                    "recall_x_inside": (boxes["box_recall"] or 0.0) * (1 - (boxes["outside_share"] or 0.0)),
                }
            )
            values = "  ".join(f"{key} {value:.2f}" for key, value in rows[-1].items() if isinstance(value, float))
            print(f"{uri}  {values}", flush=True)
            meter.advance(1)
    return rows


def correlate(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Spearman's and Kendall's rank correlation of each measure with mean IoU.

    Args:
        rows: What `measure` returns, of several runs.

    Returns:
        Per measure: both over all rows, and the mean over the runs of those within a run; None where a run has no two
        different values.
    """
    from scipy.stats import kendalltau, spearmanr

    def ranks(chosen: list[dict[str, Any]], name: str) -> tuple[float, float]:
        truth, values = ([row[key] for row in chosen] for key in ("mean_iou", name))
        if len(set(truth)) < 2 or len(set(values)) < 2:
            return float("nan"), float("nan")
        return float(spearmanr(truth, values).statistic), float(kendalltau(truth, values).statistic)

    runs = [[row for row in rows if row["run"] == name] for name in dict.fromkeys(row["run"] for row in rows)]
    found = []
    for name in (key for key in rows[0] if key not in ("run", "checkpoint", "mean_iou")):
        everything, within = ranks(rows, name), np.array([ranks(each, name) for each in runs])
        means = [None if np.isnan(column).all() else float(np.nanmean(column)) for column in within.T]
        found.append(
            {
                "measure": name,
                "spearman": None if np.isnan(everything[0]) else everything[0],
                "kendall": None if np.isnan(everything[1]) else everything[1],
                "spearman_within": means[0],
                "kendall_within": means[1],
            }
        )
    return found


def main(settings: Settings) -> None:
    """Measure, write OUT/summary.json and print the correlations."""
    records = open_table(settings.records, "records")
    for name in ("with_mask", "boxes"):
        if not records.counts.get(name, 0):
            raise SettingError("the records lack masks or boxes", file=records.uri, field=name, expected="both")
    for run_dir in settings.run_dir:
        read_config(run_dir)
    from boxsup_dist.distributed import session

    session.start()
    rows = [row for run_dir in settings.run_dir for row in measure(run_dir, settings)]
    if not rows:
        raise SettingError("the runs have no checkpoint", field="run_dir", value=settings.run_dir)
    found = correlate(rows)

    def cell(value: float | None) -> str:
        return f"{'-':>9}" if value is None else f"{value:9.2f}"

    columns = ("spearman", "kendall", "spearman_within", "kendall_within")
    lines = [f"{'':<16}  over all checkpoints  within a run", f"{'measure':<16} {' spearman   kendall' * 2}"]
    lines += [" ".join([f"{each['measure']:<16}", *(cell(each[column]) for column in columns)]) for each in found]
    write_result(settings.out, {"correlations": found, "rows": rows, "records": records.uri}, lines)


if __name__ == "__main__":
    run(main)
