"""Processes of a run and what each may use: as the user set them, and fitted to one cluster."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from boxsup_dist.config.checks import check_range
from boxsup_dist.errors import SettingError

CPUS_PER_PROCESS, CPUS_PER_GPU_PROCESS = 0.25, 1.0  # reserved where nothing is set and the cluster has room
MAX_CPU_WORKERS = 4  # where num_workers is not set


@dataclass(frozen=True)
class ResourceSettings:
    """How many processes a run has, and what each may use. What is not set is fitted to the cluster."""

    num_workers: int | None = None
    """Train workers (data parallel). Not set: one per GPU; without GPUs one per CPU core, at most 4."""
    min_workers: int = 0
    """Continue with fewer workers, but at least this many, when a node is lost and none replaces it. 0: wait for a
    node. Batches and labels stay the same."""
    cpus_per_worker: float | None = None
    """CPUs that Ray reserves for a train worker. Not set: 1 on a GPU, else 0.25, less on small machines, because data
    tasks need the rest."""
    gpus_per_worker: float | None = None
    """GPU share of a train worker. Not set: half a GPU (the actors get the other half), or what gpus_per_actor leaves.
    0: train on the CPU."""
    threads_per_worker: int = 1
    """Torch threads of a train worker."""
    num_actors: int | None = None
    """Members of the pool that reassigns labels and evaluates. Not set: one per GPU, without GPUs one per CPU core."""
    cpus_per_actor: float | None = None
    """CPUs that Ray reserves for an actor. Not set: as for cpus_per_worker."""
    gpus_per_actor: float | None = None
    """GPU share of an actor. Not set: what gpus_per_worker leaves of a GPU; workers and actors never compute at the
    same time. 0: reassign and evaluate on the CPU."""
    threads_per_actor: int = 1
    """Torch threads of an actor. Sums differ in their last digits with it, so it is not fitted to the machine."""
    stream_tasks_per_worker: int = 2
    """Data tasks that work at the same time for one train worker."""
    max_failures: int = 3
    """How often a lost train worker is replaced before the run stops."""

    def resolve(self, num_cpus: int, num_gpus: int) -> Resources:
        """Fill in what is not set for a cluster of this size. What is set stays.

        A GPU is shared by one worker and the actors. Where nothing is set, workers and actors together reserve at most
        half of the CPUs and leave the others to the data tasks.

        Raises:
            SettingError: A set GPU share leaves nothing for the share that is not set.
        """
        train_gpus = 0 if self.gpus_per_worker == 0 else num_gpus
        pool_gpus = 0 if self.gpus_per_actor == 0 else num_gpus
        num_workers = train_gpus or min(num_cpus, MAX_CPU_WORKERS) if self.num_workers is None else self.num_workers
        num_actors = pool_gpus or num_cpus if self.num_actors is None else self.num_actors
        filled = {
            "num_workers": num_workers,
            "num_actors": num_actors,
            **self._gpu_shares(num_actors, num_gpus),
            **self._cpu_shares(num_workers, num_actors, num_cpus, train_gpus, pool_gpus),
        }
        return Resources(**{**filled, **{name: value for name, value in asdict(self).items() if value is not None}})

    def _gpu_shares(self, num_actors: int, num_gpus: int) -> dict[str, float]:
        """Shares for what is not set: a GPU holds one worker and its part of the actors."""
        if num_gpus == 0:
            return {"gpus_per_worker": 0.0, "gpus_per_actor": 0.0}
        actors_per_gpu = math.ceil(num_actors / num_gpus)
        actor, worker = self.gpus_per_actor, self.gpus_per_worker
        if worker is None:
            worker = 0.5 if actor is None else _rounded_down(1 - actors_per_gpu * actor)
            expected = "a share that leaves part of each GPU to a worker; or set resources.gpus_per_worker too (0: CPU)"
            check_range(worker > 0, "resources.gpus_per_actor", actor, expected)
        if actor is None:
            actor = _rounded_down((1 - worker) / actors_per_gpu)
            expected = "a share that leaves part of each GPU to an actor; or set resources.gpus_per_actor too (0: CPU)"
            check_range(actor > 0, "resources.gpus_per_worker", worker, expected)
        return {"gpus_per_worker": worker, "gpus_per_actor": actor}

    def _cpu_shares(
        self, num_workers: int, num_actors: int, num_cpus: int, train_gpus: int, pool_gpus: int
    ) -> dict[str, float]:
        """Shares for what is not set: half of the CPUs in equal parts, but no more than a process needs.

        If the user set the number of processes, each gets at least CPUS_PER_PROCESS; `check_room` refuses the run where
        the machine is too small for that.
        """
        worker, actor = self.cpus_per_worker, self.cpus_per_actor
        free = num_cpus / 2 - num_workers * (worker or 0) - num_actors * (actor or 0)
        part = _rounded_down(free / max(num_workers * (worker is None) + num_actors * (actor is None), 1))

        def share(on_gpu: int, number: int | None) -> float:
            least = 0.01 if number is None else CPUS_PER_PROCESS
            return max(min(CPUS_PER_GPU_PROCESS if on_gpu else CPUS_PER_PROCESS, part), least)

        return {
            "cpus_per_worker": share(train_gpus, self.num_workers),
            "cpus_per_actor": share(pool_gpus, self.num_actors),
        }

    def check(self) -> None:
        """Check the values that are set.

        Raises:
            SettingError: A value is out of range.
        """
        for names, least in (
            (("num_workers", "num_actors", "threads_per_worker", "threads_per_actor", "stream_tasks_per_worker"), 1),
            (("cpus_per_worker", "gpus_per_worker", "cpus_per_actor", "gpus_per_actor"), 0),
            (("min_workers", "max_failures"), 0),
        ):
            for name in names:
                value = getattr(self, name)
                check_range(value is None or value >= least, f"resources.{name}", value, f">= {least}")


def _rounded_down(value: float) -> float:
    """Round down to 0.0001, Ray's smallest unit: rounded up, the sum of the shares might not fit."""
    return math.floor(1e4 * value + 1e-6) / 1e4


