"""Measure what a training step costs beside a bare PyTorch loop on the same batches, with one worker and with two.

Both ways run on the same train workers, with equal networks, optimizers and batches from memory. They take turns.

    step, 1 worker    images/s of TrainWorker.train_epoch against forward, cross entropy, backward, update
    step, 2 workers   the same against DistributedDataParallel, over gloo
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import ray.train.collective
import ray.train.torch
import torch
import torch.nn.functional as F
from torch import nn

from boxsup_dist.config import (
    AugmentSettings,
    NetworkSettings,
    OptimizerSettings,
    ResourceSettings,
    SourceSettings,
    TrainConfig,
)
from boxsup_dist.data.schema import IGNORE_INDEX
from boxsup_dist.distributed import session
from boxsup_dist.io import storage
from boxsup_dist.model.networks import parameter_groups
from boxsup_dist.records import voc
from boxsup_dist.records.build import build_records
from boxsup_dist.records.synthetic import write_synthetic
from boxsup_dist.runs.inputs import open_inputs
from boxsup_dist.training.fit import launch
from boxsup_dist.training.optimizer import make_optimizer
from boxsup_dist.training.stream import Batch
from boxsup_dist.training.worker import TrainWorker
from jobs.bench.rows import finish, row
from jobs.bench.settings import Step

GOAL = 0.98
NUM_IMAGES = 4  # of the table that names the classes; the batches are random


def main(settings: Step) -> None:
    """Measure both rows, write OUT/summary.json and print them."""
    out = storage.absolute(settings.out)
    session.start()
    root = write_synthetic(storage.join(out, "devkit"), NUM_IMAGES, 1)
    records = build_records(storage.join(out, "records"), voc.open_splits(root, "train"))
    found = {count: measure_parity(settings, out, records.uri, count) for count in (1, 2)}
    rows = [
        row(f"step, {count} worker{'s' * (count > 1)}", "times a bare loop", ratios, GOAL)
        for count, ratios in found.items()
    ]
    finish(settings, "step", rows, {"rounds": found})


def measure_parity(settings: Step, out: str, records: str, num_workers: int) -> list[float]:
    """Bare seconds divided by the worker's, of each round."""
    config = TrainConfig(
        storage.join(out, "run"),
        (SourceSettings(records, "mask"),),
        network=NetworkSettings(settings.network, weights="none", output_stride=16),
        optimizer=OptimizerSettings(epochs=1, global_batch_size=settings.batch_images * num_workers),
        augment=AugmentSettings(settings.crop_px, settings.crop_px),
        resources=ResourceSettings(num_workers=num_workers, num_actors=1, gpus_per_worker=0),
        evaluate_every=0,
    )
    config = replace(config, resources=config.resources.resolve(session.nodes()))
    loop: dict[str, Any] = {"config": config, "mixture": open_inputs(config).mixture, "rounds": settings.rounds}
    loop |= {"num_steps": settings.num_steps, "out": storage.join(out, f"rounds-{num_workers}.json")}
    launch(config, alternate, loop)
    seconds = storage.read_json(loop["out"])
    return [bare / ours for bare, ours in zip(seconds["bare"], seconds["worker"], strict=True)]


def alternate(settings: dict[str, Any]) -> None:
    """Loop of the train workers: a warm-up of both ways, then `rounds` of both; rank 0 writes the seconds to `out`."""
    config: TrainConfig = settings["config"]
    worker = TrainWorker(config, settings["mixture"])
    bare = deepcopy(worker.network)
    worker.wrap()
    batches = random_batches(config, worker.rank, worker.num_workers, settings["num_steps"])
    model = ray.train.torch.prepare_model(bare)
    optimizer = make_optimizer(parameter_groups(bare, config.optimizer), config.optimizer)

    def ours() -> None:
        worker.train_epoch(iter(batches), len(batches), lambda *_: None)
        worker.finish_epoch()
        worker.epoch = 0

    ways: dict[str, Callable[[], None]] = {"worker": ours, "bare": lambda: train_bare(model, optimizer, batches)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(settings["rounds"] + 1):
        for name in ways if turn % 2 else reversed(ways):
            ray.train.collective.barrier()
            started = time.perf_counter()
            ways[name]()
            if turn > 0:
                seconds[name].append(time.perf_counter() - started)
    if worker.rank == 0:
        storage.write_json(settings["out"], seconds)


def random_batches(config: TrainConfig, rank: int, num_workers: int, num_steps: int) -> list[Batch]:
    """Noise, each pixel of a random class or ignored."""
    rng = np.random.default_rng(rank)
    count = config.optimizer.global_batch_size // num_workers
    size = (count, config.augment.crop_height_px, config.augment.crop_width_px)
    classes = np.array([*range(21), IGNORE_INDEX], np.uint8)
    return [
        Batch(
            step,
            [f"{rank}-{step}-{index}" for index in range(count)],
            rng.integers(0, 256, (*size, 3), np.uint8),
            rng.choice(classes, size),
            np.zeros(count, bool),
        )
        for step in range(num_steps)
    ]


def train_bare(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Sequence[Batch]) -> None:
    """What a tutorial writes."""
    model.train()
    for batch in batches:
        assert batch.images is not None and batch.label_maps is not None
        images = torch.from_numpy(batch.images).permute(0, 3, 1, 2)
        label_maps = torch.from_numpy(batch.label_maps).long()
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(images), label_maps, ignore_index=IGNORE_INDEX)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
