"""The rows of the paper's Tables 1 to 5 as runs: which data, what training may use of it, and what the paper measured.

A row names data sets of a *data root*, a folder whose tables lie at fixed places:

    DATA/NAME/records               voc12-train, voc12-aug (the 9,118 of train_aug that are not in train), voc12-val,
                                    coco, voc07; of another size for another scale, under the same names
    DATA/NAME/proposals-METHOD      of the data sets that give boxes
    DATA/NAME/label-maps-METHOD     grabcut and wssl

The scale decides the recipe: `full` trains as the paper does, `mini` as suits some hundred images. The paper's figures
are mean IoU in percent after the CRF, on VOC 2012 val (Tables 1 to 3) and on the test server (Table 4).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from boxsup_dist import storage
from boxsup_dist.config import SourceSettings, Supervision, TrainConfig
from boxsup_dist.errors import SettingError
from boxsup_dist.recipes import RECIPES

Scale = Literal["full", "mini"]
RECIPE_OF_SCALE: dict[Scale, str] = {"full": "paper", "mini": "mini"}
TRAIN, AUG, COCO, VOC07, VAL = "voc12-train", "voc12-aug", "coco", "voc07", "voc12-val"


@dataclass(frozen=True)
class Row:
    """One row of a table: a name, the paper's mean IoU (None: not in the paper) and how to train it."""

    name: str
    paper: float | None
    train: Supervision  # of the images that have the official masks
    aug: Supervision  # of the other images of train_aug
    coco: Supervision | None = None  # None: COCO takes no part
    voc07: Supervision | None = None
    proposals: str = "mcg"
    top_k: int | None = None  # None: as the recipe of the scale has it
    refined: bool = False  # not in the paper: the assignment of `mini`, refined with GrabCut's vote in the second half

    @property
    def parts(self) -> list[tuple[str, Supervision]]:
        """Data sets, and what training may use of each."""
        found = ((TRAIN, self.train), (AUG, self.aug), (COCO, self.coco), (VOC07, self.voc07))
        return [(name, supervision) for name, supervision in found if supervision is not None]

    def run_name(self, config: TrainConfig) -> str:
        """A name that rows of any table share if they are the same run: "train-box_aug-box_mcg_k5_seed0"."""
        short = {TRAIN: "train", AUG: "aug"}
        parts = [f"{short.get(name, name)}-{supervision.replace('_', '-')}" for name, supervision in self.parts]
        if "box" in (supervision for _, supervision in self.parts):
            parts += [self.proposals, f"k{config.assignment.top_k}", *(["refined"] if self.refined else [])]
        return "_".join([*parts, f"seed{config.seed}"])


TABLES: dict[int, tuple[Row, ...]] = {
    1: (
        Row("mask V", 63.8, "mask", "mask"),
        Row("box V", 62.0, "box", "box"),
        Row("semi V", 63.5, "mask", "box"),
        Row("mask V+C", 68.1, "mask", "mask", "mask"),
        Row("semi V+C", 68.2, "mask", "mask", "box"),
    ),
    2: (
        Row("rectangles", 52.3, "rectangles", "rectangles"),
        Row("grabcut", 55.2, "grabcut", "grabcut"),
        Row("wssl", 58.5, "wssl", "wssl"),
        Row("wssl em", None, "wssl_em", "wssl_em"),
        Row("box, no sampling", 59.7, "box", "box", top_k=1),
        Row("box", 62.0, "box", "box", top_k=5),
        Row("box, refined", None, "box", "box", refined=True),
    ),
    3: (
        Row("selective search", 59.5, "box", "box", proposals="selective_search"),
        Row("gop", 60.4, "box", "box", proposals="gop"),
        Row("mcg", 62.0, "box", "box"),
    ),
    4: (
        Row("box V", 64.6, "box", "box"),
        Row("semi V", 66.2, "mask", "box"),
        Row("semi V+C", 71.0, "mask", "mask", "box"),
        Row("semi V+C+V07", 73.1, "mask", "mask", "box", "box"),
    ),
}


def find_row(table: int, name: str) -> Row:
    """A row by its name. SettingError lists what there is."""
    rows = TABLES.get(table, ())
    for row in rows:
        if row.name == name:
            return row
    expected = ", ".join(f'"{row.name}"' for row in rows) or f"a table of {', '.join(map(str, TABLES))}"
    raise SettingError(f"no such row in table {table}", field="rows", value=name, expected=expected)


def make_config(
    row: Row, scale: Scale, data: str, runs: str, *, seed: int = 0, epochs: int | None = None
) -> TrainConfig:
    """The run of a row, in a folder of `runs` that the same run of another table has too.

    Images that an earlier data set or the validation holds are dropped. `epochs` None: as many as the recipe has, else
    the warm-up of the assignment keeps its share of them.
    """
    config = RECIPES[RECIPE_OF_SCALE[scale]](runs, _sources(row, data), storage.join(data, VAL, "records"))
    config = replace(config, seed=seed, duplicates="drop")
    if row.top_k is not None:
        config = replace(config, assignment=replace(config.assignment, top_k=row.top_k))
    if epochs is not None:
        warmup = max(1, round(config.assignment.warmup_epochs * epochs / config.optimizer.epochs))
        config = replace(
            config,
            assignment=replace(config.assignment, warmup_epochs=warmup),
            optimizer=replace(config.optimizer, epochs=epochs),
        )
    if row.refined:
        robust = RECIPES["mini"](runs, config.sources, config.val_records).assignment
        half = config.optimizer.epochs // 2
        robust = replace(robust, warmup_epochs=config.assignment.warmup_epochs, refine_from_epoch=half)
        config = replace(config, assignment=robust)
    return replace(config, run_dir=storage.join(runs, row.run_name(config)))


def _sources(row: Row, data: str) -> tuple[SourceSettings, ...]:
    found = []
    for name, supervision in row.parts:
        folder = storage.join(data, name)
        static = "grabcut" if row.refined and supervision == "box" else supervision
        found.append(
            SourceSettings(
                storage.join(folder, "records"),
                supervision,
                storage.join(folder, f"proposals-{row.proposals}") if supervision == "box" else None,
                storage.join(folder, f"label-maps-{static}") if static in ("grabcut", "wssl") else None,
            )
        )
    return tuple(found)
