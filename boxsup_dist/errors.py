"""Errors that a user can cause or must act on: each says what happened, where, what was found and what to do."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from boxsup_dist.credentials import redact

_MAX_SHOWN = 500  # characters of a field or value: a damaged file may hold one of megabytes
_MAX_TEXT = 1000  # characters of a file's name or of what was expected, which may repeat such a value


def _brief(text: str, most: int = _MAX_SHOWN) -> str:
    return text if len(text) <= most else f"{text[:most]} ..."


class InputError(ValueError):
    """Bad input: names the file, the field, the value found and what was expected, as far as they apply.

    The text never holds the credentials of a URI.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: object = None,
        field: str | None = None,
        value: object = None,
        expected: str | None = None,
    ) -> None:
        self.problem, self.file, self.field, self.value, self.expected = problem, file, field, value, expected
        parts = [problem]
        if file is not None:
            parts.append(f"file: {_brief(str(file), _MAX_TEXT)}")
        if field is not None:
            parts.append(f"field: {_brief(' '.join(field.splitlines()))}")
        if value is not None:
            parts.append(f"found: {_brief(repr(value))}")
        if expected is not None:
            parts.append(f"expected: {_brief(expected, _MAX_TEXT)}")
        super().__init__(redact("; ".join(parts)))

    def at(
        self,
        *,
        file: object = None,
        field: str | None = None,
        problem: str | None = None,
        kind: type[InputError] | None = None,
    ) -> InputError:
        """This error with what its raiser did not know: `raise error.at(file=uri) from None`.

        Args:
            file: The file, image or table at fault; None keeps what is known.
            field: The field; None keeps what is known.
            problem: Another statement; None keeps it.
            kind: Another class of error; None keeps it.
        """
        return (kind or type(self))(
            problem or self.problem,
            file=self.file if file is None else file,
            field=self.field if field is None else field,
            value=self.value,
            expected=self.expected,
        )

    @property
    def reason(self) -> str:
        """Problem and value, for an error of which this one is the cause."""
        return self.problem if self.value is None else f"{self.problem}: {self.value}"

    def __reduce__(self) -> tuple[Any, ...]:
        # Ray pickles exceptions; the default rebuilds from args and would lose the keyword fields.
        fields = {"file": self.file, "field": self.field, "value": self.value, "expected": self.expected}
        return (_rebuild, (type(self), self.problem, fields))


def _rebuild(kind: type[InputError], problem: str, fields: dict[str, Any]) -> InputError:
    return kind(problem, **fields)


class MissingFileError(InputError):
    """A file is not there."""


class UnreadableFileError(InputError):
    """A local file is there, but it is a folder, a pipe or a device, or the system refuses to read it."""


class UnwritableFileError(InputError):
    """The system refuses to write or delete a local file: no permission, no room, a file in place of a folder."""


class MachineError(InputError):
    """The machine lacks something, such as memory or open files: no file is at fault, another would have met it too."""


class StorageError(InputError):
    """A store refuses, lacks the bucket, or answers wrongly."""


class StoreUnavailableError(StorageError):
    """A store is away for longer than we wait. A fault that passes: a training starts again from its checkpoint."""


class LeaseError(InputError):
    """Another process writes into a folder that has one writer, or took it over."""


UNREADABLE_NOW = (UnreadableFileError, MachineError, StorageError)
"""What says nothing about the content of a file: it must not be treated as absent or damaged."""


class NoRoomError(InputError):
    """Ray has no room for an object, neither in memory nor on disk."""


class RecordError(InputError):
    """One image or its annotation is unusable."""


@contextmanager
def decoding(image_id: str, file: object = None) -> Iterator[None]:
    """Turn what damaged bytes raise inside the block into a RecordError that names the image.

    Args:
        image_id: The image.
        file: The table or file that holds its bytes.
    """
    try:
        yield
    except (OSError, SyntaxError) as error:  # Pillow raises both for damaged files
        raise RecordError(f"does not decode: {error}", file=file, field="image_id", value=image_id) from None


class TableError(InputError):
    """A stored table is unfinished, of another kind or version, or does not belong to its partner."""


class WeightsError(InputError):
    """A weight file is missing or does not fit the network."""


class CheckpointError(InputError):
    """A checkpoint is absent, unfinished, damaged, or of another network."""


class SettingError(InputError):
    """A setting is out of range, contradicts another one or would have no effect."""


class NonFiniteLossError(InputError):
    """The loss of a training step is not finite; names the records of the batch."""


class LostWorkError(InputError):
    """A unit of work ended its process in every try: it takes too much memory, or native code crashes on it."""


