"""The actor pool: runs a pure function with a network over fixed units of work, on all nodes.

Results depend on the units and the weights only, never on the number of actors: each member has the same fixed number
of threads, units are never split or merged, and results come back in the order of the units. When a member dies, or its
node goes away, Ray starts it again where there is room; meanwhile the others take its units. A unit is run again up to
MAX_RETRIES times: one that kills its member every time must not keep the run busy for ever.

What follows the network and needs no GPU, such as a CRF, can run in plain tasks on any CPU of the cluster (`then`)
while the members predict the next units.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
import torch
from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, RayTaskError, WorkerCrashedError

from boxsup_dist.distributed import session
from boxsup_dist.distributed.shared import fetch
from boxsup_dist.errors import InputError, LostWorkError

UNITS_IN_FLIGHT_PER_ACTOR = 2  # one computes, one waits in its queue
TASKS_IN_FLIGHT_PER_CPU = 2  # of `then`; bounds what members may hand over before it is taken
MAX_RETRIES = 3
STALL_AFTER_S = 60.0  # without a result; then it is told what is waited for
_LOST = (RayActorError, ObjectLostError, WorkerCrashedError, NodeDiedError)
_log = logging.getLogger(__name__)


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
        weights: list[ray.ObjectRef],
        version: str,
        kwargs: list[ray.ObjectRef],
    ) -> Any:
        if weights and version != self.version:
            # A reference inside a list stays a reference: the weights are fetched once a version, not once a unit.
            self.network.load_state_dict(ray.get(weights[0]))
            self.version = version
        return function(self.network, unit, **fetch(kwargs))

    @ray.method(max_task_retries=-1)
    def ping(self) -> None:
        """Answer when the constructor is done, however often it has to begin anew."""


@ray.remote(num_cpus=1, max_retries=MAX_RETRIES)
def _continue(then: Callable[[Any], Any], result: Any, threads: int) -> Any:
    torch.set_num_threads(threads)
    return then(result)


class NetworkPool:
    """A fixed number of actors, each with its own copy of the network, spread over the nodes.

    `tell` gets a line when a member is lost or nothing comes back for STALL_AFTER_S.
    """

    def __init__(
        self,
        build: Callable[[], torch.nn.Module],
        *,
        num_actors: int,
        num_cpus: float,
        num_gpus: float = 0.0,
        threads: int = 1,
        tell: Callable[[str], None] = _log.warning,
    ) -> None:
        self.threads, self.tell = threads, tell
        self.has_gpus = num_gpus > 0
        member = _Member.options(  # type: ignore[attr-defined]
            num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=-1, scheduling_strategy="SPREAD"
        )
        self.actors = [member.remote(build, threads) for _ in range(num_actors)]
        self._ready: list[Any] = []
        self._starting = {actor.ping.remote(): actor for actor in self.actors}

    def wait_ready(self) -> None:
        """Block until every member has built its network; raises what its constructor raised."""
        for reference in list(self._starting):
            self._welcome(reference)

    def _welcome(self, reference: ray.ObjectRef) -> Any:
        """The member whose ping this is, which is ready now."""
        _result(reference)
        actor = self._starting.pop(reference)
        self._ready.append(actor)
        return actor

    def map(
        self,
        function: Callable[..., Any],
        units: Sequence[Any],
        *,
        weights: ray.ObjectRef | None = None,
        version: str = "",
        then: Callable[[Any], Any] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        **kwargs: Any,
    ) -> Iterator[Any]:
        """Yield function(network, unit, **kwargs) for every unit, in the order of the units.

        `weights` is a reference to a state dict, `version` its name: members load it once. With `then` yield
        then(function(...)), computed in a task with as many threads as a member. `on_progress` is told (units done,
        units in all). An InputError of either function is raised here as it is, without Ray's trace; LostWorkError for
        a unit that loses its member more than MAX_RETRIES times.
        """
        nested = [] if weights is None else [weights]
        shared = [ray.put(kwargs)]
        num_cpus = 0 if then is None else session.total_cpus()
        max_in_flight = len(self.actors) * UNITS_IN_FLIGHT_PER_ACTOR + num_cpus * TASKS_IN_FLIGHT_PER_CPU
        waiting: dict[ray.ObjectRef, tuple[int, Any]] = {}  # at members
        tasks: dict[ray.ObjectRef, tuple[int, Any]] = {}  # what follows a member
        finished: dict[int, Any] = {}
        pending = list(range(len(units)))[::-1]
        losses: Counter[int] = Counter()
        free = self._ready * UNITS_IN_FLIGHT_PER_ACTOR
        next_index = 0
        while pending or waiting or tasks:
            while pending and free and len(waiting) + len(tasks) < max_in_flight:
                index, actor = pending.pop(), free.pop(0)
                waiting[actor.run.remote(function, units[index], nested, version, shared)] = (index, actor)
            reference = self._wait([*waiting, *tasks])
            if reference in self._starting:
                free += [self._welcome(reference)] * UNITS_IN_FLIGHT_PER_ACTOR
                continue
            is_member = reference in waiting
            index, actor = (waiting if is_member else tasks).pop(reference)
            if is_member and actor in self._ready:
                free.append(actor)
            if is_member and then is not None:
                # A reference: what the member gave goes from node to node, never through this process.
                tasks[_continue.remote(then, reference, self.threads)] = (index, actor)
                continue
            try:
                finished[index] = _result(reference)
            except _LOST as error:
                losses[index] += 1
                if losses[index] > MAX_RETRIES:
                    raise LostWorkError(
                        f"a unit of work lost its process {losses[index]} times",
                        field="unit",
                        value=units[index],
                        expected=f"that it ends; the last error: {_first_line(error)}",
                    ) from None
                pending.append(index)
                free = [other for other in free if other is not actor]
                self._doubt(actor, error)
                continue
            if on_progress is not None:
                on_progress(len(units) - len(pending) - len(waiting) - len(tasks), len(units))
            while next_index in finished:
                yield finished.pop(next_index)
                next_index += 1

    def _doubt(self, actor: Any, error: Exception) -> None:
        """Give a member no unit until it answers again."""
        if actor in self._ready:
            self._ready.remove(actor)
            self._starting[actor.ping.remote()] = actor
            self.tell(f"a pool member was lost, {len(self._ready)} go on without it: {_first_line(error)}")

    def _wait(self, work: list[ray.ObjectRef]) -> ray.ObjectRef:
        """The next reference that is there: of work, or of a member that starts. Tells what is waited for."""
        patience = STALL_AFTER_S
        while True:
            done, _ = ray.wait([*work, *self._starting], timeout=patience)
            if done:
                return done[0]
            self.tell(
                f"no result of the pool for {patience:.0f} s: {len(work)} units are under way, {len(self._ready)} "
                f"members work, {len(self._starting)} wait for room to start; {session.describe()}"
            )
            patience *= 2

    def close(self) -> None:
        """End the actors."""
        for actor in self.actors:
            ray.kill(actor)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _result(reference: ray.ObjectRef) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        # Ray's wrapper is an InputError too, but its text is a traceback and it can't be pickled again.
        if isinstance(error.cause, (InputError, *_LOST)):
            raise error.cause from None
        raise
