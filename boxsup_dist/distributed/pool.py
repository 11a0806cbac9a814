"""The actor pool: runs a pure function with a network over fixed units of work, on all nodes.

Results depend on the units and the weights alone, never on the number of actors: each member has the same fixed number
of threads, units are never split, those of a chunk are computed one after the other, and results come back in the order
of the units (`distributed/ordered.py`).
When a member dies, or its node goes away, Ray starts the member again where there is room; meanwhile the others take
its units. A member that Ray has started `max_starts` times is replaced by a new one, or ends the call if it never got
its network.

What follows the network and needs no GPU (`then`), such as a CRF or the choice of segments, runs in plain tasks on any
CPU of the cluster while the members predict the next units. Where the members have no GPU, they do it themselves: their
cores are the ones that such tasks would take.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar, overload

import pyarrow as pa
import ray
import torch
from ray.exceptions import WorkerCrashedError

from boxsup_dist.config.packing import Share
from boxsup_dist.distributed import session
from boxsup_dist.distributed.faults import LOST, describe_loss
from boxsup_dist.distributed.ordered import (
    MAX_RETRIES,
    OnLost,
    Progress,
    Step,
    Workers,
    result_of,
    run_in_order,
)
from boxsup_dist.distributed.shared import Reference, fetch
from boxsup_dist.errors import LostWorkError
from boxsup_dist.progress import counted

UNITS_PER_MEMBER = 2  # started at once: one computes, one waits in the member's queue
THEN_TASKS_PER_CPU = 2  # bounds the results that members hand over before `then` takes them

_log = logging.getLogger(__name__)
R = TypeVar("R")
T = TypeVar("T")
Then = Callable[..., Sequence[Any]]  # (units, what the members made of each, **kwargs): the result of each


@ray.remote
class _Member:
    def __init__(self, build: Callable[[], torch.nn.Module], threads: int) -> None:
        torch.set_num_threads(threads)
        pa.set_cpu_count(threads)  # of Parquet's decoder; else every member would take the whole machine for it
        self.device = torch.device("cuda" if torch.cuda.is_available() and ray.get_gpu_ids() else "cpu")
        self.network = build().to(self.device).eval()
        self.version: str | None = None

    def run(
        self,
        function: Callable[..., Any],
        read: Callable[..., Any] | None,
        then: Then | None,
        units: Sequence[Any],
        weights: list[Reference],
        version: str,
        kwargs: list[Reference],
    ) -> Sequence[Any]:
        """What `function` makes of each unit, or of what `read` makes of it; with `then`, what that makes of it."""
        if weights and version != self.version:
            # A reference inside a list stays a reference: the weights are fetched once per version, not per unit.
            self.network.load_state_dict(ray.get(weights[0]))
            self.version = version
        options = fetch(kwargs)
        inputs: Iterable[Any] = units if read is None else _ahead(partial(read, **options), units)
        made = [function(self.network, one, **options) for one in inputs]
        return made if then is None else then(units, made, **options)

    @ray.method(max_task_retries=-1)
    def ping(self) -> None:
        """Answer once the constructor is done, also if Ray has to start it again."""


def _ahead(read: Callable[[Any], R], units: Sequence[Any]) -> Iterator[R]:
    """read(unit) of every unit; a thread reads the next one meanwhile."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(read, units[0])
        for following in units[1:]:
            value, coming = coming.result(), thread.submit(read, following)
            yield value
        yield coming.result()


@ray.remote(num_cpus=1, max_retries=0)  # run_in_order runs the unit again
def _continue(then: Then, units: Sequence[Any], made: Sequence[Any], kwargs: list[Reference], threads: int) -> Any:
    torch.set_num_threads(threads)
    pa.set_cpu_count(threads)
    return then(units, made, **fetch(kwargs))


