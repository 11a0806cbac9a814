"""MATLAB files as Python values, the same for all kinds: v5 (`mat5.py`), v7.3 (`mat73.py`), v4 through SciPy.

Numbers, logicals and sparse matrices become arrays in MATLAB's orientation. Cells become flat lists, down the columns
first. Text becomes a str. Structs become mappings that unpack a field when it is read, so that what no reader wants is
never unpacked.

A damaged file raises RecordError: every size and index is checked before it is used. A small file can stand for any
amount of memory: by compression, by the size that it states for a sparse matrix or an empty data set, or by cells that
refer to each other. So the memory of each value is counted before it is allocated.
"""

from __future__ import annotations

import functools
import io
import math
from typing import Any

import scipy.io
import scipy.sparse

from boxsup_dist.io.mat5 import is_mat5, read_mat5
from boxsup_dist.io.mat73 import is_mat73, read_mat73
from boxsup_dist.io.mat_values import Memory, Struct, unpacking


def read_mat(data: bytes) -> Struct:
    """The variables of a MATLAB file by name.

    Args:
        data: Content of the file.

    Returns:
        The variables; reading one of them raises RecordError as this function does.

    Raises:
        RecordError: The file is damaged, of another kind, or its values take more than mat_values.MAX_BYTES.
    """
    memory = Memory()
    with unpacking():
        if is_mat73(data):
            return read_mat73(data, memory)
        if is_mat5(data):
            return read_mat5(data, memory)
        return _read_mat4(data, memory)


def _read_mat4(data: bytes, memory: Memory) -> Struct:
    """The variables of a file of version 4, which has neither structs nor cells. SciPy checks its indices."""
    if scipy.io.matlab.matfile_version(io.BytesIO(data))[0] != 0:
        raise ValueError("unknown file type")
    values = scipy.io.loadmat(io.BytesIO(data))
    names = [name for name in values if not name.startswith("__")]
    return Struct({name: functools.partial(_dense, values[name], memory) for name in names})


def _dense(value: Any, memory: Memory) -> Any:
    is_sparse = scipy.sparse.issparse(value)
    memory.take(math.prod(value.shape) * value.dtype.itemsize, f"a matrix of shape {value.shape}")
    return value.toarray() if is_sparse else value
