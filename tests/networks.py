"""Networks for tests, from the settings of a user."""

from __future__ import annotations

from typing import Any

from boxsup_dist.config import NetworkSettings
from boxsup_dist.model import networks
from boxsup_dist.model.networks import NetworkSpec, SegmentationNetwork


def spec(name: str, num_classes: int, **settings: Any) -> NetworkSpec:
    """As networks.network_spec; `settings` are those of NetworkSettings."""
    return networks.network_spec(NetworkSettings(name, **settings), num_classes)


def build_network(
    name: str, num_classes: int, weights: str | None = None, random_fc: bool = False, **settings: Any
) -> SegmentationNetwork:
    """As networks.build_network."""
    return networks.build_network(spec(name, num_classes, **settings), weights, random_fc=random_fc)
