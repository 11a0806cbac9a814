"""The labels of one epoch: which segment every box took, in the order of the run's mixture.

A labels table is one small Parquet file. Its metadata keeps where the rows of each unit (row group of a source) begin,
so that a task that works on one unit takes its slice without a search.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from boxsup_dist.data.painting import Segment
from boxsup_dist.data.schema import LABELS, check_schema
from boxsup_dist.errors import TableError
from boxsup_dist.io import storage

JOINED_AT_ONCE = 64  # tables of a few boxes each: thousands of them hold several times what they say
_OFFSETS = b"unit_offsets"


@dataclass(frozen=True)
class Labels:
    """All boxes of a mixture with their chosen segments."""

    table: pa.Table
    offsets: np.ndarray  # int64 (G + 1,): rows offsets[u]:offsets[u + 1] belong to unit u of the mixture

    @classmethod
    def concatenate(cls, parts: Iterable[pa.Table]) -> Labels:
        """Labels from one table a unit, in order; that of a unit without boxes to assign is empty."""
        offsets, joined, waiting = [0], [labels_table([])], list[pa.Table]()
        for part in parts:
            offsets.append(offsets[-1] + part.num_rows)
            waiting.append(part)
            if len(waiting) == JOINED_AT_ONCE:
                joined.append(pa.concat_tables(waiting).combine_chunks())
                waiting.clear()
        return cls(pa.concat_tables([*joined, *waiting]).combine_chunks(), np.asarray(offsets))

    def segments(self, unit_index: int) -> dict[str, list[Segment | None]]:
        """image_id -> chosen segment by box index (None: no candidate), for one unit."""
        start, stop = self.offsets[unit_index : unit_index + 2]
        return segments_by_box(self.table.slice(start, stop - start))

    def to_parquet(self) -> bytes:
        """The table as the bytes of one Parquet file."""
        metadata = {_OFFSETS: json.dumps(self.offsets.tolist()).encode()}
        sink = io.BytesIO()
        pq.write_table(self.table.replace_schema_metadata(metadata), sink, compression="zstd")
        return sink.getvalue()


def labels_uri(run_dir: str, epoch: int) -> str:
    """Where a run keeps the labels that an epoch was trained on."""
    return storage.join(run_dir, "labels", f"epoch-{epoch:03d}.parquet")


def read_labels(uri: str) -> Labels:
    """Read a labels file. TableError if it is not one."""
    try:
        table = pq.read_table(io.BytesIO(storage.read_bytes(uri)))
    except (ValueError, TypeError, AttributeError) as error:  # the last two: Ray's types in a foreign file
        raise TableError("not a readable labels file", file=uri, value=str(error)) from None
    check_schema(table.schema, "labels", file=uri)
    metadata = table.schema.metadata or {}
    if _OFFSETS not in metadata:
        raise TableError("labels table lacks its unit offsets", file=uri, field=_OFFSETS.decode())
    # Parquet names the items of lists otherwise; the cast makes the table, and its file, what they were.
    return Labels(table.cast(LABELS).combine_chunks(), np.asarray(json.loads(metadata[_OFFSETS])))


def segments_by_box(labels: pa.Table) -> dict[str, list[Segment | None]]:
    """Rows of a labels table as image_id -> chosen segment by box index, None without one."""
    segments: dict[str, list[Segment | None]] = {}
    columns = [labels.column(name).to_pylist() for name in ("image_id", "box_index", "proposal_index")]
    chosen, undecided = _lists(labels, "superpixel_ids"), _lists(labels, "undecided_ids")
    for row, (image_id, box, proposal) in enumerate(zip(*columns, strict=True)):
        boxes = segments.setdefault(image_id, [])
        boxes.extend([None] * (box + 1 - len(boxes)))
        boxes[box] = Segment(chosen[row], undecided[row]) if proposal >= 0 else None
    return segments


def _lists(table: pa.Table, name: str) -> list[np.ndarray]:
    """A column of lists as one array a row, without a copy."""
    column = table.column(name).combine_chunks()
    offsets, values = column.offsets.to_numpy(), column.values.to_numpy()
    return [values[start:stop] for start, stop in itertools.pairwise(offsets)]


def summarise(labels: Labels, previous: Labels | None) -> dict[str, float]:
    """Mean costs, share of boxes without a candidate, and share whose candidate differs from the previous epoch's."""
    table = labels.table
    proposal = table.column("proposal_index").to_numpy()
    found = proposal >= 0
    summary = {"share_without_candidate": float(1 - found.mean()) if len(found) else 0.0}
    if found.any():
        for name in ("overlap_cost", "regression_cost"):
            summary[f"mean_{name}"] = float(table.column(name).to_numpy()[found].mean())
    if previous is not None and len(proposal):
        before = previous.table.column("proposal_index").to_numpy()
        summary["share_changed"] = float((proposal != before).mean())
    return summary


def labels_table(rows: list[dict]) -> pa.Table:
    """Arrow table of the labels schema."""
    return pa.Table.from_pylist(rows, schema=LABELS)
