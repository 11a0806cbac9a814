"""MATLAB files of version 7.3, which are HDF5, through h5py; HDF5 lists MATLAB's columns as rows."""

from __future__ import annotations

import functools
import io
import math
import zlib
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from boxsup_dist.io.mat_values import Memory, Struct, dense_matrix

_BEGINNINGS = (b"MATLAB 7.3", b"\x89HDF\r\n\x1a\n")  # with MATLAB's text header, and without
_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}


def is_mat73(data: bytes) -> bool:
    """Whether the bytes begin as a file of version 7.3."""
    return data.startswith(_BEGINNINGS)


def read_mat73(data: bytes, memory: Memory) -> Struct:
    """List the variables of a file, by name, as `mat_file` says; h5py raises anything for damaged files.

    Args:
        data: Content of the file, for which `is_mat73` holds.
        memory: Counts the values that are unpacked.
    """
    return _members(h5py.File(io.BytesIO(data), "r"), memory)


def _members(group: h5py.Group, memory: Memory) -> Struct:
    memory.take(0, group.name)
    names = [name for name in group if not name.startswith("#")]
    return Struct({name: functools.partial(_unpack, group, name, memory) for name in names})


def _unpack(group: h5py.Group, name: str, memory: Memory) -> Any:
    if isinstance(group.get(name, getlink=True), h5py.ExternalLink):
        raise ValueError(f"{name} lies in another file")
    return _value(group[name], memory)


def _value(item: Any, memory: Memory) -> Any:
    if "MATLAB_sparse" in item.attrs:
        return _sparse(item, memory)
    if isinstance(item, h5py.Group):
        return _members(item, memory)
    kind = item.attrs.get("MATLAB_class", b"")
    values = _array(item, memory)
    if item.attrs.get("MATLAB_empty", 0):
        shape = tuple(values.astype(int).tolist())
        if min(shape, default=0) < 0:
            raise ValueError(f"an empty value of shape {shape}")
        memory.take(8 * math.prod(shape), item.name)
        return [] if kind == b"cell" else "" if kind == b"char" else np.zeros(shape)
    if values.dtype == h5py.ref_dtype:
        return [_value(item.file[reference], memory) for reference in values.ravel()]
    return "".join(map(chr, values.ravel())) if kind == b"char" else values.T


def _array(item: Any, memory: Memory) -> NDArray[Any]:
    """Return the content of a data set after a check of what HDF5 does not check itself."""
    memory.take(item.size * item.dtype.itemsize, item.name)
    if item.dtype.kind not in "buif" and item.dtype != h5py.ref_dtype:
        raise ValueError(f"{item.name} holds values of type {item.dtype}")
    if item.external or item.is_virtual:
        raise ValueError(f"{item.name} lies in another file")
    if item.chunks is not None:
        _check_chunks(item)
    return np.asarray(item)


def _check_chunks(item: h5py.Dataset) -> None:
    """Check the size of every chunk, because HDF5 inflates a chunk to any size. Raises ValueError."""
    properties = item.id.get_create_plist()
    filters = {properties.get_filter(k)[0] for k in range(properties.get_nfilters())}
    if filters - _FILTERS:
        raise ValueError(f"compressed by {item.compression or sorted(filters - _FILTERS)}; MATLAB compresses by gzip")
    if h5py.h5z.FILTER_DEFLATE not in filters:
        return
    expected = math.prod(item.chunks) * item.dtype.itemsize
    for k in range(item.id.get_num_chunks()):
        skipped, stored = item.id.read_direct_chunk(item.id.get_chunk_info(k).chunk_offset)
        if skipped:  # HDF5 stores a chunk as it is if compression makes it no smaller
            continue
        unpacker = zlib.decompressobj()
        if len(unpacker.decompress(stored, expected + 1)) != expected:
            raise ValueError("a chunk has another size than the file states")


def _sparse(group: h5py.Group, memory: Memory) -> NDArray[Any]:
    starts = _array(group["jc"], memory).ravel()
    shape = (int(group.attrs["MATLAB_sparse"]), len(starts) - 1)
    if min(shape) < 0:
        raise ValueError(f"a sparse matrix of shape {shape}")
    rows, values = np.zeros(0, np.int64), np.zeros(0)
    if "data" in group:  # not in a matrix of zeros
        rows, values = (_array(group[name], memory).ravel() for name in ("ir", "data"))
    return dense_matrix(rows, starts, values, shape, memory)
