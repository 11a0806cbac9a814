"""What jobs.bench.scale measured on one machine, told for clusters of other sizes: plain arithmetic, no measurement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FORWARDS_OF_A_STEP = 3  # a backward pass takes about two forward passes
BUSY_CPUS_A_GPU = 2  # its train worker and its actor; the others are for data tasks


@dataclass(frozen=True)
class Costs:
    """Seconds an image of each part of the work."""

    ingest: float
    """Core seconds of storing records and proposals; any core may do it."""
    open: float
    """In the job alone: manifests, images that two tables share, class weights; once a run."""
    stream: float
    """Core seconds of the data tasks; any core may do it."""
    feed: float
    """Of a train worker that takes its batches; every GPU has one."""
    choose: float
    """Of an actor that reads, scores and chooses, the stand-in network included; every GPU has one."""
    dispatch: float
    """In the one process that hands units to the actors and takes their labels."""
    handover: float
    """In that process: join, write, publish and summarise the labels."""


@dataclass(frozen=True)
class Cluster:
    """GPUs of one kind, each with its CPU cores."""

    gpus: int
    cpus_per_gpu: int
    images_per_s: float  # training steps of one GPU

    @property
    def data_cpus(self) -> int:
        """Cores for data tasks; one at least."""
        return self.gpus * max(self.cpus_per_gpu - BUSY_CPUS_A_GPU, 1)


def epoch_terms(costs: Costs, num_images: int, cluster: Cluster) -> dict[str, float]:
    """Seconds of an epoch that each part needs if nothing else holds it up."""
    share = num_images / cluster.gpus
    step = share / cluster.images_per_s
    return {
        "GPU steps": step,
        "data tasks": num_images * costs.stream / cluster.data_cpus,
        "feeding a GPU": share * costs.feed,
        "GPU forward": step / FORWARDS_OF_A_STEP,
        "choosing": share * costs.choose,
        "dispatch": num_images * costs.dispatch,
        "hand-over": num_images * costs.handover,
    }


def extrapolate(costs: Costs, num_images: int, cluster: Cluster) -> dict[str, Any]:
    """Seconds of every part, of a whole epoch, and the part that holds the epoch up most.

    Training takes as long as the slowest of steps, data tasks and feeding, which overlap; reassignment as an actor's
    forward passes and choices, or the dispatch if that is slower; the hand-over comes after it.
    """
    terms = epoch_terms(costs, num_images, cluster)
    train = max(terms["GPU steps"], terms["data tasks"], terms["feeding a GPU"])
    reassign = max(terms["GPU forward"] + terms["choosing"], terms["dispatch"])
    epoch = train + reassign + terms["hand-over"]
    return {
        "gpus": cluster.gpus,
        "ingest": num_images * costs.ingest / (cluster.gpus * cluster.cpus_per_gpu),
        "open": num_images * costs.open,
        **terms,
        "epoch": epoch,
        "GPU busy": (terms["GPU steps"] + terms["GPU forward"]) / epoch,
        "bottleneck": max(terms, key=lambda name: terms[name]),
    }
