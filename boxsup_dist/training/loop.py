"""The loop that every train worker runs: it lives as long as the run and gets the labels of each epoch by reference.

All ranks run `train_loop`. Rank 0 also owns a Coordinator, which between epochs reassigns the labels, evaluates, keeps
the history and writes the files of the run; the other ranks wait for the reference to the labels. Writes a checkpoint
after every epoch and, if `checkpoint_every_steps` is set, inside it.
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
from boxsup_dist.data.labels import Labels
from boxsup_dist.data.sources import Mixture
from boxsup_dist.distributed import notices
from boxsup_dist.errors import InputError, StoreUnavailableError
from boxsup_dist.model import checkpoint
from boxsup_dist.training.worker import EpochTotals, StateDict, TrainWorker, raise_together


class Coordinator(Protocol):
    """What rank 0 does around the epochs. Epochs count from 0 here."""

    stages_s: float  # total seconds spent in stages

    def begin(self, epoch: int, step: int, num_workers: int) -> None:
        """All workers are ready and start from this position; called at the start and after each failure."""

    def labels(self, epoch: int, weights: StateDict) -> ray.ObjectRef[Labels] | None:
        """Assign the labels of an epoch with these weights; None if no source needs an assignment."""

    def stored_labels(self, epoch: int) -> ray.ObjectRef[Labels] | None:
        """Read the labels that an interrupted epoch started with; None as `labels`."""

    def on_progress(self, epoch: int, step: int, num_steps: int, images_per_s: float) -> None:
        """Report that `step` of `num_steps` steps are done; called a few times per minute."""

    def record(self, epoch: int, metrics: dict[str, float], bad_records: dict[str, str]) -> None:
        """Keep the metrics of an epoch; called after its last step and before its checkpoint.

        `bad_records` maps image ids to problems: all records of the run so far that do not decode.
        """

    def evaluate(self, epoch: int, weights: StateDict) -> None:
        """Evaluate a finished epoch if that is due; called after its checkpoint, also when a run resumes from it."""

    def check_writer(self) -> None:
        """Check, before a checkpoint is written, that the run directory is still this run's: InputError if not."""

    def fail(self, error: InputError) -> None:
        """Report that the run ends with this error, because a restart would meet it again."""

    def close(self) -> None:
        """Release what the coordinator holds."""


def train_loop(settings: dict[str, Any]) -> None:
    """Entry point of every train worker.

    An InputError that any rank meets is raised on all ranks. Rank 0 reports it to the driver, and the loop returns: a
    restart would meet the same error. A store that is away is another matter: the error goes up, and Ray Train starts
    the workers again, up to `resources.max_failures` times.

    Args:
        settings: `config` (TrainConfig), `mixture` (Mixture) and `make_coordinator`, which is called on rank 0 only.
    """
    notices.forward()
    rank = ray.train.get_context().get_world_rank()
    coordinator: Coordinator | None = settings["make_coordinator"]() if rank == 0 else None
    try:
        _train(settings["config"], settings["mixture"], coordinator)
    except StoreUnavailableError:
        raise
    except InputError as error:
        if coordinator is not None:
            coordinator.fail(error)
    finally:
        if coordinator is not None:
            coordinator.close()


def _train(config: TrainConfig, mixture: Mixture, coordinator: Coordinator | None) -> None:
    """Train every epoch that is left after the newest checkpoint."""
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
        order = worker.order()
        watch = _Watch(worker, coordinator, labels)
        metrics = worker.train_epoch(worker.batches(order, labels), order.num_steps, watch)
        if coordinator is not None:
            if ended is not None:  # from the last step of one epoch to the first of the next, without the stages
                stages_between_s = coordinator.stages_s - stages_s
                metrics["gap_s"] = started - ended + metrics["first_batch_s"] - stages_between_s
            stages_s = coordinator.stages_s
            with worker.failing_together():
                coordinator.record(worker.epoch, metrics, worker.bad_records)
        ended = time.perf_counter()
        worker.finish_epoch()
        if coordinator is not None:
            _save(worker, coordinator, labels)
        ray.train.report(metrics)


