"""What MATLAB files of both kinds become: structs that unpack a field when it is read, and checked sparse matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.errors import RecordError

# Of all values of a file. The largest published files hold proposals: 10,000 of them over 2,000 superpixels, more than
# any method makes, are 153 MiB in doubles.
MAX_BYTES = 512 * 2**20
_ITEM_BYTES = 8192  # counted for each value besides its content, because each takes time


class Memory:
    """Counts the memory that the values of a file take."""

    def __init__(self) -> None:
        self.used = 0

    def take(self, num_bytes: int, what: str) -> None:
        """Count one more value before it is allocated.

        Args:
            num_bytes: Bytes of the value.
            what: Name of the value, for the message.

        Raises:
            RecordError: The sum is above MAX_BYTES.
        """
        self.used += num_bytes + _ITEM_BYTES
        if self.used > MAX_BYTES:
            expected = f"<= {MAX_BYTES} bytes"
            raise RecordError("the MATLAB file takes too much memory", field=what, value=self.used, expected=expected)


class Struct(Mapping[str, Any]):
    """The variables of a file or the fields of a struct by name. A value is unpacked each time it is read.

    Reading a value raises RecordError if that value is damaged, of an unknown kind, or too large.
    """

    def __init__(self, parts: dict[str, Callable[[], Any]]) -> None:
        self._parts = parts

    def __getitem__(self, name: str) -> Any:
        part = self._parts[name]
        with unpacking():
            return part()

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


@contextmanager
def unpacking() -> Iterator[None]:
    """Turn whatever damaged bytes raise inside the block into a RecordError."""
    try:
        yield
    except RecordError:
        raise
    except Exception as error:  # h5py raises anything for damaged files
        raise RecordError("not a readable MATLAB file", value=f"{type(error).__name__}: {error}") from None


def dense_matrix(
    rows: NDArray[Any], starts: NDArray[Any], values: NDArray[Any], shape: tuple[int, int], memory: Memory
) -> NDArray[Any]:
    """Write out a sparse matrix that is stored column by column, after a check of every index.

    Args:
        rows: (n,) row of each entry, rising within a column.
        starts: (columns + 1,) index of the first entry of each column, and the number of entries.
        values: (n,) or longer, value of each entry.
        shape: (rows, columns) of the matrix.
        memory: Counts the matrix.

    Returns:
        The matrix, with the dtype of `values`.

    Raises:
        ValueError: The indices are not those of a sparse matrix of this shape.
        RecordError: The matrix takes too much memory.
    """
    memory.take(shape[0] * shape[1] * values.dtype.itemsize, f"sparse matrix {shape}")
    starts, count = starts.astype(np.int64), int(starts[-1]) if len(starts) else -1
    if len(starts) != shape[1] + 1 or starts[0] != 0 or (np.diff(starts) < 0).any():
        raise ValueError("the column starts of a sparse matrix do not rise from 0")
    if count > min(len(rows), len(values)):
        raise ValueError(f"a sparse matrix has {min(len(rows), len(values))} entries instead of {count}")
    rows = rows[:count].astype(np.int64)
    columns = np.repeat(np.arange(shape[1]), np.diff(starts))
    places = columns * shape[0] + rows
    if count and (rows.min() < 0 or rows.max() >= shape[0] or (np.diff(places) <= 0).any()):
        raise ValueError(f"the rows of a sparse matrix do not rise within 0..{shape[0] - 1}")
    matrix = np.zeros(shape, values.dtype)
    matrix[rows, columns] = values[:count]
    return matrix
