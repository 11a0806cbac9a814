"""Checks what the machine must have before anything is installed; prints what is missing and how to get it."""

import shutil
import sys
import sysconfig
from pathlib import Path

NEEDED_GB = 9  # the environment takes 7 GB


def main() -> int:
    """Print every missing prerequisite; the exit status is their number."""
    missing = []
    if not (3, 11) <= sys.version_info < (3, 13):  # this file runs under whatever python3 is there
        found = ".".join(map(str, sys.version_info[:2]))
        # On 3.13 pydensecrf2 1.1 does not compile: its C++ uses what that Python made private.
        missing.append(f"Python 3.11 or 3.12, found {found}: name another one by `make PYTHON=/path/to/python3.12`")
    if shutil.which("g++") is None:
        missing.append("g++, which builds the dense CRF: on Debian or Ubuntu `apt-get install g++`")
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        missing.append("the headers of this Python (Python.h): on Debian or Ubuntu `apt-get install python3-dev`")
    free_gb = shutil.disk_usage(Path.cwd()).free / 1e9
    if free_gb < NEEDED_GB:
        missing.append(f"{NEEDED_GB} GB of free disk for the environment, found {free_gb:.1f}")
    for line in missing:
        print(f"missing: {line}", file=sys.stderr)
    return len(missing)


if __name__ == "__main__":
    raise SystemExit(main())