class NetworkPool:
    """A fixed number of actors, each with its own copy of the network, spread over the nodes."""

    max_starts = 20  # of an actor: nodes may be lost, but an actor that never gets its network must end too

    def __init__(
        self,
        build: Callable[[], torch.nn.Module],
        *,
        num_actors: int,
        num_cpus: float,
        num_gpus: float = 0.0,
        threads: int = 1,
        warn: Callable[[str], None] = _log.warning,
    ) -> None:
        """Start the members; they are ready some seconds later.

        Args:
            build: Makes the network.
            num_actors: Number of members.
            num_cpus: CPUs that Ray reserves for one member.
            num_gpus: GPU share of one member; above 0 the network is on a GPU.
            threads: Threads of one member, and of a task that runs `then`.
            warn: Gets a line when a member is lost, and whenever no result came back for a while.
        """
        self.threads, self.warn = threads, warn
        self.has_gpus = num_gpus > 0
        self.share = Share(num_cpus, num_gpus)
        self._member = _Member.options(  # type: ignore[attr-defined]
            num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=self.max_starts - 1, scheduling_strategy="SPREAD"
        )
        self._arguments = (build, threads)
        self.actors: list[Any] = [None] * num_actors
        self.ready: dict[Any, None] = {}  # actors that take units, in the order in which they became ready
        self.starting: dict[Reference, Any] = {}  # ping -> actor
        self._proven: set[Any] = set()  # actors that have answered
        for number in range(num_actors):
            self._start(number)

    def wait_ready(self) -> None:
        """Block until every member has built its network; raises what its constructor raised."""
        while self.starting:
            self.welcome(next(iter(self.starting)))

    def welcome(self, reference: Reference) -> Any:
        """The member whose ping has arrived: it takes units from now on. None if another one takes its place.

        Raises:
            LostWorkError: It has never answered: it lost its process in each of its starts.
        """
        actor = self.starting.pop(reference)
        try:
            result_of(reference)
        except LOST as error:  # Ray does not start it again
            if actor not in self._proven:
                raise LostWorkError(
                    f"an actor lost its process {self.max_starts} times before it had built its network: "
                    f"{describe_loss(error, 'resources.num_actors')}",
                    expected="a network that can be built in the memory of a node",
                ) from None
            self._proven.remove(actor)
            self._start(self.actors.index(actor))
            return None
        self._proven.add(actor)
        self.ready[actor] = None
        return actor

    def doubt(self, actor: Any, error: Exception) -> None:
        """Give a lost member no unit until it answers again."""
        if actor in self.ready:
            del self.ready[actor]
            self._await(actor)
            self.warn(
                f"an actor was lost, {len(self.ready)} actors continue without it until Ray has started it again: "
                f"actor {self.actors.index(actor) + 1}: {describe_loss(error, 'resources.num_actors')}"
            )

    def describe(self) -> str:
        """The members in words: how many work, and which wait for what."""
        ready = counted(len(self.ready), "actor")
        if not self.starting:
            return ready
        numbers = ", ".join(str(number) for number in sorted(self.actors.index(a) + 1 for a in self.starting.values()))
        return f"{ready}; waiting for {self.share} each, or starting: actors {numbers} of {len(self.actors)}"

    def _await(self, actor: Any) -> None:
        self.starting[actor.ping.remote()] = actor

    def _start(self, number: int) -> None:
        """Start member `number`, counted from 0, in place of the one that was there."""
        self.actors[number] = self._member.remote(*self._arguments)
        self._await(self.actors[number])

    @overload
    def map(
        self,
        function: Callable[..., R],
        units: Sequence[Any],
        *,
        weights: Reference | None = ...,
        version: str = ...,
        read: Callable[..., Any] | None = ...,
        then: None = ...,
        then_in_tasks: bool | None = ...,
        in_chunks: bool = ...,
        on_progress: Progress | None = ...,
        on_lost: OnLost | None = ...,
        max_retries: int = ...,
        **kwargs: Any,
    ) -> Iterator[R]: ...

    @overload
    def map(
        self,
        function: Callable[..., R],
        units: Sequence[Any],
        *,
        weights: Reference | None = ...,
        version: str = ...,
        read: Callable[..., Any] | None = ...,
        then: Callable[..., Sequence[T]],
        then_in_tasks: bool | None = ...,
        in_chunks: bool = ...,
        on_progress: Progress | None = ...,
        on_lost: OnLost | None = ...,
        max_retries: int = ...,
        **kwargs: Any,
    ) -> Iterator[T]: ...

    def map(
        self,
        function: Callable[..., Any],
        units: Sequence[Any],
        *,
        weights: Reference | None = None,
        version: str = "",
        read: Callable[..., Any] | None = None,
        then: Then | None = None,
        then_in_tasks: bool | None = None,
        in_chunks: bool = True,
        on_progress: Progress | None = None,
        on_lost: OnLost | None = None,
        max_retries: int = MAX_RETRIES,
        **kwargs: Any,
    ) -> Iterator[Any]:
        """Yield function(network, unit, **kwargs) for every unit, in the order of the units.

        Args:
            function: Pure and picklable.
            units: Small values; what is large belongs into `kwargs`.
            weights: Reference to the state dict that the network gets; None leaves the network as it is.
            version: Name of `weights`: a member loads each version once.
            read: `function` gets read(unit, **kwargs) instead of the unit. A thread of the member reads one unit ahead:
                it opens and decodes files while the network computes.
            then: Yield each of then(units, [function(...) of each], **kwargs) instead; `units` are those of a chunk.
                Its process has as many threads as a member.
            then_in_tasks: Run `then` in tasks, each on a whole CPU that no other process reserves, or by the members;
                None: in tasks if the members have GPUs and leave a CPU. The results are the same.
            in_chunks: Units may go out together, and wait together for `then`. False: where their results are large.
            on_progress: Called whenever units are finished.
            on_lost: As in `run_in_order`.
            max_retries: As in `run_in_order`.
            kwargs: Stored once and unpacked once per process. The functions must not change them.

        Raises:
            InputError: The error of `function` or `then` itself, without Ray's traceback.
            LostWorkError: A unit ended its process in every try, and `on_lost` is None.
        """
        # A training always leaves a CPU for tasks; a pool alone on a small machine may reserve all of it.
        has_room = session.total_cpus() - len(self.actors) * self.share.cpus >= 1
        in_tasks = self.has_gpus and has_room if then_in_tasks is None else then_in_tasks
        loaded = [] if weights is None else [weights]
        members = _Members(self, function, read, then, loaded, version, in_tasks, kwargs)
        if not in_chunks:
            members.num_sharing = max(len(units), 1)  # the share of each is one unit
        yield from run_in_order(
            members, units, on_progress=on_progress, on_lost=on_lost, max_retries=max_retries, warn=self.warn
        )

    def close(self) -> None:
        """End the actors. A `map` that runs in another thread ends with an error."""
        self.ready.clear()
        self.starting.clear()
        for actor in self.actors:
            ray.kill(actor)


