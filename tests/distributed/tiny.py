"""Tiny tables and a tiny network for the tests of the loop, made in memory without Ray."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from boxsup_dist.config import (
    AssignmentSettings,
    AugmentSettings,
    NetworkSettings,
    OptimizerSettings,
    ResourceSettings,
    SourceSettings,
    TrainConfig,
)
from boxsup_dist.data import tables
from boxsup_dist.data.images import encode_png
from boxsup_dist.data.schema import VOC_CLASSES, Proposals, Record, proposals_to_table, records_to_table
from boxsup_dist.data.superpixels import superpixel_extents, union_boxes
from boxsup_dist.data.tables import Table
from boxsup_dist.model import networks
from boxsup_dist.records.reader import count_records

NUM_TRAIN, NUM_VAL = 14, 5
ROWS_PER_SHARD, ROW_GROUP_SIZE = 8, 4
CELL_PX = 8
POISON = b"poison"

NETWORK = NetworkSettings("timm:test_resnet", weights="none", output_stride=16, dropout=0.0)
ASSIGNMENT = AssignmentSettings(
    form="centred",
    top_k=3,
    box_margin=0.0,
    consensus_temperature=0.1,
    ignore_undecided=0.25,
    complete_undecided=True,
)
AUGMENT = AugmentSettings(65, 65, 0.75, 1.25)
SPEC = networks.network_spec(NETWORK, len(VOC_CLASSES))
build_network = partial(networks.build_network, SPEC, "none")


def make_record(index: int, split: str, mask: bytes | None = b"") -> Record:
    """A noisy image of 64 to 96 px with one to three coloured discs; `mask` replaces its label map."""
    rng = np.random.default_rng([index, len(split)])
    height, width = rng.integers(64, 97, 2).tolist()
    image = rng.integers(90, 130, (height, width, 3), np.uint8)
    label_map = np.zeros((height, width), np.uint8)
    y, x = np.mgrid[:height, :width]
    boxes, class_ids = [], []
    for _ in range(rng.integers(1, 4)):
        radius = int(rng.integers(10, 20))
        cy, cx = (int(rng.integers(radius, side - radius)) for side in (height, width))
        class_id = int(rng.integers(1, 21))
        disc = (y - cy) ** 2 + (x - cx) ** 2 < radius**2
        image[disc] = rng.integers(0, 256, 3, np.uint8)
        label_map[disc] = class_id
        boxes.append((cx - radius, cy - radius, cx + radius, cy + radius))
        class_ids.append(class_id)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=90)
    return Record(
        image_id=f"tiny/{split}_{index:02d}",
        source="tiny",
        split=split,
        image=buffer.getvalue(),
        height=height,
        width=width,
        boxes_xyxy=np.array(boxes, np.float32),
        class_ids=np.array(class_ids, np.int32),
        difficult=np.zeros(len(boxes), bool),
        crowd=np.array([index == 3] + [False] * (len(boxes) - 1)),
        gt_label_map=encode_png(label_map) if mask == b"" else mask,
        instance_masks=[POISON] * len(boxes),
    )


def make_proposals(record: Record) -> Proposals:
    """Superpixels are cells of a grid, candidates are 60 random rectangles of cells."""
    rng = np.random.default_rng([record.height, record.width])
    rows, columns = -(-record.height // CELL_PX), -(-record.width // CELL_PX)
    cells = np.arange(rows * columns, dtype=np.uint16).reshape(rows, columns)
    superpixels = np.repeat(np.repeat(cells, CELL_PX, 0), CELL_PX, 1)[: record.height, : record.width]
    members = []
    for _ in range(60):
        (y0, y1), (x0, x1) = (np.sort(rng.choice(side + 1, 2, replace=False)) for side in (rows, columns))
        members.append(cells[y0:y1, x0:x1].ravel())
    indptr = np.cumsum([0, *map(len, members)])
    indices = np.concatenate(members)
    extents = superpixel_extents(superpixels, rows * columns)
    return Proposals(
        image_id=record.image_id,
        superpixels=superpixels,
        num_superpixels=rows * columns,
        indptr=indptr,
        indices=indices,
        objectness=np.linspace(1, 0, 60, dtype=np.float32),
        boxes=union_boxes(extents, indptr, indices).astype(np.uint16),
    )


def _write(folder: Path, kind: str, settings: dict, parts: list[Any], counts: list[dict]) -> Table:
    settings = {**settings, "row_group_size": ROW_GROUP_SIZE}
    tables.begin(str(folder), kind, settings)
    shards = [
        tables.write_shard(str(folder), i, part, kind, row_group_size=ROW_GROUP_SIZE, counts=counts[i])
        for i, part in enumerate(parts)
    ]
    return tables.publish(str(folder), kind, settings, shards)


def _in_shards(records: list[Record]) -> list[list[Record]]:
    return [records[i : i + ROWS_PER_SHARD] for i in range(0, len(records), ROWS_PER_SHARD)]


def write_records(folder: Path, records: list[Record], classes: tuple[str, ...] = VOC_CLASSES) -> Table:
    """A records table of shards of 8 rows and row groups of 4."""
    shards = _in_shards(records)
    counts = [count_records(s) for s in shards]
    return _write(folder, "records", {"classes": classes}, [records_to_table(s) for s in shards], counts)


def write_proposals(folder: Path, table: Table, records: list[Record], damaged: str = "") -> Table:
    """The proposals table of those records; the superpixel map of the image `damaged` does not decode."""
    parts = [proposals_to_table([make_proposals(r) for r in shard]) for shard in _in_shards(records)]
    for i, part in enumerate(parts):
        rows = zip(part["image_id"].to_pylist(), part["superpixels"].to_pylist(), strict=True)
        maps = pa.array([b"no map" if image_id == damaged else data for image_id, data in rows], pa.large_binary())
        parts[i] = part.set_column(1, part.schema.field("superpixels"), maps)
    return _write(folder, "proposals", {"records": table.fingerprint, "method": "tiny"}, parts, [{} for _ in parts])


def write_tables(folder: Path, mask: bytes | None = b"") -> tuple[Table, Table, Table]:
    """Records, their proposals and validation records under a folder; `mask` replaces every training label map."""
    records = [make_record(i, "train", mask) for i in range(NUM_TRAIN)]
    train = write_records(folder / "records", records)
    proposals = write_proposals(folder / "proposals", train, records)
    return train, proposals, write_records(folder / "val", [make_record(i, "val") for i in range(NUM_VAL)])


def make_source(folder: Path, supervision: str = "box", **changes: Any) -> SourceSettings:
    """The tables under `folder` with this supervision."""
    proposals = str(folder / "proposals") if supervision == "box" else None
    return replace(SourceSettings(str(folder / "records"), supervision, proposals), **changes)


def make_config(folder: Path, run_dir: Path, **changes: Any) -> TrainConfig:
    """A run on the tables under `folder` that takes a second per epoch."""
    config = TrainConfig(
        run_dir=str(run_dir),
        sources=(make_source(folder),),
        val_records=str(folder / "val"),
        network=NETWORK,
        assignment=ASSIGNMENT,
        optimizer=OptimizerSettings(epochs=2, global_batch_size=4, lr=0.01, head_lr_multiplier=10.0, schedule="poly"),
        augment=AUGMENT,
        resources=ResourceSettings(num_workers=1, num_actors=1),
        evaluate_every=0,
    )
    return replace(config, **changes)
