"""Superpixel algebra: maps as bytes, segments as superpixel sets, painting label maps.

A segment is a set of superpixel ids; a label map is painted by one lookup, `lut[superpixels]`: no mask is stored.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps

from boxsup_dist.data.schema import BACKGROUND, IGNORE_INDEX, PROPOSALS, Proposals
from boxsup_dist.errors import decoding

_HEADER = struct.Struct("<IIII")
# Only these are opened: Pillow knows others that start a program (EPS) or look like source code (XBM).
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")
_MAX_PIXELS = 2**28  # more is no image: foreign bytes read as a size would ask for all the memory


class Segment(NamedTuple):
    """What a box took."""

    superpixel_ids: np.ndarray  # uint16 (n,)
    undecided_ids: np.ndarray  # uint16 (m,), superpixels whose pixels inside the box are ignored


def encode_png(array: np.ndarray) -> bytes:
    """uint8 or uint16 (H, W) as PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def decode_png(data: bytes) -> np.ndarray:
    """PNG bytes as the stored integers, (H, W); palette images give their indices."""
    return np.asarray(Image.open(io.BytesIO(data), formats=("PNG",)))


def decode_image(data: bytes, *, turn_by_exif: bool = False) -> np.ndarray:
    """An image file's bytes as uint8 RGB (H, W, 3); of 16-bit images the upper 8 bits.

    `turn_by_exif` turns it the way up that its EXIF orientation tells; annotation lies on images as they are stored.
    """
    with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as opened:
        image = ImageOps.exif_transpose(opened) if turn_by_exif else opened
        if image.mode.startswith("I"):  # 16-bit grey: convert() would cut everything above 255 off
            return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        return np.asarray(image.convert("RGB"))


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


def pixel_box(box: np.ndarray, height: int, width: int, *, margin: float | None = 0.0) -> tuple[int, int, int, int]:
    """Integer box x0, y0, x1, y1 that covers the float box, inside the image; empty for a box beyond its border.

    `margin` moves each side outwards by this share of the box's width or height; None takes in the whole image.
    """
    if margin is None:
        return 0, 0, width, height
    size, grown = (width, height), margin * (box[2:] - box[:2])
    x0, y0 = np.clip(np.floor(box[:2] - grown), 0, size).astype(int).tolist()
    x1, y1 = np.clip(np.ceil(box[2:] + grown), 0, size).astype(int).tolist()
    return x0, y0, x1, y1


def front_order(boxes_xyxy: np.ndarray) -> np.ndarray:
    """Order in which boxes are painted: larger first, so that the smaller of two overlapping ones lies in front."""
    area = (boxes_xyxy[:, 2] - boxes_xyxy[:, 0]) * (boxes_xyxy[:, 3] - boxes_xyxy[:, 1])
    return np.argsort(-area, kind="stable")


def paint_rectangles(
    shape: tuple[int, int], boxes_xyxy: np.ndarray, class_ids: np.ndarray, crowd: np.ndarray
) -> np.ndarray:
    """Label map uint8 (H, W) with every box filled by its class; crowds are ignored pixels."""
    label_map = np.full(shape, BACKGROUND, np.uint8)
    for k in front_order(boxes_xyxy):
        x0, y0, x1, y1 = pixel_box(boxes_xyxy[k], *shape)
        label_map[y0:y1, x0:x1] = IGNORE_INDEX if crowd[k] else class_ids[k]
    return label_map


def paint_segments(
    superpixels: np.ndarray,
    num_superpixels: int,
    boxes_xyxy: np.ndarray,
    class_ids: np.ndarray,
    crowd: np.ndarray,
    segments: Sequence[Segment | None],
    *,
    box_margin: float | None,
    ignore_outside: bool,
    ignore_undecided: bool,
) -> np.ndarray:
    """Label map uint8 (H, W) from the chosen segment of every box.

    Larger boxes are painted first: a pixel in two segments belongs to the smaller box. `segments[k]` is what box k
    took, None where it has no candidate: its box is then ignored, as a crowd's box is. `box_margin` is how far a
    segment may leave its box (pixel_box). `ignore_outside` ignores the pixels of a box that no segment covers (the
    paper calls them background), `ignore_undecided` those of a segment's undecided superpixels inside its box.
    """
    shape = superpixels.shape
    label_map = np.full(shape, BACKGROUND, np.uint8)
    order = front_order(boxes_xyxy)
    for k in order:
        if ignore_outside or crowd[k] or segments[k] is None:
            x0, y0, x1, y1 = pixel_box(boxes_xyxy[k], *shape)
            label_map[y0:y1, x0:x1] = IGNORE_INDEX
    for k in order:
        segment = segments[k]
        if crowd[k] or segment is None:
            continue
        box = pixel_box(boxes_xyxy[k], *shape)
        reach = pixel_box(boxes_xyxy[k], *shape, margin=box_margin)
        _paint(label_map, superpixels, num_superpixels, segment.superpixel_ids, reach, class_ids[k])
        if ignore_undecided:
            _paint(label_map, superpixels, num_superpixels, segment.undecided_ids, box, IGNORE_INDEX)
    return label_map


def _paint(
    label_map: np.ndarray,
    superpixels: np.ndarray,
    num_superpixels: int,
    ids: np.ndarray,
    window: tuple[int, int, int, int],
    value: int,
) -> None:
    """Give the pixels of some superpixels inside a window a value, in place."""
    x0, y0, x1, y1 = window
    lut = np.zeros(num_superpixels, bool)
    lut[ids] = True
    label_map[y0:y1, x0:x1][lut[superpixels[y0:y1, x0:x1]]] = value
