"""What the page of a gallery and its list of boxes are made of: the images of one or two runs, as gallery.py drew them.

`page_data` is what the scripts of the page read, `boxes_csv` the list of all boxes, most suspicious first.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from boxsup_dist.data.input_names import read_input_names
from boxsup_dist.data.palette import class_palette
from boxsup_dist.data.sources import Mixture
from boxsup_dist.errors import InputError
from boxsup_dist.evaluation.suspicion import describe, doubts, kind_of
from boxsup_dist.reporting.gallery import shown_size
from boxsup_dist.runs.gallery import Drawn, RunView, Suspect, crop_name

PAGE, BOXES = "index.html", "suspicious_boxes.csv"
NUM_SUSPECTS = 480  # boxes that the page shows; the CSV file has all
CSV_COLUMNS = ("rank", "image_id", "file_name", "box_index", "class", "x0", "y0", "x1", "y1", "doubt", "reason")


def rank(images: Iterable[Drawn]) -> list[Suspect]:
    """Every box and every object without a box, most suspicious first."""
    pairs = [(image, entry) for image in images for entry in image.suspicions]
    found = doubts([entry for _, entry in pairs])
    suspects = [Suspect(image, entry, doubt) for (image, entry), doubt in zip(pairs, found, strict=True)]
    return sorted(suspects, key=lambda each: (-each.doubt, each.drawn.image_id, each.entry.box))


def boxes_csv(ranked: Sequence[Suspect], class_names: Sequence[str], file_names: Mapping[str, str]) -> bytes:
    """suspicious_boxes.csv: CSV_COLUMNS, coordinates in pixels; an object without a box has no box_index."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for place, (image, entry, doubt) in enumerate(ranked, 1):
        index = "" if entry.box_index is None else entry.box_index
        values = [f"{value:g}" for value in entry.box]
        name = file_names.get(image.image_id, "")
        reason = describe(entry, class_names)
        writer.writerow(
            [place, image.image_id, name, index, class_names[entry.class_id], *values, f"{doubt:.4f}", reason]
        )
    return text.getvalue().encode()


def file_names(mixture: Mixture) -> dict[str, str]:
    """File name of each image as its annotations name it; {} for data sets whose ids are their names."""
    tables = {source.records.uri for source in mixture.sources}
    return {i: image.file_name for uri in tables for i, image in read_input_names(uri).images.items()}


def page_data(
    runs: Sequence[str],
    images: Sequence[Drawn],
    others: Sequence[Drawn] | None,
    ranked: Sequence[Suspect],
    *,
    class_names: Sequence[str],
    names: Mapping[str, str],
    mlflow_run_id: str | None,
) -> dict[str, Any]:
    """What the scripts of the page read.

    Args:
        runs: Names of the runs.
        images: Of the first run.
        others: Of the second run, or None.
        ranked: Of the first run, most suspicious first; the page shows NUM_SUSPECTS.
        class_names: Names of the classes.
        names: As from `file_names`.
        mlflow_run_id: MLflow run whose artifacts may hold the gallery.
    """
    doubt_of = {(each.drawn.part, each.drawn.image_id): each.doubt for each in reversed(ranked)}  # the largest stays
    views: dict[tuple[str, str], RunView] | None = None
    if others is not None:
        views = {(each.part, each.image_id): each.view for each in others}
    keys = dict.fromkeys(key for each in [*images, *(others or ())] for key in each.view.layers)
    epochs = sorted((key for key in keys if key.startswith("epoch-")), key=lambda key: int(key[6:]))
    layers = [(key, f"label map, epoch {key[6:]}") for key in epochs]
    words = {"labels": "label map", "prediction": "prediction", "truth": "ground truth"}
    layers += [(key, text) for key, text in words.items() if key in keys]
    return {
        "runs": list(runs),
        "class_names": list(class_names),
        "colours": class_palette(class_names)[: len(class_names)].tolist(),
        "layers": layers,
        "mlflow_run_id": mlflow_run_id,
        "images": [_image_data(image, views, doubt_of.get((image.part, image.image_id))) for image in images],
        "suspects": [_suspect_data(n, each, class_names, names) for n, each in enumerate(ranked[:NUM_SUSPECTS])],
    }


def _image_data(image: Drawn, views: Mapping[tuple[str, str], RunView] | None, doubt: float | None) -> dict[str, Any]:
    shown: list[dict[str, Any] | None] = [asdict(_rounded(image.view))]
    if views is not None:
        other = views.get((image.part, image.image_id))
        shown.append(asdict(_rounded(other)) if other else None)  # null: the other run does not have it
    return {
        "id": image.image_id,
        "part": image.part,
        "file": image.file,
        "height": image.height,
        "width": image.width,
        "shown": shown_size(image.height, image.width),
        "doubt": None if doubt is None else round(doubt, 4),
        "boxes": [[round(value, 1) for value in box] for box in image.boxes],
        "runs": shown,
    }


def _rounded(view: RunView) -> RunView:
    def short(value: float | None) -> float | None:
        return None if value is None else round(value, 4)

    return replace(view, cost=short(view.cost), change=short(view.change), iou=short(view.iou))


def _suspect_data(place: int, suspect: Suspect, class_names: Sequence[str], names: Mapping[str, str]) -> dict[str, Any]:
    image, entry, doubt = suspect
    return {
        "image": image.image_id,
        "name": names.get(image.image_id, image.image_id),
        "file": crop_name(place),
        "window": suspect.window,
        "box": [round(value, 1) for value in entry.box],
        "index": entry.box_index,
        "cls": entry.class_id,
        "rival": entry.rival,
        "kind": kind_of(entry),
        "doubt": round(doubt, 4),
        "why": describe(entry, class_names),
    }


def check_same_classes(run_dir: str, classes: tuple[str, ...], expected: tuple[str, ...], other: str) -> None:
    """InputError unless two runs have the same classes."""
    if classes != expected:
        problem = f"the runs have different classes: compare runs of the classes of {other}"
        raise InputError(problem, file=run_dir, field="classes", value=classes, expected=str(expected))
