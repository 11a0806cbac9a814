"""Checks of single settings; each raises SettingError with the dotted name of the setting."""

from __future__ import annotations

import math
from typing import Any, get_args

from boxsup_dist.errors import SettingError


def check_range(ok: bool, name: str, value: object, expected: str) -> None:
    """Raise SettingError unless `ok`, and for a number that is not finite: inf passes every check of a lower limit."""
    if not ok or (isinstance(value, float) and not math.isfinite(value)):
        raise SettingError("a setting is out of range", field=name, value=value, expected=expected)


def check_choice(value: object, choices: Any, name: str) -> None:
    """Raise SettingError unless `value` is one of the Literal `choices`."""
    # The command line offers only the choices; a recipe written in Python may hold anything.
    check_range(value in get_args(choices), name, value, f"one of {get_args(choices)}")


def check_needs(value: object, name: str, needed: str, is_there: bool) -> None:
    """Raise SettingError if `name` is set without the setting that it needs."""
    if value is not None and not is_there:
        problem = f"{name} needs {needed}: set it, or remove {name.rpartition('.')[2]}"
        raise SettingError(problem, field=name, value=value, expected=f"not set without {needed}")
