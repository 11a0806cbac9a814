"""The units of work of an evaluation: row groups, or the images of a random draw in each of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from boxsup_dist.data.tables import RowGroup, Table
from boxsup_dist.errors import SettingError
from boxsup_dist.randomness import generator


class Slice(NamedTuple):
    """A unit of work: rows of one row group."""

    where: RowGroup
    rows: tuple[int, ...] | None = None  # numbers in the row group; None: all


def draw_slices(records: Table, num_images: int, seed: int) -> list[Slice]:
    """Draw images at random, as slices in the order of the table.

    Args:
        records: The table.
        num_images: How many; the whole table if it has no more.
        seed: Seed of the draw.

    Raises:
        SettingError: `num_images` is below 1.
    """
    if num_images < 1:
        raise SettingError("a setting is out of range", field="num_images", value=num_images, expected=">= 1")
    order = generator("draw_slices", seed).permutation(records.num_rows)[:num_images]
    chosen = np.sort(order)
    slices, first = [], 0
    for where in records.row_groups():
        rows = chosen[(chosen >= first) & (chosen < first + where.num_rows)] - first
        if len(rows):
            slices.append(Slice(where, tuple(rows.tolist())))
        first += where.num_rows
    return slices
