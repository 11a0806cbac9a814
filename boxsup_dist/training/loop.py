"""The loop that every train worker runs: it lives as long as the run and gets the labels of each epoch by reference.

All ranks run `train_loop`. Rank 0 also owns a Coordinator, which between epochs reassigns the labels, starts evaluation
and measurement beside the next epoch, keeps the history and writes the files of the run; the other ranks wait for the
reference to the labels.

Checkpoints are written in the background (`saving.py`): after every epoch, and inside it every `checkpoint_every_steps`
steps, every `checkpoint_every_s` seconds, and before the training stops because it is asked to or loses a node. What is
written when, so that a run that is killed at any point continues to the same bits:

1. the labels of epoch n, before its first step;
2. checkpoints inside epoch n, while its steps go on, each whole before the next begins;
3. the history of epoch n, after its last step;
4. the checkpoint of epoch n, whole before anything of epoch n + 1 is made: its labels come from the weights that a
   killed run continues with;
5. what is evaluated of epoch n, beside epoch n + 1. The checkpoint of epoch n is kept until then: a killed run
   evaluates it when it continues.

A kill in 2 to 4 leaves the newest whole checkpoint of epoch n or n - 1, and the labels that belong to it.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import ray
import ray.train
import ray.train.collective
import ray.train.torch
import torch

from boxsup_dist.config import TrainConfig
from boxsup_dist.data.labels import LabelsTable
from boxsup_dist.data.sources import Mixture
from boxsup_dist.distributed import notices, ray_internals
from boxsup_dist.distributed.stopping import Cause, StopListener, StopRequest
from boxsup_dist.errors import InputError, StoreUnavailableError
from boxsup_dist.model import checkpoint
from boxsup_dist.training.saving import Saver
from boxsup_dist.training.worker import GO_ON, SAVE, STOP, EpochTotals, StateDict, TrainWorker, raise_together


class Coordinator(Protocol):
    """What rank 0 does around the epochs. Epochs count from 0 here."""

    @property
    def stages_s(self) -> float:
        """Total seconds that the training has waited for stages."""

    def begin(self, epoch: int, step: int, num_workers: int) -> None:
        """All workers are ready and start from this position; called at the start and after each failure."""

    def labels(self, epoch: int, weights: StateDict) -> ray.ObjectRef[LabelsTable] | None:
        """Assign the labels of an epoch with these weights; None if no source needs an assignment."""

    def stored_labels(self, epoch: int) -> ray.ObjectRef[LabelsTable] | None:
        """Read the labels that an interrupted epoch started with; None as `labels`."""

    def spending(self, activity: str) -> AbstractContextManager[None]:
        """Account for the time of the block, in which the training waits, as time of this activity."""

    def on_step(self, epoch: int, step: int, waited_s: float) -> None:
        """`step` steps of the epoch are done; the last one waited so long for its batch."""

    def on_progress(self, epoch: int, step: int, num_steps: int, images_per_s: float) -> None:
        """Report that `step` of `num_steps` steps are done; called a few times per minute."""

    def record(self, epoch: int, metrics: dict[str, float], bad_records: dict[str, str]) -> None:
        """Keep the metrics of an epoch; called after its last step and before its checkpoint.

        `bad_records` maps image ids to problems: all records of the run so far that do not decode.
        """

    def epochs_to_keep(self) -> Collection[int]:
        """Epochs, counted from 1, whose last checkpoint is needed besides the newest ones."""

    def start_stages(self, num_epochs: int, weights: StateDict | None) -> None:
        """Start what is due after so many finished epochs and not done, beside the training.

        Args:
            num_epochs: Epochs that are finished.
            weights: The network after them; None inside the next epoch.
        """

    def finish_stages(self) -> None:
        """Wait for the stages that were started; called between epochs, before anything else. Raises their error."""

    def check_writer(self) -> None:
        """Check, before a checkpoint is written, that the run directory is still this run's: InputError if not."""

    def fail(self, error: InputError) -> None:
        """Report that the run ends with this error, because a restart would meet it again."""

    def close(self) -> None:
        """Release what the coordinator holds."""


