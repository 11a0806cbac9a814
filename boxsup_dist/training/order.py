"""The order of an epoch: which record goes into which step, as a function of (seed, epoch) and the table alone.

Units (row groups) are shuffled, and the rows inside each. The resulting sequence is cut into as many *lanes* as a
global batch has images; step b takes the b-th record of every lane. A worker owns some of the lanes, so

* which records form a global batch does not depend on the number of workers;
* a batch mixes as many units as it has images, although every unit is read in one piece
  (in two where a lane ends inside it, or where it is a lane's first);
* a position inside the epoch is one number, the step, and what is left of each lane follows from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from boxsup_dist.randomness import generator

FIRST_ROWS = 4


@dataclass(frozen=True)
class Slice:
    """Consecutive records of one lane that lie in one unit: one piece of work of the stream."""

    lane: int
    first_step: int  # the step that takes the first of `rows`
    unit_index: int  # in the mixture
    rows: tuple[int, ...]  # inside the unit, in training order


@dataclass(frozen=True)
class EpochPlan:
    """All slices of an epoch, in the order in which the steps need them."""

    slices: tuple[Slice, ...]
    lane_lengths: tuple[int, ...]

    @property
    def num_steps(self) -> int:
        return max(self.lane_lengths)

    def for_worker(self, rank: int, num_workers: int, start_step: int = 0) -> list[Slice]:
        """What is left for one worker from a step on, in the order in which the steps need it.

        Each lane is cut after its first FIRST_ROWS records: the first batch needs one of every lane, and would else
        wait until whole units are made.
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


def plan_epoch(units: Sequence[Sequence[int]], *, seed: int, epoch: int, global_batch_size: int) -> EpochPlan:
    """Plan one pass over the rows of all units: every one exactly once; only the last step may be smaller."""
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
    return EpochPlan(tuple(slices), tuple(lane_lengths))
