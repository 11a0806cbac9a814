"""The mixture of a run: its sources, and the fixed units into which the work on them is cut.

A source is a records table and the supervision that training may take from it. A mixture is all sources of a run in one
stream; the paper's semi-supervision is a source with masks beside a source with boxes. `painting.py` makes the label
maps of each supervision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from boxsup_dist.config import AssignmentSettings, AugmentSettings, Supervision
from boxsup_dist.data.schema import BACKGROUND
from boxsup_dist.data.tables import RowGroup, Table, check_paired

MAX_CLASS_WEIGHT = 5.0


@dataclass(frozen=True)
class Source:
    """One records table, its supervision, and the partner tables that the supervision needs.

    Raises:
        TableError: If a partner table was made from other records.
    """

    records: Table
    supervision: Supervision
    proposals: Table | None = None
    label_maps: Table | None = None

    def __post_init__(self) -> None:
        for partner in (self.proposals, self.label_maps):
            if partner is not None:
                check_paired(self.records, partner)


class Unit(NamedTuple):
    """One row group of a source: the fixed slice that a task works on."""

    source: Source
    where: RowGroup
    rows: tuple[int, ...]  # rows to train on; the others are images that another source also has

    def trained(self, table: pa.Table) -> pa.Table:
        """The rows to train on, of a table that has all rows of the row group."""
        return table if len(self.rows) == table.num_rows else table.take(pa.array(self.rows, pa.int64()))


@dataclass(frozen=True)
class Mixture:
    """All sources of a run as one sequence of units; the order of an epoch and the labels refer to a unit by index."""

    units: tuple[Unit, ...]
    assignment: AssignmentSettings
    augment: AugmentSettings
    seed: int
    class_weights: tuple[float, ...] | None = None  # weight of a pixel in the loss, by class id; None: all 1

    @property
    def sources(self) -> list[Source]:
        """Every source once, in the order of the units."""
        return list({id(unit.source): unit.source for unit in self.units}.values())

    def place(self, index: int) -> tuple[Table, RowGroup]:
        """Return the records table of a unit, and its row group there."""
        return self.units[index].source.records, self.units[index].where

    def with_supervision(self, *supervisions: Supervision) -> list[int]:
        """Return the indices of the units whose source has one of these supervisions."""
        return [i for i, unit in enumerate(self.units) if unit.source.supervision in supervisions]

    def with_measurable_labels(self) -> list[int]:
        """Return the indices of the units whose label maps are made from boxes before the epoch.

        Label maps of wssl_em exist only during a training step.
        """
        return self.with_supervision("rectangles", "grabcut", "wssl", "label_maps", "box")


def make_units(sources: Sequence[Source], left_out: Sequence[frozenset[int]] = ()) -> tuple[Unit, ...]:
    """Cut sources into units, in the order of the sources and of the rows of their tables.

    Args:
        sources: The sources of a run.
        left_out: For each source the rows not to train on, counted over its whole table; empty: train on all rows.
    """
    units = []
    for index, source in enumerate(sources):
        skipped = left_out[index] if left_out else frozenset()
        first = 0
        for where in source.records.row_groups():
            rows = tuple(row for row in range(where.num_rows) if first + row not in skipped)
            units.append(Unit(source, where, rows))
            first += where.num_rows
    return tuple(units)


def class_weights(sources: Sequence[Source], power: float, foreground: float = 1.0) -> tuple[float, ...]:
    """Compute the weight of each class in the loss: foreground * (mean area of the classes / its area) ** power.

    The area of a class is the summed area of its boxes, and the mean is over the classes that have a box. Boxes are
    known under every supervision, so every supervision gets the same weights.

    Args:
        sources: The sources of a run; all have the classes of the first.
        power: 0 weighs all classes equally, 1 in inverse proportion to their area.
        foreground: Factor on the weight of every class but the background.

    Returns:
        One weight per class id: 1 for the background; for the others `foreground` times the power, which is clipped to
        1 / MAX_CLASS_WEIGHT .. MAX_CLASS_WEIGHT and is 1 for a class without a box.
    """
    areas = np.zeros(len(sources[0].records.classes))
    for source in sources:
        for shard in source.records.read_shards(("boxes_xyxy", "class_ids")):
            boxes = pc.list_flatten(pc.list_flatten(shard.column("boxes_xyxy"))).to_numpy().reshape(-1, 4)
            class_ids = pc.list_flatten(shard.column("class_ids")).to_numpy()
            np.add.at(areas, class_ids, (boxes[:, 2:] - boxes[:, :2]).prod(axis=1, dtype=np.float64))
    found = areas > 0
    weights = np.ones(len(areas))
    weights[found] = np.clip((areas[found].mean() / areas[found]) ** power, 1 / MAX_CLASS_WEIGHT, MAX_CLASS_WEIGHT)
    weights[BACKGROUND + 1 :] *= foreground
    return tuple(weights.tolist())
