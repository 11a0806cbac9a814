"""The schemas of the stored tables (records, proposals, labels, label maps), and a row as a plain object.

`Record` and `Proposals` are the rows that the stages compute with; the conversions between rows and Arrow tables stand
beside them. Rows of the labels table are `painting.Segment`, see `labels.py`.

Boxes are xyxy, 0-based and half-open: pixel columns x0..x1-1 and rows y0..y1-1 lie inside. Shape letters here and in
the whole package: N batch, C classes, K boxes, P proposals, S superpixels, H height, W width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from boxsup_dist.data.superpixels import decode_superpixels, encode_superpixels
from boxsup_dist.errors import TableError, decoding

SCHEMA_VERSION = 4
IGNORE_INDEX = 255  # label of a pixel that loss and metrics leave out; VOC's void
BACKGROUND = 0

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

# COCO's names of VOC's classes, if they differ.
VOC_NAME_OF_COCO = {
    "airplane": "aeroplane", "motorcycle": "motorbike", "couch": "sofa", "potted plant": "pottedplant",
    "dining table": "diningtable", "tv": "tvmonitor",
}  # fmt: skip

# Images and maps are large_binary: a plain binary column overflows its 32-bit offsets at 2 GiB per chunk.
RECORDS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("image", pa.large_binary(), nullable=False),
        pa.field("image_hash", pa.string(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("boxes_xyxy", pa.list_(pa.list_(pa.float32(), 4)), nullable=False),
        pa.field("class_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("difficult", pa.list_(pa.bool_()), nullable=False),
        pa.field("crowd", pa.list_(pa.bool_()), nullable=False),
        pa.field("gt_label_map", pa.large_binary()),
        pa.field("instance_masks", pa.list_(pa.large_binary())),
    ]
)

PROPOSALS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("superpixels", pa.large_binary(), nullable=False),
        pa.field("num_superpixels", pa.int32(), nullable=False),
        pa.field("membership", pa.large_list(pa.large_list(pa.uint16())), nullable=False),
        pa.field("objectness", pa.list_(pa.float32()), nullable=False),
        pa.field("proposal_boxes", pa.list_(pa.list_(pa.uint16(), 4)), nullable=False),
    ]
)

LABELS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("box_index", pa.int32(), nullable=False),
        pa.field("class_id", pa.int32(), nullable=False),
        pa.field("proposal_index", pa.int32(), nullable=False),
        pa.field("superpixel_ids", pa.list_(pa.uint16()), nullable=False),
        pa.field("undecided_ids", pa.list_(pa.uint16()), nullable=False),
        pa.field("undecided_probability", pa.list_(pa.float32()), nullable=False),
        pa.field("overlap_cost", pa.float32(), nullable=False),
        pa.field("regression_cost", pa.float32(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
    ]
)

LABEL_MAPS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("label_map", pa.large_binary(), nullable=False),
    ]
)

SCHEMAS = {"records": RECORDS, "proposals": PROPOSALS, "labels": LABELS, "label_maps": LABEL_MAPS}


def check_schema(found: pa.Schema, kind: str, *, file: object) -> None:
    """Check that a schema has exactly the columns of a kind of table, with their types.

    Args:
        found: The schema to check.
        kind: A key of SCHEMAS.
        file: Where the schema was read; named by the error.

    Raises:
        TableError: If a column is missing, has another type or is unknown.
    """
    expected = SCHEMAS[kind]
    for field in expected:
        index = found.get_field_index(field.name)
        if index < 0:
            raise TableError(f"the {kind} table lacks a column", file=file, field=field.name, expected=str(field.type))
        if found.field(index).type != field.type:
            raise TableError(
                f"the {kind} table has a column of another type",
                file=file,
                field=field.name,
                value=str(found.field(index).type),
                expected=str(field.type),
            )
    extra = set(found.names) - set(expected.names)
    if extra:
        raise TableError(f"the {kind} table has unknown columns", file=file, value=sorted(extra))


@dataclass(frozen=True)
class Record:
    """One image and its annotation: a row of the records table.

    A column that was not read has an empty value: None, "", 0 or an array of no boxes.
    """

    image_id: str
    source: str
    split: str
    image: bytes | None  # the original file's bytes, never re-encoded
    height: int
    width: int
    boxes_xyxy: NDArray[np.float32]  # (K, 4)
    class_ids: NDArray[np.int32]  # (K,), 1..C-1
    difficult: NDArray[np.bool_]  # (K,)
    crowd: NDArray[np.bool_]  # (K,)
    gt_label_map: bytes | None = None  # PNG of uint8 (H, W); None: no ground-truth mask
    # K masks encoded by rle.encode, an empty mask for a box without an object; None: no mask per object
    instance_masks: list[bytes] | None = None
    num_clipped: int = 0  # annotations that the reader cut at the image's border; counted by the build, not stored


def image_hash(image: bytes) -> str:
    """Return the first 16 bytes of an image file's SHA-256, in hex; equal files have equal hashes."""
    return hashlib.sha256(image).hexdigest()[:32]


