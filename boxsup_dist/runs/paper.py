"""The rows of the paper's Tables 1 to 5 as runs: which data, what training may use of it, and what the paper measured.

A row names data sets of a *data root*, a folder with tables at fixed places:

    DATA/NAME/records               voc12-train, voc12-aug (the 9,118 of train_aug that are not in train), voc12-val,
                                    coco (VOC's 20 classes), coco80 (all), voc07, context-train, context-val; the
                                    names are the same at every scale
    DATA/NAME/proposals-METHOD      for the data sets that give boxes
    DATA/NAME/label-maps-METHOD     grabcut and wssl

The scale decides the recipe: `full` trains as the paper does, `mini` is for some hundred images. The numbers of the
paper are mean IoU in percent after the CRF, on VOC 2012 val (Tables 1 to 3), on the test server (Table 4) and on
PASCAL-Context val (Table 5).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from boxsup_dist.config import SourceSettings, Supervision, TrainConfig
from boxsup_dist.config.parts import CHECKPOINT_PREFIX
from boxsup_dist.errors import SettingError
from boxsup_dist.io import storage
from boxsup_dist.runs.recipes import RECIPES, RecipeName, with_epochs

Scale = Literal["full", "mini"]
RECIPE_OF_SCALE: dict[Scale, RecipeName] = {"full": "paper", "mini": "mini"}
TRAIN, AUG, COCO, VOC07, VAL = "voc12-train", "voc12-aug", "coco", "voc07", "voc12-val"
COCO80, CONTEXT_TRAIN, CONTEXT_VAL = "coco80", "context-train", "context-val"


@dataclass(frozen=True)
class Row:
    """One row of a table: its name, the paper's mean IoU (None: not in the paper) and how to train it."""

    name: str
    paper: float | None
    sources: tuple[tuple[str, Supervision], ...]  # data sets, and what training may use of each
    val: str | None = VAL
    proposals: str = "mcg"
    top_k: int | None = None  # None: the value of the recipe
    refined: bool = False  # not in the paper: the assignment of `mini`, refined with GrabCut's vote in the last tenth
    start: Row | None = None  # start from the network of this row, except its score layer

    def run_name(self, config: TrainConfig) -> str:
        """Name of the run, such as "train-box_aug-box_mcg_k5_seed0"; rows of several tables share it with their run."""
        parts = [f"{name.removeprefix('voc12-')}-{given.replace('_', '-')}" for name, given in self.sources]
        if "box" in (given for _, given in self.sources):
            parts += [self.proposals, f"k{config.assignment.top_k}", *(["refined"] if self.refined else [])]
        if self.start is not None:
            parts.append("from-" + "_".join(name for name, _ in self.start.sources))
        return "_".join([*parts, f"seed{config.seed}"])


def _voc(
    train: Supervision, aug: Supervision, coco: Supervision | None = None, voc07: Supervision | None = None
) -> tuple[tuple[str, Supervision], ...]:
    """Sources of Tables 1 to 4: `train` has the official masks, `aug` the other images of train_aug."""
    found = ((TRAIN, train), (AUG, aug), (COCO, coco), (VOC07, voc07))
    return tuple((name, given) for name, given in found if given is not None)


COCO_BOXES = Row("COCO's 80 classes from boxes", None, ((COCO80, "box"),), val=None)
TABLES: dict[int, tuple[Row, ...]] = {
    1: (
        Row("mask V", 63.8, _voc("mask", "mask")),
        Row("box V", 62.0, _voc("box", "box")),
        Row("semi V", 63.5, _voc("mask", "box")),
        Row("mask V+C", 68.1, _voc("mask", "mask", "mask")),
        Row("semi V+C", 68.2, _voc("mask", "mask", "box")),
    ),
    2: (
        Row("rectangles", 52.3, _voc("rectangles", "rectangles")),
        Row("grabcut", 55.2, _voc("grabcut", "grabcut")),
        Row("wssl", 58.5, _voc("wssl", "wssl")),
        Row("wssl em", None, _voc("wssl_em", "wssl_em")),
        Row("box, no sampling", 59.7, _voc("box", "box"), top_k=1),
        Row("box", 62.0, _voc("box", "box"), top_k=5),
        Row("box, refined", None, _voc("box", "box"), refined=True),
    ),
    3: (
        Row("selective search", 59.5, _voc("box", "box"), proposals="selective_search"),
        Row("gop", 60.4, _voc("box", "box"), proposals="gop"),
        Row("mcg", 62.0, _voc("box", "box")),
    ),
    4: (
        Row("box V", 64.6, _voc("box", "box")),
        Row("semi V", 66.2, _voc("mask", "box")),
        Row("semi V+C", 71.0, _voc("mask", "mask", "box")),
        Row("semi V+C+V07", 73.1, _voc("mask", "mask", "box", "box")),
    ),
    5: (
        Row("baseline", 35.7, ((CONTEXT_TRAIN, "mask"),), val=CONTEXT_VAL),
        Row("boxsup", 40.5, ((CONTEXT_TRAIN, "mask"),), val=CONTEXT_VAL, start=COCO_BOXES),
    ),
}


def find_row(table: int, name: str) -> Row:
    """The row of a table by its name.

    Raises:
        SettingError: There is none; lists the rows or the tables.
    """
    rows = TABLES.get(table, ())
    for row in rows:
        if row.name == name:
            return row
    expected = ", ".join(f'"{row.name}"' for row in rows) or f"a table of {', '.join(map(str, TABLES))}"
    raise SettingError(f"no such row in table {table}", field="rows", value=name, expected=expected)


def make_configs(
    row: Row, scale: Scale, data: str, runs: str, *, seed: int = 0, epochs: int | None = None
) -> list[TrainConfig]:
    """The runs of a row in their order: the run that it starts from, if there is one, and its own.

    Images that an earlier data set or the validation holds are dropped.

    Args:
        row: A row of TABLES.
        scale: Decides the recipe.
        data: The data root.
        runs: Folder for run directories; rows that are the same run share a directory.
        seed: Seed of the runs.
        epochs: None: those of the recipe. Else the warm-up of the assignment keeps its share of them.
    """
    before = make_configs(row.start, scale, data, runs, seed=seed, epochs=epochs) if row.start else []
    val = storage.join(data, row.val, "records") if row.val else None
    config = RECIPES[RECIPE_OF_SCALE[scale]](runs, _sources(row, data), val)
    weights = CHECKPOINT_PREFIX + before[-1].run_dir if before else config.network.weights
    config = replace(
        config,
        seed=seed,
        duplicates="drop",
        network=replace(config.network, weights=weights),
        evaluate_every=config.evaluate_every if val else 0,
    )
    if row.top_k is not None:
        config = replace(config, assignment=replace(config.assignment, top_k=row.top_k))
    if epochs is not None:
        config = with_epochs(config, epochs)
    if row.refined:
        robust = RECIPES["mini"](runs, config.sources, config.val_records).assignment
        refined = max(1, config.optimizer.epochs // 10)
        robust = replace(
            robust,
            warmup_epochs=config.assignment.warmup_epochs,
            refine_from_epoch=config.optimizer.epochs - refined + 1,
        )
        config = replace(config, assignment=robust)
    return [*before, replace(config, run_dir=storage.join(runs, row.run_name(config)))]


def _sources(row: Row, data: str) -> tuple[SourceSettings, ...]:
    found = []
    for name, supervision in row.sources:
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
