"""Measure what the design claims, how stages scale, and what they need.

Without a NAME, `python -m jobs.bench` lists the measurements and runs `all`; options are then those of `all`.
"""

from __future__ import annotations

import importlib

from boxsup_dist.runs.command_line import check_out, clear_errors, docstring_of, front_door, program, read
from jobs.bench.settings import MEASUREMENTS, Checked

GROUPS = {"measurements": tuple(MEASUREMENTS)}


def main() -> None:
    """Run the measurement that the command line names."""
    with clear_errors():
        name, arguments = front_door("jobs.bench", GROUPS, default="all")
        module = f"jobs.bench.{name}"
        settings: object = read(MEASUREMENTS[name], docstring_of(module), arguments, prog=f"{program()} {name}")
        check_out(settings)
        if isinstance(settings, Checked):
            settings.check()
        importlib.import_module(module).main(settings)


if __name__ == "__main__":
    main()
