"""The part of a training step that runs on the device, without Ray: train workers, plans and benchmarks share it.

A step on a GPU never lets the device wait for the host:

    host    queue forward, sums, backward | wait for the sums | check them, queue the update, then the next step
    device  forward ── sums ──┬── backward ──────────────────────────────── update ── forward ...
                              └─▶ pinned memory

The host reads the sums while the device computes the backward pass, which is two thirds of a step. So a step whose sums
are refused is known before its update is queued: nothing has to be undone. Copies of the next batch run beside all
this (`placed_ahead`).
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from boxsup_dist.data.painting import CERTAIN
from boxsup_dist.data.schema import BACKGROUND, IGNORE_INDEX
from boxsup_dist.errors import SettingError
from boxsup_dist.model.loss import expected_labels, segmentation_loss

FOREGROUND_GRID_PX = 8  # foreground is counted on every 8th pixel of every 8th row: enough for its share
Host = TypeVar("Host")
Placed = TypeVar("Placed")


class DeviceBatch(NamedTuple):
    """The images of one rank and step, on the device or on their way to it."""

    images: Tensor  # uint8 (n, 3, h, w), channels last
    label_maps: Tensor  # uint8 (n, h, w)
    is_em: Tensor | None  # bool (n,): whose label map the network completes; None: no image's
    priors: Tensor | None = None  # uint8 (n, h, w), as painting.Prior.prior; None: no pixel is doubtful
    copied: torch.cuda.Event | None = None  # recorded after the copies; None: nothing was copied

    def wait(self) -> None:
        """Let what is queued from now on wait for the copies; the host does not wait."""
        if self.copied is None:
            return
        stream = torch.cuda.current_stream(self.images.device)
        stream.wait_event(self.copied)
        for tensor in (self.images, self.label_maps, self.is_em, self.priors):
            if tensor is not None:
                tensor.record_stream(stream)  # its memory is not used again before this stream is done with it


class Placer:
    """Brings batches to one device: to a GPU by a stream of its own, from pinned memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def place(
        self,
        images: NDArray[np.uint8],
        label_maps: NDArray[np.uint8],
        is_em: NDArray[np.bool_] | None = None,
        priors: NDArray[np.uint8] | None = None,
    ) -> DeviceBatch:
        """Start to copy a batch.

        Args:
            images: RGB (n, h, w, 3).
            label_maps: (n, h, w).
            is_em: (n,), whose label map the network completes; None: no image's.
            priors: (n, h, w), as painting.Prior.prior; None: no pixel is doubtful.

        Returns:
            The batch; on the CPU it shares the memory of the arrays.
        """
        if is_em is not None and not is_em.any():
            is_em = None
        arrays = (images, label_maps, is_em, priors)
        tensors = [None if array is None else torch.from_numpy(array) for array in arrays]
        copied = None
        if self._stream is not None:
            with torch.cuda.stream(self._stream):
                tensors = [
                    None if tensor is None else tensor.pin_memory().to(self.device, non_blocking=True)
                    for tensor in tensors
                ]
                copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                copied.record()
        on_device, labels, em, doubtful = tensors
        assert on_device is not None and labels is not None
        return DeviceBatch(on_device.permute(0, 3, 1, 2), labels, em, doubtful, copied)

    def empty(self, height_px: int, width_px: int) -> DeviceBatch:
        """One ignored image: a rank without images takes part in the step with it."""
        ignored = np.full((1, height_px, width_px), IGNORE_INDEX, np.uint8)
        return self.place(np.zeros((1, height_px, width_px, 3), np.uint8), ignored)


def placed_ahead(
    batches: Iterator[Host], place: Callable[[Host], Placed], *, ahead: bool
) -> Generator[tuple[Host, Placed], None, None]:
    """Each batch with what `place` makes of it.

    Args:
        batches: Taken in order.
        place: Brings a batch to the device.
        ahead: Let a thread take and place the next batch during the step: for a GPU. A CPU has nothing to copy.
    """
    if not ahead:
        for batch in batches:
            yield batch, place(batch)
        return

    def take() -> tuple[Host, Placed] | None:
        for batch in batches:
            return batch, place(batch)
        return None

    thread = ThreadPoolExecutor(1)
    try:
        coming = thread.submit(take)
        while (pair := coming.result()) is not None:
            coming = thread.submit(take)
            yield pair
    finally:
        thread.shutdown(wait=False, cancel_futures=True)


