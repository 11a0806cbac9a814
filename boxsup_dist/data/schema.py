"""The tables (records, proposals, labels, label maps): their columns, and rows as plain objects with numpy arrays.

Boxes are xyxy, 0-based and half-open: pixel columns x0..x1-1 and rows y0..y1-1 lie inside.
Shape letters: K boxes, P proposals, S superpixels, H, W.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from boxsup_dist.errors import TableError

SCHEMA_VERSION = 3
IGNORE_INDEX = 255  # a pixel outside loss and metrics; VOC's void
BACKGROUND = 0

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

# Images and maps use large_binary: plain binary columns overflow their 32-bit offsets at 2 GiB a chunk.
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
    """Raise TableError unless `found` has exactly the columns and types of the table `kind`."""
    expected = SCHEMAS[kind]
    for field in expected:
        index = found.get_field_index(field.name)
        if index < 0:
            raise TableError(f"{kind} table lacks a column", file=file, field=field.name, expected=str(field.type))
        if found.field(index).type != field.type:
            raise TableError(
                f"{kind} table has a column of another type",
                file=file,
                field=field.name,
                value=str(found.field(index).type),
                expected=str(field.type),
            )
    extra = set(found.names) - set(expected.names)
    if extra:
        raise TableError(f"{kind} table has unknown columns", file=file, value=sorted(extra))


@dataclass(frozen=True)
class Record:
    """One image and its annotation. Columns that were not read are None."""

    image_id: str
    source: str
    split: str
    image: bytes | None  # the original file's bytes, never re-encoded
    height: int
    width: int
    boxes_xyxy: np.ndarray  # float32 (K, 4)
    class_ids: np.ndarray  # int32 (K,), 1..C-1
    difficult: np.ndarray  # bool (K,)
    crowd: np.ndarray  # bool (K,)
    gt_label_map: bytes | None = None  # PNG, uint8 (H, W)
    # K masks as boxsup_dist.data.rle encodes them, where objects are told apart; empty for a box without an object
    instance_masks: list[bytes] | None = None


def image_hash(image: bytes) -> str:
    """What tells two image files apart: the first 16 bytes of their SHA-256, in hex."""
    return hashlib.sha256(image).hexdigest()[:32]


def records_to_table(records: Sequence[Record]) -> pa.Table:
    """Arrow table of the records schema, one row a record."""
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
    """Rows of a records table (all columns or some of them) as Record objects."""
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
    """All candidate segments of one image: unions of superpixels, best first.

    Proposal j consists of the superpixels `indices[indptr[j]:indptr[j + 1]]` (sorted, never empty).
    """

    image_id: str
    superpixels: np.ndarray  # uint16 (H, W), ids 0..S-1
    num_superpixels: int
    indptr: np.ndarray  # int64 (P + 1,)
    indices: np.ndarray  # uint16 (indptr[-1],)
    objectness: np.ndarray  # float32 (P,), falling
    boxes: np.ndarray  # uint16 (P, 4), tight boxes xyxy half-open

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def members(self, proposal_index: int) -> np.ndarray:
        """Superpixel ids of one proposal, uint16."""
        return self.indices[self.indptr[proposal_index] : self.indptr[proposal_index + 1]]