def _start_worker(config: TrainConfig, mixture: Mixture) -> TrainWorker:
    """This rank's worker, restored from the newest checkpoint. InputError on all ranks if any rank meets one."""
    newest: str | None = None
    error: InputError | None = None
    if ray.train.get_context().get_world_rank() == 0:
        try:
            newest = checkpoint.latest(config.run_dir)
        except InputError as found:
            error = found
    newest, error = ray.train.collective.broadcast_from_rank_zero((newest, error))
    if error is not None:
        raise error
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # without it the ranks of a node would exchange objects through its first GPU
    worker = None
    try:
        worker = TrainWorker(config, mixture, resumes=newest is not None)
        worker.restore(newest)
    except InputError as found:
        error = found
    raise_together(error)
    assert worker is not None
    worker.wrap()
    return worker


def _between_epochs(worker: TrainWorker, coordinator: Coordinator | None) -> ray.ObjectRef[Labels] | None:
    """Run rank 0's stages; all ranks return the labels of the coming epoch, or raise the InputError of a stage."""
    labels: ray.ObjectRef[Labels] | None = None
    error = worker.failure
    if coordinator is not None and error is None:
        try:
            labels = _run_stages(worker, coordinator)
        except InputError as found:
            error = found
    # In a list, because Ray replaces a bare reference by its object.
    labels, error = ray.train.collective.broadcast_from_rank_zero([labels, error])
    if error is not None:
        raise error
    return labels


def _run_stages(worker: TrainWorker, coordinator: Coordinator) -> ray.ObjectRef[Labels] | None:
    """Evaluate the epoch that has ended and assign the labels of the next; inside an epoch, read its labels again."""
    if worker.step > 0:
        return coordinator.stored_labels(worker.epoch)
    if worker.epoch > 0:
        coordinator.evaluate(worker.epoch - 1, worker.weights())
    if worker.epoch == worker.config.optimizer.epochs:
        return None
    return coordinator.labels(worker.epoch, worker.assigning_weights())


class _Watch:
    """Called after each step; on rank 0 it reports progress, and saves the checkpoints that are due inside an epoch."""

    REPORT_EVERY_S = 5.0

    def __init__(
        self, worker: TrainWorker, coordinator: Coordinator | None, labels: ray.ObjectRef[Labels] | None
    ) -> None:
        self.worker, self.coordinator, self.labels = worker, coordinator, labels
        self.reported = -self.REPORT_EVERY_S  # the first step is reported at once

    def __call__(self, totals: EpochTotals, num_steps: int) -> None:
        worker, every = self.worker, self.worker.config.checkpoint_every_steps
        is_due = every > 0 and worker.step % every == 0 and worker.step < num_steps
        if is_due:
            worker.check_weights()  # on every rank, so that none waits for another one
        if self.coordinator is None:
            return
        if is_due:
            _save(worker, self.coordinator, self.labels)
        now = time.perf_counter()
        if now - self.reported >= self.REPORT_EVERY_S or worker.step == num_steps:
            self.reported = now
            self.coordinator.on_progress(worker.epoch, worker.step, num_steps, totals.metrics()["images_per_s"])


def _save(worker: TrainWorker, coordinator: Coordinator, labels: ray.ObjectRef[Labels] | None) -> None:
    """Write a checkpoint, unless rank 0 has failed already."""
    config = worker.config
    if worker.failure is not None:
        return
    state = checkpoint.CheckpointState(
        epoch=worker.epoch,
        step=worker.step,
        seed=config.seed,
        network=worker.network.spec,
        model=worker.weights(),
        training=worker.training_state(),
        labels=None if labels is None else ray.get(labels).to_parquet(),
    )
    with worker.failing_together():
        coordinator.check_writer()
        checkpoint.save(config.run_dir, state, keep_last=config.keep_checkpoints)
