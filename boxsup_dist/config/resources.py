"""Processes of a run and what each may use: as the user set them, and fitted to one cluster."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from boxsup_dist.config.checks import check_range
from boxsup_dist.config.packing import Node, Share, can_fill, describe, num_placed
from boxsup_dist.errors import SettingError

CPUS_PER_PROCESS, CPUS_PER_GPU_PROCESS = 0.25, 1.0  # reserved where nothing is set and the cluster has room
MAX_CPU_WORKERS = 4  # of a node, where num_workers is not set: each holds the network and its gradients
GPU_OF_WORKER = 0.6  # above a half: Ray would place two workers of half a GPU on one GPU, which NCCL refuses


@dataclass(frozen=True)
class ResourceSettings:
    """How many processes a run has, and what each may use. What is not set is fitted to the cluster."""

    num_workers: int | None = None
    """Train workers (data parallel). Not set: one per GPU; without GPUs one per CPU core, at most 4 per
    node. Never more than optimizer.global_batch_size."""
    min_workers: int = 0
    """Start and continue with fewer workers, but at least this many, where the cluster lacks room for num_workers; grow
    when nodes come. 0: wait for a node. Batches and labels stay the same."""
    cpus_per_worker: float | None = None
    """CPUs that Ray reserves for a train worker. Not set: 1 on a GPU, else 0.25, less on small machines, because data
    tasks need the rest."""
    gpus_per_worker: float | None = None
    """GPU share of a train worker. Not set: 0.6 (the actors get the rest), or what gpus_per_actor leaves. With several
    workers above 0.5, so that no two share a GPU. 0: train on the CPU."""
    threads_per_worker: int = 1
    """Torch threads of a train worker."""
    num_actors: int | None = None
    """Members of the pool that reassigns labels and evaluates. Not set: one per GPU, without GPUs one per CPU core."""
    cpus_per_actor: float | None = None
    """CPUs that Ray reserves for an actor. Not set: as for cpus_per_worker."""
    gpus_per_actor: float | None = None
    """GPU share of an actor. Not set: what gpus_per_worker leaves of a GPU. 0: reassign and evaluate on the CPU."""
    threads_per_actor: int = 1
    """Torch threads of an actor. Sums differ in their last digits with it, so it is not fitted to the machine."""
    evaluate_beside: bool | None = None
    """Evaluate and measure label maps while the next epoch trains. The numbers are the same. Not set: yes, unless
    workers and actors share GPUs, whose memory then has to hold what both compute with."""
    stream_tasks_per_worker: int = 2
    """Data tasks that work at the same time for one train worker."""
    compile: bool = False
    """Compile the network of the train workers by torch.compile: faster steps on a GPU after a first step of minutes.
    Losses differ in their last digits with it. Needs a C++ compiler on every node."""
    max_failures: int = 3
    """How often a lost train worker is replaced before the run stops."""

    def resolve(self, nodes: Sequence[Node], max_workers: int | None = None) -> Resources:
        """Fill in what is not set for a cluster of these nodes. What is set stays.

        A GPU is shared by one worker and the actors. Where nothing is set, workers and actors together reserve at most
        half of the CPUs and leave the others to the data tasks.

        Args:
            nodes: The nodes of the cluster.
            max_workers: Most train workers where num_workers is not set: the images of a global batch.

        Raises:
            SettingError: A set GPU share leaves nothing for the share that is not set.
        """
        num_cpus, num_gpus = sum(int(node.cpus) for node in nodes), sum(node.gpus for node in nodes)
        train_gpus = 0 if self.gpus_per_worker == 0 else num_gpus
        pool_gpus = 0 if self.gpus_per_actor == 0 else num_gpus
        num_workers = self.num_workers
        if num_workers is None:
            on_cpus = max(sum(min(int(node.cpus), MAX_CPU_WORKERS) for node in nodes), 1)
            num_workers = min(train_gpus or on_cpus, max_workers or on_cpus + train_gpus)
        num_actors = pool_gpus or max(num_cpus, 1) if self.num_actors is None else self.num_actors
        filled: dict[str, Any] = {
            "num_workers": num_workers,
            "num_actors": num_actors,
            **self._gpu_shares(num_workers, num_actors, num_gpus),
            **self._cpu_shares(num_workers, num_actors, nodes),
        }
        filled |= {name: value for name, value in asdict(self).items() if value is not None}
        worker, actor = filled["gpus_per_worker"], filled["gpus_per_actor"]
        return Resources(**{"evaluate_beside": not (worker and actor and worker + actor <= 1), **filled})

    def _gpu_shares(self, num_workers: int, num_actors: int, num_gpus: int) -> dict[str, float]:
        """Shares for what is not set: a GPU holds one worker and its part of the actors."""
        if num_gpus == 0:
            return {"gpus_per_worker": 0.0, "gpus_per_actor": 0.0}
        actors_per_gpu = math.ceil(num_actors / num_gpus)
        actor, worker = self.gpus_per_actor, self.gpus_per_worker
        if worker is None:
            worker = GPU_OF_WORKER if actor is None else _rounded_down(1 - actors_per_gpu * actor)
            least = 0.5 if num_workers > 1 else 0.0
            expected = f"a share that leaves more than {least:g} of each GPU to a worker ({actors_per_gpu} actors per "
            expected += "GPU); or set resources.gpus_per_worker too (0: CPU)"
            check_range(worker > least, "resources.gpus_per_actor", actor, expected)
        if actor is None:
            actor = _rounded_down((1 - worker) / actors_per_gpu)
            expected = "a share that leaves part of each GPU to an actor; or set resources.gpus_per_actor too (0: CPU)"
            check_range(actor > 0, "resources.gpus_per_worker", worker, expected)
        return {"gpus_per_worker": worker, "gpus_per_actor": actor}

    def _cpu_shares(self, num_workers: int, num_actors: int, nodes: Sequence[Node]) -> dict[str, float]:
        """Shares for what is not set: half of the CPUs in equal parts, but no more than a process needs.

        If the user set the number of processes, each gets at least CPUS_PER_PROCESS; `check_room` refuses the run where
        the machine is too small for that.
        """
        worker, actor = self.cpus_per_worker, self.cpus_per_actor
        num_gpus = sum(node.gpus for node in nodes)
        worker_on_gpu, actor_on_gpu = (
            num_gpus > 0 and share != 0 for share in (self.gpus_per_worker, self.gpus_per_actor)
        )
        # (CPUs, workers and actors that may have to share them). The whole cluster: with fewer CPUs than this in use,
        # some node has a whole one for a data task, wherever Ray places the processes.
        spare = sum(max(node.cpus - 1, 0.0) for node in nodes)
        groups = [(min(sum(node.cpus for node in nodes) / 2, spare), num_workers, num_actors)]
        if worker_on_gpu or actor_on_gpu:
            per_gpu = math.ceil(num_actors / num_gpus)
            groups += [
                (
                    node.cpus / 2,
                    min(num_workers, node.gpus) if worker_on_gpu else num_workers,
                    min(num_actors, node.gpus * per_gpu) if actor_on_gpu else num_actors,
                )
                for node in set(nodes)
                if node.gpus
            ]
        part = min(
            (cpus - workers * (worker or 0) - actors * (actor or 0))
            / max(workers * (worker is None) + actors * (actor is None), 1)
            for cpus, workers, actors in groups
        )

        def share(on_gpu: bool, number: int | None) -> float:
            least = 0.01 if number is None else CPUS_PER_PROCESS
            return max(min(CPUS_PER_GPU_PROCESS if on_gpu else CPUS_PER_PROCESS, _rounded_down(part)), least)

        return {
            "cpus_per_worker": share(worker_on_gpu, self.num_workers),
            "cpus_per_actor": share(actor_on_gpu, self.num_actors),
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
                check_range(value is None or least <= value < math.inf, f"resources.{name}", value, f">= {least}")
        for name in ("gpus_per_worker", "gpus_per_actor"):
            value = getattr(self, name)
            check_range(value is None or value <= 1, f"resources.{name}", value, "<= 1: a process uses one GPU")


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
    evaluate_beside: bool = True

    def check_room(self, nodes: Sequence[Node], *, with_training: bool = True) -> None:
        """Check that the nodes have room for all processes at once. Without the check Ray would wait forever.

        Args:
            nodes: The nodes of the cluster. A training leaves a CPU of one of them to its data tasks.
            with_training: False counts the actors only.

        Raises:
            SettingError: A process may wait forever for a node with room.
        """
        worker = Share(self.cpus_per_worker, self.gpus_per_worker)
        actor = Share(self.cpus_per_actor, self.gpus_per_actor)
        workers = self._num_starting(nodes) if with_training else 0
        if with_training:
            expected = f"<= resources.num_workers = {self.num_workers}"
            check_range(self.min_workers <= self.num_workers, "resources.min_workers", self.min_workers, expected)
            self._check_own_gpus(nodes)
        before = f", and {workers} train workers reserve {worker} each" if workers else ""
        for name, share, count, placed in (
            ("train worker", worker, workers, (0, worker)),
            ("actor", actor, self.num_actors, (workers, worker)),
        ):
            number = num_placed(nodes, share, count, placed) + 1
            if number <= count:
                short = name.removeprefix("train ")
                raise SettingError(
                    f"{name} {number} of {count} may wait forever for a node with room",
                    field=f"resources.cpus_per_{short}" + (f", resources.gpus_per_{short}" if share.gpus else ""),
                    value=f"{share}",
                    expected=f"less: the nodes are {describe(nodes)}{before if name == 'actor' else ''}. Set a smaller "
                    f"resources.num_{short}s or share",
                )
        if with_training and can_fill(nodes, Share(1.0), (workers, worker), (self.num_actors, actor)):
            raise SettingError(
                "workers and actors may leave no node with a whole CPU for the data tasks",
                field="resources.cpus_per_worker, resources.cpus_per_actor",
                value=f"{workers} x {self.cpus_per_worker} + {self.num_actors} x {self.cpus_per_actor} CPUs",
                expected=f"less: the nodes are {describe(nodes)}. Set a smaller resources.num_workers, "
                "resources.num_actors or share",
            )

    def _num_starting(self, nodes: Sequence[Node]) -> int:
        """Train workers that start on these nodes: with `min_workers` as many as have room, else all."""
        worker = Share(self.cpus_per_worker, self.gpus_per_worker)
        if self.min_workers == 0:
            return self.num_workers
        return max(self.min_workers, num_placed(nodes, worker, self.num_workers, (0, worker)))

    def _check_own_gpus(self, nodes: Sequence[Node]) -> None:
        """NCCL, which adds up the gradients, takes one worker per GPU."""
        num_gpus = sum(node.gpus for node in nodes)
        if num_gpus == 0 or self.gpus_per_worker == 0 or self.num_workers == 1:
            return
        problem = "two train workers cannot share a GPU"
        if self._num_starting(nodes) > num_gpus:
            raise SettingError(
                problem,
                field="resources.num_workers",
                value=self.num_workers,
                expected=f"<= {num_gpus}, one per GPU, or resources.gpus_per_worker 0 to train on the CPU",
            )
        expected = "above 0.5, or 0 to train on the CPU: Ray places two smaller shares on one GPU"
        if self.gpus_per_worker <= 0.5:
            raise SettingError(
                problem, field="resources.gpus_per_worker", value=self.gpus_per_worker, expected=expected
            )
