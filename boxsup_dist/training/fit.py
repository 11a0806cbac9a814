"""One Ray Train run of the training loop."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from typing import Any

import ray.train
from ray.train.torch import TorchTrainer

from boxsup_dist import storage
from boxsup_dist.config import TrainConfig
from boxsup_dist.sources import Mixture
from boxsup_dist.training.loop import Coordinator, train_loop


def fit(config: TrainConfig, mixture: Mixture, make_coordinator: Callable[[], Coordinator]) -> None:
    """Train from the newest checkpoint of the run directory to the last epoch.

    A lost worker is replaced up to `max_failures` times; the new ones start from the newest checkpoint, with
    `min_workers` as many of them as the cluster has room for.
    """
    launch(config, train_loop, {"config": config, "mixture": mixture, "make_coordinator": make_coordinator})


def launch(config: TrainConfig, loop: Callable[[dict[str, Any]], None], settings: dict[str, Any]) -> None:
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
        ),
    )
    try:
        trainer.fit()
    finally:
        storage.remove(scratch)
