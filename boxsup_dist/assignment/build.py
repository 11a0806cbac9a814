"""Builds the label maps table of a records table with Ray, one task per shard: the supervisions grabcut and wssl.

Reads the boxes and images of the records, never their ground truth; writes one PNG per record. Guarantees: the rows,
order, shards and row groups of the records; the same bytes on any number of CPUs; a second call continues an
interrupted one.
"""

from __future__ import annotations

import time

import pyarrow as pa

from boxsup_dist.assignment.static import METHODS, StaticMethod, static_label_map
from boxsup_dist.data.images import decode_image, encode_png
from boxsup_dist.data.schema import LABEL_MAPS, iter_records
from boxsup_dist.data.tables import RowGroup, Table, open_table
from boxsup_dist.distributed.build import ShardContent, build_table
from boxsup_dist.errors import SettingError

COLUMNS = ("image_id", "image", "height", "width", "boxes_xyxy", "class_ids", "crowd")


def build_label_maps(out: str, records_uri: str, method: StaticMethod, *, num_cpus: int | None = None) -> Table:
    """Make the label map of every record.

    Args:
        out: Folder or URI of the table.
        records_uri: The records table.
        method: A name in assignment.static.METHODS.
        num_cpus: CPUs of a local Ray session, as in `session.start`.

    Raises:
        SettingError: Unknown method.
    """
    if method not in METHODS:
        raise SettingError("unknown method", field="method", value=method, expected=" or ".join(METHODS))
    records = open_table(records_uri, "records")
    groups: list[list[RowGroup]] = [[] for _ in records.shards]
    for where in records.row_groups():
        groups[where.shard].append(where)

    def make_shard(index: int) -> ShardContent:
        return label_shard(records, groups[index], method)

    return build_table(
        out,
        "label_maps",
        {"records": records.fingerprint, "method": method},
        len(records.shards),
        make_shard,
        row_group_size=records.settings["row_group_size"],
        description=f"label maps by {method}",
        num_cpus=num_cpus,
    )


def label_shard(records: Table, groups: list[RowGroup], method: StaticMethod) -> ShardContent:
    """Label maps of the records of one shard, and the computing time of each."""
    rows, row_ms = [], []
    for where in groups:
        for record in iter_records(records.read(where, COLUMNS)):
            started = time.process_time()
            assert record.image is not None
            label_map = static_label_map(decode_image(record.image), record, METHODS[method])
            rows.append({"image_id": record.image_id, "label_map": encode_png(label_map)})
            row_ms.append(round(1000 * (time.process_time() - started)))
    counts = {"images": len(rows), "compute_ms": sum(row_ms)}
    return ShardContent(pa.Table.from_pylist(rows, schema=LABEL_MAPS), counts, row_ms=row_ms)
