"""What every train worker runs: one long-lived loop over epochs, with the labels handed over in between.

All ranks run `train_loop`. Rank 0 also owns a Coordinator, which reassigns the labels, evaluates, keeps the history and
writes what a run leaves behind; the other ranks only wait for the labels by reference.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

import ray
import ray.train
import ray.train.collective
import ray.train.torch
import torch

from boxsup_dist.config import TrainConfig
from boxsup_dist.data.sources import Mixture
from boxsup_dist.errors import InputError
from boxsup_dist.model import checkpoint
from boxsup_dist.training.worker import EpochTotals, StateDict, TrainWorker, raise_together


class Coordinator(Protocol):
    """What rank 0 does around the epochs."""

    stages_s: float  # seconds spent in its stages so far

    def begin(self, epoch: int, step: int, num_workers: int) -> None:
        """The workers are there and begin at this position, at first and after a fault."""

    def labels(self, epoch: int, weights: StateDict) -> ray.ObjectRef | None:
        """Labels for this epoch by reference, None where the supervision needs none."""

    def stored_labels(self, epoch: int) -> ray.ObjectRef | None:
        """The labels that an interrupted epoch began with."""

    def on_progress(self, epoch: int, step: int, num_steps: int, images_per_s: float) -> None:
        """Called a few times a minute."""

    def record(self, epoch: int, metrics: dict[str, float], bad_records: dict[str, str]) -> None:
        """After the last step of an epoch, before its checkpoint; bad_records are those of the run so far."""

    def evaluate(self, epoch: int, weights: StateDict) -> None:
        """After the checkpoint of a finished epoch, also when a run resumes from it; does nothing if not due."""

    def fail(self, error: Exception) -> None:
        """The run can't go on and a restart would not help."""

    def close(self) -> None:
        """Release what the coordinator holds."""


def train_loop(settings: dict[str, Any]) -> None:
    """Entry point of every train worker. `settings`: config, mixture, make_coordinator (called on rank 0 only).

    An InputError that any rank meets is raised on all of them and told to the driver: the same would happen again, so
    the run ends here instead of being restarted.
    """
    rank = ray.train.get_context().get_world_rank()
    coordinator: Coordinator | None = settings["make_coordinator"]() if rank == 0 else None
    try:
        _train(settings["config"], settings["mixture"], coordinator)
    except InputError as error:
        if coordinator is not None:
            coordinator.fail(error)
    finally:
        if coordinator is not None:
            coordinator.close()


def _train(config: TrainConfig, mixture: Mixture, coordinator: Coordinator | None) -> None:
    """Every epoch from the newest checkpoint on."""
    worker = _start_worker(config, mixture)
    if coordinator is not None:
        coordinator.begin(worker.epoch, worker.step, worker.num_workers)
    ended: float | None = None
    stages_s = 0.0
    while True:
        labels = _between_epochs(worker, coordinator)
        if worker.epoch == config.optimizer.epochs:
            return
        started = time.perf_counter()
        plan = worker.plan()
        watch = _Watch(worker, coordinator, labels)
        metrics = worker.train_epoch(worker.batches(plan, labels), plan.num_steps, watch)
        if coordinator is not None:
            if ended is not None:  # from the last step of one epoch to the first of the next, stages apart
                stages_between_s = coordinator.stages_s - stages_s
                metrics["gap_s"] = started - ended + metrics["first_batch_s"] - stages_between_s
            stages_s = coordinator.stages_s
            coordinator.record(worker.epoch, metrics, worker.bad_records)
        ended = time.perf_counter()
        worker.finish_epoch()
        if coordinator is not None:
            _save(worker, labels)
        ray.train.report(metrics)


def _start_worker(config: TrainConfig, mixture: Mixture) -> TrainWorker:
    """This rank's worker at the newest checkpoint. Raises InputError, on all ranks, if any can't be had."""
    newest = checkpoint.latest(config.run_dir) if ray.train.get_context().get_world_rank() == 0 else None
    newest = ray.train.collective.broadcast_from_rank_zero(newest)
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # else the ranks of a node would exchange objects through its first GPU
    worker, error = None, None
    try:
        worker = TrainWorker(config, mixture)
        worker.restore(newest)
    except InputError as found:
        error = found
    raise_together(error)
    assert worker is not None
    worker.wrap()
    return worker


def _between_epochs(worker: TrainWorker, coordinator: Coordinator | None) -> ray.ObjectRef | None:
    """Rank 0's stages; gives the labels of the coming epoch, or the InputError that a stage met, to all ranks."""
    labels, error = None, None
    if coordinator is not None:
        try:
            labels = _run_stages(worker, coordinator)
        except InputError as found:
            error = found
    # A bare reference would be dereferenced on the way: inside a list it stays one.
    labels, error = ray.train.collective.broadcast_from_rank_zero([labels, error])
    if error is not None:
        raise error
    return labels


def _run_stages(worker: TrainWorker, coordinator: Coordinator) -> ray.ObjectRef | None:
    if worker.step > 0:
        return coordinator.stored_labels(worker.epoch)
    if worker.epoch > 0:
        coordinator.evaluate(worker.epoch - 1, worker.weights())
    if worker.epoch == worker.config.optimizer.epochs:
        return None
    return coordinator.labels(worker.epoch, worker.assigning_weights())


class _Watch:
    """After each step, on rank 0: progress now and then, and checkpoints inside the epoch where the settings say so."""

    REPORT_EVERY_S = 5.0

    def __init__(self, worker: TrainWorker, coordinator: Coordinator | None, labels: ray.ObjectRef | None) -> None:
        self.worker, self.coordinator, self.labels = worker, coordinator, labels
        self.reported = time.perf_counter()

    def __call__(self, totals: EpochTotals, num_steps: int) -> None:
        if self.coordinator is None:
            return
        worker, every = self.worker, self.worker.config.checkpoint_every_steps
        if every and worker.step % every == 0 and worker.step < num_steps:
            _save(worker, self.labels)
        now = time.perf_counter()
        if now - self.reported >= self.REPORT_EVERY_S or worker.step == num_steps:
            self.reported = now
            self.coordinator.on_progress(worker.epoch, worker.step, num_steps, totals.metrics()["images_per_s"])


def _save(worker: TrainWorker, labels: ray.ObjectRef | None) -> None:
    config = worker.config
    checkpoint.save(
        config.run_dir,
        checkpoint.CheckpointState(
            epoch=worker.epoch,
            step=worker.step,
            seed=config.seed,
            network=worker.network.spec,
            model=worker.weights(),
            training=worker.training_state(),
            labels=None if labels is None else ray.get(labels).to_parquet(),
        ),
        keep_last=config.keep_checkpoints,
    )
