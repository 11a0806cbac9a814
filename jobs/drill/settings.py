"""The names of the drills, apart from their code, which needs Ray."""

from __future__ import annotations

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
]
