"""Runs a pure function over fixed units of work and yields the results in the order of the units.

`map_units` runs them in plain Ray tasks; `boxsup_dist.distributed.pool` runs them on actors that hold a network. Both
share `run_in_order`. Guarantees: the results depend on the units alone, not on the number of CPUs, workers or lost
processes; a window bounds the units that are started and not yet yielded; a unit that ends its process is run again up
to MAX_RETRIES times, so a unit that ends every process ends the call, or takes its result from `on_lost`.

Workers may take several consecutive units at once, a chunk (`backlog.py`). A chunk that loses its process says nothing
of its units: it is taken apart, and each of them is run alone.

Ray's own retries are off: Ray counts a lost node like a crash, and repeats a task that runs out of memory for ever.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn, TypeVar

import ray
from ray.exceptions import RayTaskError

from boxsup_dist.distributed import session
from boxsup_dist.distributed.backlog import Backlog
from boxsup_dist.distributed.faults import LOST, describe_loss, lost_its_node
from boxsup_dist.distributed.shared import Reference, fetch
from boxsup_dist.errors import InputError, LostWorkError

MAX_RETRIES = 3  # of a unit that ended its process
MAX_LOST_NODES = 20  # retries of a unit whose node was lost: that says nothing of the unit, but must end too
TASKS_PER_CPU = 4  # of `map_units`: one runs, the others wait in Ray, so that a CPU never waits for this process
WINDOW = 8  # times max_running: units started and not yet yielded, as results wait for an earlier, slower unit
STALL_AFTER_S = 60.0  # without a result, until a warning says what is awaited; doubles from warning to warning

_log = logging.getLogger(__name__)
MANY_RUNNING = 64  # steps at once from which on answers are gathered
GATHER_S = 0.01  # from the first answer to the next look: many answers at a time cost little more than one
Progress = Callable[[int, int], None]  # (finished units, all units), called whenever units are finished
OnLost = Callable[[Any, Exception], Any]  # (unit, last error) of a unit that used up its tries: gives its result
R = TypeVar("R")


class Step(NamedTuple):
    """A step of a unit or chunk that runs: most take one, some are continued by another process."""

    reference: Reference  # arrives when the step is done
    worker: Any = None
    number: int = 0
    slots: int = 1  # places that it takes on its worker


class Workers(ABC):
    """The processes that run the units of one `run_in_order`."""

    max_running: int  # units at once, or chunks
    num_sharing = 0  # workers among which the units are divided in chunks; 0: they take single units
    fetches = True  # False: what a step makes stays where it is until `run_in_order` yields it

    @abstractmethod
    def start(self, unit: Any, *, alone: bool) -> Step | None:
        """Start a unit; None, and nothing is started, while no worker is free.

        Args:
            unit: The unit. A list of units with `num_sharing`; its last step then gives the list of their results.
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
        on_progress: Called whenever units are finished.
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
        on_progress: Called whenever units are finished.
        on_lost: Gives the result of a unit that ended its process in every try; None raises the LostWorkError.
        max_retries: How often a unit that ended its process is run again.
        warn: Gets a line whenever nothing came back for a while.

    Raises:
        InputError: The error of a unit itself, without Ray's traceback.
        LostWorkError: A unit ended its process in every try, and `on_lost` is None.
    """
    work = _Work(workers, units, on_lost or lost_work, max_retries)
    num_reported = num_yielded = 0
    while num_yielded < len(units):
        work.start(num_yielded)
        for reference in _wait(workers, list(work.running), warn):
            if reference in work.running:
                work.take(reference)
            else:
                workers.join(reference)
        if on_progress is not None and work.num_finished > num_reported:
            num_reported = work.num_finished
            on_progress(num_reported, len(units))
        while num_yielded in work.results:
            yield work.results.pop(num_yielded)
            num_yielded += 1


class _Running(NamedTuple):
    """Units that run together."""

    indices: range
    step: Step
    started: float


class _Work:
    """The units of one `run_in_order`: which wait, which run, and the results that are not yielded yet."""

    def __init__(self, workers: Workers, units: Sequence[Any], on_lost: OnLost, max_retries: int) -> None:
        self.running: dict[Reference, _Running] = {}
        self.results: dict[int, Any] = {}
        self.num_finished = 0
        self._workers, self._units, self._on_lost, self._max_retries = workers, units, on_lost, max_retries
        self._backlog = Backlog(len(units))
        self._losses: Counter[tuple[int, bool]] = Counter()  # of a unit, by whether its node was lost

    def start(self, num_yielded: int) -> None:
        """Start units while workers are free and the window has room."""
        workers, backlog = self._workers, self._backlog
        end, most = num_yielded + WINDOW * workers.max_running, workers.max_running
        if workers.num_sharing and not backlog.knows_time:  # a worker's second chunk would be a single unit too
            most = min(most, workers.num_sharing)
        while backlog.num_waiting and len(self.running) < most and backlog.first < end:
            first, alone = backlog.first, backlog.is_suspect
            size = backlog.chunk_size(workers.num_sharing) if workers.num_sharing else 1
            indices = range(first, min(first + size, first + backlog.num_waiting, end))
            unit = [self._units[i] for i in indices] if workers.num_sharing else self._units[first]
            step = workers.start(unit, alone=alone)
            if step is None:
                return
            self.running[step.reference] = _Running(backlog.take(len(indices)), step, time.monotonic())

    def take(self, reference: Reference) -> None:
        """Take the result of a step that is done, or start what follows it, or put its units back if it was lost."""
        indices, step, started = self.running.pop(reference)
        if step.number == 0:
            self._backlog.note(len(indices), time.monotonic() - started)
        following = self._workers.follow(step)
        if following is not None:
            self.running[following.reference] = _Running(indices, following, started)
            return
        try:
            result = result_of(reference)
        except LOST as error:
            self._workers.lose(step, error)
            self._give_back(indices, error)
            return
        self._finish(indices, result if self._workers.num_sharing else [result])

    def _give_back(self, indices: range, error: Exception) -> None:
        with_node = lost_its_node(error)
        if len(indices) == 1:
            index = indices[0]
            self._losses[index, with_node] += 1
            if self._losses[index, with_node] > (MAX_LOST_NODES if with_node else self._max_retries):
                self._finish(indices, [self._on_lost(self._units[index], error)])
                return
        self._backlog.give_back(indices, suspect=not with_node)

    def _finish(self, indices: range, results: Sequence[Any]) -> None:
        self.results.update(zip(indices, results, strict=True))
        self.num_finished += len(indices)


def result_of(reference: Reference) -> Any:
    """The value of a reference; raises an InputError or a loss of the task itself instead of Ray's wrapper of it."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        # Ray's wrapper is an InputError too, but its text is a traceback and it can't be pickled again.
        if isinstance(error.cause, (InputError, *LOST)):
            raise error.cause from None
        raise


def _wait(workers: Workers, running: list[Reference], warn: Callable[[str], None]) -> list[Reference]:
    """The next references that arrive: of running units, or of workers that join. They are gathered for GATHER_S."""
    patience_s = STALL_AFTER_S
    awaited = [*running, *workers.joining()]
    while True:
        arrived, _ = ray.wait(awaited, timeout=patience_s, fetch_local=workers.fetches)
        if arrived and len(awaited) > MANY_RUNNING:
            time.sleep(GATHER_S)
            arrived, _ = ray.wait(awaited, num_returns=len(awaited), timeout=0, fetch_local=workers.fetches)
        if arrived:
            return arrived
        warn(
            f"no unit of work finished for {patience_s:.0f} s: {len(running)} running on {workers.describe()}; "
            f"{session.describe()}"
        )
        patience_s *= 2


def lost_work(unit: object, error: Exception) -> NoReturn:
    """Raise the LostWorkError of a unit that ended its process in every try."""
    problem = f"a unit of work lost its process in every try: {describe_loss(error)}"
    raise LostWorkError(problem, field="unit", value=unit) from None
