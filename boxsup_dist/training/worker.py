"""One rank of the data-parallel training: its network, optimizer and position, and what it does in a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import ray
import ray.train
import ray.train.collective
import ray.train.torch
import torch
import torch.distributed as dist
from torch.optim.swa_utils import get_ema_multi_avg_fn

from boxsup_dist.config import TrainConfig
from boxsup_dist.data.labels import LabelsTable, check_named
from boxsup_dist.data.sources import Mixture
from boxsup_dist.errors import CheckpointError, InputError, NonFiniteLossError, RecordError
from boxsup_dist.model import checkpoint
from boxsup_dist.model.networks import network_spec, parameter_groups
from boxsup_dist.model.transfer import start_network
from boxsup_dist.randomness import derive_seed
from boxsup_dist.training.optimizer import lr_factor, make_optimizer
from boxsup_dist.training.order import EpochOrder, order_epoch
from boxsup_dist.training.step import (
    DeviceBatch,
    Gradients,
    Placer,
    StepSums,
    check_compiler,
    compute_gradients,
    make_repeatable,
    placed_ahead,
    training_precision,
)
from boxsup_dist.training.stream import Batch, worker_batches

# What a rank says of checkpoints in a step. Only rank 0 says SAVE, so a sum of at least STOP means that a rank stops.
GO_ON, SAVE, STOP = 0, 1, 2
StateDict = dict[str, torch.Tensor]
T = TypeVar("T")


@dataclass
class EpochTotals:
    """Sums over the steps of one epoch, the same on all ranks."""

    loss: float = 0.0
    weights: float = 0.0  # of the valid pixels
    foreground: float = 0.0  # predicted, of the counted pixels
    label_foreground: float = 0.0  # of the label maps, of the same pixels
    counted: float = 0.0  # valid pixels on the grid
    images: float = 0.0
    waited_s: float = 0.0  # of this worker for its stream, without the first batch
    first_batch_s: float = 0.0
    steps_s: float = 0.0

    def add(self, sums: StepSums) -> None:
        """Count one step."""
        self.loss += sums.loss
        self.weights += sums.weights
        self.foreground += sums.foreground
        self.label_foreground += sums.label_foreground
        self.counted += sums.counted
        self.images += sums.images

    def metrics(self) -> dict[str, float]:
        """Means and speeds for the history."""
        return {
            "train_loss": self.loss / max(self.weights, 1e-9),
            "foreground_share": self.foreground / max(self.counted, 1),
            "label_foreground_share": self.label_foreground / max(self.counted, 1),
            "images_per_s": self.images / max(self.steps_s, 1e-9),
            "train_s": self.steps_s,
            "first_batch_s": self.first_batch_s,
            "wait_share": self.waited_s / max(self.steps_s, 1e-9),
        }


class TrainWorker:
    """One rank's network, optimizer and position."""

    def __init__(self, config: TrainConfig, mixture: Mixture, *, resumes: bool = False) -> None:
        """Build the network with its first weights; with `resumes` at random, as `restore` then brings all of them."""
        context = ray.train.get_context()
        self.config, self.mixture = config, mixture
        self.rank, self.num_workers = context.get_world_rank(), context.get_world_size()
        torch.set_num_threads(config.resources.threads_per_worker)
        torch.manual_seed(derive_seed(config.seed, "weights"))
        self.device = ray.train.torch.get_device()
        make_repeatable(self.device)
        if config.resources.compile:
            check_compiler()
        self.placer = Placer(self.device)
        spec = network_spec(config.network, num_classes=len(mixture.sources[0].records.classes))
        start, random_fc = ("none", False) if resumes else (config.network.weights, config.network.random_fc)
        self.network = start_network(spec, start, random_fc=random_fc)
        self.network.to(self.device).to(memory_format=torch.channels_last)
        self.optimizer = make_optimizer(parameter_groups(self.network, config.optimizer), config.optimizer)
        self.average = None if config.assignment.average_decay is None else deepcopy(self.network)
        weights = mixture.class_weights
        self.class_weights = None if weights is None else torch.tensor(weights, device=self.device)
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.epoch, self.step = 0, 0
        self.totals = EpochTotals()
        self.bad_records: dict[str, str] = {}  # image_id -> problem, of the run so far; the same on all ranks
        self.failure: InputError | None = None  # of this rank alone, until all ranks raise it
        self.wants_checkpoint = 0  # GO_ON, SAVE or STOP: what this rank says in its next step
        self.agreed = 0  # sum of what all ranks said in the newest step that was read, the same on all ranks

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Keep an InputError of what one rank does alone, such as writing a checkpoint, as `failure`.

        All ranks raise it when they meet next: in the next step or between the epochs. Raised at once, it would leave
        the other ranks waiting for this one.
        """
        try:
            yield
        except InputError as error:
            self.failure = self.failure or error

    def wrap(self) -> None:
        """Make the network data parallel and share the mixture with the data tasks. All ranks must call it.

        Call it after the checkpoint is loaded, so that all ranks start alike.
        """
        # One reference for all ranks and epochs, in a list, because Ray replaces a bare reference by its object.
        mixture = [ray.put(self.mixture)] if self.rank == 0 else None
        self.shared = ray.train.collective.broadcast_from_rank_zero(mixture)
        # Batch norms are frozen, so there are no buffers to broadcast. Gradients live in the buckets that DDP sends.
        ddp = {"broadcast_buffers": False, "gradient_as_bucket_view": True}
        self.model = ray.train.torch.prepare_model(self.network, parallel_strategy_kwargs=ddp)
        if self.config.resources.compile:
            self.model.compile()

    def restore(self, uri: str | None) -> None:
        """Load weights, optimizer and position from the checkpoint at `uri`; None starts from the beginning.

        Raises:
            CheckpointError: The optimizer of the checkpoint has other parameter groups.
            TableError: The labels are not those that the checkpoint was trained on.
        """
        if uri is None:
            return
        state = checkpoint.load(uri)
        if state.labels is not None:
            check_named(state.labels, self.config.run_dir)
        self.network.load_state_dict(state.model)
        try:
            self.optimizer.load_state_dict(state.training["optimizer"])
        except ValueError as error:
            raise CheckpointError(
                "another version of boxsup_dist trained this run with other groups of learning rates: train again in "
                f"another directory; to begin with its network, use --network.weights checkpoint:{uri}",
                file=uri,
                field="optimizer",
                value=str(error),
            ) from None
        if self.average is not None:
            self.average.load_state_dict(state.training["average"])
        self.epoch, self.step = state.epoch, state.step
        self.totals = EpochTotals(**state.training["totals"])
        self.bad_records = dict(state.training.get("bad_records", {}))

    def weights(self) -> StateDict:
        """The network's state dict on the CPU."""
        return _state_on_cpu(self.network)

    def assigning_weights(self) -> StateDict:
        """The weights that choose segments: with assignment.average_decay their average, else the newest."""
        return self.weights() if self.average is None else _state_on_cpu(self.average)

    def training_state(self) -> dict[str, Any]:
        """What a checkpoint keeps besides the network; `restore` reads it."""
        state = {
            "optimizer": self.optimizer.state_dict(),
            "totals": asdict(self.totals),
            "bad_records": self.bad_records,
        }
        return state if self.average is None else state | {"average": self.assigning_weights()}

    def order(self) -> EpochOrder:
        """The order of the current epoch."""
        return order_epoch(
            [unit.rows for unit in self.mixture.units],
            seed=self.config.seed,
            epoch=self.epoch,
            global_batch_size=self.config.optimizer.global_batch_size,
        )

    def batches(self, order: EpochOrder, labels: ray.ObjectRef[LabelsTable] | None) -> Iterator[Batch]:
        """This worker's share of the current epoch, from the current step on.

        An InputError becomes the batch of its step: train_step raises it there on all ranks, so none of them waits for
        another one.
        """
        try:
            yield from worker_batches(
                self.shared,
                order,
                labels,
                epoch=self.epoch,
                rank=self.rank,
                num_workers=self.num_workers,
                start_step=self.step,
                max_tasks=self.config.resources.stream_tasks_per_worker,
            )
        except InputError as error:
            yield Batch(self.step, error=error)

    def train_epoch(
        self, batches: Iterator[Batch], num_steps: int, on_step: Callable[[EpochTotals, int], None]
    ) -> dict[str, float]:
        """Train on the remaining batches of an epoch.

        Args:
            batches: Batches of the epoch, from the current step on.
            num_steps: Steps of the whole epoch.
            on_step: Called after each step.

        Returns:
            Metrics of the whole epoch.

        Raises:
            InputError: On all ranks: a batch failed, no pixel had a label, or the weights are not finite.
        """
        self.network.train()
        placed = placed_ahead(batches, self.place, ahead=self.device.type != "cpu")
        for batch, on_device in _timed(placed, self.totals):
            started = time.perf_counter()
            self.train_step(batch, on_device, num_steps)
            self.totals.steps_s += time.perf_counter() - started
            self.step = batch.step + 1
            on_step(self.totals, num_steps)
        if self.totals.weights == 0:
            raise InputError(
                f"nothing to learn in epoch {self.epoch + 1}: every pixel of its label maps is ignored",
                field="label map",
                expected="pixels with a class: masks that are not all 255, boxes that have a candidate segment",
            )
        self.check_weights()
        return self.totals.metrics()

    def check_weights(self) -> None:
        """Check the weights before they are kept; the same on all ranks.

        Raises:
            NonFiniteLossError: A weight is not finite: an update overflowed after a loss that was finite.
        """
        if not torch.stack([parameter.isfinite().all() for parameter in self.network.parameters()]).all():
            raise NonFiniteLossError(
                f"the weights are not finite after epoch {self.epoch + 1}, step {self.step}",
                field="optimizer.lr",
                value=self.config.optimizer.lr,
                expected="a smaller learning rate",
            )

    def finish_epoch(self) -> None:
        """Go to the beginning of the next epoch."""
        self.epoch, self.step, self.totals = self.epoch + 1, 0, EpochTotals()

    def place(self, batch: Batch) -> DeviceBatch:
        """Start to copy a batch to the device; a batch without images is one ignored image."""
        if batch.images is None or batch.label_maps is None:
            return self.placer.empty(self.config.augment.crop_height_px, self.config.augment.crop_width_px)
        return self.placer.place(batch.images, batch.label_maps, batch.is_em, batch.priors)

    def train_step(self, batch: Batch, on_device: DeviceBatch, num_steps: int) -> None:
        """Forward, backward and update on one global batch; `compute_gradients` says how its loss is divided.

        Args:
            batch: This rank's share.
            on_device: What `place` made of it.
            num_steps: Steps of the whole epoch.

        Raises:
            NonFiniteLossError: On all ranks, before anything is updated.
            InputError: The error of a batch, or the `failure`, of any rank; on all ranks, before anything is updated.
        """
        own_error = self.failure or batch.error
        factor = lr_factor(self.config.optimizer, epoch=self.epoch, step=batch.step, num_steps=num_steps)
        for group, lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = lr * factor
        # Dropout depends only on the position in the run: a resumed run draws the same values as an unbroken run.
        torch.manual_seed(derive_seed(self.config.seed, self.epoch, batch.step, self.rank, "dropout"))

        self.optimizer.zero_grad(set_to_none=True)
        gradients = compute_gradients(
            self.model,
            on_device,
            class_weights=self.class_weights,
            complete_labels=self.epoch >= self.config.assignment.warmup_epochs,
            num_ranks=self.num_workers,
            precision=training_precision(self.device),
            images=len(batch.image_ids),
            errors=own_error is not None,
            bad_records=len(batch.bad_records),
            wishes=self.wants_checkpoint,
        )
        sums = gradients.sums()
        self.agreed = round(sums.wishes)
        if sums.errors:
            raise_together(own_error)
        if sums.bad_records:
            self._keep_bad_records(batch)
        if not np.isfinite(sums.loss):
            raise self._non_finite(batch, gradients)
        self.optimizer.step()
        self._update_average(is_first=self.epoch == 0 and batch.step == 0)
        self.totals.add(sums)

    def _update_average(self, *, is_first: bool) -> None:
        """Move the average towards the weights; the first step of a run makes it equal to them."""
        decay = self.config.assignment.average_decay
        if self.average is None or decay is None:
            return
        # Not torch's AveragedModel: it copies a counter to the device in every step, and the host waits for that.
        update = get_ema_multi_avg_fn(0.0 if is_first else decay)  # type: ignore[no-untyped-call]  # in torch 2.14
        update(list(self.average.parameters()), list(self.network.parameters()), None)

    def _keep_bad_records(self, batch: Batch) -> None:
        """Collect the bad records of all ranks. RecordError, on all ranks, if the run tolerates fewer."""
        for found in gather(batch.bad_records):
            self.bad_records |= found
        if len(self.bad_records) > self.config.max_bad_records:
            problem = next(reversed(self.bad_records.values()))
            raise RecordError(
                f"{len(self.bad_records)} records are unusable: {', '.join(self.bad_records)}; the last: {problem}",
                field="max_bad_records",
                value=self.config.max_bad_records,
                expected=f">= {len(self.bad_records)}, or repaired records",
            )

    def _non_finite(self, batch: Batch, gradients: Gradients) -> NonFiniteLossError:
        """The error with the image ids of the ranks whose loss is not finite; the same on all ranks."""
        gathered = gather([] if gradients.own_loss.isfinite() else batch.image_ids)
        return NonFiniteLossError(
            f"the loss is not finite in epoch {self.epoch + 1}, step {batch.step + 1}",
            field="image_id",
            value=[image_id for ids in gathered for image_id in ids],
            expected="a finite loss: set a smaller optimizer.lr, or look at these records",
        )


def _state_on_cpu(network: torch.nn.Module) -> StateDict:
    return {name: value.detach().cpu() for name, value in network.state_dict().items()}


def _timed(batches: Iterator[T], totals: EpochTotals) -> Iterator[T]:
    """The same batches; adds the time of waiting for them to the totals, that for the first batch apart."""
    first = True
    while True:
        started = time.perf_counter()
        batch = next(batches, None)
        waited = time.perf_counter() - started
        if batch is None:
            return
        if first:
            totals.first_batch_s = waited
        else:
            totals.waited_s += waited
            totals.steps_s += waited
        first = False
        yield batch


def raise_together(error: InputError | None) -> None:
    """Raise the error of any rank on all ranks, so that none waits for another one. All ranks must call it."""
    for each in gather(error):
        if each is not None:
            raise each


def gather(value: Any) -> list[Any]:
    """The values of all ranks, by rank. All ranks must call it."""
    if not dist.is_initialized():
        return [value]
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found
