"""One Ray Train run of the training loop."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from typing import Any

import ray.train
from ray.exceptions import OutOfDiskError
from ray.train.torch import TorchTrainer

from boxsup_dist.config import TrainConfig
from boxsup_dist.data.sources import Mixture
from boxsup_dist.distributed.out_of_disk import cause_of, no_room
from boxsup_dist.io import storage
from boxsup_dist.training.loop import Coordinator, train_loop


class _TellWhy(ray.train.UserCallback):
    """Tells why workers ended, before others take their place; runs in Ray Train's controller."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for rank, error in sorted(worker_exceptions.items()):
            cause = cause_of(error)
            first_line = (str(cause).strip().splitlines() or [""])[0]
            self._tell(f"train worker {rank} ended: {type(cause).__name__}: {first_line}")


def fit(
    config: TrainConfig,
    mixture: Mixture,
    make_coordinator: Callable[[], Coordinator],
    tell: Callable[[str], None] | None = None,
) -> None:
    """Train from the newest checkpoint of the run directory to the last epoch.

    A lost worker is replaced up to `max_failures` times; the new ones start from the newest checkpoint, with
    `min_workers` as many of them as the cluster has room for. `tell` gets a line for every worker that ended so. Raises
    NoRoomError if there was no room for an object each time.
    """
    settings = {"config": config, "mixture": mixture, "make_coordinator": make_coordinator}
    launch(config, train_loop, settings, tell)


def launch(
    config: TrainConfig,
    loop: Callable[[dict[str, Any]], None],
    settings: dict[str, Any],
    tell: Callable[[str], None] | None = None,
) -> None:
    """Run `loop(settings)` on the train workers that the configuration describes."""
    resources = config.resources
    per_worker = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker:
        per_worker["GPU"] = resources.gpus_per_worker
    num_workers = (resources.min_workers, resources.num_workers) if resources.min_workers else resources.num_workers
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    # Ray Train keeps its own notes in a folder a launch; the run's state is in our checkpoints alone.
    scratch = storage.join(config.run_dir, "ray_train")
    filesystem, path = storage.arrow_filesystem(scratch)
    trainer = TorchTrainer(
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
            callbacks=[] if tell is None else [_TellWhy(tell)],  # type: ignore[list-item]  # as above
        ),
    )
    try:
        trainer.fit()
    except (ray.train.TrainingFailedError, OutOfDiskError) as error:
        raise no_room(error) or error from None
    finally:
        storage.remove(scratch)
