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
    except Exception as error:
        if "ray" not in sys.modules:  # an import of seconds
            raise
        from boxsup_dist.distributed.out_of_disk import no_room

        if (problem := no_room(error)) is None:
            raise
        print(f"error: {problem}", file=sys.stderr)
        raise SystemExit(2) from None


def run(main: Callable, choose_settings: Callable[[], type] | None = None) -> None:
    """Call `main` with the command line's settings, errors told clearly.

    `choose_settings` gives the type of the settings where it depends on the command line itself.
    """
    description = sys.modules[main.__module__].__doc__
    with clear_errors():
        if choose_settings is None:
            tyro.cli(main, description=description, config=(tyro.conf.OmitArgPrefixes,))
        else:
            main(tyro.cli(choose_settings(), description=description, config=(tyro.conf.OmitArgPrefixes,)))
