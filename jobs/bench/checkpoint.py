"""Measure how long a checkpoint holds the training, and how much it slows the steps beside which it is written.

The network is the paper's, with momentum. Saves in the background and synchronous ones take turns; so do steps with a
save beside them and steps alone.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from boxsup_dist.config import NetworkSettings, OptimizerSettings
from boxsup_dist.io import storage
from boxsup_dist.model import checkpoint
from boxsup_dist.model.checkpoint import CheckpointState
from boxsup_dist.model.networks import build_network, network_spec, parameter_groups
from boxsup_dist.training.optimizer import make_optimizer
from boxsup_dist.training.saving import Saver
from jobs.bench.rows import finish, row
from jobs.bench.scale_run import check_positive
from jobs.bench.settings import Checkpoints

NUM_CLASSES = 21
PERIOD_S = 60.0  # one checkpoint a minute


def main(settings: Checkpoints) -> None:
    """Measure, write OUT/checkpoint.json and print it."""
    torch.set_num_threads(1)  # as a train worker by default; it leaves a core to the thread that writes
    check_positive(settings, "rounds", "steps")
    out = storage.absolute(settings.out)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    state = make_state(device)
    run_dir = storage.join(out, "run")
    saver = Saver(run_dir, keep_last=2, check_writer=lambda: None)
    saver.save(state)  # allocates the memory of the copies, once per run
    saver.finish()
    held, waited = _measure_held(state, saver, run_dir, settings.rounds)
    lost = [_lost_s(state, saver, device, settings.steps) for _ in range(settings.rounds)]
    num_bytes = storage.size(checkpoint.list_checkpoints(run_dir)[-1])
    saver.close()
    storage.remove(run_dir)
    rows = [
        row("training held, one checkpoint a minute", "of the time", [s / PERIOD_S for s in held], 0.01, at_most=True),
        row("training held, against a synchronous save", "times", [a / b for a, b in zip(held, waited, strict=True)],
            0.1, at_most=True),
        row("steps beside saves, one a minute: time lost", "of the time", [s / PERIOD_S for s in lost], 0.01,
            at_most=True),
    ]  # fmt: skip
    seconds: dict[str, Any] = {"held_s": held, "synchronous_s": waited, "lost_s": lost}
    medians = ", ".join(f"{name} {sorted(found)[len(found) // 2]:.3f}" for name, found in seconds.items())
    print(f"{device}, {num_bytes / 2**20:.0f} MiB; medians: {medians}")
    facts = {"device": str(device), "checkpoint_bytes": num_bytes, **seconds}
    finish(settings, "checkpoint", rows, facts)


def make_state(device: torch.device) -> CheckpointState:
    """The state of a run of the paper's network after a step: weights and momentum."""
    spec = network_spec(NetworkSettings(weights="none"), NUM_CLASSES)
    network = build_network(spec, "none").to(device).to(memory_format=torch.channels_last)
    options = OptimizerSettings()
    optimizer = make_optimizer(parameter_groups(network, options), options)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return CheckpointState(0, 1, 0, spec, network.state_dict(), {"optimizer": optimizer.state_dict()})


def _measure_held(state: CheckpointState, saver: Saver, run_dir: str, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds in which `save` holds its caller, and those of a synchronous save, in turns."""
    held, waited = [], []
    for _ in range(rounds):
        started = time.perf_counter()
        saver.save(state)
        held.append(time.perf_counter() - started)
        saver.finish()
        started = time.perf_counter()
        checkpoint.save(run_dir, state, keep_last=2)
        waited.append(time.perf_counter() - started)
    return held, waited


def _lost_s(state: CheckpointState, saver: Saver, device: torch.device, steps: int) -> float:
    """Seconds by which some steps take longer if a save begins before them; the last wait for it counts too."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.ReLU(), torch.nn.Conv2d(32, 21, 3)).to(device)
    images = torch.zeros(4, 3, 161, 161, device=device)
    seconds = []
    for saves in (False, True):
        started = time.perf_counter()
        if saves:
            saver.save(state)
        for _ in range(steps):
            network(images).sum().backward()
        saver.finish()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds[1] - seconds[0]
