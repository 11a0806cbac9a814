"""What a run trains on: its data sets, the annotation it may use of each, and the fixed units they are cut into.

A source is a records table and a supervision. A mixture is all sources of a run in one stream: the paper's "semi" is a
source with masks beside one with boxes. `data/painting.py` paints the label maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc

from boxsup_dist.config import AssignmentSettings, AugmentSettings, Supervision
from boxsup_dist.data.tables import RowGroup, Table, check_paired

MAX_CLASS_WEIGHT = 5.0


@dataclass(frozen=True)
class Source:
    """One data set and the supervision that it gives; partner tables where the supervision needs them.

    TableError if a partner table was made from other records.
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
    """A row group of a source: the fixed slice that work is cut into."""

    source: Source
    where: RowGroup
    rows: tuple[int, ...]  # that training uses; others are images which another source has too


@dataclass(frozen=True)
class Mixture:
    """All sources of a run; its units, in their order, are what plans and labels count."""

    units: tuple[Unit, ...]
    assignment: AssignmentSettings
    augment: AugmentSettings
    seed: int
    class_weights: tuple[float, ...] | None = None  # of a pixel in the loss, by its class

    @property
    def sources(self) -> list[Source]:
        """Each source once, in order."""
        return list({id(unit.source): unit.source for unit in self.units}.values())

    def with_supervision(self, *supervisions: Supervision) -> list[int]:
        """Indices of the units whose source has one of these supervisions."""
        return [i for i, unit in enumerate(self.units) if unit.source.supervision in supervisions]


def make_units(sources: Sequence[Source], left_out: Sequence[frozenset[int]] = ()) -> tuple[Unit, ...]:
    """Units of all sources in table order; `left_out[i]` are the rows of source i's whole table not to train on."""
    units = []
    for index, source in enumerate(sources):
        skipped = left_out[index] if left_out else frozenset()
        first = 0
        for where in source.records.row_groups():
            rows = tuple(row for row in range(where.num_rows) if first + row not in skipped)
            units.append(Unit(source, where, rows))
            first += where.num_rows
    return tuple(units)


def balanced_weights(sources: Sequence[Source], power: float) -> tuple[float, ...]:
    """Weight of each class, background 1: (mean over classes of the areas of their boxes / that of the class) ** power.

    Boxes are known under every supervision, so that all of them get the same weights. They lie within a factor of
    MAX_CLASS_WEIGHT; a class without a box has weight 1.
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
    return tuple(weights.tolist())
