"""A process as a container or a batch system starts it: without a user, a home, room or rights."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
UID = 54321  # has no entry in /etc/passwd
LONG_NAME = "a-batch-system-names-folders-at-length-after-the-job-4711-and-its-user"
# The user may read everything, as it could in an image, but write only what is its own.
AS_NOBODY = (
    f"setpriv --reuid {UID} --regid {UID} --clear-groups "
    "--inh-caps=-all,+dac_read_search --ambient-caps=-all,+dac_read_search"
)


def why_not() -> str | None:
    """Why this machine cannot start such a process; None if it can."""
    if os.getuid() != 0:
        return "only root may become a user without an entry in /etc/passwd"
    if (
        shutil.which("setpriv") is None
        or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode
    ):
        return "setpriv or unshare --mount is missing here"
    return None


def run(folder: Path, *words: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments: unknown user, no HOME, a TMPDIR of over 100 bytes, an ASCII output, a working
    directory and code that it may not write, and a /dev/shm of 64 MB, as Docker makes it.

    Args:
        folder: What the process may write to is `folder/out`; its working directory is `folder/closed`.
        words: Arguments of Python.
        timeout_s: Seconds until the test fails.
    """
    scratch, closed, out = folder / LONG_NAME / "tmp", folder / "closed", folder / "out"
    for each in (scratch, closed, out):
        each.mkdir(parents=True, exist_ok=True)
    os.chown(scratch, UID, UID)
    os.chown(out, UID, UID)
    closed.chmod(0o555)
    env = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "PYTHONIOENCODING": "ascii",
        "TMPDIR": str(scratch),
        "OMP_NUM_THREADS": "1",
    }
    small = "mount -t tmpfs -o size=64m,mode=1777 tmpfs /dev/shm"
    command = f"{small} && cd {closed} && exec {AS_NOBODY} {shlex.join([sys.executable, *words])}"
    words = ("unshare", "--mount", "sh", "-c", command)
    return subprocess.run(words, env=env, capture_output=True, text=True, timeout=timeout_s)