def records_to_table(records: Sequence[Record]) -> pa.Table:
    """Convert records to an Arrow table of the records schema, one row per record."""
    rows = [
        {
            "image_id": r.image_id,
            "source": r.source,
            "split": r.split,
            "image": r.image,
            "image_hash": image_hash(r.image or b""),
            "height": r.height,
            "width": r.width,
            "boxes_xyxy": np.asarray(r.boxes_xyxy, np.float32).reshape(-1, 4).tolist(),
            "class_ids": np.asarray(r.class_ids).tolist(),
            "difficult": np.asarray(r.difficult, bool).tolist(),
            "crowd": np.asarray(r.crowd, bool).tolist(),
            "gt_label_map": r.gt_label_map,
            "instance_masks": r.instance_masks,
        }
        for r in records
    ]
    return pa.Table.from_pylist(rows, schema=RECORDS)


def iter_records(table: pa.Table) -> Iterator[Record]:
    """Yield the rows of a records table that was read with all or some of its columns."""
    for row in table.to_pylist():
        yield Record(
            image_id=row["image_id"],
            source=row.get("source", ""),
            split=row.get("split", ""),
            image=row.get("image"),
            height=row.get("height", 0),
            width=row.get("width", 0),
            boxes_xyxy=np.asarray(row.get("boxes_xyxy") or [], np.float32).reshape(-1, 4),
            class_ids=np.asarray(row.get("class_ids") or [], np.int32),
            difficult=np.asarray(row.get("difficult") or [], bool),
            crowd=np.asarray(row.get("crowd") or [], bool),
            gt_label_map=row.get("gt_label_map"),
            instance_masks=row.get("instance_masks"),
        )


@dataclass(frozen=True)
class Proposals:
    """All proposals of one image, best first: a row of the proposals table.

    Proposal j is the union of the superpixels `indices[indptr[j]:indptr[j + 1]]`, sorted, at least one. The superpixel
    map and the scores are empty arrays if their columns were not read.
    """

    image_id: str
    superpixels: NDArray[np.uint16]  # (H, W), ids 0..S-1
    num_superpixels: int
    indptr: NDArray[np.int64]  # (P + 1,)
    indices: NDArray[np.uint16]  # (indptr[-1],)
    objectness: NDArray[np.float32]  # (P,), falling
    boxes: NDArray[np.uint16]  # (P, 4), tight, xyxy half-open

    def __len__(self) -> int:
        """Return the number of proposals, P."""
        return len(self.indptr) - 1

    def members(self, proposal_index: int) -> NDArray[np.uint16]:
        """Return the superpixel ids of one proposal, sorted."""
        return self.indices[self.indptr[proposal_index] : self.indptr[proposal_index + 1]]


def proposals_to_table(proposals: Sequence[Proposals]) -> pa.Table:
    """Convert proposals to an Arrow table of the proposals schema, one row per image."""
    offsets = np.cumsum([0] + [len(p) for p in proposals])
    objectness = np.concatenate([p.objectness for p in proposals] or [np.empty(0, np.float32)]).astype(np.float32)
    boxes = np.concatenate([p.boxes for p in proposals] or [np.empty((0, 4), np.uint16)]).astype(np.uint16)
    starts = pa.array(offsets, pa.int32())
    bases = np.cumsum([0] + [len(p.indices) for p in proposals])[:-1]  # of each image's ids among those of all images
    inner = np.concatenate([[0]] + [p.indptr[1:] + base for p, base in zip(proposals, bases, strict=True)])
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


def proposals_from_table(table: pa.Table, max_candidates: int | None = None) -> list[Proposals]:
    """Convert all rows of a proposals table; arguments and errors as for `proposals_from_row`."""
    return [proposals_from_row(table, row, max_candidates) for row in range(table.num_rows)]


def proposals_from_row(table: pa.Table, row: int, max_candidates: int | None = None) -> Proposals:
    """Convert one row of a proposals table.

    Args:
        table: Rows of a proposals table. It may lack the columns `superpixels` and `objectness`.
        row: Index of the row in `table`.
        max_candidates: Keep only that many, the best ones; None keeps all.

    Raises:
        RecordError: If the row's superpixel map does not decode; the error names the image.
    """
    nested = table.column("membership")[row].values
    offsets = nested.offsets.to_numpy()[: None if max_candidates is None else max_candidates + 1]
    kept = len(offsets) - 1
    has_map, has_scores = "superpixels" in table.column_names, "objectness" in table.column_names
    return Proposals(
        image_id=table.column("image_id")[row].as_py(),
        superpixels=superpixels_from_row(table, row) if has_map else np.empty((0, 0), np.uint16),
        num_superpixels=table.column("num_superpixels")[row].as_py(),
        indptr=(offsets - offsets[0]).astype(np.int64),
        indices=nested.values.to_numpy()[offsets[0] : offsets[-1]],
        objectness=_numbers(table, "objectness", row)[:kept] if has_scores else np.empty(0, np.float32),
        boxes=_numbers(table, "proposal_boxes", row).reshape(-1, 4)[:kept],
    )


def superpixels_from_row(table: pa.Table, row: int) -> NDArray[np.uint16]:
    """Decode the superpixel map (H, W) of one row of a proposals table; errors as `proposals_from_row`."""
    with decoding(table.column("image_id")[row].as_py()):
        return decode_superpixels(table.column("superpixels")[row].as_py())


def _numbers(table: pa.Table, name: str, row: int) -> NDArray[Any]:
    """The numbers of one row of a column of lists, nested lists flattened, without a Python object for each."""
    values = table.column(name)[row].values
    return np.asarray(values.flatten() if pa.types.is_fixed_size_list(values.type) else values)
