"""The events of a run: what its coordinator on rank 0 reports to the driver's console."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from boxsup_dist.distributed.events import Event


@dataclass(frozen=True)
class Begun(Event):
    """The workers begin at this step of this epoch; both count from 0."""

    epoch: int
    step: int
    num_workers: int


@dataclass(frozen=True)
class Progress(Event):
    """A stage of an epoch, counted from 0, has finished `done` of `total` steps or units."""

    epoch: int
    stage: str
    done: int
    total: int
    images_per_s: float | None = None


@dataclass(frozen=True)
class EpochDone(Event):
    """An epoch's history entry is complete, or has got the result of an evaluation."""

    entry: dict[str, Any]


@dataclass(frozen=True)
class Warned(Event):
    """Something that a person should know while the run continues."""

    text: str


@dataclass(frozen=True)
class Failed(Event):
    """The run ends with this error."""

    error: Exception
