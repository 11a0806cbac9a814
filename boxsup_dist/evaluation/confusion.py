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

import numpy as np

from boxsup_dist.data.schema import BACKGROUND, IGNORE_INDEX
from boxsup_dist.errors import InputError
from boxsup_dist.io import storage

CONFUSION = "confusion.json"  # in a run directory


def confusion_matrix(ground_truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Count pixels by class: int64 (C, C), rows ground truth, columns prediction.

    Both maps are integers of one shape, (H, W). Ground truth is 0..C-1 or IGNORE_INDEX, prediction 0..C-1.
    InputError on another shape, a float map or a value outside.
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


def _check_values(name: str, label_map: np.ndarray, largest: int) -> None:
    expected = f"integers 0..{largest}"
    if label_map.dtype.kind not in "ui":
        raise InputError("label map is not of integers", field=name, value=str(label_map.dtype), expected=expected)
    if label_map.size == 0:
        return
    low, high = int(label_map.min()), int(label_map.max())
    if low < 0 or high > largest:
        raise InputError(
            "class id outside the range", field=name, value=high if high > largest else low, expected=expected
        )


def iou_per_class(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union, float64 (C,), of every class; nan where it is in neither map."""
    hits = np.diag(confusion).astype(np.float64)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - np.diag(confusion)
    return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)


def mean_iou(confusion: np.ndarray) -> float:
    """Mean of iou_per_class over the classes present in ground truth or prediction, 0..1; nan without any pixel."""
    iou = iou_per_class(confusion)
    present = iou[~np.isnan(iou)]
    return float(present.mean()) if len(present) else float("nan")


def pixel_accuracy(confusion: np.ndarray) -> float:
    """Share of counted pixels with the right class, 0..1; nan without any pixel."""
    return _share(np.trace(confusion), confusion)


def predicted_foreground_share(confusion: np.ndarray) -> float:
    """Share of counted pixels predicted as any object class. It falls before mean IoU does when training collapses."""
    return _share(confusion.sum() - confusion[:, BACKGROUND].sum(), confusion)


def true_foreground_share(confusion: np.ndarray) -> float:
    """Share of counted pixels whose ground truth is an object class."""
    return _share(confusion.sum() - confusion[BACKGROUND].sum(), confusion)


def _share(count: np.integer, confusion: np.ndarray) -> float:
    total = confusion.sum()
    return float(count / total) if total else float("nan")


def write_confusion(run_dir: str, confusion: np.ndarray, class_names: Sequence[str]) -> None:
    """Keep a confusion matrix int64 (C, C), rows ground truth, columns prediction."""
    values = {"class_names": list(class_names), "confusion": confusion.tolist()}
    storage.write_bytes(storage.join(run_dir, CONFUSION), json.dumps(values).encode())


def read_confusion(run_dir: str) -> np.ndarray | None:
    """The confusion matrix of a run's last evaluation; None without one."""
    uri = storage.join(run_dir, CONFUSION)
    return np.array(storage.read_json(uri)["confusion"], np.int64) if storage.exists(uri) else None
