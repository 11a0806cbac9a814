"""Run the training loop on Ray Train's workers."""

from __future__ import annotations

import logging
import tempfile
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import ray.train
from ray.exceptions import RayError
from ray.train import ControllerError
from ray.train.torch import TorchConfig, TorchTrainer

from boxsup_dist import interrupts
from boxsup_dist.config import Resources, TrainConfig
from boxsup_dist.data.sources import Mixture
from boxsup_dist.distributed import notices, session
from boxsup_dist.distributed.faults import A_LOSS, LOST, cause_of, describe_loss, fault_of
from boxsup_dist.distributed.ray_internals import before_resize
from boxsup_dist.distributed.stopping import StopRequest
from boxsup_dist.errors import InputError, LostWorkError
from boxsup_dist.io import remote
from boxsup_dist.training.loop import Coordinator, Stopped, train_loop

# Of train workers on GPUs. NCCL's watchdog ends a worker whose peer hangs, a monitor ends one whose watchdog hangs, and
# the last collectives of each rank are written to files. The defaults differ between versions of torch.
NCCL_WATCH = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    "TORCH_NCCL_ENABLE_MONITORING": "1",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    "TORCH_FR_BUFFER_SIZE": "2000",
    "TORCH_FR_DUMP_TEMP_FILE": "/tmp/boxsup-nccl-rank-",
}
# Of workers whose node has been taken away: the others may still be writing the checkpoint.
PREEMPTION_GRACE_S = 30.0
RESIZE_EVERY_S = 60.0  # that Ray Train looks whether the cluster has room for another number of workers
# That Ray Train waits for workers to stop before it starts another number of them. They stop after a step, and between
# epochs after the stages; beyond this time their steps since the newest checkpoint are lost.
RESIZE_PATIENCE_S = 120.0
GROUP_SPARE_S = 60.0  # that workers wait for each other beyond the time in which one of them may wait for a store
FEWER = "resources.num_actors, resources.stream_tasks_per_worker or resources.num_workers"


# Of Ray Train's defaults, what serves no run here; each starts a process of 2 CPU seconds that all workers wait for.
# Runs have no Ray Data datasets. `session.remove_own_groups` does the cleaner's work, and on every cluster.
UNUSED_CALLBACKS = ("DatasetsCallback", "PlacementGroupCleanerCallback")


class _Trainer(TorchTrainer):
    """A TorchTrainer that starts only what a run uses, and leaves SIGINT to `boxsup_dist.interrupts` where it is used.

    Ray's own handler waits until the workers have ended their step and everything after it, which took over 10 s.
    """

    def _register_sigint_handler(self, controller: Any) -> None:
        if not interrupts.are_handled():
            super()._register_sigint_handler(controller)  # type: ignore[misc]  # Ray Train's second version has it

    def _create_default_callbacks(self) -> list[Any]:
        found: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]  # as above
        return [callback for callback in found if type(callback).__name__ not in UNUSED_CALLBACKS]


class _ReportEndedWorkers(ray.train.UserCallback):
    """Reports why workers ended, before others replace them; runs in Ray Train's controller."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for rank, error in sorted(worker_exceptions.items()):
            self._report(f"train worker {rank} was lost: {describe_loss(error, FEWER)}")


def fit(
    config: TrainConfig,
    mixture: Mixture,
    make_coordinator: Callable[[], Coordinator],
    report: Callable[[str], None] | None = None,
) -> None:
    """Train from the newest checkpoint of the run directory to the last epoch.

    Args:
        config: The run. Lost workers are replaced up to `resources.max_failures` times, and so is the process that
            controls them; all workers then start from the newest checkpoint, with `resources.min_workers` as many as
            the cluster has room for. A node whose end is announced is no loss: the workers save a checkpoint and start
            on other nodes. So they do before their number changes.
        mixture: What to train on.
        make_coordinator: Called in the worker of rank 0.
        report: Gets one line for every process that was lost.

    Raises:
        NoRoomError: Ray had no room for an object, at every attempt.
        StoreUnavailableError: A store was away, at every attempt.
        LostWorkError: Processes were lost more often than `resources.max_failures`.
        ray.train.TrainingFailedError: Workers ended by another error more often than that.
    """
    settings = {"config": config, "mixture": mixture, "make_coordinator": make_coordinator}
    launch(config, train_loop, settings, report)


def launch(
    config: TrainConfig,
    loop: Callable[[dict[str, Any]], Any],
    settings: dict[str, Any],
    report: Callable[[str], None] | None = None,
) -> None:
    """Run `loop(settings)` on the train workers that `config.resources` describes, resolved for this cluster.

    `settings` get a StopRequest under `stop`. A loop that returns Stopped because a node is taken away is run again at
    once, on the other nodes. SIGTERM asks the loop to stop; this process ends when it has. `report` and the errors are
    those of `fit`.
    """
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    stop = StopRequest()
    try:
        with interrupts.sigterm_asks(lambda: stop.ask("terminated")):
            while (stopped := _launch(config, loop, {**settings, "stop": stop}, report)) is not None:
                where = f"at epoch {stopped.epoch + 1}, after {stopped.step} steps"
                if stopped.cause == "terminated":
                    interrupts.set_last_line(f"interrupted by SIGTERM; the same command continues {where}")
                    return
                if report is not None:
                    report(f"a node is being taken away: a checkpoint is saved {where}, other nodes continue")
    finally:
        stop.withdraw()
        notices.show_newest()


def _launch(
    config: TrainConfig,
    loop: Callable[[dict[str, Any]], Any],
    settings: dict[str, Any],
    report: Callable[[str], None] | None,
) -> Stopped | None:
    """Run the loop until it returns, and again when Ray Train's controller is lost."""
    most = config.resources.max_failures
    for losses in range(most + 1):
        try:
            return _launch_once(config, loop, settings, report)
        except (ray.train.TrainingFailedError, RayError) as error:
            # Ray Train replaces workers, but not its own controller, and no worker that ran out of memory at its start.
            starting = isinstance(error, ControllerError)
            cause = cause_of(getattr(error, "controller_failure", error))
            if isinstance(cause, LOST) and losses < most:
                if report is not None:
                    who = "a starting train worker" if starting else "the controller of the train workers"
                    report(f"{who} was lost: {describe_loss(cause, FEWER)}")
                session.remove_own_groups()
                continue
            raise _last_fault(error, most) or error from None
    raise AssertionError("the last attempt returns or raises")


