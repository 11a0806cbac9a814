"""MATLAB files as Python values, the same for both kinds: v5 through SciPy, v7.3 (which is HDF5) through h5py.

Numbers, logicals and sparse matrices become arrays in MATLAB's orientation. Cells become flat lists, down the columns
first. Structs become dictionaries.

A small file can stand for any amount of memory: by compression, by the size that it states for a sparse matrix or an
empty data set, or by cells that refer to each other. So the memory of each value is counted before it is allocated.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from typing import Any

import h5py
import numpy as np
import scipy.io
import scipy.sparse
from numpy.typing import NDArray

from boxsup_dist.errors import RecordError

_HDF5 = (b"MATLAB 7.3", b"\x89HDF\r\n\x1a\n")  # with MATLAB's text header, and without
# Of all values of a file. The largest published files hold proposals: 10,000 of them over 2,000 superpixels, more than
# any method makes, are 153 MiB in doubles.
MAX_BYTES = 512 * 2**20
_ITEM_BYTES = 8192  # counted for each value besides its content, because each takes time


class _Memory:
    """Counts the memory that the values of a file take."""

    def __init__(self) -> None:
        self.used = 0

    def take(self, num_bytes: int, what: str) -> None:
        """Count one more value. Raises RecordError if the sum is above MAX_BYTES."""
        self.used += num_bytes + _ITEM_BYTES
        if self.used > MAX_BYTES:
            expected = f"<= {MAX_BYTES} bytes"
            raise RecordError("the MATLAB file takes too much memory", field=what, value=self.used, expected=expected)


def read_mat(data: bytes) -> dict[str, Any]:
    """The variables of a MATLAB file by name.

    Args:
        data: Content of the file.

    Returns:
        Arrays, lists and dictionaries as the module says.

    Raises:
        RecordError: The file is damaged, of another kind, or its values take more than MAX_BYTES.
    """
    memory = _Memory()
    try:
        if data.startswith(_HDF5):
            with h5py.File(io.BytesIO(data), "r") as opened:
                items = {name: item for name, item in opened.items() if not name.startswith("#")}
                return {name: _from_hdf5(item, opened, memory) for name, item in items.items()}
        variables = scipy.io.loadmat(io.BytesIO(_inflated(data)))
        return {name: _from_scipy(value, memory) for name, value in variables.items() if not name.startswith("__")}
    except RecordError:
        raise
    except Exception as error:  # SciPy and h5py raise anything for damaged files
        raise RecordError("not a readable MATLAB file", value=f"{type(error).__name__}: {error}") from None


_HEADER_BYTES, _COMPRESSED = 128, 15


def _inflated(data: bytes) -> bytes:
    """A version 5 file with its compressed elements inflated, which SciPy reads too; other bytes unchanged."""
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None:
        return data
    parts, position = [data[:_HEADER_BYTES]], _HEADER_BYTES
    left = MAX_BYTES
    while position + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, position)
        element = data[position : position + 8 + size]
        if kind == _COMPRESSED:
            unpacker = zlib.decompressobj()
            element = unpacker.decompress(element[8:], left + 1)
            if len(element) <= left and not unpacker.eof:
                raise ValueError("a variable ends early")
        left -= len(element)
        if left < 0:
            expected = f"<= {MAX_BYTES} bytes"
            raise RecordError("the MATLAB file takes too much memory", field="variables", expected=expected)
        parts.append(element)
        position += 8 + size
    return b"".join(parts)


def _dense(matrix: Any, memory: _Memory) -> NDArray[Any]:
    memory.take(math.prod(matrix.shape) * matrix.dtype.itemsize, f"sparse matrix {matrix.shape}")
    return np.asarray(matrix.toarray())


def _from_scipy(value: Any, memory: _Memory) -> Any:
    if scipy.sparse.issparse(value):
        return _dense(value, memory)
    value = np.asarray(value)
    if value.dtype.names:  # a struct, as an array of one record
        return {name: _from_scipy(value[name].ravel()[0], memory) for name in value.dtype.names} if value.size else {}
    if value.dtype == object:
        return [_from_scipy(item, memory) for item in value.ravel(order="F")]
    memory.take(value.nbytes, "variables")
    return value


def _from_hdf5(item: Any, opened: h5py.File, memory: _Memory) -> Any:
    memory.take(0, item.name)
    kind = item.attrs.get("MATLAB_class", b"")
    if "MATLAB_sparse" in item.attrs:
        return _sparse(item, memory)
    if isinstance(item, h5py.Group):
        return {name: _from_hdf5(part, opened, memory) for name, part in item.items()}
    values = _values(item, memory)
    if item.attrs.get("MATLAB_empty", 0):
        shape = values.astype(int).tolist()
        memory.take(8 * math.prod(shape), item.name)
        return [] if kind == b"cell" else np.zeros(shape)
    if values.dtype == h5py.ref_dtype:
        return [_from_hdf5(opened[reference], opened, memory) for reference in values.ravel()]
    return values.T  # HDF5 lists MATLAB's columns as rows


def _values(item: Any, memory: _Memory) -> NDArray[Any]:
    memory.take(item.size * item.dtype.itemsize, item.name)
    if item.chunks is not None:
        _check_chunks(item)
    return np.asarray(item)


def _check_chunks(item: h5py.Dataset) -> None:
    """Check the size of every chunk, because HDF5 inflates a chunk to any size. Raises ValueError."""
    if item.compression not in (None, "gzip"):
        raise ValueError(f"compressed by {item.compression}; MATLAB compresses by gzip")
    expected = math.prod(item.chunks) * item.dtype.itemsize
    for k in range(item.id.get_num_chunks() if item.compression else 0):
        _, stored = item.id.read_direct_chunk(item.id.get_chunk_info(k).chunk_offset)
        unpacker = zlib.decompressobj()
        if len(unpacker.decompress(stored, expected + 1)) != expected:
            raise ValueError("a chunk has another size than the file states")


def _sparse(group: h5py.Group, memory: _Memory) -> NDArray[Any]:
    columns = _values(group["jc"], memory).astype(np.int64)
    shape = (int(group.attrs["MATLAB_sparse"]), len(columns) - 1)
    if "data" not in group:  # a matrix of zeros
        memory.take(8 * math.prod(shape), group.name)
        return np.zeros(shape)
    entries = _values(group["data"], memory), _values(group["ir"], memory), columns
    return _dense(scipy.sparse.csc_matrix(entries, shape), memory)
