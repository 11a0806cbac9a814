"""Compile a function by Numba, with its cache on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """A function of arrays and numbers as machine code, compiled once per machine.

    Once per process where neither the code's folder nor the user's own can be written, as in some containers: Numba
    refuses to keep it then.
    """
    try:
        return cast(F, numba.njit(cache=True)(function))
    except RuntimeError:  # "no locator available for file"
        return cast(F, numba.njit(function))