# -- errors of the operating system ------------------------------------------------------------------------------------

_AGAIN = "then run the same command again: it continues"
_ALLOWED = "a file and folders that this user may use (see ls -ld), or another place"
_NETWORK = f"a network file system that answers: mount it again, {_AGAIN}"
_REMEDIES = {
    errno.EACCES: _ALLOWED,
    errno.EPERM: _ALLOWED,
    errno.EROFS: "a file system that can be written: choose another folder, or mount this one for writing",
    errno.ENOSPC: f"room on this disk: delete files, {_AGAIN}",
    errno.EDQUOT: f"room in this user's quota: delete files, {_AGAIN}",
    errno.EFBIG: f"a higher limit of the size of files (ulimit -f), {_AGAIN}",
    errno.EIO: f"a disk that works: see dmesg, {_AGAIN}",
    errno.ESTALE: _NETWORK,
    errno.ENOTCONN: _NETWORK,
    errno.EHOSTDOWN: _NETWORK,
    errno.ETIMEDOUT: _NETWORK,
    errno.ENAMETOOLONG: "a shorter name: most file systems allow 255 bytes",
    errno.EISDIR: "a file, not a folder",
    errno.ENOTDIR: "a path whose folders are folders: one of them is a file",
    errno.EEXIST: "a path whose folders are folders: one of them is a file",
    errno.ELOOP: "a path without a circle of links",
    errno.EMFILE: f"a higher limit of open files (ulimit -n), {_AGAIN}",
    errno.ENFILE: f"fewer open files on this machine, {_AGAIN}",
    errno.ENOMEM: f"more free memory, {_AGAIN}",
}
DISK_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE}
"""What a disk answers, whatever the name of the file."""
_OF_THE_MACHINE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


def system_error(
    error: OSError, *, file: object = None, writing: bool | None = None, num_bytes: int | None = None
) -> InputError:
    """What the operating system refused, as an error with what to do.

    Args:
        error: What the system raised.
        file: The file or folder; None: the one that `error` names.
        writing: Whether it was written (or deleted) or read; None: not known.
        num_bytes: Size of what was written.

    Returns:
        MissingFileError, UnreadableFileError, UnwritableFileError or MachineError; a plain InputError if the direction
        is not known.
    """
    file = error.filename if file is None else file
    if writing is False and error.errno == errno.ENOENT:
        return MissingFileError("no such file", file=file)
    expected = _REMEDIES.get(error.errno or 0)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        expected = f"{_room(file, num_bytes)}; {expected}"
    problem, kind = "the system refuses" if error.errno else "a file or connection failed", InputError
    if error.errno in _OF_THE_MACHINE:
        kind = MachineError
    elif writing is not None:
        problem = f"the file cannot be {'written' if writing else 'read'}"
        kind = UnwritableFileError if writing else UnreadableFileError
    text = " ".join((error.strerror or str(error) or type(error).__name__).split())
    return kind(problem, file=file, value=text, expected=expected)


def _room(file: object, num_bytes: int | None) -> str:
    """How much room a file needs and its disk has."""
    if file is None:  # what is written to an open file fails without its name
        return f"room for the output and for temporary files (TMPDIR={os.environ.get('TMPDIR', '/tmp')}), see df"
    needed = "more room" if num_bytes is None else _size(num_bytes)
    folder = os.path.abspath(str(file))
    with suppress(OSError):  # an absent folder among others
        while not os.path.isdir(folder):
            folder = os.path.dirname(folder)
        return f"{needed} for this file, {_size(shutil.disk_usage(folder).free)} are free in {folder}"
    return f"{needed} for this file"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB" if num_bytes >= 2**20 else f"{num_bytes / 2**10:.1f} KiB"


def cause_to_show(error: BaseException) -> InputError | None:
    """The error of a user or of the system that led to this one, through the wrappers of Ray; None for another cause.

    The text of Ray's wrappers is a traceback, also where they are InputErrors themselves.
    """
    waiting, seen = [error], set[int]()
    while waiting:
        found = waiting.pop(0)
        if id(found) in seen:
            continue
        seen.add(id(found))
        if not type(found).__module__.startswith("ray."):
            if isinstance(found, InputError):
                return found
            if isinstance(found, OSError):
                return system_error(found)
        # RayTaskError, Ray Train's UserExceptionWithTraceback, ControllerError and WorkerGroupError
        inner = [getattr(found, name, None) for name in ("cause", "_base_exc", "controller_failure", "__cause__")]
        failures = getattr(found, "worker_failures", None)
        inner += failures.values() if isinstance(failures, dict) else []
        waiting += [each for each in inner if isinstance(each, BaseException)]
    return None
