"""The measurement for GPUs runs where neither Ray nor MLflow is installed, here on the CPU at small size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
CODE = """
import sys
sys.modules["ray"] = sys.modules["mlflow"] = None
from jobs.bench.__main__ import main
main()
"""
SMALL = (
    "--networks timm:test_resnet --crop-px 33 --batch-images 2 --seconds 0.01 --rounds 1 --most-images 3 --no-compiled"
)


def test_all_rows_are_measured_without_ray_and_mlflow(tmp_path: Path):
    command = [sys.executable, "-c", CODE, "gpu", *SMALL.split(), "--no-compiled", "--out", str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {line["measurement"]: line for line in json.loads((tmp_path / "summary.json").read_text())["rows"]}
    rows = {name.removeprefix("timm:test_resnet, "): line for name, line in found.items()}
    ways = ("fp32", "tf32", "bf16")
    assert all(rows[way]["measured"] > 0 and rows[f"{way}, of the matrix rate"]["measured"] > 0 for way in ways)
    exact = {
        "waits in a step": 0,
        "same bits twice": 1,
        "class as on the CPU": 1,
        "sums as on the CPU": 1,
        "largest batch": 3,
    }
    assert {name: rows[name]["measured"] for name in exact} == exact
    assert rows["against no reads"]["goal"] == ">= 0.98"
    profile = (tmp_path / "profile-timm-test_resnet.txt").read_text()
    assert "convolution" in profile and profile in done.stdout
