"""Draw figures that compare finished runs.

    python -m jobs.figures --run-dir A B --out O

    O/labels-and-prediction-RUN.png  images with boxes, label maps over the epochs and prediction
    O/label-maps-by-epoch-RUN.png    how the label maps of one run change (the paper's Figure 3)
    O/label-maps-by-run.png          what each supervision trains on (Figure 2)
    O/predictions.png                validation images (Figures 5 and 6)
    O/iou.png  O/confusion-RUN.png  O/curves.png

Each figure is also stored in the MLflow runs that it shows, under figures/compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.errors import InputError, SettingError
from boxsup_dist.io import storage
from boxsup_dist.runs.command_line import RunDirs, run
from boxsup_dist.runs.kept_config import read_config
from boxsup_dist.runs.summary import mlflow_run, write_result

if TYPE_CHECKING:
    from boxsup_dist.runs.comparison import FinishedRun

Kind = Literal[
    "labels-and-prediction", "label-maps-by-epoch", "label-maps-by-run", "predictions", "iou", "confusion", "curves"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
Drawn: TypeAlias = "tuple[str, bytes, Sequence[FinishedRun]]"
"""File name, PNG, and the runs that it shows."""


@dataclass(frozen=True)
class Settings:
    """Which runs and images, and what to draw of them."""

    run_dirs: RunDirs
    out: str
    """Folder or URI of the figures and summary.json."""
    kinds: tuple[Kind, ...] = KINDS
    """Figures to draw."""
    image_ids: tuple[str, ...] = ()
    """Training images whose label maps to show. Default: some of the first run."""
    val_image_ids: tuple[str, ...] = ()
    """Validation images whose predictions to show. Default: some of the first run."""
    num_images: int = 5
    """Images in a figure where none are named."""
    show_epochs: tuple[int, ...] = ()
    """Epochs whose label maps to show; the first is 1. Default: four, with the first and the last."""
    log: bool = True
    """Also store the figures in the MLflow runs of the trainings."""

    def check(self) -> None:
        """Raise SettingError on settings that cannot work."""
        unknown = sorted(set(self.kinds) - set(KINDS))
        if unknown or not self.kinds:
            raise SettingError("unknown figure", field="kinds", value=unknown, expected=", ".join(KINDS))
        if self.num_images < 1:
            raise SettingError("a setting is out of range", field="num_images", value=self.num_images, expected=">= 1")
        if any(epoch < 1 for epoch in self.show_epochs):
            raise SettingError("no such epoch", field="show_epochs", value=self.show_epochs, expected=">= 1")


def main(settings: Settings) -> None:
    """Draw, write OUT/*.png and OUT/summary.json, log, and print the files."""
    settings.check()
    for run_dir in settings.run_dirs:
        read_config(run_dir)
    from boxsup_dist.runs import comparison

    out = storage.absolute(settings.out)
    runs = comparison.open_runs(settings.run_dirs)
    files: dict[str, list[str]] = {}
    for kind in settings.kinds:
        drawn = list(_draw(kind, runs, settings))
        if not drawn:
            print(f"{kind}: these runs have nothing to show", flush=True)
        for name, data, shown in drawn:
            storage.write_bytes(storage.join(out, name), data)
            files[name] = [each.run_dir for each in shown]
            print(storage.join(out, name), flush=True)
            if settings.log:
                _log(name, data, shown)
    write_result(out, {"figures": files})


def _draw(kind: Kind, runs: Sequence[FinishedRun], settings: Settings) -> Iterator[Drawn]:
    from boxsup_dist.reporting import comparison_figures as draw
    from boxsup_dist.runs import comparison

    first, count = runs[0], settings.num_images
    if kind in ("labels-and-prediction", "label-maps-by-epoch"):
        make_grid = comparison.label_maps_by_epoch
        if kind == "labels-and-prediction":
            make_grid = comparison.labels_and_prediction
        for each in runs:
            ids = settings.image_ids or comparison.training_examples(each, count)
            grid = make_grid(each, ids, settings.show_epochs)
            if grid is not None:
                yield f"{kind}-{_slug(each)}.png", draw.image_grid_figure(*grid, each.inputs.class_names), [each]
    elif kind == "label-maps-by-run":
        ids = settings.image_ids or comparison.training_examples(first, count)
        grid = comparison.label_maps_by_run(runs, ids)
        yield f"{kind}.png", draw.image_grid_figure(*grid, first.inputs.class_names), runs
    elif kind == "predictions" and first.inputs.val_records is not None:
        ids = settings.val_image_ids or comparison.validation_examples(first, count)
        grid = comparison.predictions_by_run(runs, ids)
        yield f"{kind}.png", draw.image_grid_figure(*grid, first.inputs.class_names), runs
    elif kind == "iou":
        measured = {each.name: each.iou for each in runs}
        iou = {name: by_class for name, by_class in measured.items() if by_class is not None}
        if iou:
            yield f"{kind}.png", draw.iou_comparison_figure(iou), [each for each in runs if each.name in iou]
    elif kind == "confusion":
        for each in runs:
            if each.inputs.val_records is not None:
                data = draw.confusion_figure(_confusion(each), each.inputs.class_names)
                yield f"{kind}-{_slug(each)}.png", data, [each]
    elif kind == "curves":
        yield f"{kind}.png", draw.curves_comparison_figure({each.name: each.history for each in runs}), runs


def _slug(each: FinishedRun) -> str:
    return re.sub(r"[^\w\-+]+", "_", each.name).strip("_")


def _confusion(each: FinishedRun) -> NDArray[np.int64]:
    """The run's confusion matrix (C, C); a run that kept none is evaluated on the actor pool, and it is kept."""
    if each.confusion is not None:
        return each.confusion
    assert each.inputs.val_records is not None
    import ray

    from boxsup_dist.distributed import session
    from boxsup_dist.evaluation.evaluate import evaluate
    from boxsup_dist.model import checkpoint
    from boxsup_dist.runs.evaluated import keep_matrices
    from boxsup_dist.runs.networks import load_run, make_pool

    session.start()
    config, uri = load_run(each.run_dir, None, None)
    spec, weights = checkpoint.load_weights(uri)
    pool = make_pool(spec, config.resources)
    try:
        result = evaluate(
            pool,
            each.inputs.val_records,
            weights=ray.put(weights),
            version=uri,
            num_classes=len(each.inputs.class_names),
        )
    finally:
        pool.close()
    keep_matrices(each.run_dir, result, each.inputs.class_names)
    return result.confusion


def _log(name: str, data: bytes, shown: Sequence[FinishedRun]) -> None:
    from boxsup_dist.tracking.client import add_artifacts

    for each in shown:
        try:
            add_artifacts(*mlflow_run(each.run_dir), {f"figures/compared/{name}": data})
        except InputError as error:  # the figure is in its folder; the store may have been deleted or moved
            print(f"warning: not in MLflow: {error}", flush=True)


if __name__ == "__main__":
    run(main)
