"""Local files: what the system refuses is an error with the file and what to do, never a silence."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from boxsup_dist.errors import UnreadableFileError, system_error

_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}


def is_local(uri: str) -> bool:
    """Whether the URI is a plain path or begins with file://."""
    return "://" not in uri or uri.startswith("file://")


@contextmanager
def system_errors(uri: str, *, writing: bool = False, num_bytes: int | None = None) -> Iterator[None]:
    """Turn what the system refuses inside the block into our errors.

    For files that are not read or written by this module; of a store, `remote.attempt` has done it.

    Args:
        uri: The file or folder.
        writing: Whether it is written or read.
        num_bytes: Size of what is written.
    """
    try:
        yield
    except OSError as error:
        if not is_local(uri):
            raise
        raise system_error(error, file=uri, writing=writing, num_bytes=num_bytes) from None


def check_room(folder: str, num_bytes: int) -> None:
    """Raise UnwritableFileError if the disk of a folder, which may be absent yet, has less than this much room."""
    with system_errors(folder, writing=True, num_bytes=num_bytes):
        existing = os.path.abspath(folder)
        while not os.path.exists(existing):
            existing = os.path.dirname(existing)
        if shutil.disk_usage(existing).free < num_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class LocalFiles(LocalFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Local files. The base class lists a folder that it cannot read as an empty one; this one raises."""

    def walk(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """As that of fsspec."""
        return super().walk(path, *args, **{**kwargs, "on_error": _raise_unless_absent})


def _raise_unless_absent(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def check_is_file(path: str, uri: str) -> None:
    """Check that a path is a file, because a pipe has no end. UnreadableFileError, which names `uri`, if it is not."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        found = _KINDS.get(stat.S_IFMT(mode), "a device")
        raise UnreadableFileError("not a file", file=uri, value=found, expected="a file")
