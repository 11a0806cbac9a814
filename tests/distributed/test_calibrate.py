"""Rates of this machine, measured by jobs.calibrate on a few images, and a plan made of them by jobs.plan."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from boxsup_dist.runs.command_line import run
from boxsup_dist.runs.planning import read_rates
from jobs import plan

ROOT = Path(__file__).parents[2]


def test_rates_are_measured_and_planned_with(tmp_path, monkeypatch, capsys):
    """Measured in a process of its own, whose peak of memory is that of the measured work."""
    out = str(tmp_path / "rates.json")
    command = [sys.executable, "-m", "jobs.calibrate", "demo", "--out", out]
    command += ["--num-images", "2", "--batch-images", "2", "--seconds", "0.1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rates = read_rates(out, "demo")
    assert 1e4 < rates.image_px < 1e5 and rates.batch_images == 2
    assert 0.1 < rates.train_images_per_s < 1e4 and 0.1 < rates.assign_images_per_s < 1e4
    assert rates.checkpoint_bytes > 2 * rates.weights_bytes > 1e6
    cluster = ["--nodes", "2", "--cpus-per-node", "8", "--memory-gib-per-node", "32", "--price-per-node-hour", "0.5"]
    if rates.gpu:
        cluster += ["--gpus-per-node", "1"]
    monkeypatch.setattr(sys, "argv", ["plan", "demo", "--rates", out, "--num-images", "1000", *cluster])
    run(plan.main)
    shown = capsys.readouterr().out
    for name in (
        "steps",
        "proposals",
        "train",
        "reassignment",
        "evaluation",
        "cost",
        "records",
        "object store, per node",
    ):
        assert name in shown
    assert "extrapolated" in shown and "1,600" in shown  # 8 epochs of 200 steps