class _Members(Workers):
    """The pool's members during one `map`, and the tasks that follow them."""

    def __init__(
        self,
        pool: NetworkPool,
        function: Callable[..., Any],
        read: Callable[..., Any] | None,
        then: Then | None,
        weights: list[Reference],
        version: str,
        in_tasks: bool,
        kwargs: dict[str, Any],
    ) -> None:
        in_tasks = in_tasks and then is not None
        self.num_sharing = len(pool.actors)
        num_tasks = session.total_cpus() * THEN_TASKS_PER_CPU if in_tasks else 0
        self.max_running = self.num_sharing * UNITS_PER_MEMBER + num_tasks
        self.fetches = not in_tasks
        self._pool = pool
        self._functions = (function, read, None if in_tasks else then)
        self._then_of_task = then if in_tasks else None
        self._shared = [ray.put(kwargs)]
        self._weights, self._version = weights, version
        self._free = dict.fromkeys(pool.ready, UNITS_PER_MEMBER)  # members with a free place; the next one first
        self._units: dict[Reference, Sequence[Any]] = {}  # of the members' steps, for the tasks that follow

    def start(self, unit: Sequence[Any], *, alone: bool) -> Step | None:
        slots = UNITS_PER_MEMBER if alone else 1
        actor = next((actor for actor, free in self._free.items() if free >= slots), None)
        if actor is None:
            return None
        self._release(actor, -slots)
        reference = actor.run.remote(*self._functions, unit, self._weights, self._version, self._shared)
        if self._then_of_task is not None:
            self._units[reference] = unit
        return Step(reference, actor, slots=slots)

    def _release(self, actor: Any, slots: int) -> None:
        """Change the number of a member's free places, and queue it behind the others."""
        free = min(self._free.pop(actor, 0) + slots, UNITS_PER_MEMBER)
        if free > 0:
            self._free[actor] = free

    def follow(self, step: Step) -> Step | None:
        if step.number > 0:
            return None
        if step.worker in self._pool.ready:
            self._release(step.worker, step.slots)
        if self._then_of_task is None:
            return None
        # A reference: what the member made goes from node to node, never through this process.
        units = self._units.pop(step.reference)
        task = _continue.remote(self._then_of_task, units, step.reference, self._shared, self._pool.threads)
        return Step(task, step.worker, number=1)

    def lose(self, step: Step, error: Exception) -> None:
        if isinstance(error, WorkerCrashedError):  # of the task that follows; the member is well
            return
        self._free.pop(step.worker, None)
        self._pool.doubt(step.worker, error)

    def joining(self) -> Sequence[Reference]:
        return list(self._pool.starting)

    def join(self, reference: Reference) -> None:
        actor = self._pool.welcome(reference)
        if actor is not None:
            self._release(actor, UNITS_PER_MEMBER)

    def describe(self) -> str:
        return self._pool.describe()
