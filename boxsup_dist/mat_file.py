"""MATLAB files as Python values: the older kind through SciPy, v7.3 (which is HDF5) through h5py, with one result.

Numbers, logicals and sparse matrices become arrays in MATLAB's own orientation, cells flat lists (down the columns
first), structs dictionaries.
"""

from __future__ import annotations

import io
from typing import Any

import h5py
import numpy as np
import scipy.io
import scipy.sparse

from boxsup_dist.errors import RecordError

_HDF5 = (b"MATLAB 7.3", b"\x89HDF\r\n\x1a\n")  # with MATLAB's text header in front, and plain


def read_mat(data: bytes) -> dict[str, Any]:
    """The variables of a MATLAB file by name. RecordError if the bytes are none."""
    try:
        if data.startswith(_HDF5):
            with h5py.File(io.BytesIO(data), "r") as opened:
                return {name: _from_hdf5(item, opened) for name, item in opened.items() if not name.startswith("#")}
        variables = scipy.io.loadmat(io.BytesIO(data))
    except Exception as error:  # SciPy and h5py raise anything for damaged files
        raise RecordError("not a readable MATLAB file", value=f"{type(error).__name__}: {error}") from None
    return {name: _from_scipy(value) for name, value in variables.items() if not name.startswith("__")}


def _from_scipy(value: Any) -> Any:
    if scipy.sparse.issparse(value):
        return value.toarray()
    if value.dtype.names:  # a struct, as an array of one record
        return {name: _from_scipy(value[name].ravel()[0]) for name in value.dtype.names} if value.size else {}
    if value.dtype == object:
        return [
            _from_scipy(item if scipy.sparse.issparse(item) else np.asarray(item)) for item in value.ravel(order="F")
        ]
    return value


def _from_hdf5(item: Any, opened: h5py.File) -> Any:
    kind = item.attrs.get("MATLAB_class", b"")
    if "MATLAB_sparse" in item.attrs:
        return _sparse(item)
    if isinstance(item, h5py.Group):
        return {name: _from_hdf5(part, opened) for name, part in item.items()}
    if item.attrs.get("MATLAB_empty", 0):
        return [] if kind == b"cell" else np.zeros(np.asarray(item).astype(int).tolist())
    values = np.asarray(item)
    if values.dtype == h5py.ref_dtype:
        return [_from_hdf5(opened[reference], opened) for reference in values.ravel()]
    return values.T  # HDF5 lists MATLAB's columns as rows


def _sparse(group: h5py.Group) -> np.ndarray:
    columns = np.asarray(group["jc"]).astype(np.int64)
    shape = (int(group.attrs["MATLAB_sparse"]), len(columns) - 1)
    if "data" not in group:  # no entry at all
        return np.zeros(shape)
    return scipy.sparse.csc_matrix((np.asarray(group["data"]), np.asarray(group["ir"]), columns), shape).toarray()