def _last_fault(error: Exception, most: int) -> InputError | None:
    """The error of a training whose processes were lost too often; None for any other cause."""
    fault = fault_of(error)
    if not isinstance(fault, LostWorkError):
        return fault
    return LostWorkError(
        f"the training lost processes more than {most} times, the last: {fault.problem.removeprefix(A_LOSS)}",
        field="resources.max_failures",
        value=most,
        expected=f"processes that live: if memory is short, lower {FEWER}, or use nodes with more memory. Then run the "
        "same command again: it continues from the newest checkpoint",
    )


def _launch_once(
    config: TrainConfig,
    loop: Callable[[dict[str, Any]], Any],
    settings: dict[str, Any],
    report: Callable[[str], None] | None,
) -> Stopped | None:
    """One Ray Train run, to the end of the loop or the loss of its controller; what the loop of rank 0 returned."""
    resources = config.resources
    assert isinstance(resources, Resources), "ResourceSettings.resolve comes first"
    per_worker = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker:
        per_worker["GPU"] = resources.gpus_per_worker
    num_workers = (resources.min_workers, resources.num_workers) if resources.min_workers else resources.num_workers
    scaling = ray.train.ScalingConfig(
        num_workers=num_workers,  # type: ignore[arg-type]  # the second version of Ray Train takes a range too
        use_gpu=resources.gpus_per_worker > 0,
        # On GPUs close to each other; on CPUs apart, because Ray reserves less than a worker computes with.
        placement_strategy="PACK" if resources.gpus_per_worker else "SPREAD",
        resources_per_worker=per_worker,
        elastic_resize_monitor_interval_s=RESIZE_EVERY_S,  # type: ignore[call-arg]  # as above
    )
    # More or fewer workers start from a checkpoint: those that run save one first.
    callbacks = [before_resize(partial(settings["stop"].ask_and_wait, "resized", RESIZE_PATIENCE_S))]
    if report is not None:
        callbacks.append(_ReportEndedWorkers(report))
    # Ray Train keeps its own state in one folder per launch. The state of the run is only in our checkpoints, so that
    # folder need not be where the workers see it, and a store that is away cannot hurt it.
    with tempfile.TemporaryDirectory(prefix="boxsup-ray-train-", ignore_cleanup_errors=True) as scratch:
        run = ray.train.RunConfig(
            name=uuid.uuid4().hex,
            storage_path=scratch,
            # Nodes that are taken away are no failures: Ray Train does not count them.
            failure_config=ray.train.FailureConfig(
                max_failures=resources.max_failures,
                preemption_grace_s=PREEMPTION_GRACE_S,  # type: ignore[call-arg]  # as above
            ),
            worker_runtime_env={"env_vars": NCCL_WATCH} if resources.gpus_per_worker else None,
            callbacks=callbacks,
        )
        # A worker whose message Ray lost in a broken network never comes: the others wait for it no longer than for a
        # store, and all start again. torch's default is half an hour.
        group = TorchConfig(timeout_s=round(remote.patience_s() + GROUP_SPARE_S))
        trainer = _Trainer(loop, train_loop_config=settings, torch_config=group, scaling_config=scaling, run_config=run)
        returned = trainer.fit().return_value  # type: ignore[attr-defined]  # as above
    return returned if isinstance(returned, Stopped) else None
