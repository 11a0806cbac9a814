"""Superpixel maps: a map as bytes, and the boxes of superpixels and of their unions.

A superpixel map is uint16 (H, W) with ids 0..S-1. A segment is a set of ids; its box follows from the boxes of its
superpixels, so no mask of a segment is drawn.
"""

from __future__ import annotations

import struct

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_HEADER = struct.Struct("<IIII")
_MAX_PIXELS = 2**28  # larger is no image: foreign bytes read as a size would ask for all the memory


def encode_superpixels(superpixels: NDArray[np.integer]) -> bytes:
    """Encode a superpixel map (H, W) without loss; ids must be below 2**16.

    The pixels, row after row, are cut into runs of one superpixel. The bytes are a header of four uint32 (H, W, number
    of runs, bytes of the first part), then two parts, each compressed with zstd: one bit per pixel, set where a run
    begins, and one uint16 per run, its id. This takes less than the compressed ids of all pixels.
    """
    ids = np.ascontiguousarray(superpixels, "<u2").ravel()
    begins = np.append(np.ones(min(1, len(ids)), bool), ids[1:] != ids[:-1])
    codec = pa.Codec("zstd", 19)
    first, second = (codec.compress(part.tobytes(), asbytes=True) for part in (np.packbits(begins), ids[begins]))
    header: bytes = _HEADER.pack(*superpixels.shape, np.count_nonzero(begins), len(first))
    return header + bytes(first) + bytes(second)


def decode_superpixels(data: bytes) -> NDArray[np.uint16]:
    """Decode a superpixel map (H, W), the inverse of `encode_superpixels`.

    Raises:
        OSError: If the bytes are not an encoded superpixel map; the same class as for a damaged image file.
    """
    try:
        height, width, num_runs, num_bytes = _HEADER.unpack_from(data)
        num_pixels = height * width
        if num_pixels > _MAX_PIXELS or num_runs > num_pixels:
            raise ValueError(f"{width} x {height} pixels in {num_runs} runs")
        codec, body = pa.Codec("zstd"), memoryview(data)[_HEADER.size :]
        bits = codec.decompress(body[:num_bytes], -(-num_pixels // 8), asbytes=True)
        ids = np.frombuffer(codec.decompress(body[num_bytes:], num_runs * 2, asbytes=True), "<u2")
        # As bool: NumPy finds the true ones three times as fast as the ones of integers.
        begins = np.flatnonzero(np.unpackbits(np.frombuffer(bits, np.uint8), count=num_pixels).view(bool))
        if len(begins) != num_runs or begins[:1].any():
            raise ValueError(f"{len(begins)} runs, not {num_runs}")
        return np.repeat(ids.astype(np.uint16), np.diff(begins, append=num_pixels)).reshape(height, width)
    except (struct.error, pa.ArrowException, OSError, ValueError) as error:
        raise OSError(f"not an encoded superpixel map: {error}") from None


def superpixel_extents(superpixels: NDArray[np.integer], num_superpixels: int) -> NDArray[np.int32]:
    """Return the tight box of every superpixel of a map (H, W), (S, 4) xyxy, 0-based and half-open.

    An id that has no pixel gets the empty box (W, H, 0, 0), which changes no union.
    """
    height, width = superpixels.shape
    extents = np.empty((num_superpixels, 4), np.int32)
    extents[:] = (width, height, 0, 0)
    # NumPy keeps the last value assigned to a repeated index, so a sweep in order of a coordinate leaves its extreme.
    rows = np.repeat(np.arange(height, dtype=np.int32), width)
    flat = superpixels.ravel()
    extents[flat, 3] = rows + 1
    extents[flat[::-1], 1] = rows[::-1]
    columns = np.repeat(np.arange(width, dtype=np.int32), height)
    flat = superpixels.T.ravel()
    extents[flat, 2] = columns + 1
    extents[flat[::-1], 0] = columns[::-1]
    return extents


def union_boxes(
    extents: NDArray[np.int32], indptr: NDArray[np.integer], indices: NDArray[np.integer]
) -> NDArray[np.int32]:
    """Return the tight box of every segment, (P, 4) xyxy, from the boxes of its superpixels.

    Args:
        extents: (S, 4), from `superpixel_extents`.
        indptr: (P + 1,); segment j holds the superpixels `indices[indptr[j]:indptr[j + 1]]`, at least one.
        indices: (indptr[-1],) superpixel ids.
    """
    if len(indptr) == 1:
        return np.empty((0, 4), extents.dtype)
    members = extents[indices]
    low = np.minimum.reduceat(members[:, :2], indptr[:-1], axis=0)
    high = np.maximum.reduceat(members[:, 2:], indptr[:-1], axis=0)
    return np.concatenate([low, high], axis=1)