@dataclass(frozen=True, kw_only=True)
class Resources(ResourceSettings):
    """Resources of a run on one cluster, made by ResourceSettings.resolve: every value is set."""

    num_workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    num_actors: int
    cpus_per_actor: float
    gpus_per_actor: float

    def check_room(self, num_cpus: int, num_gpus: int, *, with_training: bool = True) -> None:
        """Check that the cluster has room for all processes at once. Without the check Ray would wait forever.

        Args:
            num_cpus: CPUs of the cluster. A training leaves one of them to its data tasks.
            num_gpus: GPUs of the cluster. NCCL, which adds up the gradients, takes one worker per GPU.
            with_training: False counts the actors only.

        Raises:
            SettingError: The processes reserve more than there is.
        """
        workers = self.num_workers if with_training else 0
        if with_training:
            expected = f"<= resources.num_workers = {workers}"
            check_range(self.min_workers <= workers, "resources.min_workers", self.min_workers, expected)
        if workers > num_gpus > 0 and self.gpus_per_worker > 0:
            raise SettingError(
                "two train workers cannot share a GPU",
                field="resources.num_workers",
                value=workers,
                expected=f"<= {num_gpus}, one per GPU, or resources.gpus_per_worker 0 to train on the CPU",
            )
        for kind, available in (("cpus", num_cpus - with_training), ("gpus", num_gpus)):
            per_worker, per_actor = getattr(self, f"{kind}_per_worker"), getattr(self, f"{kind}_per_actor")
            reserved = workers * per_worker + self.num_actors * per_actor
            if reserved > available + 1e-6:
                raise SettingError(
                    f"workers and actors reserve more {kind} than the cluster has for them",
                    field=f"resources.{kind}_per_worker, resources.{kind}_per_actor",
                    value=f"{workers} x {per_worker} + {self.num_actors} x {per_actor} = {reserved:g} {kind}",
                    expected=f"<= {available}: set a smaller resources.num_workers, resources.num_actors or share",
                )
