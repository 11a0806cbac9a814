"""The names and settings of the drills, apart from their code, which needs Ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Name = Literal[
    "worker",
    "actor",
    "node-epoch",
    "node-reassign",
    "node-ingest",
    "driver",
    "elastic",
    "drain",
    "grow",
    "disk",
    "tracking",
    "network",
    "chaos",
]


@dataclass(frozen=True)
class Chaos:
    """How long, and how often, the drill chaos kills."""

    minutes: float
    every_s: float
