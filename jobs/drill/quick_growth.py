"""`jobs.train`, with Ray Train looking for room for more workers every two seconds instead of every minute."""

from __future__ import annotations

import runpy

from boxsup_dist.training import fit

if __name__ == "__main__":
    fit.RESIZE_EVERY_S = 2.0
    runpy.run_module("jobs.train", run_name="__main__", alter_sys=True)
