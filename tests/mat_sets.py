"""Small SBD and PASCAL-Context data sets made by the tests, their MATLAB files as published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import scipy.sparse

from boxsup_dist.records.context import CONTEXT_CLASSES
from tests.devkit import HEIGHT, WIDTH, jpeg

DOG, PERSON = 12, 15


def objects_map() -> np.ndarray:
    """Two objects that lie in the boxes of tests.devkit: 1 the dog, 2 the person in front of it."""
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    values[0:29, 1:20] = 1
    values[6:25, 11:39] = 2
    return values


def write_sbd(
    root: Path,
    image_id: str,
    *,
    objects: np.ndarray | None = None,
    categories: Sequence[int] = (DOG, PERSON),
    classes: np.ndarray | None = None,
    image: bytes | None = b"",
) -> None:
    """Write img, cls and inst of one image; `root` is the folder `dataset`. image None: none."""
    objects = objects_map() if objects is None else objects
    if classes is None:
        classes = np.array([0, *categories], np.uint8)[objects]
    for folder in ("img", "cls", "inst"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    if image is not None:
        (root / "img" / f"{image_id}.jpg").write_bytes(image or jpeg())
    present = np.zeros((20, 1), np.uint8)
    present[np.array(categories, int) - 1] = 1
    _write(root / "cls" / f"{image_id}.mat", "GTcls", Boundaries=_boundaries(20), Segmentation=classes,
           CategoriesPresent=present)  # fmt: skip
    _write(root / "inst" / f"{image_id}.mat", "GTinst", Boundaries=_boundaries(len(categories)), Segmentation=objects,
           Categories=np.array(categories, np.uint8).reshape(-1, 1))  # fmt: skip


def _boundaries(count: int) -> np.ndarray:
    """A column of cells, each a sparse logical matrix."""
    cells = np.empty((count, 1), object)
    for k in range(count):
        cells[k, 0] = scipy.sparse.csc_matrix(([True], ([k % HEIGHT], [0])), (HEIGHT, WIDTH))
    return cells


def _write(file: Path, variable: str, **fields: Any) -> None:
    scipy.io.savemat(file, {variable: fields}, do_compression=True)


def labels_text() -> str:
    """A labels.txt of 459 names: the classes' among others, in another order, with blanks as the makers have them."""
    renamed = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth", "tvmonitor": "tv monitor"}
    names = [renamed.get(name, name) for name in CONTEXT_CLASSES[1:]]
    others = [f"other {k}" for k in range(400)]
    mixed = [name for pair in zip(others, sorted(names), strict=False) for name in pair] + others[len(names) :]
    return "".join(f"{number}: {name}\n" for number, name in enumerate(mixed, start=1))


def write_context(root: Path, image_id: str, values: np.ndarray, variable: str = "LabelMap") -> None:
    """Write trainval/ID.mat and labels.txt."""
    (root / "trainval").mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(root / "trainval" / f"{image_id}.mat", {variable: values}, do_compression=True)
    (root / "labels.txt").write_text(labels_text())
