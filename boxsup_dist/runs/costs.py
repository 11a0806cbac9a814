"""The one cost model: how long an epoch takes on a cluster, from seconds per image of each part of the work.

jobs.plan fills it with rates of jobs.calibrate, jobs.bench scale with what it measured, and jobs.reproduce --dry-run
with finished runs.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from boxsup_dist.io import storage
from boxsup_dist.runs.summary import read_summary

FORWARDS_PER_STEP = 3  # a backward pass takes about two forward passes
BUSY_CPUS_PER_GPU = 2  # of its train worker and its actor; the others are for data tasks


@dataclass(frozen=True)
class Costs:
    """Seconds per image of each part of the work; 0: the part is not counted."""

    step: float
    """A training step of a worker whose batches are ready."""
    stream: float
    """Data tasks, in core seconds: read, decode, paint and augment."""
    choose: float
    """An actor that reads, scores and chooses; with the network's forward pass unless `forward` has it."""
    forward: float = 0.0
    """Forward pass of an actor."""
    choose_tasks: float = 0.0
    """Tasks that follow the actors on any core and take the choice from them, in core seconds."""
    feed: float = 0.0
    """A train worker that takes its batches."""
    dispatch: float = 0.0
    """The one process that hands units to the actors and takes what they report of their labels."""
    handover: float = 0.0
    """The same process around the reassignment: open the labels before, publish and summarise the new ones."""
    ingest: float = 0.0
    """Making the tables, in core seconds; once."""
    open: float = 0.0
    """Opening the tables, in one process: manifests, images that two tables share, class weights; once per run."""


@dataclass(frozen=True)
class Capacity:
    """What the cluster runs at the same time."""

    workers: float
    actors: float
    data_cores: float
    """Cores that data tasks use."""
    cores: float
    """All cores."""
    threads_per_worker: int = 1
    """Cores that a worker keeps busy while it trains."""


@dataclass(frozen=True)
class Epoch:
    """Seconds of an epoch."""

    parts: dict[str, float]
    """Seconds of each part if it never waits for another part."""
    train: float
    """The slowest of the parts that overlap: steps, data tasks, the cores that they share, and feeding."""
    reassign: float
    """Forward passes and choosing of the actors; the tasks that follow them or the dispatch if one is slower."""

    @property
    def seconds(self) -> float:
        """Training, reassignment and the hand-over after it."""
        return self.train + self.reassign + self.parts["hand-over"]

    @property
    def bottleneck(self) -> str:
        """The part that takes longest."""
        return max(self.parts, key=lambda name: self.parts[name])


def epoch_of(costs: Costs, capacity: Capacity, num_images: int) -> Epoch:
    """Seconds of an epoch of `num_images` images."""
    shared_s = capacity.threads_per_worker * costs.step + costs.stream
    per_image = {
        "steps": costs.step / capacity.workers,
        "data tasks": costs.stream / capacity.data_cores,
        "shared cores": shared_s / capacity.cores,
        "feeding": costs.feed / capacity.workers,
        "forward": costs.forward / capacity.actors,
        "choosing": costs.choose / capacity.actors,
        "choosing in tasks": costs.choose_tasks / capacity.data_cores,
        "dispatch": costs.dispatch,
        "hand-over": costs.handover,
    }
    parts = {name: num_images * seconds for name, seconds in per_image.items()}
    train = max(parts[name] for name in ("steps", "data tasks", "shared cores", "feeding"))
    actors = parts["forward"] + parts["choosing"]
    return Epoch(parts, train, max(actors, parts["choosing in tasks"], parts["dispatch"]))


def on_gpus(costs: Costs, num_images: int, num_gpus: int, cpus_per_gpu: int) -> dict[str, Any]:
    """Seconds on a cluster with one worker and one actor per GPU.

    Returns:
        Seconds of ingest and open, of each part of an epoch and of the epoch; the share of an epoch in which a GPU
        computes; the name of the part that takes longest.
    """
    cores = num_gpus * cpus_per_gpu
    data_cores = num_gpus * max(cpus_per_gpu - BUSY_CPUS_PER_GPU, 1)
    epoch = epoch_of(costs, Capacity(num_gpus, num_gpus, data_cores, cores), num_images)
    return {
        "gpus": num_gpus,
        "ingest": num_images * costs.ingest / cores,
        "open": num_images * costs.open,
        **epoch.parts,
        "epoch": epoch.seconds,
        "GPU busy": (epoch.parts["steps"] + epoch.parts["forward"]) / epoch.seconds,
        "bottleneck": epoch.bottleneck,
    }


@dataclass(frozen=True)
class RunCosts:
    """Time and storage of finished runs, all stages together, on the cluster that they ran on; None without any."""

    seconds_per_image: float | None
    """Median, per image and epoch."""
    bytes_per_run: float | None
    """Median storage of a run directory."""

    @classmethod
    def of(cls, run_dirs: Sequence[str]) -> RunCosts:
        """Costs of finished run directories."""
        seconds, sizes = [], []
        for run_dir in run_dirs:
            summary = read_summary(run_dir)
            spent = summary["seconds"]
            # "all" counts from the last start only; of a run that was continued, its stages say more.
            whole = max(spent["all"], sum(value for name, value in spent.items() if name != "all"))
            seconds.append(whole / (summary["epochs"] * max(summary["num_images"], 1)))
            sizes.append(storage.size(run_dir))
        return cls(statistics.median(seconds) if seconds else None, statistics.median(sizes) if sizes else None)

    def hours(self, image_epochs: int) -> float | None:
        """Hours of runs over `image_epochs` images, each counted once per epoch; None without finished runs."""
        return None if self.seconds_per_image is None else image_epochs * self.seconds_per_image / 3600

    def gigabytes(self, num_runs: int) -> float | None:
        """Storage of `num_runs` run directories in GB; None without finished runs."""
        return None if self.bytes_per_run is None else num_runs * self.bytes_per_run / 1e9
