"""The order of an epoch: which record goes into which step, as a function of (seed, epoch) and the units alone.

Units (row groups) are shuffled, and the rows inside each. The resulting sequence is cut into *lanes*, as many as a
global batch has images; step b takes the b-th record of every lane. A worker owns some of the lanes. This guarantees:

* Which records form a global batch does not depend on the number of workers.
* A batch mixes as many units as it has images, and yet every unit is read in one piece (in two if a lane ends inside
  the unit, or if the unit is the first of a lane).
* A position inside the epoch is one number, the step: the rest of each lane follows from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from boxsup_dist.randomness import generator

FIRST_ROWS = 4  # records of a lane that are made before whole units


@dataclass(frozen=True)
class Slice:
    """Consecutive records of one lane that lie in one unit: one piece of work of the stream."""

    lane: int
    first_step: int  # the step that takes the first of `rows`
    unit_index: int  # in the mixture
    rows: tuple[int, ...]  # row numbers inside the unit, in training order


@dataclass(frozen=True)
class EpochOrder:
    """All slices of an epoch, in the order in which the steps need them."""

    slices: tuple[Slice, ...]
    lane_lengths: tuple[int, ...]  # records of each lane

    @property
    def num_steps(self) -> int:
        """Number of global batches in the epoch."""
        return max(self.lane_lengths)

    def for_worker(self, rank: int, num_workers: int, start_step: int = 0) -> list[Slice]:
        """The slices that one worker has to read from a step on.

        Each lane is cut after its first FIRST_ROWS records: the first batch needs one record of every lane, and would
        otherwise wait until whole units are made.

        Args:
            rank: The worker, 0..num_workers-1.
            num_workers: Number of workers; lane i belongs to worker i modulo num_workers.
            start_step: The first step that the worker will take.

        Returns:
            Slices in the order in which the steps need them; empty if the worker has no record left.
        """
        remaining = []
        for piece in self.slices:
            if piece.lane % num_workers != rank:
                continue
            end = piece.first_step + len(piece.rows)
            begin = max(start_step, piece.first_step)
            cut = min(max(begin, start_step + FIRST_ROWS), end)
            for first, last in ((begin, cut), (cut, end)):
                if first < last:
                    rows = piece.rows[first - piece.first_step : last - piece.first_step]
                    remaining.append(Slice(piece.lane, first, piece.unit_index, rows))
        return sorted(remaining, key=lambda piece: (piece.first_step, piece.lane))


def order_epoch(units: Sequence[Sequence[int]], *, seed: int, epoch: int, global_batch_size: int) -> EpochOrder:
    """Order one pass over the rows of all units.

    Args:
        units: Row numbers of each unit that training uses; a unit may be empty.
        seed: Seed of the run.
        epoch: Epoch, from 0.
        global_batch_size: Images per step over all workers; the number of lanes.

    Returns:
        Every row exactly once. All steps take `global_batch_size` records; only the last may take fewer. Without any
        row the epoch has no step.
    """
    rng = generator(seed, epoch, "order")
    num_records = sum(map(len, units))
    num_steps, surplus = divmod(num_records, global_batch_size)
    lane_lengths = [num_steps + (lane < surplus) for lane in range(global_batch_size)]

    slices: list[Slice] = []
    lane, step = 0, 0
    for index in rng.permutation(len(units)).tolist():
        rows = rng.permutation(units[index]).tolist()
        while rows:
            while step == lane_lengths[lane]:
                lane, step = lane + 1, 0
            take = min(len(rows), lane_lengths[lane] - step)
            slices.append(Slice(lane, step, index, tuple(rows[:take])))
            rows, step = rows[take:], step + take
    slices.sort(key=lambda piece: (piece.first_step, piece.lane))
    return EpochOrder(tuple(slices), tuple(lane_lengths))
