"""Train from boxes on small data, from nothing to a picture: build the tables, train, measure.

    python -m jobs.demo                                     # on the embedded synthetic data, about 4 minutes
    python -m jobs.demo --compare                           # then train from masks and rectangles too
    python -m jobs.demo --voc-root VOCdevkit/VOC2012        # on a VOC devkit

All trainings take the same number of steps and are measured on images that none of them saw. Run the command again to
continue where it stopped.
"""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass, fields, replace
from typing import Any

from boxsup_dist.config import SourceSettings, Supervision, TrainConfig
from boxsup_dist.io import storage
from boxsup_dist.proposals.settings import NativeMethod
from boxsup_dist.records.reader import Reader
from boxsup_dist.reporting.text_table import format_table
from boxsup_dist.runs.command_line import program, run
from boxsup_dist.runs.layout import RunFiles
from boxsup_dist.runs.recipes import RECIPES, RecipeName
from boxsup_dist.runs.summary import Summary, write_result

COMPARED: tuple[Supervision, ...] = ("mask", "rectangles")


@dataclass(frozen=True)
class Settings:
    """What to run the demo on, and where to write."""

    voc_root: str | None = None
    """Year folder of a VOC devkit (VOCdevkit/VOC2012). Default: the embedded synthetic data."""
    out: str | None = None
    """Folder or URI to write. Default: runs/demo, or runs/demo-voc with a devkit."""
    compare: bool = False
    """Also train from masks and from rectangles (filled boxes), and compare. It takes three times as long."""
    recipe: RecipeName | None = None
    """Recipe to train with. Default: demo, or mini with a devkit."""
    method: NativeMethod = "selective_search"
    """Proposal method."""
    train_split: str = "train"
    """List to train on."""
    val_split: str = "val"
    """List to measure on."""
    seed: int = 0
    """Seed of the trainings."""


def main(settings: Settings) -> None:
    """Run every stage that is not done yet, write OUT/summary.json and OUT/report.html, and print the result."""
    from boxsup_dist.records.synthetic import write_synthetic

    started = time.monotonic()
    voc = settings.voc_root is not None
    out = storage.absolute(settings.out or ("runs/demo-voc" if voc else "runs/demo"))
    seconds: dict[str, float] = {}
    root = settings.voc_root
    if root is None:
        root = _timed(seconds, "synthetic data", write_synthetic, storage.join(out, "devkit"))
    readers = _open_readers(root, settings)  # before the imports that take seconds
    config = _build_tables(out, readers, settings, seconds)
    from boxsup_dist.runs.report import write_report
    from boxsup_dist.runs.train import train

    runs: dict[str, Summary] = {}
    for name in ("box", *(COMPARED if settings.compare else ())):
        source = replace(config.sources[0], supervision=name)
        if name != "box":
            source = replace(source, proposals=None)
        own = replace(config, run_dir=storage.join(out, name), sources=(source,))
        runs[name] = _timed(seconds, name, train, own)
    write_result(out, _summary(runs, seconds))
    write_report(out)
    if settings.compare:
        _print_comparison(runs, out)
    else:
        _print_result(runs["box"], out, _command_to_compare(settings), time.monotonic() - started)


def _timed(seconds: dict[str, float], stage: str, call: Any, *args: Any, **kwargs: Any) -> Any:
    print(f"== {stage}", flush=True)
    started = time.monotonic()
    result = call(*args, **kwargs)
    seconds[stage] = round(time.monotonic() - started, 1)
    return result


def _open_readers(root: str, settings: Settings) -> dict[str, Reader]:
    """The lists to train and to measure on, by the names of their splits."""
    from boxsup_dist.records.voc import open_splits

    return {split: open_splits(root, split) for split in (settings.train_split, settings.val_split)}


def _build_tables(out: str, readers: dict[str, Reader], settings: Settings, seconds: dict[str, float]) -> TrainConfig:
    """Records and proposals; the configuration of a training from boxes on them."""
    from boxsup_dist.distributed import session
    from boxsup_dist.proposals.build import build_proposals
    from boxsup_dist.records.build import build_records

    _timed(seconds, "ray", session.start)
    uris = {split: storage.join(out, "records", split) for split in readers}
    for split, uri in uris.items():
        _timed(seconds, f"records {split}", build_records, uri, readers[split])
    records, val_records = uris[settings.train_split], uris[settings.val_split]
    proposals = storage.join(out, "proposals")
    _timed(seconds, "proposals", build_proposals, proposals, records, settings.method)
    recipe = RECIPES[settings.recipe or ("demo" if settings.voc_root is None else "mini")]
    config = recipe(storage.join(out, "box"), (SourceSettings(records, "box", proposals),), val_records)
    return replace(config, seed=settings.seed)


def _summary(runs: dict[str, Summary], seconds: dict[str, float]) -> dict[str, Any]:
    """What OUT/summary.json holds; IoUs in percent."""
    labels = {name: each["label_mean_iou"] for name, each in runs.items()}
    found: dict[str, Any] = {
        "mean_iou": {name: each["mean_iou"] for name, each in runs.items()},
        "label_mean_iou": {
            f"{name}_{epoch}": value for name, pair in labels.items() if pair for epoch, value in pair.items()
        },
        "seconds": seconds,  # of this call: a stage that was done takes none
        "runs": {name: each["seconds"] for name, each in runs.items()},
    }
    if "mask" in runs:
        found["box_share_of_mask"] = _share_of_mask(runs)
    return found


def _share_of_mask(runs: dict[str, Summary]) -> float | None:
    box, mask = runs["box"]["mean_iou"], runs["mask"]["mean_iou"]
    return box / mask if box is not None and mask else None


def _command_to_compare(settings: Settings) -> str:
    """The same command with --compare."""
    words = [*program().split(), "--compare"]
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.name != "compare" and value != field.default:
            words += [f"--{field.name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def _print_result(box: Summary, out: str, next_command: str, seconds: float) -> None:
    """A picture, three figures and the next command, for somebody who sees them for the first time."""
    folder = RunFiles(storage.join(out, "box")).figures
    pictures = [storage.join(folder, name) for name in storage.list_names(folder) if name.endswith(".png")]
    labels = box["label_mean_iou"]
    lines = {
        "network": f"{_percent(box['mean_iou'])} mean IoU on images that it never saw; it was trained from boxes alone",
        "labels": f"{_percent(labels['last'] if labels else None)} mean IoU of the segments chosen for the boxes, "
        "against masks that the training never saw",
        "time": f"{seconds / 60:.1f} minutes, for this call",
        "picture": f"{pictures[0] if pictures else 'none'}",
        "report": RunFiles(out).report,
        "next": next_command,
    }
    print("\nThe demo is done.")
    for name, text in lines.items():
        print(f"{name:<8} {text}", flush=True)


def _percent(value: float | None) -> str:
    return "not measured:" if value is None else f"{value:.1f} %"


def _print_comparison(runs: dict[str, Summary], out: str) -> None:
    rows = []
    for name in ("mask", "rectangles", "box"):
        labels = runs[name]["label_mean_iou"]
        measured = f"{labels['first']:.1f} -> {labels['last']:.1f}" if labels else None
        mean_iou = runs[name]["mean_iou"]
        rows.append(
            {
                "trained from": name,
                "mean IoU": None if mean_iou is None else f"{mean_iou:.1f}",
                "label mIoU": "ground truth" if name == "mask" else measured,
            }
        )
    print(format_table(rows))
    share = _share_of_mask(runs)
    if share is not None:
        print(f"box reaches {share:.1%} of mask")
    print(f"report   {RunFiles(out).report}")


if __name__ == "__main__":
    run(main)
