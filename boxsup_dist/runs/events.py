"""What rank 0 reports to the driver while a run trains. Epochs count from 1."""

from __future__ import annotations

from dataclasses import dataclass

from boxsup_dist.distributed.events import Event
from boxsup_dist.errors import InputError
from boxsup_dist.runs.history import HistoryEntry


@dataclass(frozen=True)
class Starting(Event):
    """What the workers do before they begin."""

    text: str


@dataclass(frozen=True)
class Begun(Event):
    """The train workers are there and start in this epoch, after this many of its steps."""

    epoch: int
    steps_done: int
    num_workers: int


@dataclass(frozen=True)
class Progress(Event):
    """A stage of an epoch has done this part of its steps."""

    epoch: int
    stage: str
    done: int
    total: int
    images_per_s: float | None = None


@dataclass(frozen=True)
class Measured(Event):
    """An epoch has new metrics; `complete` if no more will come."""

    entry: HistoryEntry
    complete: bool


@dataclass(frozen=True)
class Warned(Event):
    """Something that a person should know."""

    text: str


@dataclass(frozen=True)
class Lost(Warned):
    """A process of the training was lost; Ray Train's controller reports it."""


@dataclass(frozen=True)
class Spent(Event):
    """How rank 0 has spent its time since it began, and how far it is: after `step` steps of this epoch."""

    epoch: int
    step: int
    seconds: dict[str, float]


@dataclass(frozen=True)
class Failed(Event):
    """The run ends by this error."""

    error: InputError
