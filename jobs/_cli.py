"""What every job's command line does alike."""

from __future__ import annotations

import sys
from collections.abc import Callable

import tyro

from boxsup_dist.errors import InputError


def run(main: Callable) -> None:
    """Call `main` with the command line's settings; a user's error becomes one clear line and exit status 2."""
    try:
        tyro.cli(main, description=sys.modules[main.__module__].__doc__, config=(tyro.conf.OmitArgPrefixes,))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
