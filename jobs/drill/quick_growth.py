"""`jobs.train`, with Ray Train looking for room for more workers every two seconds instead of every minute."""

from __future__ import annotations

from boxsup_dist.runs.command_line import clear_errors
from boxsup_dist.training import fit
from jobs import train

if __name__ == "__main__":
    fit.RESIZE_EVERY_S = 2.0
    with clear_errors():
        train.main()
