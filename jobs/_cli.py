"""What every job's command line does alike."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


def run(main: Callable) -> None:
    """Call `main` with the command line's settings, errors told clearly."""
    with clear_errors():
        tyro.cli(main, description=sys.modules[main.__module__].__doc__, config=(tyro.conf.OmitArgPrefixes,))
