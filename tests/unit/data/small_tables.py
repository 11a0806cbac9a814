"""Tables of 4x6 images, each with one box, as sources of every supervision."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from boxsup_dist.data import tables
from boxsup_dist.data.images import encode_png
from boxsup_dist.data.schema import LABEL_MAPS, Proposals, Record, proposals_to_table, records_to_table
from boxsup_dist.data.sources import Source
from boxsup_dist.data.tables import Table

TRUTH = np.array([[2, 2, 2, 0, 0, 0], [2, 2, 2, 0, 0, 0], [0] * 6, [0] * 6], np.uint8)
STATIC = np.array([[0, 2, 2, 0, 0, 0]] + [[0] * 6] * 3, np.uint8)
POISON = b"poison"


def make_record(name: str = "a", crowd: bool = False, image: bytes | None = None) -> Record:
    """A 4x6 image with one box of class 2 over its upper half."""
    return Record(
        image_id=name,
        source="test",
        split="train",
        image=image or name.encode(),
        height=4,
        width=6,
        boxes_xyxy=np.array([[0, 0, 6, 2]], np.float32),
        class_ids=np.array([2], np.int32),
        difficult=np.zeros(1, bool),
        crowd=np.array([crowd]),
        gt_label_map=encode_png(TRUTH),
        instance_masks=[POISON],
    )


def write(folder: Path, kind: str, table: pa.Table, settings: dict) -> Table:
    uri = str(folder)
    tables.begin(uri, kind, settings)
    return tables.publish(uri, kind, settings, [tables.write_shard(uri, 0, table, kind, row_group_size=2)])


def write_records(folder: Path, records: list[Record]) -> Table:
    return write(folder, "records", records_to_table(records), {"classes": ["background", "one", "two"]})


def quadrants(record: Record) -> Proposals:
    """Four superpixels, one a quarter of the image, each a proposal."""
    rows, columns = np.indices((record.height, record.width))
    superpixels = 2 * (rows >= record.height // 2) + (columns >= record.width // 2)
    return Proposals(
        image_id=record.image_id,
        superpixels=superpixels.astype(np.uint16),
        num_superpixels=4,
        indptr=np.arange(5),
        indices=np.arange(4, dtype=np.uint16),
        objectness=np.zeros(4, np.float32),
        boxes=np.zeros((4, 4), np.uint16),
    )


def make_source(folder: Path, supervision: str, records: list[Record]) -> Source:
    table = write_records(folder / "records", records)
    partner = {"records": table.fingerprint}
    proposals = label_maps = None
    if supervision == "box":
        rows = proposals_to_table([quadrants(record) for record in records])
        proposals = write(folder / "proposals", "proposals", rows, partner)
    if supervision in ("grabcut", "wssl", "label_maps"):
        maps = [{"image_id": record.image_id, "label_map": encode_png(STATIC)} for record in records]
        label_maps = write(folder / "maps", "label_maps", pa.Table.from_pylist(maps, schema=LABEL_MAPS), partner)
    return Source(table, supervision, proposals, label_maps)
