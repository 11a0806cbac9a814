"""Writes MATLAB v7.3 files as MATLAB does: HDF5 behind a text header, arrays transposed, cells as references."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.sparse

_HEADER = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Tue Nov 24 08:00:00 2026 HDF5 schema 1.00 ."


def savemat73(file: Path, variables: dict[str, Any]) -> None:
    """Arrays, lists (cells), dictionaries (structs) and sparse matrices under their names."""
    with h5py.File(file, "w", userblock_size=512) as opened:
        for name, value in variables.items():
            _write(opened, opened, name, value)
    with file.open("r+b") as raw:
        raw.write(_HEADER.ljust(124) + b"\x00\x02IM")


def _write(root: h5py.File, group: h5py.Group, name: str, value: Any) -> None:
    if isinstance(value, dict):
        item: Any = group.create_group(name)
        for key, part in value.items():
            _write(root, item, key, part)
        kind = "struct"
    elif scipy.sparse.issparse(value):
        item = group.create_group(name)
        columns = value.tocsc()
        item.attrs["MATLAB_sparse"] = np.uint64(columns.shape[0])
        item["jc"] = columns.indptr.astype(np.uint64)
        if columns.nnz:
            item["ir"], item["data"] = columns.indices.astype(np.uint64), columns.data
        kind = "logical" if value.dtype == bool else "double"
    elif isinstance(value, list):
        cells = root.require_group("#refs#")
        references = []
        for part in value:
            key = uuid.uuid4().hex
            _write(root, cells, key, part)
            references.append(cells[key].ref)
        if references:
            item = group.create_dataset(name, data=np.array([references], h5py.ref_dtype), dtype=h5py.ref_dtype)
        else:
            item = group.create_dataset(name, data=np.zeros(2, np.uint64))
            item.attrs["MATLAB_empty"] = np.uint8(1)
        kind = "cell"
    else:
        array = np.atleast_2d(value)
        if array.size:
            item = group.create_dataset(name, data=array.T)
        else:
            item = group.create_dataset(name, data=np.array(array.shape, np.uint64))
            item.attrs["MATLAB_empty"] = np.uint8(1)
        kind = "logical" if array.dtype == bool else "double" if array.dtype == float else str(array.dtype)
    item.attrs["MATLAB_class"] = np.bytes_(kind)
