"""Exact segmentation metrics from one confusion matrix: int64 (C, C), rows ground truth, columns prediction.

The matrices of all images are added up and divided once. So a metric does not depend on how the images were spread.

Absent classes: a class that is in neither ground truth nor prediction has no IoU (nan), and the mean leaves it out. A
class that is only predicted, or only in the ground truth, has IoU 0 and counts. On a whole VOC set every class is
present: the mean equals the devkit's mean over 21 classes. Pixels with ground truth IGNORE_INDEX (VOC's void) never
count.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple, NotRequired  # pydantic reads TypedDict of typing from Python 3.12 on

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from boxsup_dist.data.schema import IGNORE_INDEX
from boxsup_dist.errors import InputError
from boxsup_dist.io import storage
from boxsup_dist.io.typed_json import parse_json


class _Kept(TypedDict):
    """The file."""

    class_names: list[str]
    confusion: list[list[int]]
    by_image: NotRequired[str]


class NamedConfusion(NamedTuple):
    """A confusion matrix (C, C), rows ground truth, columns prediction, and the names of its classes."""

    confusion: NDArray[np.int64]
    class_names: tuple[str, ...]
    by_image: str | None = None  # proof of the matrices of single images beside it (by_image.py)


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
        InputError: The shapes differ, a map does not hold integers, or a value is outside its range.
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


def recall_per_class(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share (C,) of every class's pixels that are predicted as it, 0..1; nan for a class without a pixel."""
    return _shares(np.diag(confusion), confusion.sum(axis=1))


def precision_per_class(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share (C,) of the pixels predicted as a class that are of it, 0..1; nan for a class that is never predicted."""
    return _shares(np.diag(confusion), confusion.sum(axis=0))


class ForegroundShares(NamedTuple):
    """How well objects are told from the background, whatever their class, 0..1; nan where there is no such pixel."""

    recall: float  # of the pixels of objects, those predicted as an object
    precision: float  # of the pixels predicted as an object, those of objects
    wrong_class: float  # of the pixels that are both, those predicted as an object of another class


def foreground_shares(confusion: NDArray[np.int64]) -> ForegroundShares:
    """Recall, precision and wrong classes of the foreground; together with the classes' sizes they make up mean IoU."""
    objects = confusion[1:, 1:]
    both = objects.sum()
    parts = np.array([both, both, both - np.trace(objects)])
    return ForegroundShares(*_shares(parts, np.array([confusion[1:].sum(), confusion[:, 1:].sum(), both])).tolist())


def _shares(parts: NDArray[np.int64], wholes: NDArray[np.int64]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = np.divide(parts, wholes, out=np.full(len(parts), np.nan), where=wholes > 0)
    return shares


def mean_iou(confusion: NDArray[np.int64]) -> float:
    """Mean of iou_per_class over the classes that are present in either map, 0..1; nan if no pixel counts."""
    iou = iou_per_class(confusion)
    present = iou[~np.isnan(iou)]
    return float(present.mean()) if len(present) else float("nan")


def write_confusion(
    uri: str, confusion: NDArray[np.int64], class_names: Sequence[str], by_image: str | None = None
) -> None:
    """Keep a confusion matrix (C, C), rows ground truth, columns prediction, as JSON on one line.

    Args:
        uri: The file.
        confusion: The matrix.
        class_names: C names.
        by_image: Proof of the matrices of single images (`write_by_image`); None: there are none.
    """
    values: dict[str, Any] = {"class_names": list(class_names), "confusion": confusion.tolist()}
    if by_image is not None:
        values["by_image"] = by_image
    storage.write_bytes(uri, json.dumps(values).encode())


def read_confusion(uri: str) -> NamedConfusion | None:
    """What `write_confusion` has kept; None without a file.

    Raises:
        InputError: The file holds something else.
    """
    if not storage.exists(uri):
        return None
    values = parse_json(_Kept, storage.read_bytes(uri), file=uri)
    size, rows = len(values["class_names"]), values["confusion"]
    if [len(row) for row in rows] != [size] * size or not all(0 <= count < 2**63 for row in rows for count in row):
        expected = f"{size} x {size} counts, as there are {size} class_names"
        raise InputError("not a confusion matrix of these classes", file=uri, field="confusion", expected=expected)
    matrix = np.array(rows, np.int64).reshape(size, size)
    return NamedConfusion(matrix, tuple(values["class_names"]), values.get("by_image"))
