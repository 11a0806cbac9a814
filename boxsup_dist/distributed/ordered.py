"""Runs a pure function over fixed units of work and yields the results in the order of the units.

`map_units` runs them in plain Ray tasks; `boxsup_dist.distributed.pool` runs them on actors that hold a network. Both
share `run_in_order`. Guarantees: the results depend on the units alone, not on the number of CPUs, workers or lost
processes; a window bounds the units that are started and not yet yielded; a unit that ends its process is run again up
to MAX_RETRIES times, so a unit that ends every process ends the call, or takes its result from `on_lost`.

Ray's own retries are off: Ray counts a lost node like a crash, and repeats a task that runs out of memory for ever.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn, TypeVar

import ray
from ray.exceptions import RayTaskError

from boxsup_dist.distributed import session
from boxsup_dist.distributed.faults import LOST, describe_loss, lost_its_node
from boxsup_dist.distributed.shared import Reference, fetch
from boxsup_dist.errors import InputError, LostWorkError

MAX_RETRIES = 3  # of a unit that ended its process
MAX_LOST_NODES = 20  # retries of a unit whose node was lost: that says nothing of the unit, but must end too
TASKS_PER_CPU = 4  # of `map_units`: one runs, the others wait in Ray, so that a CPU never waits for this process
WINDOW = 8  # times max_running: units started and not yet yielded, as results wait for an earlier, slower unit
STALL_AFTER_S = 60.0  # without a result, until a warning says what is awaited; doubles from warning to warning

_log = logging.getLogger(__name__)
Progress = Callable[[int, int], None]  # (finished units, all units), called after each unit
OnLost = Callable[[Any, Exception], Any]  # (unit, last error) of a unit that used up its tries: gives its result
R = TypeVar("R")


class Step(NamedTuple):
    """A step of a unit that runs: most units take one, some are continued by another process."""

    reference: Reference  # arrives when the step is done
    worker: Any = None
    number: int = 0
    slots: int = 1  # places that it takes on its worker


class Workers(ABC):
    """The processes that run the units of one `run_in_order`."""

    max_running: int  # units at once

    @abstractmethod
    def start(self, unit: Any, *, alone: bool) -> Step | None:
        """Start a unit; None, and nothing is started, while no worker is free.

        Args:
            unit: The unit.
            alone: No other unit may share its process: the unit lost one, and must not take others with it.
        """

    @abstractmethod
    def describe(self) -> str:
        """The workers in words, for a warning."""

    def follow(self, step: Step) -> Step | None:
        """Start what follows a step that is done; None where the step made the unit's result."""
        return None

    def lose(self, step: Step, error: Exception) -> None:  # noqa: B027  # most have nothing to note
        """Note that a step lost its process."""

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
    on_lost: OnLost | None = None,
    max_retries: int = MAX_RETRIES,
    num_gpus: float = 0,
    **kwargs: Any,
) -> Iterator[R]:
    """Yield function(unit, **kwargs) for every unit, in the order of the units. Each unit is a task with one CPU.

    Needs a running session (`session.start`).

    Args:
        function: Pure and picklable.
        units: Small values; what is large belongs into `kwargs`.
        on_progress: Called after each unit.
        on_lost: As in `run_in_order`.
        max_retries: As in `run_in_order`.
        num_gpus: GPUs that a task reserves besides its CPU.
        kwargs: Stored once and unpacked once per process. `function` must not change them.

    Raises:
        InputError: The error of `function` itself, without Ray's traceback.
        LostWorkError: A unit ended its process in every try, and `on_lost` is None.
    """
    workers = _Tasks(function, kwargs, num_gpus)
    yield from run_in_order(workers, units, on_progress=on_progress, on_lost=on_lost, max_retries=max_retries)


@ray.remote(num_cpus=1, max_retries=0)
def _run_unit(function: Callable[..., Any], unit: Any, shared: list[Reference]) -> Any:
    return function(unit, **fetch(shared))


class _Tasks(Workers):
    """Plain tasks: Ray queues those that have no CPU yet."""

    def __init__(self, function: Callable[..., Any], kwargs: dict[str, Any], num_gpus: float) -> None:
        self.max_running = TASKS_PER_CPU * session.total_cpus()
        self._function, self._shared = function, [ray.put(kwargs)]
        self._task = _run_unit.options(num_gpus=num_gpus)

    def start(self, unit: Any, *, alone: bool) -> Step:
        return Step(self._task.remote(self._function, unit, self._shared))

    def describe(self) -> str:
        return "tasks of one CPU each"


def run_in_order(
    workers: Workers,
    units: Sequence[Any],
    *,
    on_progress: Progress | None = None,
    on_lost: OnLost | None = None,
    max_retries: int = MAX_RETRIES,
    warn: Callable[[str], None] = _log.warning,
) -> Iterator[Any]:
    """Yield the result of every unit, in the order of the units.

    Args:
        workers: Where the units run.
        units: The units.
        on_progress: Called after each unit.
        on_lost: Gives the result of a unit that ended its process in every try; None raises the LostWorkError.
        max_retries: How often a unit that ended its process is run again.
        warn: Gets a line whenever nothing came back for a while.

    Raises:
        InputError: The error of a unit itself, without Ray's traceback.
        LostWorkError: A unit ended its process in every try, and `on_lost` is None.
    """
    pending = list(range(len(units)))[::-1]
    running: dict[Reference, tuple[int, Step]] = {}
    finished: dict[int, Any] = {}
    losses: Counter[tuple[int, bool]] = Counter()  # of a unit, by whether its node was lost
    num_yielded, window = 0, WINDOW * workers.max_running
    while pending or running:
        while pending and len(running) < workers.max_running and pending[-1] < num_yielded + window:
            started = workers.start(units[pending[-1]], alone=(pending[-1], False) in losses)
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
            workers.lose(step, error)
            with_node = lost_its_node(error)
            losses[index, with_node] += 1
            if losses[index, with_node] <= (MAX_LOST_NODES if with_node else max_retries):
                pending.append(index)
                continue
            finished[index] = (on_lost or lost_work)(units[index], error)
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


def lost_work(unit: object, error: Exception) -> NoReturn:
    """Raise the LostWorkError of a unit that ended its process in every try."""
    problem = f"a unit of work lost its process in every try: {describe_loss(error)}"
    raise LostWorkError(problem, field="unit", value=unit) from None
