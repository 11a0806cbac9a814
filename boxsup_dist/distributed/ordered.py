"""Runs a pure function over fixed units of work and yields the results in the order of the units.

`map_units` runs them in plain Ray tasks; `boxsup_dist.distributed.pool` runs them on actors that hold a network. Both
share `run_in_order`. Guarantees: the results depend on the units alone, not on the number of CPUs, workers or lost
processes; a window bounds the units that are started and not yet yielded; a unit that loses its process is run again up
to MAX_RETRIES times, so a unit that kills every process ends the call.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from boxsup_dist.distributed import session
from boxsup_dist.distributed.shared import Reference, fetch
from boxsup_dist.errors import InputError, LostWorkError

MAX_RETRIES = 3
TASKS_PER_CPU = 4  # of `map_units`: one runs, the others wait in Ray, so that a CPU never waits for this process
WINDOW = 8  # times max_running: units started and not yet yielded, as results wait for an earlier, slower unit
STALL_AFTER_S = 60.0  # without a result, until a warning says what is awaited; doubles from warning to warning
LOST = (RayActorError, ObjectLostError, WorkerCrashedError, NodeDiedError, OutOfMemoryError)

_log = logging.getLogger(__name__)
Progress = Callable[[int, int], None]  # (finished units, all units), called after each unit
R = TypeVar("R")


class Step(NamedTuple):
    """A step of a unit that runs: most units take one, some are continued by another process."""

    reference: Reference  # arrives when the step is done
    worker: Any = None
    number: int = 0


class Workers(ABC):
    """The processes that run the units of one `run_in_order`."""

    max_running: int  # units at once
    max_losses = 0  # lost processes after which a unit is still started again; 0 where Ray itself starts it again

    @abstractmethod
    def start(self, unit: Any) -> Step | None:
        """Start a unit; None, and nothing is started, while no worker is free."""

    @abstractmethod
    def describe(self) -> str:
        """The workers in words, for a warning."""

    def follow(self, step: Step) -> Step | None:
        """Start what follows a step that is done; None where the step made the unit's result."""
        return None

    def lose(self, step: Step, error: Exception) -> None:
        """Note that a step lost its process; called only if max_losses is above 0."""
        raise AssertionError("workers with max_losses override this")

    def give_up(self, unit: Any, error: Exception) -> Any:
        """The result of a unit that lost its process more than `max_losses` times. By default there is none."""
        raise _lost_work(unit, error) from None

    def joining(self) -> Sequence[Reference]:
        """References that arrive when a worker becomes ready."""
        return ()

    def join(self, reference: Reference) -> None:
        """Use the worker whose reference of `joining` has arrived."""
        raise AssertionError("workers that override `joining` override this")


def map_units(
    function: Callable[..., R],
    units: Sequence[Any],
    *,
    on_progress: Progress | None = None,
    **kwargs: Any,
) -> Iterator[R]:
    """Yield function(unit, **kwargs) for every unit, in the order of the units. Each unit is a task with one CPU.

    Needs a running session (`session.start`).

    Args:
        function: Pure and picklable.
        units: Small values; what is large belongs into `kwargs`.
        on_progress: Called after each unit.
        kwargs: Stored once and unpacked once per process. `function` must not change them.

    Raises:
        InputError: The error of `function` itself, without Ray's traceback.
        LostWorkError: A unit lost its process more than MAX_RETRIES times.
    """
    yield from run_in_order(_Tasks(function, kwargs), units, on_progress=on_progress)


@ray.remote(num_cpus=1, max_retries=MAX_RETRIES)
def _run_unit(function: Callable[..., Any], unit: Any, shared: list[Reference]) -> Any:
    return function(unit, **fetch(shared))


class _Tasks(Workers):
    """Plain tasks: Ray queues those that have no CPU yet, and starts lost ones again."""

    def __init__(self, function: Callable[..., Any], kwargs: dict[str, Any]) -> None:
        self.max_running = TASKS_PER_CPU * session.total_cpus()
        self._function, self._shared = function, [ray.put(kwargs)]

    def start(self, unit: Any) -> Step:
        return Step(_run_unit.remote(self._function, unit, self._shared))

    def describe(self) -> str:
        return "tasks of one CPU each"


def run_in_order(
    workers: Workers,
    units: Sequence[Any],
    *,
    on_progress: Progress | None = None,
    warn: Callable[[str], None] = _log.warning,
) -> Iterator[Any]:
    """Yield the result of every unit, in the order of the units.

    Args:
        workers: Where the units run.
        units: The units.
        on_progress: Called after each unit.
        warn: Gets a line whenever nothing came back for a while.

    Raises:
        InputError: The error of a unit itself, without Ray's traceback.
        LostWorkError: A unit lost its process more than MAX_RETRIES times.
    """
    pending = list(range(len(units)))[::-1]
    running: dict[Reference, tuple[int, Step]] = {}
    finished: dict[int, Any] = {}
    losses: Counter[int] = Counter()
    num_yielded, window = 0, WINDOW * workers.max_running
    while pending or running:
        while pending and len(running) < workers.max_running and pending[-1] < num_yielded + window:
            started = workers.start(units[pending[-1]])
            if started is None:
                break
            running[started.reference] = (pending.pop(), started)
        reference = _wait(workers, list(running), warn)
        if reference not in running:
            workers.join(reference)
            continue
        index, step = running.pop(reference)
        following = workers.follow(step)
        if following is not None:
            running[following.reference] = (index, following)
            continue
        try:
            finished[index] = result_of(reference)
        except LOST as error:
            losses[index] += 1
            if losses[index] <= workers.max_losses:
                pending.append(index)
                workers.lose(step, error)
                continue
            finished[index] = workers.give_up(units[index], error)
        if on_progress is not None:
            on_progress(len(units) - len(pending) - len(running), len(units))
        while num_yielded in finished:
            yield finished.pop(num_yielded)
            num_yielded += 1


def result_of(reference: Reference) -> Any:
    """The value of a reference; raises an InputError or a loss of the task itself instead of Ray's wrapper of it."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        # Ray's wrapper is an InputError too, but its text is a traceback and it can't be pickled again.
        if isinstance(error.cause, (InputError, *LOST)):
            raise error.cause from None
        raise


def first_line(error: Exception) -> str:
    """The first line of an error's text; the others of Ray's errors are advice and tracebacks."""
    return str(error).strip().splitlines()[0]


def _wait(workers: Workers, running: list[Reference], warn: Callable[[str], None]) -> Reference:
    """The next reference that arrives: of a running unit, or of a worker that joins."""
    patience_s = STALL_AFTER_S
    while True:
        arrived, _ = ray.wait([*running, *workers.joining()], timeout=patience_s)
        if arrived:
            return arrived[0]
        warn(
            f"no unit of work finished for {patience_s:.0f} s: {len(running)} running on {workers.describe()}; "
            f"{session.describe()}"
        )
        patience_s *= 2


def _lost_work(unit: object, error: Exception) -> LostWorkError:
    return LostWorkError(
        f"a unit of work lost its process {MAX_RETRIES + 1} times",
        field="unit",
        value=unit,
        expected=f"a unit that ends; the last error: {first_line(error)}",
    )