class StepSums(NamedTuple):
    """What all ranks add up in a step. A new field needs only its line here and its value in `pack`."""

    loss: float = 0.0  # over the valid pixels
    weights: float = 0.0  # of the valid pixels
    foreground: float = 0.0  # predicted, of the counted pixels
    label_foreground: float = 0.0  # of the label maps, of the same pixels
    counted: float = 0.0  # valid pixels on the grid
    images: float = 0.0
    errors: float = 0.0  # ranks that have one
    bad_records: float = 0.0  # of this step
    wishes: float = 0.0  # what the ranks want of checkpoints (`TrainWorker.wants_checkpoint`)

    @classmethod
    def pack(cls, device: torch.device, **parts: Tensor | float) -> Tensor:
        """The fields in their order, float64 (F,) on the device; a field that is not given counts 0."""
        assert set(parts) <= set(cls._fields), f"no such field: {set(parts) - set(cls._fields)}"
        # torch.tensor(value, device=...) would copy from unpinned memory, and the host would wait for the device.
        values = [
            part.detach().double()
            if isinstance(part := parts.get(name, 0.0), Tensor)
            else torch.full((), part, dtype=torch.float64, device=device)
            for name in cls._fields
        ]
        return torch.stack(values)


class Gradients:
    """The gradients of a step are queued; its sums are on their way to the host.

    Attributes:
        own_loss: This rank's part of the loss, on the device. Reading it waits for the device.
    """

    def __init__(self, sums: Tensor, own_loss: Tensor) -> None:
        self.own_loss = own_loss
        self._sums = sums.to("cpu", non_blocking=True)  # from a GPU into pinned memory
        self._copied: torch.cuda.Event | None = None
        if sums.is_cuda:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def sums(self) -> StepSums:
        """The sums over all ranks; waits until the device has made them, not until it has the gradients."""
        if self._copied is not None:
            self._copied.synchronize()
        return StepSums(*self._sums.tolist())


def compute_gradients(
    model: nn.Module,
    batch: DeviceBatch,
    *,
    class_weights: Tensor | None = None,
    complete_labels: bool = False,
    num_ranks: int = 1,
    precision: torch.dtype | None = None,
    **counts: float,
) -> Gradients:
    """Queue the forward and the backward pass of this rank's share of a global batch.

    The loss is summed over the valid pixels of all ranks and divided once by the sum of their weights: it does not
    depend on how the batch is divided among the ranks. All ranks must call it.

    Args:
        model: The network, in training mode, without gradients; wrapped by DDP if there are several ranks.
        batch: The images and label maps.
        class_weights: float32 (C,), weight of a pixel by its label. None: 1.
        complete_labels: Complete the label maps of `batch.is_em` by the network's own scores.
        num_ranks: Processes that share the global batch.
        precision: What autocast computes in; None: float32.
        counts: Further fields of StepSums, of this rank.
    """
    batch.wait()
    device = batch.images.device
    with torch.autocast(device.type, precision, enabled=precision is not None):
        logits: Tensor = model(batch.images)
    label_maps = batch.label_maps
    if complete_labels and batch.is_em is not None:
        completed = expected_labels(logits.detach(), label_maps)
        label_maps = torch.where(batch.is_em[:, None, None], completed, label_maps)
    loss_sum, weight_sum = segmentation_loss(logits, label_maps, class_weights, batch.priors)
    if batch.priors is not None:  # doubtful pixels have no label to count
        label_maps = torch.where(batch.priors == CERTAIN, label_maps, IGNORE_INDEX)
    foreground, label_foreground, counted = _count_foreground(logits.detach(), label_maps)
    sums = StepSums.pack(
        device,
        loss=loss_sum,
        weights=weight_sum,
        foreground=foreground,
        label_foreground=label_foreground,
        counted=counted,
        **counts,
    )
    if num_ranks > 1:
        dist.all_reduce(sums)
    gradients = Gradients(sums, loss_sum.detach())
    # DDP averages gradients over ranks, hence their number.
    scale = num_ranks / sums[StepSums._fields.index("weights")].clamp(min=1e-9)
    (loss_sum * scale.float()).backward()  # type: ignore[no-untyped-call]
    return gradients


def make_repeatable(device: torch.device) -> None:
    """Let two runs give the same bits on one kind of device: timing chooses no convolution, and none adds atomically.

    `model/grids.py` does the same for the upsampling.
    """
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True


def check_compiler() -> None:
    """Check that this machine can compile the step.

    Raises:
        SettingError: It has no C++ compiler.
    """
    if not any(shutil.which(name) for name in (os.environ.get("CXX") or "c++", "g++", "clang++")):
        raise SettingError(
            f"the machine {platform.node()} has no C++ compiler, which torch.compile needs",
            field="resources.compile",
            value=True,
            expected="g++ or clang++ on every node; or leave the setting out",
        )


def training_precision(device: torch.device) -> torch.dtype | None:
    """What a train worker computes in on this device: bfloat16 on a GPU, else float32."""
    return torch.bfloat16 if device.type == "cuda" else None


def _count_foreground(logits: Tensor, label_maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels of a grid that have a label: predicted to be an object, an object in the label maps, and all."""
    labels = label_maps[:, ::FOREGROUND_GRID_PX, ::FOREGROUND_GRID_PX]
    predicted = logits[:, :, ::FOREGROUND_GRID_PX, ::FOREGROUND_GRID_PX].argmax(1)
    is_valid = labels != IGNORE_INDEX
    is_object = (labels != BACKGROUND) & is_valid
    return ((predicted != BACKGROUND) & is_valid).sum(), is_object.sum(), is_valid.sum()
