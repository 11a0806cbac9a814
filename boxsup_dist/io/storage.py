"""Files on local disk or any fsspec store (s3://...), written whole or not at all.

Local files are written to a temporary name, synced and renamed; object stores publish a PUT at its end. Temporary
failures of a store are retried (`remote.py`). Every function may raise StorageError if the URI is not local.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec
from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

from boxsup_dist.credentials import has_credentials
from boxsup_dist.errors import InputError, MissingFileError, UnreadableFileError
from boxsup_dist.io import remote

WILDCARDS = "*?["
T = TypeVar("T")


def is_local(uri: str) -> bool:
    """Whether the URI is a plain path or begins with file://."""
    return "://" not in uri or uri.startswith("file://")


def absolute(uri: str | os.PathLike[str]) -> str:
    """The URI in a form that means the same in every process: local paths become absolute.

    Raises:
        InputError: The URI holds credentials. It would be shown, and kept in files.
    """
    text = os.fspath(uri)
    _refuse_credentials(text)
    if is_local(text):
        return os.path.abspath(os.path.expanduser(text.removeprefix("file://")))
    return text.rstrip("/")


def join(uri: str, *parts: str) -> str:
    """`uri` with the parts added to its path."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def _refuse_credentials(uri: str) -> None:
    if has_credentials(uri):
        expected = "a URI without them; for S3 set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment"
        raise InputError("the URI holds credentials", file=uri, expected=expected)


def safe_name(name: str, *, file: object = None, field: str | None = None) -> str:
    """The name itself, if it is a relative path that stays below its folder.

    Args:
        name: Part of a path, such as an image id.
        file: Where the name was found, for the message.
        field: Its field there, for the message.

    Raises:
        InputError: The name has a part that is empty, "." or "..", or has control characters.
    """
    is_path = all(part not in ("", ".", "..") for part in name.split("/"))
    if not is_path or any(ord(character) < ord(" ") for character in name):
        expected = "a relative path without . and .., without control characters"
        raise InputError("the name leaves its folder", file=file, field=field, value=name, expected=expected)
    return name


def _filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    _refuse_credentials(uri)
    return fsspec.core.url_to_fs(uri) if is_local(uri) else remote.open_store(uri)


def _on(uri: str, operation: Callable[[fsspec.AbstractFileSystem, str], T]) -> T:
    """The result of `operation(file system, path)`, retried if the URI is not local."""
    fs, path = _filesystem(uri)
    return operation(fs, path) if is_local(uri) else remote.attempt(uri, lambda: operation(fs, path))


def exists(uri: str) -> bool:
    """Whether the file or folder exists."""
    if is_local(uri):
        return os.path.exists(absolute(uri))
    try:
        _on(uri, lambda fs, path: fs.info(path))
    except FileNotFoundError:
        return False
    return True


def list_names(uri: str) -> list[str]:
    """Sorted base names in a folder; none if the folder is absent."""
    try:
        entries = _on(uri, lambda fs, path: fs.ls(path, detail=False))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(posixpath.basename(entry.rstrip("/")) for entry in entries)


def size(uri: str) -> int:
    """Bytes of a file, or of all files under a folder."""
    return int(_on(uri, lambda fs, path: fs.du(path)))


def is_folder(uri: str) -> bool:
    """Whether the folder exists; in an object store, whether a name begins with it."""
    return bool(_on(uri, lambda fs, path: fs.isdir(path)))


def find_files(uri: str) -> list[str]:
    """Sorted paths of all files below a folder, relative to it; none if the folder is absent."""
    return _on(uri, lambda fs, path: sorted(posixpath.relpath(found, path) for found in fs.find(path)))


def fixed_part(pattern: str) -> str:
    """The folder before the first wildcard of a pattern, which has one."""
    first = min(pattern.index(character) for character in WILDCARDS if character in pattern)
    return posixpath.dirname(pattern[:first]) or "/"


def glob_files(pattern: str) -> list[str]:
    """Sorted URIs of the files, not folders, that match a pattern with *, ?, [...] or **."""
    root = fixed_part(pattern)
    _, root_path = _filesystem(root)
    matches = _on(pattern, lambda fs, path: fs.glob(path, detail=True))
    # fsspec calls local links, pipes and devices "other": links are files or folders, and reading names the others.
    folders = {name for name, info in matches.items() if info["type"] == "directory" or os.path.isdir(name)}
    found = sorted(matches.keys() - folders)
    return [join(root, posixpath.relpath(name, root_path)) for name in found]


def remove(uri: str) -> None:
    """Delete a file, or a folder with all its content; nothing happens if it is absent."""

    def delete(fs: fsspec.AbstractFileSystem, path: str) -> None:
        if fs.exists(path):
            fs.rm(path, recursive=True)
            if fs.exists(path):  # S3 reports the names that it could not delete, s3fs does not
                raise remote.CutShortError("some files were not deleted")

    with suppress(FileNotFoundError):  # another process deletes it too
        _on(uri, delete)


def read_bytes(uri: str) -> bytes:
    """The whole content of a file.

    Raises:
        MissingFileError: The file is absent.
        UnreadableFileError: It is a folder, a pipe or a device, or the system refuses to read it.
    """

    def read(fs: fsspec.AbstractFileSystem, path: str) -> bytes:
        data = bytes(fs.cat_file(path))
        if not is_local(uri) and len(data) != fs.info(path)["size"]:
            raise remote.CutShortError(f"only {len(data)} bytes arrived")
        return data

    with _reading(uri):
        return _on(uri, read)


_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}


@contextmanager
def _reading(uri: str) -> Iterator[None]:
    """Check a local file before the block reads it, because a pipe has no end; turn errors of the system into ours."""
    try:
        if is_local(uri):
            mode = os.stat(absolute(uri)).st_mode
            if not stat.S_ISREG(mode):
                found = _KINDS.get(stat.S_IFMT(mode), "a device")
                raise UnreadableFileError("not a file", file=uri, value=found, expected="a file")
        yield
    except FileNotFoundError:
        raise MissingFileError("no such file", file=uri) from None
    except OSError as error:
        if not is_local(uri):
            raise
        raise UnreadableFileError("the file cannot be read", file=uri, value=error.strerror or str(error)) from None


def file_size(uri: str) -> int:
    """Bytes of a file. Raises as `read_bytes`."""
    with _reading(uri):
        return int(_on(uri, lambda fs, path: fs.info(path)["size"]))


def read_ranges(uri: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Parts of a file, side by side where the store allows it.

    Args:
        uri: The file.
        ranges: First byte and end of each part, inside the file.

    Raises:
        MissingFileError: The file is absent.
        UnreadableFileError: As `read_bytes`.
    """
    starts, ends = [start for start, _ in ranges], [end for _, end in ranges]

    def read(fs: fsspec.AbstractFileSystem, path: str) -> list[bytes]:
        parts: list[Any] = fs.cat_ranges([path] * len(ranges), starts, ends, on_error="return")
        for part, start, end in zip(parts, starts, ends, strict=True):
            if isinstance(part, BaseException):
                raise part
            if len(part) != end - start:
                found = f"only {len(part)} of {end - start} bytes arrived"
                if is_local(uri):
                    raise UnreadableFileError("the file became shorter", file=uri, value=found)
                raise remote.CutShortError(found)
        return parts

    with _reading(uri):
        return _on(uri, read)