@dataclass(frozen=True)
class Stopped:
    """A training has saved a checkpoint and ended before its last epoch, because it was asked to or loses a node."""

    cause: Cause
    epoch: int  # whole epochs
    step: int  # steps of the next one


class _StoppedEarly(Exception):  # noqa: N818  # no error
    """Ends the training on all ranks at the same step; its argument is a Stopped."""


class _Leader:
    """What rank 0 has beyond the other ranks."""

    def __init__(self, config: TrainConfig, coordinator: Coordinator, stop: StopRequest) -> None:
        self.coordinator = coordinator
        self.saver = Saver(
            config.run_dir, config.keep_checkpoints, coordinator.check_writer, coordinator.epochs_to_keep
        )
        self.listener = StopListener(stop.cause)

    def close(self) -> None:
        """Let a running save end; release everything."""
        self.listener.close()
        self.saver.close()
        self.coordinator.close()


def train_loop(settings: dict[str, Any]) -> Stopped | None:
    """Entry point of every train worker.

    An InputError that any rank meets is raised on all ranks. Rank 0 reports it to the driver, and the loop returns: a
    restart would meet the same error. A store that is away is another matter: the error goes up, and Ray Train starts
    the workers again, up to `resources.max_failures` times.

    Args:
        settings: `config` (TrainConfig), `mixture` (Mixture), `stop` (StopRequest) and `make_coordinator`, which is
            called on rank 0 only.

    Returns:
        Where the training stopped; None if it is over.
    """
    notices.forward()
    config, stop = settings["config"], settings["stop"]
    leader: _Leader | None = None
    if ray.train.get_context().get_world_rank() == 0:
        leader = _Leader(config, settings["make_coordinator"](), stop)
    stopped: Stopped | None = None
    try:
        _train(config, settings["mixture"], leader)
    except _StoppedEarly as stopping:
        (stopped,) = stopping.args
    except StoreUnavailableError:
        raise
    except InputError as error:
        if leader is not None:
            leader.coordinator.fail(error)
    finally:
        if leader is not None:
            leader.close()
            stop.confirm()
    return stopped


def _train(config: TrainConfig, mixture: Mixture, leader: _Leader | None) -> None:
    """Train every epoch that is left after the newest checkpoint."""
    worker = _start_worker(config, mixture)
    coordinator = None if leader is None else leader.coordinator
    if coordinator is not None:
        coordinator.begin(worker.epoch, worker.step, worker.num_workers)
    ended: float | None = None
    stages_s = 0.0
    while True:
        labels = _between_epochs(worker, leader)
        if worker.epoch == config.optimizer.epochs:
            return
        started = time.perf_counter()
        order = worker.order()
        watch = _Watch(worker, leader, labels)
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
        if leader is not None:
            _save(worker, leader, labels)
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


def _between_epochs(worker: TrainWorker, leader: _Leader | None) -> ray.ObjectRef[LabelsTable] | None:
    """Run rank 0's stages; all ranks return the labels of the coming epoch, or raise the InputError of a stage.

    If the training is asked to stop, the stages are left to the next start.
    """
    labels: ray.ObjectRef[LabelsTable] | None = None
    error: InputError | _StoppedEarly | None = worker.failure
    if leader is not None and error is None:
        try:
            with leader.coordinator.spending("save"):
                leader.saver.finish()
            cause = _cause(leader)
            if cause is None or worker.epoch == worker.config.optimizer.epochs:
                labels = _run_stages(worker, leader.coordinator)
            else:
                error = _StoppedEarly(Stopped(cause, worker.epoch, worker.step))
        except InputError as found:
            error = found
    # In a list, because Ray replaces a bare reference by its object.
    labels, error = ray.train.collective.broadcast_from_rank_zero([labels, error])
    if error is not None:
        raise error
    return labels


def _cause(leader: _Leader | None) -> Cause | None:
    """Why the training stops, as far as this rank knows."""
    asked = None if leader is None else leader.listener.cause
    return asked or ("preempted" if ray_internals.is_preempted() else None)


