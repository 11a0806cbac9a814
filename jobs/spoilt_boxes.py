"""Measure how well suspicious boxes are found: spoil some boxes on purpose, train, and look for them.

    python -m jobs.spoilt_boxes --records TRAIN --out DIR

Copies the records with a share of the boxes made wrong (another class, shifted by half, doubled, missing), trains the
recipe `mini` on them, ranks all boxes by the score of `jobs.gallery`, and prints how many of the first ones are those
that were spoilt. No mask is looked at. Run it again to continue where it stopped.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from boxsup_dist.data.tables import MANIFEST, open_table
from boxsup_dist.errors import SettingError
from boxsup_dist.io import storage
from boxsup_dist.proposals.settings import NativeMethod
from boxsup_dist.runs.command_line import Epochs, run, run_step
from boxsup_dist.runs.summary import write_result

if TYPE_CHECKING:
    from boxsup_dist.records.spoil import Spoilt

FIRST = 50  # entries that a person looks at
FIRST_SHARE = 0.1  # of all boxes
SAME_IOU = 0.5  # of a region that is named and the box that is missing there


@dataclass(frozen=True)
class Settings:
    """What to spoil, and where to write."""

    records: str
    """Folder or URI of a records table with boxes."""
    out: str
    """Folder or URI to write: records (the spoilt copy), proposals, run, gallery, summary.json."""
    share: float = 0.05
    """Share of the boxes to spoil."""
    seed: int = 0
    """Seed of the draw and of the training."""
    method: NativeMethod = "selective_search"
    """Proposal method."""
    epochs: Epochs = None

    def check(self) -> None:
        """Raise SettingError on a value that cannot work."""
        if not 0 < self.share <= 0.5:
            raise SettingError("a setting is out of range", field="share", value=self.share, expected="0 to 0.5")


def main(settings: Settings) -> None:
    """Spoil, train, rank, and print precision and recall."""
    settings.check()
    out = storage.absolute(settings.out)
    records, proposals, run_dir, gallery = (storage.join(out, n) for n in ("records", "proposals", "run", "gallery"))
    from boxsup_dist.records.spoil import SPOILT_FILE, Spoilt, spoil_table

    source = open_table(settings.records, "records")
    if not storage.exists(storage.join(records, MANIFEST)):
        spoil_table(source, records, share=settings.share, seed=settings.seed)
    spoilt = [Spoilt(**each) for each in storage.read_json(storage.join(records, SPOILT_FILE))]
    run_step("build_proposals", ["--records", records, "--method", settings.method, "--out", proposals])
    arguments = ["mini", "--records", records, "--proposals", proposals, "--run-dir", run_dir]
    if settings.epochs is not None:
        arguments += ["--optimizer.epochs", str(settings.epochs)]
    run_step("train", [*arguments, "--seed", str(settings.seed)])
    run_step("gallery", ["--run-dir", run_dir, "--out", gallery])
    rows = list(csv.DictReader(io.StringIO(storage.read_bytes(storage.join(gallery, "suspicious_boxes.csv")).decode())))
    result = judge(rows, spoilt, num_boxes=open_table(records, "records").counts["boxes"])
    lines = [f"{name:<34} {value}" for name, value in result.items() if not isinstance(value, dict)]
    lines += [f"found of the kind {kind:<16} {text}" for kind, text in result["found_by_kind"].items()]
    write_result(out, result, lines)


def judge(rows: Sequence[dict[str, str]], spoilt: Sequence[Spoilt], *, num_boxes: int) -> dict[str, Any]:
    """Compare a ranking with what was spoilt.

    Args:
        rows: Entries of suspicious_boxes.csv, most suspicious first.
        spoilt: What was spoilt.
        num_boxes: Boxes of the spoilt table.

    Returns:
        Precision among the first FIRST, recall among the first FIRST_SHARE of the boxes, and recall by kind there.
    """
    hits = [_hit(row, spoilt) for row in rows]
    depth = round(FIRST_SHARE * num_boxes)
    found = {hit for hit in hits[:depth] if hit is not None}
    kinds = sorted({each.kind for each in spoilt})
    of_kind = {kind: [n for n, each in enumerate(spoilt) if each.kind == kind] for kind in kinds}
    return {
        "num_boxes": num_boxes,
        "num_spoilt": len(spoilt),
        f"precision_at_{FIRST}": float(np.mean([hit is not None for hit in hits[:FIRST]])),
        f"best_possible_precision_at_{FIRST}": min(1.0, len(spoilt) / FIRST),
        f"precision_at_{len(spoilt)}_as_many_as_spoilt": float(np.mean([h is not None for h in hits[: len(spoilt)]])),
        f"recall_at_{FIRST_SHARE:.0%}_of_boxes": len(found) / len(spoilt),
        "found_by_kind": {kind: f"{len(found & set(of_kind[kind]))} of {len(of_kind[kind])}" for kind in kinds},
    }


def _hit(row: dict[str, str], spoilt: Sequence[Spoilt]) -> int | None:
    """Index of what was spoilt there; None if nothing was."""
    from boxsup_dist.assignment.cost import box_iou

    for n, each in enumerate(spoilt):
        if row["image_id"] != each.image_id:
            continue
        if row["box_index"]:
            if each.box_index == int(row["box_index"]):
                return n
        elif each.box_index is None:
            region = np.array([[float(row[name]) for name in ("x0", "y0", "x1", "y1")]])
            if box_iou(np.array(each.box), region)[0] >= SAME_IOU:
                return n
    return None


if __name__ == "__main__":
    run(main)
