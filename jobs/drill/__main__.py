"""Kill processes and nodes, fill the disk, and check that the result stays the same.

    python -m jobs.drill                    # all drills
    python -m jobs.drill worker elastic     # two of them
    python -m jobs.drill chaos --minutes 10 --every-s 30

A drill is one fault: a process, a node or the driver is killed (SIGKILL) at a chosen moment, the disk for spilled
objects fills, or the tracking server vanishes. The drill chaos kills a worker or
a node again and again. In the drills drain and grow a node goes after a notice, or comes.
Only a command that ended is run again; all else recovers alone. A cluster of several raylets on this machine trains
on a small synthetic set, once undisturbed and once per drill. Each disturbed run must end with the same labels
tables and the same loss curve: bit for bit with as many workers, else with the same choices and with losses that
differ only by the order of sums. The result says how long the run paused and where it continued, never before the
newest checkpoint.

    OUT/data    OUT/NAME (a run per drill)    OUT/NAME.log    OUT/summary.json

The drill disk mounts a small file system, the drill network makes network namespaces: both need root, and are left out
with a word without it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from boxsup_dist.errors import SettingError
from boxsup_dist.runs.command_line import run
from jobs.drill.settings import Chaos, Name


@dataclass(frozen=True)
class Settings:
    """Which drills, and where."""

    names: Annotated[tuple[Name, ...], tyro.conf.Positional] = ()
    """Drills to run. Default: all that this machine can run."""
    out: str = "runs/drill"
    """Folder of the data, the runs and their logs. The undisturbed run is kept for the next call."""
    minutes: float = 10.0
    """How long the drill chaos kills."""
    every_s: float = 30.0
    """Seconds from one kill of the drill chaos to the next."""

    def check(self) -> None:
        """Raise SettingError on a value out of range."""
        for name in ("minutes", "every_s"):
            if not getattr(self, name) > 0:
                raise SettingError("a setting is out of range", field=name, value=getattr(self, name), expected="> 0")


def main(settings: Settings) -> None:
    """Run the drills; without names, list them first."""
    settings.check()
    from jobs.drill.drills import describe, run_drills

    if not settings.names:
        print(describe(), file=sys.stderr)
    run_drills(settings.names, settings.out, Chaos(settings.minutes, settings.every_s))


if __name__ == "__main__":
    run(main)
