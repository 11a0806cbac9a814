"""Run the training loop on Ray Train's workers."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from typing import Any

import ray.train
from ray.exceptions import OutOfDiskError
from ray.train.torch import TorchTrainer

from boxsup_dist import interrupts
from boxsup_dist.config import Resources, TrainConfig
from boxsup_dist.data.sources import Mixture
from boxsup_dist.distributed.out_of_disk import cause_of, no_room
from boxsup_dist.io import storage
from boxsup_dist.training.loop import Coordinator, train_loop


class _Trainer(TorchTrainer):
    """A TorchTrainer that leaves SIGINT to `boxsup_dist.interrupts` where that ends this process.

    Ray's own handler waits until the workers have ended their step and everything after it, which took over 10 s.
    """

    def _register_sigint_handler(self, controller: Any) -> None:
        if not interrupts.are_handled():
            super()._register_sigint_handler(controller)  # type: ignore[misc]  # the second version of Ray Train has it


class _ReportEndedWorkers(ray.train.UserCallback):
    """Reports why workers ended, before others replace them; runs in Ray Train's controller."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for rank, error in sorted(worker_exceptions.items()):
            cause = cause_of(error)
            first_line = (str(cause).strip().splitlines() or [""])[0]
            self._report(f"train worker {rank} ended: {type(cause).__name__}: {first_line}")


def fit(
    config: TrainConfig,
    mixture: Mixture,
    make_coordinator: Callable[[], Coordinator],
    report: Callable[[str], None] | None = None,
) -> None:
    """Train from the newest checkpoint of the run directory to the last epoch.

    Args:
        config: The run. Lost workers are replaced up to `resources.max_failures` times; all workers then start from the
            newest checkpoint, with `resources.min_workers` as many as the cluster has room for.
        mixture: What to train on.
        make_coordinator: Called in the worker of rank 0.
        report: Gets one line for every worker that ended with an error.

    Raises:
        NoRoomError: Ray had no room for an object, at every attempt.
        ray.train.TrainingFailedError: Workers were lost more often than `resources.max_failures`.
    """
    settings = {"config": config, "mixture": mixture, "make_coordinator": make_coordinator}
    launch(config, train_loop, settings, report)


def launch(
    config: TrainConfig,
    loop: Callable[[dict[str, Any]], None],
    settings: dict[str, Any],
    report: Callable[[str], None] | None = None,
) -> None:
    """Run `loop(settings)` on the train workers that `config.resources` describes, resolved for this cluster.

    `report` and the errors are those of `fit`.
    """
    resources = config.resources
    assert isinstance(resources, Resources), "ResourceSettings.resolve comes first"
    per_worker = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker:
        per_worker["GPU"] = resources.gpus_per_worker
    num_workers = (resources.min_workers, resources.num_workers) if resources.min_workers else resources.num_workers
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    # Ray Train keeps its own state in one folder per launch. The state of the run is only in our checkpoints.
    scratch = storage.join(config.run_dir, "ray_train")
    filesystem, path = storage.arrow_filesystem(scratch)
    trainer = _Trainer(
        loop,
        train_loop_config=settings,
        scaling_config=ray.train.ScalingConfig(
            num_workers=num_workers,  # type: ignore[arg-type]  # the second version of Ray Train takes a range too
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=per_worker,
        ),
        run_config=ray.train.RunConfig(
            name=uuid.uuid4().hex,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=resources.max_failures),
            callbacks=[] if report is None else [_ReportEndedWorkers(report)],  # type: ignore[list-item]  # as above
        ),
    )
    try:
        trainer.fit()
    except (ray.train.TrainingFailedError, OutOfDiskError) as error:
        raise no_room(error) or error from None
    finally:
        storage.remove(scratch)
