"""RUN/timeline.jsonl: where the time of a run went, one JSON line for every start of its train workers.

Rank 0 measures with a `Clock`: each of its moments belongs to one activity. It posts the sums to the driver as `Spent`
events. The driver outlives the workers, so it keeps the file: a `Timeline` adds the time of the starts, which no worker
sees, and joins the lines of earlier commands. The time between two commands is not counted: nothing runs.

`account` sums the lines up. Goodput is the share of the time that went into training steps that count: not into steps
that were trained again after a failure, nor into anything else.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from typing_extensions import TypedDict  # pydantic reads typing's from Python 3.12 on

from boxsup_dist.errors import InputError
from boxsup_dist.io import storage
from boxsup_dist.io.typed_json import parse_json
from boxsup_dist.runs.layout import RunFiles

WRITE_EVERY_S = 5.0  # a driver that is killed loses at most so much of its account
STEPS, REDONE, START, RESTART, REST = "steps", "redone", "start", "restart", "rest"
COMMAND = "the command was started again"
UNKNOWN = "the train workers were started again"


class Clock:
    """Divides the time of one thread among activities: each moment belongs to one of them."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now, self._kind, self._since = now, REST, now()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def switch(self, kind: str) -> str:
        """Spend the time from now on with `kind`; returns what it was spent with until now."""
        before, now = self._kind, self._now()
        self._seconds[before] += now - self._since
        self._kind, self._since = kind, now
        return before

    @contextmanager
    def during(self, kind: str) -> Iterator[None]:
        """Spend the time of the block with `kind`."""
        before = self.switch(kind)
        try:
            yield
        finally:
            self.switch(before)

    def move(self, seconds: float, source: str, target: str) -> None:
        """Count some seconds that were spent with `source` as spent with `target`."""
        self._seconds[source] -= seconds
        self._seconds[target] += seconds

    def seconds(self) -> dict[str, float]:
        """The seconds of each activity until now."""
        self.switch(self._kind)
        return dict(self._seconds)