def is_unfinished(name: str) -> bool:
    """Whether a write that was killed left the file of this name."""
    return re.search(r"\.tmp-[0-9a-f]{32}$", name) is not None


def write_bytes(uri: str, data: bytes | memoryview) -> None:
    """Write a file; a reader sees the old content or the new, never a part."""
    if not is_local(uri):
        _on(uri, lambda fs, path: fs.pipe_file(path, bytes(data)))
        return
    with _replacing(absolute(uri)) as file:
        file.write(data)


def write_file(uri: str, source: Path) -> None:
    """Write a file with the content of a local one, which may be larger than memory; as `write_bytes` otherwise."""
    if not is_local(uri):
        _on(uri, lambda fs, path: fs.put_file(str(source), path))
        return
    with source.open("rb") as content, _replacing(absolute(uri)) as file:
        shutil.copyfileobj(content, file)


@contextmanager
def _replacing(path: str) -> Iterator[BinaryIO]:
    """A temporary file that takes the place of `path` when the block ends without an error."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.tmp-{uuid.uuid4().hex}"
    try:
        with Path(temporary).open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def read_json(uri: str) -> Any:
    """The value in a JSON file. Raises MissingFileError if it is absent, InputError if it is not JSON."""
    return parse_json(read_bytes(uri), file=uri)


def parse_json(data: bytes, *, file: str | None = None) -> Any:
    """The value of a JSON text. Raises InputError, which names `file`, if it is not JSON or nested too deep."""
    try:
        return json.loads(data)
    except RecursionError:
        raise InputError("the JSON is nested too deep", file=file) from None
    except ValueError as error:  # also of bytes that are not UTF-8, and of numbers of thousands of digits
        raise InputError("not valid JSON", file=file, value=str(error)) from None


def write_json(uri: str, value: Any) -> None:
    """Write a value as indented JSON; as `write_bytes`."""
    write_bytes(uri, (json.dumps(value, indent=2, sort_keys=False) + "\n").encode())


def arrow_filesystem(uri: str) -> tuple[FileSystem | None, str]:
    """PyArrow's file system (None for local files) and path, for a library that reads and writes by itself.

    The retries are those of fsspec's package for the store, not those of `remote.py`.
    """
    if is_local(uri):
        return None, absolute(uri)
    fs, path = fsspec.core.url_to_fs(uri, use_listings_cache=False)
    return PyFileSystem(FSSpecHandler(fs)), path