def _run_stages(worker: TrainWorker, coordinator: Coordinator) -> ray.ObjectRef[LabelsTable] | None:
    """Assign the labels of the next epoch, or read those of an epoch that continues, and start the other stages.

    The stages of the epoch before are awaited first: they use the same pool. A run that was killed before they were
    over starts them again.
    """
    coordinator.finish_stages()
    labels, is_over = None, worker.epoch == worker.config.optimizer.epochs
    if worker.step > 0:
        labels = coordinator.stored_labels(worker.epoch)
    elif not is_over:
        labels = coordinator.labels(worker.epoch, worker.assigning_weights())
    coordinator.start_stages(worker.epoch, worker.weights() if worker.step == 0 else None)
    if is_over:
        coordinator.finish_stages()
    return labels


class _Watch:
    """Called after each step: saves the checkpoints that are due inside an epoch, and stops the training.

    All ranks save and stop at the same step. What one rank alone knows, its clock, a request or a lost node, it says in
    its next step (`worker.wants_checkpoint`), and all ranks know it after a step (`worker.agreed`). On rank 0 it also
    reports progress.
    """

    REPORT_EVERY_S = 5.0

    def __init__(self, worker: TrainWorker, leader: _Leader | None, labels: ray.ObjectRef[LabelsTable] | None) -> None:
        self.worker, self.leader, self.labels = worker, leader, labels
        self.saved = time.perf_counter()
        self.reported = -self.REPORT_EVERY_S  # the first step is reported at once
        self.waited_s = worker.totals.waited_s  # the first batch sets its own time again

    def __call__(self, totals: EpochTotals, num_steps: int) -> None:
        worker, config, leader = self.worker, self.worker.config, self.leader
        if leader is not None:
            waited_s = totals.waited_s + totals.first_batch_s
            leader.coordinator.on_step(worker.epoch, worker.step, waited_s - self.waited_s)
            self.waited_s = waited_s
        now = time.perf_counter()
        every = config.checkpoint_every_steps
        agreed, worker.agreed = worker.agreed, GO_ON
        stops = agreed >= STOP
        is_due = stops or agreed == SAVE or (every > 0 and worker.step % every == 0)
        if is_due and worker.step < num_steps:  # the end of the epoch saves anyway
            worker.check_weights()  # on every rank, so that none waits for another one
            if leader is not None:
                _save(worker, leader, self.labels)
                self.saved = now
            if stops:
                self._stop()
        worker.wants_checkpoint = self._wish(now)
        if leader is None:
            return
        with worker.failing_together():
            leader.saver.check()
        if now - self.reported >= self.REPORT_EVERY_S or worker.step == num_steps:
            self.reported = now
            with worker.failing_together():  # raises the error of a stage that runs beside the training
                leader.coordinator.on_progress(worker.epoch, worker.step, num_steps, totals.metrics()["images_per_s"])

    def _wish(self, now: float) -> int:
        if _cause(self.leader) is not None:
            return STOP
        every_s = self.worker.config.checkpoint_every_s
        if self.leader is None or every_s == 0 or now - self.saved < every_s:
            return GO_ON
        self.saved = now  # said once
        return SAVE

    def _stop(self) -> None:
        """End the training on all ranks; on rank 0 only when the checkpoint is whole. InputError if it cannot be."""
        worker = self.worker
        if self.leader is not None:
            if worker.failure is not None:
                raise worker.failure
            with self.leader.coordinator.spending("save"):
                self.leader.saver.finish()
        raise _StoppedEarly(Stopped(_cause(self.leader) or "preempted", worker.epoch, worker.step))


def _save(worker: TrainWorker, leader: _Leader, labels: ray.ObjectRef[LabelsTable] | None) -> None:
    """Begin to write a checkpoint, unless rank 0 has failed already."""
    if worker.failure is not None:
        return
    with leader.coordinator.spending("save"), worker.failing_together():
        state = checkpoint.CheckpointState(
            epoch=worker.epoch,
            step=worker.step,
            seed=worker.config.seed,
            network=worker.network.spec,
            model=worker.network.state_dict(),
            training=worker.training_state(),
            labels=None if labels is None else ray.get(labels).named(worker.config.run_dir),
        )
        leader.saver.save(state)
