"""Membership: segments of one image as sets of superpixels, in the form of a sparse matrix."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Membership(NamedTuple):
    """P segments: segment j holds the superpixels `indices[indptr[j]:indptr[j + 1]]`, in any order, at least one."""

    indptr: NDArray[np.int64]  # (P + 1,)
    indices: NDArray[np.uint16]  # (indptr[-1],)

    def take(self, rows: NDArray[np.integer]) -> Membership:
        """Return the segments `rows`, in that order; a row may be repeated."""
        lengths = self.indptr[rows + 1] - self.indptr[rows]
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        source = np.arange(indptr[-1]) + np.repeat(self.indptr[rows] - indptr[:-1], lengths)
        return Membership(indptr, self.indices[source])
