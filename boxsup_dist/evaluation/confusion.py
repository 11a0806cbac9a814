"""Exact segmentation metrics from one int64 confusion matrix, rows ground truth, columns prediction.

Matrices of image slices are added up and divided once, so a metric is the same however the images were spread.

How absent classes count: a class that is in neither ground truth nor prediction has no IoU (nan) and is left out of the
mean. A class that is predicted but nowhere in the ground truth has IoU 0 and counts, as does one that is never found.
On a whole VOC set every class is present, so this equals the devkit's mean over 21 classes. Pixels whose ground truth
is IGNORE_INDEX (VOC's void) count nowhere, whatever is predicted there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.data.schema import BACKGROUND, IGNORE_INDEX
from boxsup_dist.errors import InputError
from boxsup_dist.io import storage


class NamedConfusion(NamedTuple):
    """A confusion matrix (C, C), rows ground truth, columns prediction, and the names of its classes."""

    confusion: NDArray[np.int64]
    class_names: tuple[str, ...]


def confusion_matrix(
    ground_truth: NDArray[np.integer[Any]], prediction: NDArray[np.integer[Any]], num_classes: int
) -> NDArray[np.int64]:
    """Count pixels by class.

    Args:
        ground_truth: Label map (H, W) of values 0..C-1 or IGNORE_INDEX. May be empty.
        prediction: Label map of the same shape, values 0..C-1.
        num_classes: C.

    Returns:
        Confusion matrix (C, C), rows ground truth, columns prediction. Ignored pixels count nowhere.

    Raises:
        InputError: the shapes differ, a map does not hold integers, or a value is outside its range.
    """
    assert 1 <= num_classes <= IGNORE_INDEX
    if ground_truth.shape != prediction.shape:
        raise InputError(
            "prediction and ground truth differ in size",
            field="prediction",
            value=prediction.shape,
            expected=str(ground_truth.shape),
        )
    _check_values("ground truth", ground_truth, IGNORE_INDEX)
    _check_values("prediction", prediction, num_classes - 1)
    cells = ground_truth.ravel().astype(np.intp)
    cells *= num_classes
    cells += prediction.ravel()
    # Row 255 collects the ignored pixels: no mask, one pass.
    counts = np.bincount(cells, minlength=(IGNORE_INDEX + 1) * num_classes).reshape(-1, num_classes)
    unknown = np.flatnonzero(counts[num_classes:IGNORE_INDEX].any(axis=1))
    if len(unknown):
        raise InputError(
            "class id outside the range",
            field="ground truth",
            value=int(unknown[0]) + num_classes,
            expected=f"0..{num_classes - 1} or {IGNORE_INDEX}",
        )
    return counts[:num_classes].astype(np.int64)


def _check_values(name: str, label_map: NDArray[np.integer[Any]], largest: int) -> None:
    expected = f"integers 0..{largest}"
    if label_map.dtype.kind not in "ui":
        raise InputError("not a label map of integers", field=name, value=str(label_map.dtype), expected=expected)
    if label_map.size == 0:
        return
    low, high = int(label_map.min()), int(label_map.max())
    if low < 0 or high > largest:
        raise InputError(
            "class id outside the range", field=name, value=high if high > largest else low, expected=expected
        )


def iou_per_class(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Intersection over union (C,) of every class, 0..1; nan for a class that is in neither map."""
    hits = np.diag(confusion).astype(np.float64)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - np.diag(confusion)
    iou: NDArray[np.float64] = np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)
    return iou


def mean_iou(confusion: NDArray[np.int64]) -> float:
    """Mean of iou_per_class over the classes present in ground truth or prediction, 0..1; nan without any pixel."""
    iou = iou_per_class(confusion)
    present = iou[~np.isnan(iou)]
    return float(present.mean()) if len(present) else float("nan")


def pixel_accuracy(confusion: NDArray[np.int64]) -> float:
    """Share of counted pixels with the right class, 0..1; nan without any pixel."""
    return _share(np.trace(confusion), confusion)


def predicted_foreground_share(confusion: NDArray[np.int64]) -> float:
    """Share of counted pixels predicted as any object class. It falls before mean IoU does when training collapses."""
    return _share(confusion.sum() - confusion[:, BACKGROUND].sum(), confusion)


def true_foreground_share(confusion: NDArray[np.int64]) -> float:
    """Share of counted pixels whose ground truth is an object class."""
    return _share(confusion.sum() - confusion[BACKGROUND].sum(), confusion)


def _share(count: np.integer[Any], confusion: NDArray[np.int64]) -> float:
    total = confusion.sum()
    return float(count / total) if total else float("nan")


def write_confusion(uri: str, confusion: NDArray[np.int64], class_names: Sequence[str]) -> None:
    """Keep a confusion matrix (C, C), rows ground truth, columns prediction, as JSON on one line."""
    values = {"class_names": list(class_names), "confusion": confusion.tolist()}
    storage.write_bytes(uri, json.dumps(values).encode())


def read_confusion(uri: str) -> NamedConfusion | None:
    """What `write_confusion` has kept; None without a file.

    Raises:
        InputError: the file holds something else.
    """
    if not storage.exists(uri):
        return None
    values = storage.read_json(uri)
    try:
        found = NamedConfusion(np.array(values["confusion"], np.int64), tuple(values["class_names"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError("not a confusion matrix with the names of its classes", file=uri, value=str(error)) from None
    return found
