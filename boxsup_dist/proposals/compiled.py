"""Compile a function by Numba, with its cache on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numba

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """A function of arrays and numbers as machine code, compiled once per machine."""
    made: F = numba.njit(cache=True)(function)
    return made
