"""MATLAB files of version 5 (-v6, -v7), read element by element.

An element is a tag (type, number of bytes) and its content; a matrix is an element that holds elements. The format:
https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf

SciPy's reader unpacks all of a file and trusts the indices of sparse matrices, so a flipped bit ends the process. This
reader checks every size and index before it uses it, and unpacks only what is read.
"""

from __future__ import annotations

import functools
import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.errors import RecordError
from boxsup_dist.io import mat_values
from boxsup_dist.io.mat_values import Memory, Struct, dense_matrix

_HEADER_BYTES = 128
_ORDERS = {b"IM": "<", b"MI": ">"}  # the last two bytes of the header
# Types of elements: numbers, then the others.
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_MATRIX, _COMPRESSED = 14, 15
# Classes of matrices. Those of numbers are 6 to 15; functions and objects are not read.
_CELL, _STRUCT, _TEXT, _SPARSE = 1, 2, 4, 5
_NUMERIC = (6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
_COMPLEX = 0x08  # a flag beside the class


def is_mat5(data: bytes) -> bool:
    """Whether the bytes begin as a file of version 5."""
    return data[126:128] in _ORDERS


def read_mat5(data: bytes, memory: Memory) -> Struct:
    """List the variables of a file.

    Args:
        data: Content of the file, for which `is_mat5` holds.
        memory: Counts the values that are unpacked.

    Returns:
        The variables by name, as `mat_file` says.

    Raises:
        ValueError: The file is damaged; also zlib.error and struct.error.
        RecordError: The file is larger than mat_values.MAX_BYTES after decompression.
    """
    order = _ORDERS[data[126:128]]
    variables: dict[str, Callable[[], Any]] = {}
    left = mat_values.MAX_BYTES
    outer = _Elements(memoryview(data)[_HEADER_BYTES:], order)
    while outer.more():
        element = outer.next(pad=False)
        if element.kind == _COMPRESSED:
            element = _Elements(memoryview(_inflate(element.content, left)), order).next()
        left -= len(element.content)
        if left < 0:
            raise _too_large()
        matrix = _open_matrix(element, order)
        variables[matrix.name] = functools.partial(_unpack, matrix, order, memory)
    return Struct({name: part for name, part in variables.items() if name and not name.startswith("__")})


class _Element(NamedTuple):
    kind: int
    content: memoryview


@dataclass
class _Elements:
    """Elements one behind the other; each lies whole within `data`."""

    data: memoryview
    order: str
    position: int = 0

    def more(self) -> bool:
        return self.position < len(self.data)

    def next(self, *, pad: bool = True) -> _Element:
        """Return the next element. `pad`: elements inside a matrix fill up to eight bytes."""
        kind, size = struct.unpack_from(f"{self.order}II", self.data, self.position)
        start, small = self.position + 8, kind >> 16
        if small:  # four bytes or fewer stand in the tag itself
            kind, size, start = kind & 0xFFFF, small, start - 4
        end = start + size
        if (small and size > 4) or end > len(self.data):
            raise ValueError(f"an element of {size} bytes at byte {self.position} does not fit its place")
        self.position = start + 4 if small else end + (-size % 8 if pad else 0)
        return _Element(kind, self.data[start:end])

    def numbers(self) -> NDArray[Any]:
        """Return the numbers of the next element, (n,)."""
        kind, content = self.next()
        if kind not in _NUMBERS:
            raise ValueError(f"an element of type {kind} instead of numbers")
        stored = np.dtype(self.order + _NUMBERS[kind])
        return np.frombuffer(content, stored).astype(stored.newbyteorder("="), copy=False)


class _Matrix(NamedTuple):
    """A matrix whose head has been read; its parts follow."""

    kind: int
    is_complex: bool
    shape: tuple[int, ...]
    name: str
    parts: _Elements


def _open_matrix(element: _Element, order: str) -> _Matrix:
    if element.kind != _MATRIX:
        raise ValueError(f"an element of type {element.kind} instead of a matrix")
    if not element.content:  # stands for []
        return _Matrix(_NUMERIC[0], False, (0, 0), "", _Elements(element.content, order))
    parts = _Elements(element.content, order)
    flags = parts.numbers()
    if len(flags) != 2:
        raise ValueError("a matrix without its flags")
    kind, is_complex = int(flags[0]) & 0xFF, bool(int(flags[0]) >> 8 & _COMPLEX)
    if kind not in (_CELL, _STRUCT, _TEXT, _SPARSE, *_NUMERIC):
        return _Matrix(kind, is_complex, (), "", parts)
    shape = tuple(parts.numbers().tolist())
    if len(shape) < 2 or min(shape) < 0:
        raise ValueError(f"a matrix of shape {shape}")
    return _Matrix(kind, is_complex, shape, bytes(parts.next().content).decode("latin-1"), parts)


def _unpack(matrix: _Matrix, order: str, memory: Memory) -> Any:
    """Return the value of a matrix. The parts are read from a copy of their place, so that it can be read again."""
    parts, count = _Elements(matrix.parts.data, order, matrix.parts.position), math.prod(matrix.shape)
    if matrix.is_complex:
        raise ValueError("complex numbers")
    if matrix.kind == _STRUCT:
        return _unpack_struct(parts, count, order, memory)
    if matrix.kind == _CELL:
        memory.take(0, "a cell")
        return [_unpack(_open_matrix(parts.next(), order), order, memory) for _ in range(count)]
    if matrix.kind == _TEXT:
        return _unpack_text(parts, order) if count else ""
    if matrix.kind == _SPARSE:
        memory.take(0, "a sparse matrix")
        rows, starts, values = parts.numbers(), parts.numbers(), parts.numbers()
        if len(matrix.shape) != 2:
            raise ValueError(f"a sparse matrix of shape {matrix.shape}")
        return dense_matrix(rows, starts, values, (matrix.shape[0], matrix.shape[1]), memory)
    if matrix.kind not in _NUMERIC:
        raise ValueError(f"a value of MATLAB's class {matrix.kind}")
    values = parts.numbers() if parts.more() else np.zeros(0)
    memory.take(values.nbytes, "a matrix")
    if len(values) != count:
        raise ValueError(f"a matrix of shape {matrix.shape} with {len(values)} numbers")
    return values.reshape(matrix.shape, order="F")


def _unpack_struct(parts: _Elements, count: int, order: str, memory: Memory) -> Struct:
    """Return the fields of a struct; of several structs in an array, of the first."""
    memory.take(0, "a struct")
    lengths = parts.numbers()
    names = bytes(parts.next().content)
    if len(lengths) != 1 or lengths[0] < 1 or len(names) % int(lengths[0]):
        raise ValueError("the field names of a struct are not of equal length")
    length = int(lengths[0])
    fields: dict[str, Callable[[], Any]] = {}
    for start in range(0, len(names) if count else 0, length):
        name = names[start : start + length].partition(b"\0")[0].decode("latin-1")
        element = parts.next()
        fields[name] = functools.partial(_unpack_element, element, order, memory)
    return Struct(fields)


def _unpack_element(element: _Element, order: str, memory: Memory) -> Any:
    return _unpack(_open_matrix(element, order), order, memory)


def _unpack_text(parts: _Elements, order: str) -> str:
    kind, content = parts.next()
    encoding = _TEXTS.get(kind)
    if encoding is None:
        raise ValueError(f"an element of type {kind} instead of text")
    if encoding in ("utf-16", "utf-32"):
        encoding += {"<": "-le", ">": "-be"}[order]
    return bytes(content).decode(encoding)


def _inflate(content: memoryview, limit: int) -> bytes:
    """Inflate a compressed element, which must end in a correct checksum, to at most `limit` bytes."""
    unpacker = zlib.decompressobj()
    inflated = unpacker.decompress(content, limit + 9)  # eight bytes are the tag of the matrix
    if len(inflated) > limit + 8:
        raise _too_large()
    if not unpacker.eof:
        raise ValueError("a variable ends early")
    return inflated


def _too_large() -> RecordError:
    expected = f"<= {mat_values.MAX_BYTES} bytes"
    return RecordError("the MATLAB file takes too much memory", field="variables", expected=expected)
