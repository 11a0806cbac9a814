"""Superpixels: a map of them as bytes, and proposals as sets of their ids.

No mask of a proposal is ever drawn: its box, its area and its bytes come from those of its superpixels.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from boxsup_dist.data.schema import PROPOSALS, Proposals
from boxsup_dist.errors import decoding

_HEADER = struct.Struct("<IIII")
_MAX_PIXELS = 2**28  # more is no image: foreign bytes read as a size would ask for all the memory


def encode_superpixels(superpixels: np.ndarray) -> bytes:
    """Superpixel map (H, W) as lossless bytes, its rows one after the other cut into runs of one superpixel.

    H, W, the number of runs and the bytes of the first part as uint32; then, each compressed with zstd, a bit for every
    pixel that begins a run, and the uint16 id of every run. That takes less than the compressed ids of all pixels.
    """
    ids = np.ascontiguousarray(superpixels, "<u2").ravel()
    begins = np.append(np.ones(min(1, len(ids)), bool), ids[1:] != ids[:-1])
    codec = pa.Codec("zstd", 19)
    first, second = (codec.compress(part.tobytes(), asbytes=True) for part in (np.packbits(begins), ids[begins]))
    return _HEADER.pack(*superpixels.shape, np.count_nonzero(begins), len(first)) + first + second


def decode_superpixels(data: bytes) -> np.ndarray:
    """Inverse of encode_superpixels: uint16 (H, W). OSError, as for an image, if the bytes are no such map."""
    try:
        height, width, num_runs, num_bytes = _HEADER.unpack_from(data)
        num_pixels = height * width
        if num_pixels > _MAX_PIXELS or num_runs > num_pixels:
            raise ValueError(f"{width} x {height} pixels in {num_runs} runs")
        codec, body = pa.Codec("zstd"), memoryview(data)[_HEADER.size :]
        bits = codec.decompress(body[:num_bytes], -(-num_pixels // 8), asbytes=True)
        ids = np.frombuffer(codec.decompress(body[num_bytes:], num_runs * 2, asbytes=True), "<u2")
        begins = np.flatnonzero(np.unpackbits(np.frombuffer(bits, np.uint8), count=num_pixels))
        if len(begins) != num_runs or begins[:1].any():
            raise ValueError(f"{len(begins)} runs, not {num_runs}")
        return np.repeat(ids.astype(np.uint16), np.diff(begins, append=num_pixels)).reshape(height, width)
    except (struct.error, pa.ArrowException, OSError, ValueError) as error:
        raise OSError(f"not an encoded superpixel map: {error}") from None


def proposals_to_table(proposals: Sequence[Proposals]) -> pa.Table:
    """Arrow table of the proposals schema, one row an image."""
    offsets = np.cumsum([0] + [len(p) for p in proposals])
    objectness = np.concatenate([p.objectness for p in proposals] or [np.empty(0)]).astype(np.float32)
    boxes = np.concatenate([p.boxes for p in proposals] or [np.empty((0, 4))]).astype(np.uint16)
    starts = pa.array(offsets, pa.int32())
    inner = np.concatenate([[0]] + [p.indptr[1:] + base for p, base in zip(proposals, _starts(proposals), strict=True)])
    values = np.concatenate([p.indices for p in proposals] or [np.empty(0, np.uint16)]).astype(np.uint16)
    membership = pa.LargeListArray.from_arrays(
        pa.array(offsets, pa.int64()), pa.LargeListArray.from_arrays(pa.array(inner, pa.int64()), pa.array(values))
    )
    columns = {
        "image_id": [p.image_id for p in proposals],
        "superpixels": [encode_superpixels(p.superpixels) for p in proposals],
        "num_superpixels": [p.num_superpixels for p in proposals],
        "membership": membership,
        "objectness": pa.ListArray.from_arrays(starts, pa.array(objectness)),
        "proposal_boxes": pa.ListArray.from_arrays(starts, pa.FixedSizeListArray.from_arrays(boxes.ravel(), 4)),
    }
    return pa.table(columns, schema=PROPOSALS)


def _starts(proposals: Sequence[Proposals]) -> np.ndarray:
    return np.cumsum([0] + [len(p.indices) for p in proposals])[:-1]


def proposals_from_table(table: pa.Table, max_candidates: int | None = None) -> list[Proposals]:
    """Rows of a proposals table; as proposals_from_row."""
    return [proposals_from_row(table, i, max_candidates) for i in range(table.num_rows)]


def proposals_from_row(table: pa.Table, i: int, max_candidates: int | None = None) -> Proposals:
    """One row of a proposals table, membership as one sparse matrix; the best `max_candidates` or all.

    RecordError, naming the image, if its superpixel map does not decode.
    """
    image_id = table.column("image_id")[i].as_py()
    nested = table.column("membership")[i].values
    offsets = nested.offsets.to_numpy()[: None if max_candidates is None else max_candidates + 1]
    kept = len(offsets) - 1
    with decoding(image_id):
        superpixels = decode_superpixels(table.column("superpixels")[i].as_py())
    return Proposals(
        image_id=image_id,
        superpixels=superpixels,
        num_superpixels=table.column("num_superpixels")[i].as_py(),
        indptr=(offsets - offsets[0]).astype(np.int64),
        indices=nested.values.to_numpy()[offsets[0] : offsets[-1]],
        objectness=np.asarray(table.column("objectness")[i].as_py(), np.float32)[:kept],
        boxes=np.asarray(table.column("proposal_boxes")[i].as_py(), np.uint16).reshape(-1, 4)[:kept],
    )


def superpixel_extents(superpixels: np.ndarray, num_superpixels: int) -> np.ndarray:
    """Tight box of every superpixel, int32 (S, 4) xyxy half-open; absent ids get an empty box (W, H, 0, 0)."""
    height, width = superpixels.shape
    extents = np.empty((num_superpixels, 4), np.int32)
    extents[:] = (width, height, 0, 0)
    # numpy keeps the last value assigned to a repeated index, so a sweep in order of a coordinate leaves its extreme.
    rows = np.repeat(np.arange(height, dtype=np.int32), width)
    flat = superpixels.ravel()
    extents[flat, 3] = rows + 1
    extents[flat[::-1], 1] = rows[::-1]
    columns = np.repeat(np.arange(width, dtype=np.int32), height)
    flat = superpixels.T.ravel()
    extents[flat, 2] = columns + 1
    extents[flat[::-1], 0] = columns[::-1]
    return extents


def union_boxes(extents: np.ndarray, indptr: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Tight box of every segment (P, 4) from its superpixels' boxes; segments must not be empty."""
    if len(indptr) == 1:
        return np.empty((0, 4), extents.dtype)
    members = extents[indices]
    low = np.minimum.reduceat(members[:, :2], indptr[:-1], axis=0)
    high = np.maximum.reduceat(members[:, 2:], indptr[:-1], axis=0)
    return np.concatenate([low, high], axis=1)
