"""Measure the peak memory of each stage on N and on 4 N images.

A stage whose memory grows with the number of images needs about four times as much on the larger table. The private
memory (resident less shared) of the job and all its Ray processes is sampled while the stage runs.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from boxsup_dist.config import SourceSettings
from boxsup_dist.io import storage
from boxsup_dist.model import checkpoint
from boxsup_dist.model.networks import build_network
from boxsup_dist.records.synthetic import write_synthetic
from boxsup_dist.runs.inputs import open_inputs
from boxsup_dist.runs.kept_config import write_config
from boxsup_dist.runs.recipes import demo
from jobs.bench.rows import finish, row
from jobs.bench.settings import Memory
from jobs.bench.watch import MIB, private_bytes

SAMPLE_EVERY_S = 0.1
GROWTH = 4
GOAL = 1.2  # at most this much more on four times the images


def peak_mib(job: str, *arguments: str) -> float:
    """Run `python -m jobs.JOB ARGUMENTS` to its end and return the largest sum over its processes, in MiB.

    Raises:
        RuntimeError: The job fails.
    """
    process = subprocess.Popen([sys.executable, "-m", f"jobs.{job}", *arguments], stdout=subprocess.DEVNULL)
    tree = psutil.Process(process.pid)
    peak = 0
    while process.poll() is None:
        try:
            members = [tree, *tree.children(recursive=True)]
        except psutil.Error:
            break
        peak = max(peak, sum(private_bytes(member) for member in members))
        time.sleep(SAMPLE_EVERY_S)
    if process.wait() != 0:
        raise RuntimeError(f"jobs.{job} failed with status {process.returncode}")
    return peak / MIB


def _untrained_run(folder: str, records: str, proposals: str) -> str:
    """A run directory whose only checkpoint is an untrained network, at the first epoch that asks the network."""
    config = demo(storage.join(folder, "run"), (SourceSettings(records, "box", proposals),), None).check()
    torch.manual_seed(0)
    network = build_network(open_inputs(config).network, "none")
    epoch = config.assignment.warmup_epochs
    state = checkpoint.CheckpointState(epoch, 0, 0, network.spec, network.state_dict())
    checkpoint.save(config.run_dir, state)
    write_config(replace(config, measure_labels=False))
    return config.run_dir


def _stages(folder: str, num_images: int) -> dict[str, float]:
    """Peak MiB of each stage on a data set of this size."""
    for name in ("records", "proposals", "run", "reassigned", "evaluated"):
        storage.remove(storage.join(folder, name))
    root = write_synthetic(storage.join(folder, "devkit"), num_images, 1, 0)
    records, proposals = storage.join(folder, "records"), storage.join(folder, "proposals")
    peaks = {
        "ingest": peak_mib("build_records", "--voc-root", root, "--split", "train", "--out", records),
        "proposals": peak_mib(
            "build_proposals", "--records", records, "--method", "selective_search", "--out", proposals
        ),
    }
    run_dir = _untrained_run(folder, records, proposals)
    reassigned, evaluated = storage.join(folder, "reassigned"), storage.join(folder, "evaluated")
    peaks["reassignment"] = peak_mib("reassign", "--run-dir", run_dir, "--out", reassigned)
    peaks["evaluation"] = peak_mib("evaluate", "--run-dir", run_dir, "--records", records, "--out", evaluated)
    return peaks


def main(settings: Memory) -> None:
    """Measure, write OUT/summary.json and print one row per stage."""
    out = storage.absolute(settings.out)
    small = _stages(str(Path(out, "small")), settings.num_images)
    large = _stages(str(Path(out, "large")), GROWTH * settings.num_images)
    rows = [
        row(
            f"{stage}, peak memory on {GROWTH * settings.num_images} images",
            f"times that on {settings.num_images}",
            [large[stage] / small[stage]],
            GOAL,
            at_most=True,
        )
        for stage in small
    ]
    finish(settings, "memory", rows, {"peak_mib_small": small, "peak_mib_large": large})
