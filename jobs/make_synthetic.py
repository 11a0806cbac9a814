"""Write the synthetic data set in the layout of a VOC devkit.

    python -m jobs.make_synthetic --out DIR

DIR/VOC2012 gets images, masks, boxes and the splits train and val. A second call does nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from boxsup_dist.progress import ProgressMeter
from boxsup_dist.records.settings import NUM_TRAIN, NUM_VAL, SEED
from boxsup_dist.runs.command_line import run
from boxsup_dist.runs.summary import write_result


@dataclass(frozen=True)
class Settings:
    """Where to write, and how much."""

    out: str
    """Local folder; the devkit's folder VOC2012 is made in it."""
    num_train: int = NUM_TRAIN
    """Images of the split train."""
    num_val: int = NUM_VAL
    """Images of the split val."""
    seed: int = SEED
    """Seed of the data set: another seed gives other images."""


def main(settings: Settings) -> None:
    """Write the data set and DIR/summary.json, and print where it is."""
    from boxsup_dist.records import synthetic

    started = time.monotonic()
    total = settings.num_train + settings.num_val
    with ProgressMeter("synthetic", total) as progress:
        folder = synthetic.write_synthetic(
            settings.out, settings.num_train, settings.num_val, settings.seed, on_image=lambda: progress.advance(1)
        )
    summary = {
        "voc_root": folder,
        "num_train": settings.num_train,
        "num_val": settings.num_val,
        "seed": settings.seed,
        "num_written": progress.num_images,
        "seconds": round(time.monotonic() - started, 2),
    }
    line = f"{folder}: {settings.num_train} train, {settings.num_val} val, {progress.num_images} written now"
    write_result(settings.out, summary, [line])


if __name__ == "__main__":
    run(main)
