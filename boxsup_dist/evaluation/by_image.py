"""The confusion matrices of single images: what networks are compared by, image by image (bootstrap.py).

An image has few classes, so most cells of its matrix (C, C) are 0. The others are kept, as a row of a Parquet file:
their numbers `ground truth * C + prediction`, ascending, and their pixels. VOC takes about 70 bytes an image in
memory; 133,824 images with 8 cells each took 12 MB.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from boxsup_dist.errors import InputError
from boxsup_dist.io import storage

if TYPE_CHECKING:
    from scipy.sparse import csr_array

SCHEMA = pa.schema([("image_id", pa.string()), ("cells", pa.list_(pa.uint16())), ("pixels", pa.list_(pa.uint32()))])
CLASS_NAMES = b"class_names"  # in the metadata of the file, as JSON


class ByImage(NamedTuple):
    """The confusion matrices of N images."""

    image_ids: tuple[str, ...]
    matrices: csr_array  # int64 (N, C * C)
    class_names: tuple[str, ...]

    @property
    def total(self) -> NDArray[np.int64]:
        """The confusion matrix (C, C) of all images."""
        size = len(self.class_names)
        return np.asarray(self.matrices.sum(axis=0), np.int64).reshape(size, size)


def sparse_rows(matrices: Iterable[tuple[str, NDArray[np.int64]]]) -> pa.Table:
    """Rows of SCHEMA from the image_id and the confusion matrix (C, C) of each image."""
    ids, cells, pixels = [], [], []
    for image_id, matrix in matrices:
        found = np.flatnonzero(matrix)
        ids.append(image_id)
        cells.append(found.astype(np.uint16))
        pixels.append(matrix.ravel()[found].astype(np.uint32))
    return pa.table([ids, cells, pixels], schema=SCHEMA)


def write_by_image(uri: str, rows: pa.Table, class_names: Sequence[str]) -> str:
    """Keep the rows of `sparse_rows` as a file.

    Returns:
        The proof of its bytes, which `read_by_image` takes.
    """
    kept = rows.replace_schema_metadata({CLASS_NAMES: json.dumps(list(class_names)).encode()})
    buffer = io.BytesIO()
    pq.write_table(kept.combine_chunks(), buffer, compression="zstd")
    storage.write_bytes(uri, buffer.getbuffer())
    return _proof(buffer.getvalue())


def read_by_image(uri: str, proof: str | None) -> ByImage:
    """What `write_by_image` has kept; the bytes are proved before they are decoded.

    Raises:
        InputError: There is no such file, or it is damaged or of another evaluation.
    """
    from scipy.sparse import csr_array  # here, as every command imports this module

    data = storage.read_bytes(uri)
    if _proof(data) != proof:
        problem = "the file is damaged, or not of the evaluation of the confusion.json beside it"
        raise InputError(problem, file=uri, expected="evaluate again: python -m jobs.evaluate")
    rows = pq.read_table(io.BytesIO(data))
    names = tuple(json.loads(rows.schema.metadata[CLASS_NAMES]))
    ids, cells, pixels = (rows.column(name).combine_chunks() for name in SCHEMA.names)
    parts = pixels.flatten().to_numpy().astype(np.int64), cells.flatten().to_numpy().astype(np.int64)
    starts = np.cumsum([0, *pc.list_value_length(cells).to_numpy()])
    return ByImage(tuple(ids.to_pylist()), csr_array((*parts, starts), shape=(len(ids), len(names) ** 2)), names)


def _proof(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def paired(found: Sequence[tuple[str, ByImage]]) -> list[csr_array]:
    """The matrices (N, C * C) of several evaluations of the same images, with the rows in one order.

    Args:
        found: Name and matrices of each evaluation, one or more.

    Raises:
        InputError: They differ in classes, images, or the ground truth of an image; names the two evaluations.
    """
    first_name, first = found[0]
    truth = _truth(first)
    matrices = []
    for name, each in found:
        row_of = {image_id: row for row, image_id in enumerate(each.image_ids)}
        problem, expected = None, f"those of {first_name}: evaluate both on the same records"
        if each.class_names != first.class_names:
            problem, value = "the classes differ", f"{len(each.class_names)} classes"
        elif row_of.keys() != set(first.image_ids):
            odd = min(row_of.keys() ^ set(first.image_ids))
            problem, value = "the images differ", f"{len(row_of)} images; {odd} is in one of the two only"
        if problem is not None:
            raise InputError(problem, file=name, value=value, expected=expected)
        order = [row_of[image_id] for image_id in first.image_ids]
        other = _truth(each)[order]
        if not np.array_equal(other, truth):
            image_id = first.image_ids[int(np.flatnonzero((other != truth).any(axis=1))[0])]
            raise InputError("the ground truth differs", file=name, value=f"image {image_id}", expected=expected)
        matrices.append(each.matrices[order])
    return matrices


def _truth(found: ByImage) -> NDArray[np.int64]:
    """Pixels of each class in the ground truth of each image, (N, C)."""
    from scipy.sparse import csr_array

    size = len(found.class_names)
    of_class = csr_array(np.kron(np.eye(size, dtype=np.int64), np.ones((size, 1), np.int64)))
    return np.asarray((found.matrices @ of_class).todense())
