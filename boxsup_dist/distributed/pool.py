"""The actor pool: runs a pure function with a network over fixed units of work, on all nodes.

Results depend on the units and the weights only, never on the number of actors: each member has the same fixed number
of threads, units are never split or merged, and results come back in the order of the units. A member that dies is
started again by Ray and its units are run again, up to MAX_RETRIES times: a unit that kills its member every time must
not keep the run busy for ever.

What follows the network and needs no GPU, such as a CRF, can run in plain tasks on any CPU of the cluster (`then`)
while the members predict the next units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
import torch
from ray.exceptions import RayTaskError

from boxsup_dist.distributed.shared import fetch
from boxsup_dist.errors import InputError

UNITS_IN_FLIGHT_PER_ACTOR = 2  # one computes, one waits in its queue
TASKS_IN_FLIGHT_PER_CPU = 2  # of `then`; bounds what members may hand over before it is taken
MAX_RETRIES = 3


@ray.remote
class _Member:
    def __init__(self, build: Callable[[], torch.nn.Module], threads: int) -> None:
        torch.set_num_threads(threads)
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

    def ping(self) -> None:
        """Answer when the constructor is done."""


@ray.remote(num_cpus=1, max_retries=MAX_RETRIES)
def _continue(then: Callable[[Any], Any], result: Any, threads: int) -> Any:
    torch.set_num_threads(threads)
    return then(result)


class NetworkPool:
    """A fixed number of actors, each with its own copy of the network."""

    def __init__(
        self,
        build: Callable[[], torch.nn.Module],
        *,
        num_actors: int,
        num_cpus: float,
        num_gpus: float = 0.0,
        threads: int = 1,
    ) -> None:
        options = {"num_cpus": num_cpus, "num_gpus": num_gpus, "max_restarts": -1}
        options["max_task_retries"] = MAX_RETRIES
        self.threads = threads
        self.has_gpus = num_gpus > 0
        self.actors = [_Member.options(**options).remote(build, threads) for _ in range(num_actors)]  # type: ignore[attr-defined]

    def wait_ready(self) -> None:
        """Block until every member has built its network; raises what its constructor raised."""
        ray.get([actor.ping.remote() for actor in self.actors])

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
        units in all). An InputError of either function is raised here as it is, without Ray's trace.
        """
        nested = [] if weights is None else [weights]
        shared = [ray.put(kwargs)]
        num_cpus = 0 if then is None else max(1, int(ray.cluster_resources().get("CPU", 1)))
        max_in_flight = len(self.actors) * UNITS_IN_FLIGHT_PER_ACTOR + num_cpus * TASKS_IN_FLIGHT_PER_CPU
        waiting: dict[ray.ObjectRef, tuple[int, Any]] = {}
        tasks: dict[ray.ObjectRef, int] = {}
        finished: dict[int, Any] = {}
        pending = list(enumerate(units))[::-1]
        free = list(self.actors) * UNITS_IN_FLIGHT_PER_ACTOR
        next_index = 0
        while pending or waiting or tasks:
            while pending and free and len(waiting) + len(tasks) < max_in_flight:
                index, unit = pending.pop()
                actor = free.pop(0)
                waiting[actor.run.remote(function, unit, nested, version, shared)] = (index, actor)
            done, _ = ray.wait([*waiting, *tasks], num_returns=1)
            if done[0] in waiting:
                index, actor = waiting.pop(done[0])
                free.append(actor)
                if then is not None:
                    # A reference: what the member gave goes from node to node, never through this process.
                    tasks[_continue.remote(then, done[0], self.threads)] = index
                    continue
            else:
                index = tasks.pop(done[0])
            finished[index] = _result(done[0])
            if on_progress is not None:
                on_progress(len(units) - len(pending) - len(waiting) - len(tasks), len(units))
            while next_index in finished:
                yield finished.pop(next_index)
                next_index += 1

    def close(self) -> None:
        """End the actors."""
        for actor in self.actors:
            ray.kill(actor)


def _result(reference: ray.ObjectRef) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        # Ray's wrapper is an InputError too, but its text is a traceback and it can't be pickled again.
        if isinstance(error.cause, InputError):
            raise error.cause from None
        raise
