"""What a container or a batch system may lack, and what a command takes instead."""

from __future__ import annotations

import io
import os
import stat
import sys


def prepare() -> None:
    """Make every character printable, and give a process without a home folder one. Call it before other imports."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            # In an ASCII locale the frame of a help text would end the command.
            stream.reconfigure(errors="replace")
    if not os.path.isdir(os.path.expanduser("~")):  # "~" itself without HOME and without an entry in /etc/passwd
        os.environ["HOME"] = private_folder("boxsup-home")


def private_folder(name: str, where: str | None = None) -> str:
    """A folder that only this user may read or write, the same in every call unless another user took its name.

    Args:
        name: First part of its name; the user's number follows.
        where: Folder to make it in; None is the system's for temporary files.
    """
    import tempfile

    where = where or tempfile.gettempdir()
    folder = os.path.join(where, f"{name}-{os.getuid()}")
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        found = os.lstat(folder)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            return tempfile.mkdtemp(prefix=f"{name}-", dir=where)  # else its owner could put code into our caches
    return folder
