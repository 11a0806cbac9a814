"""A trained network by its URI: every command that predicts gets its network here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from boxsup_dist.model import checkpoint
from boxsup_dist.model.networks import NetworkSpec


@dataclass(frozen=True)
class TrainedNetwork:
    """The spec and the weights of a network, on the CPU, and where they were found."""

    uri: str
    spec: NetworkSpec
    weights: Mapping[str, Tensor]

    @property
    def fingerprint(self) -> str:
        """Short hash of all weights. Another training at the same URI has another fingerprint."""
        found = hashlib.sha256()
        for name, value in sorted(self.weights.items()):
            found.update(name.encode())
            found.update(value.contiguous().numpy().tobytes())
        return found.hexdigest()[:16]


def load_trained(uri: str) -> TrainedNetwork:
    """The network of a checkpoint's folder, or of the newest checkpoint of a run directory.

    Raises:
        CheckpointError: There is no whole checkpoint.
    """
    uri = checkpoint.newest(uri)
    spec, weights = checkpoint.load_weights(uri)
    return TrainedNetwork(uri, spec, weights)
