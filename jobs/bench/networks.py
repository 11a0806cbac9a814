"""Compare networks: how large they are, and what an image costs on this machine's CPU beside the first of them.

    parameters   millions, with head and score layer for 21 classes
    GFLOP        of a forward pass per image; a multiplication and an addition are two operations
    kept         MiB per image that a training step keeps from its forward pass for its backward pass
    forward      CPU seconds of a forward pass, in times those of the first network: median of the rounds (their spread)
    step         the same of a training step: forward pass, loss, backward pass

The networks take turns, with random weights.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from boxsup_dist.config import NetworkSettings
from boxsup_dist.data.schema import VOC_CLASSES
from boxsup_dist.io import storage
from boxsup_dist.model.networks import SegmentationNetwork, build_network, network_spec
from boxsup_dist.reporting.text_table import format_table
from boxsup_dist.runs.summary import write_result
from boxsup_dist.training.step import DeviceBatch, Placer, compute_gradients
from jobs.bench.rows import shown
from jobs.bench.settings import Networks
from jobs.bench.watch import MIB


def main(settings: Networks) -> None:
    """Measure the networks, write OUT/summary.json and print their table."""
    rng = np.random.default_rng(0)
    shape = (1, settings.crop_px, settings.crop_px)
    arrays = rng.integers(0, 256, (*shape, 3), np.uint8), rng.integers(0, len(VOC_CLASSES), shape, np.uint8)
    batch = Placer(torch.device("cpu")).place(*arrays)
    specs = [network_spec(NetworkSettings(name), len(VOC_CLASSES)) for name in settings.networks]
    networks = [build_network(spec, "none") for spec in specs]
    sizes = [size_of(network, batch) for network in networks]
    turns = [[seconds_of(network, batch) for network in networks] for _ in range(settings.rounds + 1)]
    rounds = turns[1:]  # the first warms up
    rows = []
    for place, size in enumerate(sizes):
        ratios = [[found[place][way] / found[0][way] for found in rounds] for way in (0, 1)]
        rows.append({**size, "forward": _with_spread(ratios[0]), "step": _with_spread(ratios[1])})
    facts = {"crop_px": settings.crop_px, "torch": torch.__version__, "cpu_seconds": rounds}
    write_result(storage.absolute(settings.out), {"rows": rows, **facts}, [format_table(rows)])


def size_of(network: SegmentationNetwork, batch: DeviceBatch) -> dict[str, Any]:
    """What does not depend on the machine."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(batch.images)  # attention in single products, which the counter knows
    return {
        "network": network.spec.name,
        "stride": network.output_stride,
        "parameters": f"{sum(p.numel() for p in network.parameters()) / 1e6:.1f} M",
        "GFLOP": shown(counter.get_total_flops() / 1e9),
        "kept": f"{kept_bytes(network, batch) / MIB:.0f} MiB",
    }


def kept_bytes(network: SegmentationNetwork, batch: DeviceBatch) -> int:
    """Memory that a forward pass keeps for the backward pass, without the parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in own:
            kept[memory.data_ptr()] = memory.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        compute_gradients(network, batch)
    return sum(kept.values())


def seconds_of(network: SegmentationNetwork, batch: DeviceBatch) -> tuple[float, float]:
    """CPU seconds of all threads for a forward pass in evaluation mode, and for a training step."""
    network.eval()
    with torch.inference_mode():
        forward = _cpu_seconds(lambda: network(batch.images))
    network.train().zero_grad()
    return forward, _cpu_seconds(lambda: compute_gradients(network, batch))


def _cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _with_spread(ratios: Sequence[float]) -> str:
    return f"{shown(statistics.median(ratios))} ({shown(min(ratios))} to {shown(max(ratios))})"
