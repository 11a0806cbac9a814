"""What every job's command line does alike."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import get_type_hints

import tyro

from boxsup_dist.errors import InputError


@contextmanager
def clear_errors() -> Iterator[None]:
    """A user's error becomes one clear line on stderr and exit status 2."""
    try:
        yield
    except InputError as error:
        problem = getattr(error, "cause", error)  # Ray wraps what a task raised, with its traceback as text
        print(f"error: {problem}", file=sys.stderr)
        raise SystemExit(2) from None


def run(main: Callable, *, omit_prefixes: bool = True) -> None:
    """Call `main` with the command line's settings, errors told clearly.

    `omit_prefixes` leaves the names of nested settings out of their flags: --lr for --optimizer.lr.
    """
    description = sys.modules[main.__module__].__doc__
    with clear_errors():
        if omit_prefixes:
            tyro.cli(main, description=description, config=(tyro.conf.OmitArgPrefixes,))
        else:
            main(tyro.cli(get_type_hints(main)["settings"], description=description))
