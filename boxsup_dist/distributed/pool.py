"""The actor pool: runs a pure function with a network over fixed units of work, on all nodes.

Results depend on the units and the weights alone, never on the number of actors: each member has the same fixed number
of threads, units are never split or merged, and results come back in the order of the units (`distributed/ordered.py`).
When a member dies, or its node goes away, Ray starts the member again where there is room; meanwhile the others take
its units. A member that Ray has started `max_starts` times is replaced by a new one, or ends the call if it never got
its network.

What follows the network and needs no GPU, such as a CRF, can run in plain tasks on any CPU of the cluster (`then`)
while the members predict the next units.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
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
        unit: Any,
        weights: list[Reference],
        version: str,
        kwargs: list[Reference],
    ) -> Any:
        if weights and version != self.version:
            # A reference inside a list stays a reference: the weights are fetched once per version, not per unit.
            self.network.load_state_dict(ray.get(weights[0]))
            self.version = version
        return function(self.network, unit, **fetch(kwargs))

    @ray.method(max_task_retries=-1)
    def ping(self) -> None:
        """Answer once the constructor is done, also if Ray has to start it again."""


@ray.remote(num_cpus=1, max_retries=0)  # run_in_order runs the unit again
def _continue(then: Callable[[Any], Any], result: Any, threads: int) -> Any:
    torch.set_num_threads(threads)
    return then(result)


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
        self.ready: list[Any] = []  # actors that take units
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
        self.ready.append(actor)
        return actor

    def doubt(self, actor: Any, error: Exception) -> None:
        """Give a lost member no unit until it answers again."""
        if actor in self.ready:
            self.ready.remove(actor)
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
        then: None = ...,
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
        then: Callable[[R], T],
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
        then: Callable[[Any], Any] | None = None,
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
            then: Yield then(function(...)) instead. It runs in a task with as many threads as a member.
            on_progress: Called after each unit.
            on_lost: As in `run_in_order`.
            max_retries: As in `run_in_order`.
            kwargs: Stored once and unpacked once per member. `function` must not change them.

        Raises:
            InputError: The error of `function` or `then` itself, without Ray's traceback.
            LostWorkError: A unit ended its process in every try, and `on_lost` is None.
        """
        members = _Members(self, function, [] if weights is None else [weights], version, then, kwargs)
        yield from run_in_order(
            members, units, on_progress=on_progress, on_lost=on_lost, max_retries=max_retries, warn=self.warn
        )

    def close(self) -> None:
        """End the actors."""
        for actor in self.actors:
            ray.kill(actor)


class _Members(Workers):
    """The pool's members during one `map`, and the tasks that follow them."""

    def __init__(
        self,
        pool: NetworkPool,
        function: Callable[..., Any],
        weights: list[Reference],
        version: str,
        then: Callable[[Any], Any] | None,
        kwargs: dict[str, Any],
    ) -> None:
        num_then_cpus = 0 if then is None else session.total_cpus()
        self.max_running = len(pool.actors) * UNITS_PER_MEMBER + num_then_cpus * THEN_TASKS_PER_CPU
        self._pool, self._then = pool, then
        self._function, self._shared = function, [ray.put(kwargs)]
        self._weights, self._version = weights, version
        self._free = pool.ready * UNITS_PER_MEMBER

    def start(self, unit: Any, *, alone: bool) -> Step | None:
        slots = UNITS_PER_MEMBER if alone else 1
        actor = next((actor for actor in self._free if self._free.count(actor) >= slots), None)
        if actor is None:
            return None
        for _ in range(slots):
            self._free.remove(actor)
        reference = actor.run.remote(self._function, unit, self._weights, self._version, self._shared)
        return Step(reference, actor, slots=slots)

    def follow(self, step: Step) -> Step | None:
        if step.number > 0:
            return None
        if step.worker in self._pool.ready:
            self._free += [step.worker] * step.slots
        if self._then is None:
            return None
        # A reference: what the member made goes from node to node, never through this process.
        return Step(_continue.remote(self._then, step.reference, self._pool.threads), step.worker, number=1)

    def lose(self, step: Step, error: Exception) -> None:
        if isinstance(error, WorkerCrashedError):  # of the task that follows; the member is well
            return
        self._free = [actor for actor in self._free if actor is not step.worker]
        self._pool.doubt(step.worker, error)

    def joining(self) -> Sequence[Reference]:
        return list(self._pool.starting)

    def join(self, reference: Reference) -> None:
        actor = self._pool.welcome(reference)
        if actor is not None:
            self._free += [actor] * UNITS_PER_MEMBER

    def describe(self) -> str:
        return self._pool.describe()