@dataclass
class Stretch:
    """From one start of the train workers to the next, or to the end: a line of the file.

    Times are seconds since 1970.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    began: float
    ended: float
    reason: str = ""
    """Why it began: "" for the first start of the run, else what ended the stretch before."""
    first_step: int | None = None
    """Steps of the run, over all epochs, that were done when the workers began; None if they never did."""
    last_step: int | None = None
    """Steps of the run that were done when last heard of."""
    num_workers: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    """By activity, as far as they are known; the rest until `ended` was never accounted for."""

    @property
    def start_kind(self) -> str:
        """The activity of its beginning, until the workers are ready."""
        return START if self.reason in ("", COMMAND) else RESTART

    def all_seconds(self) -> dict[str, float]:
        """By activity; the sum is ended - began."""
        rest = self.ended - self.began - sum(self.seconds.values())
        kind = self.start_kind if self.first_step is None else REST
        return {**self.seconds, kind: self.seconds.get(kind, 0.0) + rest}


class Restart(TypedDict):
    """A start of the train workers after the first."""

    reason: str
    seconds: float  # from the failure until the workers were ready
    redone_steps: int


class Account(TypedDict):
    """Where the time of a run went, over all its starts."""

    wall_s: float  # of all commands together; the time between them is not counted
    goodput: float  # seconds of the steps that count / wall_s
    seconds: dict[str, float]  # by activity
    redone_steps: int
    restarts: list[Restart]


def account(stretches: Sequence[Stretch]) -> Account:
    """Sum up the stretches of a run, in their order.

    A step counts once: where a later stretch began before the last step of an earlier one, the steps between were
    trained again. The seconds of a stretch's steps are divided evenly among them.
    """
    seconds: Counter[str] = Counter()
    restarts: list[Restart] = []
    redone_steps, reached = 0, 0
    starts = [stretch.first_step for stretch in stretches]
    for index, stretch in enumerate(stretches):
        spent = stretch.all_seconds()
        seconds.update(spent)
        lost = 0
        if stretch.first_step is not None and stretch.last_step is not None:
            later = [start for start in starts[index + 1 :] if start is not None]
            trained = stretch.last_step - stretch.first_step
            redone = trained - max(min([stretch.last_step, *later]) - stretch.first_step, 0)
            redone_s = spent.get(STEPS, 0.0) * redone / max(trained, 1)
            seconds.update({STEPS: -redone_s, REDONE: redone_s})
            redone_steps += redone
            lost, reached = max(reached - stretch.first_step, 0), stretch.last_step
        if index:
            start_s = spent.get(stretch.start_kind, 0.0)
            restarts.append({"reason": stretch.reason, "seconds": start_s, "redone_steps": lost})
    wall_s = sum(stretch.ended - stretch.began for stretch in stretches)
    return {
        "wall_s": wall_s,
        "goodput": seconds[STEPS] / wall_s if wall_s > 0 else 0.0,
        "seconds": {kind: value for kind, value in seconds.items() if value},
        "redone_steps": redone_steps,
        "restarts": restarts,
    }


def read_timeline(run_dir: str) -> list[Stretch]:
    """The stretches of a run so far; [] without a file. Damaged lines are left out: the account is then too short."""
    uri = RunFiles(run_dir).timeline
    found = []
    for number, line in enumerate(storage.read_bytes(uri).splitlines() if storage.exists(uri) else (), 1):
        try:
            found.append(parse_json(Stretch, line, file=uri, place=f"line {number}"))
        except InputError as error:
            print(f"warning: a part of the account of time is lost, the run itself is whole: {error}", flush=True)
    return found


class Timeline:
    """The driver's account of a run. Its methods may be called by any thread."""

    def __init__(self, run_dir: str, num_steps: int, began: float, now: Callable[[], float] = time.time) -> None:
        """Continue the account of a run.

        Args:
            run_dir: Run directory.
            num_steps: Steps of an epoch.
            began: When this command began, in seconds since 1970.
            now: The time in seconds since 1970.
        """
        self._uri, self._num_steps, self._now = RunFiles(run_dir).timeline, num_steps, now
        self._lock, self._written, self._warned = threading.Lock(), 0.0, False
        self.stretches = read_timeline(run_dir)
        self.stretches.append(Stretch(began, began, COMMAND if self.stretches else ""))

    def begin(self, epoch: int, step: int, num_workers: int) -> None:
        """The train workers are ready, after `step` steps of this epoch, which counts from 1."""
        with self._lock:
            if self.stretches[-1].first_step is not None:  # nobody reported a loss: workers were added, or removed
                self._add(UNKNOWN)
            current = self.stretches[-1]
            current.first_step = current.last_step = self._position(epoch, step)
            current.num_workers = num_workers
            current.seconds = {current.start_kind: self._now() - current.began}
            self._try_to_write(0.0)

    def lose(self, reason: str) -> None:
        """A process of the training was lost."""
        with self._lock:
            current = self.stretches[-1]
            if current.first_step is None and current.start_kind == RESTART:  # of the same failure, or at the restart
                current.reason += f"; {reason}"
                return
            self._add(reason)
            self._try_to_write(0.0)

    def spend(self, epoch: int, step: int, seconds: Mapping[str, float]) -> None:
        """Rank 0 is so far, and has spent this since it began."""
        with self._lock:
            current = self.stretches[-1]
            if current.first_step is None:  # a late event of workers that are lost
                return
            current.last_step = self._position(epoch, step)
            current.seconds = {**current.seconds, **seconds}
            self._try_to_write(WRITE_EVERY_S)

    def finish(self) -> Account:
        """End the account: the run is over."""
        with self._lock:
            self.stretches[-1].ended = self._now()
            self._write()
            return account(self.stretches)

    def _position(self, epoch: int, step: int) -> int:
        return (epoch - 1) * self._num_steps + step

    def _add(self, reason: str) -> None:
        """End the newest stretch and begin another."""
        now = self.stretches[-1].ended = self._now()
        self.stretches.append(Stretch(now, now, reason))

    def _try_to_write(self, every_s: float) -> None:
        """Write the file unless that was done just now. A store that refuses it stops no training."""
        now = self._now()
        if now - self._written < every_s:
            return
        self._written = self.stretches[-1].ended = now
        try:
            self._write()
        except InputError as error:
            if not self._warned:
                self._warned = True
                print(f"warning: the account of time is not stored: {error}", flush=True)

    def _write(self) -> None:
        lines = [json.dumps(_rounded(stretch)) for stretch in self.stretches]
        storage.write_bytes(self._uri, ("\n".join(lines) + "\n").encode())


def _rounded(stretch: Stretch) -> dict[str, Any]:
    values = asdict(stretch)
    values["seconds"] = {kind: round(value, 3) for kind, value in stretch.seconds.items()}
    return values
