"""Run everything once: build tables, train from masks, rectangles and boxes, compare.

    python -m jobs.demo                                     # on the embedded synthetic data
    python -m jobs.demo --voc-root VOCdevkit/VOC2012        # on a VOC devkit

All three train for the same number of steps and are compared on images that none of them saw. Run the command again to
continue where it stopped.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from boxsup_dist.config import SourceSettings, Supervision
from boxsup_dist.io import storage
from boxsup_dist.proposals.settings import MethodName
from boxsup_dist.reporting.text_table import format_table
from boxsup_dist.runs.command_line import run
from boxsup_dist.runs.layout import RunFiles
from boxsup_dist.runs.recipes import RECIPES, RecipeName
from boxsup_dist.runs.summary import write_result

SUPERVISIONS: tuple[Supervision, ...] = ("mask", "rectangles", "box")


@dataclass(frozen=True)
class Settings:
    """What to run the demo on, and where to write."""

    voc_root: str | None = None
    """Year folder of a VOC devkit (VOCdevkit/VOC2012). Default: the embedded synthetic data."""
    out: str | None = None
    """Folder or URI to write. Default: runs/demo, or runs/demo-voc with a devkit."""
    recipe: RecipeName | None = None
    """Recipe to train with. Default: demo, or mini with a devkit."""
    method: MethodName = "selective_search"
    """Proposal method."""
    train_split: str = "train"
    """List to train on."""
    val_split: str = "val"
    """List to compare on."""
    seed: int = 0
    """Seed of the three trainings."""


def _timed(seconds: dict[str, float], stage: str, call: Any, *args: Any, **kwargs: Any) -> Any:
    print(f"== {stage}", flush=True)
    started = time.monotonic()
    result = call(*args, **kwargs)
    seconds[stage] = round(time.monotonic() - started, 1)
    return result


def main(settings: Settings) -> None:
    """Run every stage that is not done yet, write OUT/summary.json and OUT/report.html, and print the comparison."""
    from boxsup_dist.distributed import session
    from boxsup_dist.proposals.build import build_proposals
    from boxsup_dist.records.build import build_records
    from boxsup_dist.records.synthetic import write_synthetic
    from boxsup_dist.records.voc import open_splits
    from boxsup_dist.runs.report import write_report
    from boxsup_dist.runs.train import train

    voc = settings.voc_root is not None
    out = storage.absolute(settings.out or ("runs/demo-voc" if voc else "runs/demo"))
    recipe = RECIPES[settings.recipe or ("mini" if voc else "demo")]
    seconds: dict[str, float] = {}
    _timed(seconds, "ray", session.start)
    root = settings.voc_root
    if root is None:
        root = _timed(seconds, "synthetic data", write_synthetic, storage.join(out, "devkit"))
    uris = {split: storage.join(out, "records", split) for split in (settings.train_split, settings.val_split)}
    for split, uri in uris.items():
        _timed(seconds, f"records {split}", build_records, uri, open_splits(root, split))
    records, val_records = uris.values()
    proposals = storage.join(out, "proposals")
    _timed(seconds, "proposals", build_proposals, proposals, records, settings.method)
    runs: dict[str, Any] = {}
    for name in SUPERVISIONS:
        source = SourceSettings(records, name, proposals if name == "box" else None)
        config = recipe(storage.join(out, name), (source,), val_records)
        runs[name] = _timed(seconds, name, train, replace(config, seed=settings.seed))
    summary = {
        "mean_iou": {name: runs[name]["mean_iou"] for name in SUPERVISIONS},
        "label_mean_iou": {
            "rectangles": runs["rectangles"]["label_mean_iou"]["last"],
            "box_first": runs["box"]["label_mean_iou"]["first"],
            "box_last": runs["box"]["label_mean_iou"]["last"],
        },
        "box_share_of_mask": runs["box"]["mean_iou"] / runs["mask"]["mean_iou"],
        "seconds": seconds,
        "runs": {name: runs[name]["seconds"] for name in SUPERVISIONS},
    }
    write_result(out, summary)
    write_report(out)
    _print(summary, out)


def _print(summary: dict[str, Any], out: str) -> None:
    labels = summary["label_mean_iou"]
    measured = {
        "mask": "ground truth",
        "rectangles": f"{labels['rectangles']:.1f}",
        "box": f"{labels['box_first']:.1f} -> {labels['box_last']:.1f}",
    }
    rows = [
        {"supervision": name, "mean IoU": f"{summary['mean_iou'][name]:.1f}", "label mIoU": measured[name]}
        for name in SUPERVISIONS
    ]
    print(format_table(rows))
    print(f"box reaches {summary['box_share_of_mask']:.1%} of mask; report: {RunFiles(out).report}")


if __name__ == "__main__":
    run(main)
