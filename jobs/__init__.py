"""Commands, one per file: `python -m jobs` lists them, `python -m jobs.NAME` runs one."""

from __future__ import annotations

import os
import sys

from boxsup_dist import interrupts, surroundings

# Python imports this package before all else of a command; `-m` is its name for the program until then. The imports of
# the commands take seconds, and a signal may come in them.
if os.path.basename(sys.argv[0]) in ("-m", "boxsup"):
    interrupts.install()
    surroundings.prepare()
