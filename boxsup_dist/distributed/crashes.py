"""Makes shards whose task lost its process, and finds the images that end it; names those of any other unit.

A shard that ends its process again is halved, and each half is tried alone, until single images are left. An image that
alone ends its process in every try is not tried any more: the shard is made without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from boxsup_dist.data.tables import RowGroup, Table
from boxsup_dist.distributed.ordered import MAX_RETRIES, OnLost, describe_loss, map_units
from boxsup_dist.distributed.shared import Reference, fetch
from boxsup_dist.errors import InputError, LostWorkError
from boxsup_dist.io import storage

MANY_IMAGES = 8  # ended their process, and most of those tried did: then the images are not at fault

_log = logging.getLogger(__name__)
ImageIds = Callable[[int], Sequence[str]]


def remake(
    shared: list[Reference], indices: Sequence[int], image_ids: ImageIds, *, description: str, num_gpus: float
) -> Iterator[int]:
    """Make these shards in plain tasks; yield the number of rows of each, in their order.

    Args:
        shared: Holds the build, a `build.ShardJob`.
        indices: The shards.
        image_ids: The ids of the images of a shard, in order.
        description: Name of the build, for messages.
        num_gpus: GPUs that a task reserves.

    Raises:
        InputError: From the build, as it is.
        LostWorkError: Most images end their process, or a shard does and none of its images.
    """
    search = _Search(shared, image_ids, description, num_gpus)
    units: list[tuple[int, Mapping[str, str]]] = [(index, {}) for index in indices]
    yield from map_units(_write, units, on_lost=search.make_without, max_retries=0, num_gpus=num_gpus, shared=shared)


def _write(unit: tuple[int, Mapping[str, str]], *, shared: list[Reference]) -> int:
    index, crashed = unit
    return int(fetch(shared).write(index, crashed))


def _try(unit: tuple[int, Mapping[str, str]], *, shared: list[Reference]) -> None:
    index, left_out = unit
    try:
        fetch(shared).make_shard(index, left_out)
    except InputError:  # raised when the shard is made; here it matters only that the process lives
        return


def name_rows(place: Callable[[Any], tuple[Table, RowGroup]]) -> OnLost:
    """An `on_lost` for units that are row groups: raises the LostWorkError that names its shard and images.

    Args:
        place: The table of a unit, and the row group.
    """

    def give_up(unit: Any, error: Exception) -> None:
        table, where = place(unit)
        ids = table.read(where, ["image_id"]).column("image_id")
        raise LostWorkError(
            f"a row group ended its process {MAX_RETRIES + 1} times: {describe_loss(error)}",
            file=storage.join(table.uri, table.shards[where.shard].file),
            field=f"row group {where.row_group}, images",
            value=f"{ids[0]} to {ids[-1]}",
            expected="images that the installed libraries can process in the memory of the node",
        ) from None

    return give_up


class _Search:
    """Finds the images that end their process. It tries one part of a shard at a time: two would share the memory."""

    def __init__(self, shared: list[Reference], image_ids: ImageIds, description: str, num_gpus: float) -> None:
        self._shared, self._image_ids, self._description, self._num_gpus = shared, image_ids, description, num_gpus
        self._num_crashed = self._num_well = 0  # images
        self._ids: list[str] = []  # of the shard that is searched

    def make_without(self, unit: tuple[int, Any], error: Exception) -> int:
        """Make a shard that ends its process, without the images that end it; return its number of rows."""
        index, _ = unit
        place = f"{self._description}: shard {index}"
        _log.warning(f"{place} ended its process: looking for the image ({describe_loss(error)})")
        self._ids = ids = list(dict.fromkeys(self._image_ids(index)))
        ends_without_images = self._loss(index, []) is not None
        crashed = {} if ends_without_images else self._find(index, ids)

        def give_up(unit: object, error: Exception) -> None:
            raise LostWorkError(
                f"{place} ends its process, but none of its images does alone: {describe_loss(error)}",
                field="images",
                value=f"{ids[0]} to {ids[-1]}" if ids else None,
                expected="more memory for each process (fewer CPUs with --num-cpus), or these images repaired",
            ) from None

        (num_rows,) = self._run(_write, (index, crashed), give_up, MAX_RETRIES)
        return int(num_rows)

    def _find(self, index: int, ids: list[str]) -> dict[str, str]:
        """The images among `ids` that end their process, and how."""
        error = self._loss(index, ids)
        if error is None:
            self._num_well += len(ids)
            return {}
        if len(ids) > 1:
            middle = len(ids) // 2
            return self._find(index, ids[:middle]) | self._find(index, ids[middle:])
        problem = f"ended its process {MAX_RETRIES + 1} times: {describe_loss(error)}"
        _log.warning(f"{self._description}: {ids[0]} {problem}")
        self._num_crashed += 1
        if self._num_crashed > max(MANY_IMAGES, self._num_well):
            raise LostWorkError(
                f"{self._description}: most of the images that were tried ended their process, {self._num_crashed} of "
                f"{self._num_crashed + self._num_well}, the last one {ids[0]}: {describe_loss(error)}",
                expected="an installation that can process them, and enough memory",
            )
        return {ids[0]: problem}

    def _loss(self, index: int, ids: list[str]) -> Exception | None:
        """How a shard ends its process if only these of its images are tried; None if it does not."""
        others = dict.fromkeys(set(self._ids) - set(ids), "not tried")
        max_retries = 0 if len(ids) > 1 else MAX_RETRIES
        (error,) = self._run(_try, (index, others), lambda unit, error: error, max_retries)
        assert error is None or isinstance(error, Exception)
        return error

    def _run(self, function: Callable[..., Any], unit: Any, on_lost: OnLost, max_retries: int) -> Iterator[Any]:
        num_gpus, shared = self._num_gpus, self._shared
        return map_units(function, [unit], on_lost=on_lost, max_retries=max_retries, num_gpus=num_gpus, shared=shared)
