"""Builds the label maps table of a records table with Ray, one task per shard: the supervisions grabcut and wssl.

Reads the boxes and images of the records, never their ground truth; writes one PNG per record. Guarantees: the rows,
order, shards and row groups of the records, even if images fail; the same bytes on any number of CPUs; a second call
continues an interrupted one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from boxsup_dist.assignment.static import METHODS, Cut, StaticMethod, static_label_map
from boxsup_dist.data.images import decode_image, encode_png
from boxsup_dist.data.schema import IGNORE_INDEX, LABEL_MAPS, Record, iter_records
from boxsup_dist.data.tables import MAX_FAILED_SHARE, RowGroup, Table, open_table
from boxsup_dist.distributed.build import ShardContent, build_partner
from boxsup_dist.errors import LostWorkError, SettingError

COLUMNS = ("image_id", "image", "height", "width", "boxes_xyxy", "class_ids", "crowd")


def build_label_maps(
    out: str,
    records_uri: str,
    method: StaticMethod,
    *,
    max_failed_share: float = MAX_FAILED_SHARE,
    num_cpus: int | None = None,
) -> Table:
    """Make the label map of every record.

    An image that fails gets a label map that training ignores, and is listed among the table's problems.

    Args:
        out: Folder or URI of the table.
        records_uri: The records table.
        method: A name in assignment.static.METHODS.
        max_failed_share: The table is refused if a larger share of the images fails.
        num_cpus: CPUs of a local Ray session, as in `session.start`.

    Raises:
        SettingError: Unknown method.
        RecordError: Too many images failed; lists the first ones with the reasons.
    """
    if method not in METHODS:
        raise SettingError("unknown method", field="method", value=method, expected=" or ".join(METHODS))
    records, cut = open_table(records_uri, "records"), METHODS[method]
    return build_partner(
        out,
        "label_maps",
        {"method": method},
        records,
        lambda groups, crashed: label_shard(records, groups, cut, crashed),
        max_failed_share=max_failed_share,
        description=f"label maps by {method}",
        num_cpus=num_cpus,
    )


def label_shard(records: Table, groups: Sequence[RowGroup], cut: Cut, crashed: Mapping[str, str] = {}) -> ShardContent:
    """Label maps of the records of one shard, and the computing time of each.

    An image that fails has a label map of IGNORE_INDEX; images in `crashed` (id -> problem) fail without being tried.
    """
    rows, problems, row_ms = [], [], []
    for where in groups:
        for record in iter_records(records.read(where, COLUMNS)):
            started = time.process_time()
            try:
                label_map = _paint(record, cut, crashed)
            except Exception as error:
                problems.append({"image_id": record.image_id, "problem": f"{type(error).__name__}: {error}"})
                label_map = np.full((record.height, record.width), IGNORE_INDEX, np.uint8)
            rows.append({"image_id": record.image_id, "label_map": encode_png(label_map)})
            row_ms.append(round(1000 * (time.process_time() - started)))
    counts = {"images": len(rows), "failed": len(problems), "compute_ms": sum(row_ms)}
    return ShardContent(pa.Table.from_pylist(rows, schema=LABEL_MAPS), counts, problems, row_ms)


def _paint(record: Record, cut: Cut, crashed: Mapping[str, str]) -> NDArray[np.uint8]:
    if record.image_id in crashed:
        raise LostWorkError(crashed[record.image_id])
    assert record.image is not None
    return static_label_map(decode_image(record.image), record, cut)
