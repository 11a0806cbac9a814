"""Files on local disk or any fsspec store (s3://...), written whole or not at all.

Local files are written to a temporary name, synced and renamed; object stores publish a PUT at its end. Temporary
failures of a store are retried (`remote.py`). Every function may raise StorageError if the URI is not local, and
UnreadableFileError or UnwritableFileError if it is and the system refuses: an absent file alone counts as absent.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec
from fsspec.utils import glob_translate

from boxsup_dist.credentials import has_credentials
from boxsup_dist.errors import InputError, MissingFileError, UnreadableFileError
from boxsup_dist.io import remote
from boxsup_dist.io.local import LocalFiles, check_is_file
from boxsup_dist.io.local import is_local as is_local
from boxsup_dist.io.local import system_errors as system_errors

WILDCARDS = "*?["
T = TypeVar("T")


def absolute(uri: str | os.PathLike[str]) -> str:
    """The URI in a form that means the same in every process: local paths become absolute.

    Raises:
        InputError: The URI holds credentials, which would be shown and kept in files; or it is no name of a file.
    """
    text = os.fspath(uri)
    _check_uri(text)
    if is_local(text):
        return os.path.abspath(os.path.expanduser(text.removeprefix("file://")))
    return text.rstrip("/")


def join(uri: str, *parts: str) -> str:
    """`uri` with the parts added to its path."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def _check_uri(uri: str) -> None:
    if has_credentials(uri):
        expected = "a URI without them; for S3 set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment"
        raise InputError("the URI holds credentials", file=uri, expected=expected)
    try:
        encoded = os.fsencode(uri)
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can hold
        encoded = b"\0"
    if b"\0" in encoded:
        raise InputError("no name of a file", file=ascii(uri), expected="characters that a file name can have")


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
    _check_uri(uri)
    return (LocalFiles(), absolute(uri)) if is_local(uri) else remote.open_store(uri)


def _on(uri: str, operation: Callable[[fsspec.AbstractFileSystem, str], T]) -> T:
    """The result of `operation(file system, path)`, retried if the URI is not local."""
    fs, path = _filesystem(uri)
    return operation(fs, path) if is_local(uri) else remote.attempt(uri, lambda: operation(fs, path))


def _mode(uri: str) -> int | None:
    """Kind and permissions of a local file or folder; None if it is absent."""
    path = absolute(uri)
    with system_errors(uri):
        try:
            return os.stat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None


def exists(uri: str) -> bool:
    """Whether the file or folder exists."""
    if is_local(uri):
        return _mode(uri) is not None

    def look(fs: fsspec.AbstractFileSystem, path: str) -> None:
        try:
            fs.info(path)
        except FileNotFoundError:
            raise
        except Exception:  # some servers answer HEAD of a folder with 403 or 500, others of an absent name
            fs.ls(path)

    try:
        _on(uri, look)
    except FileNotFoundError:
        return False
    return True


def list_names(uri: str) -> list[str]:
    """Sorted base names in a folder; none if the folder is absent."""
    with system_errors(uri):
        try:
            entries = _on(uri, lambda fs, path: fs.ls(path, detail=True))
        except (FileNotFoundError, NotADirectoryError):
            return []
    return sorted(posixpath.basename(each["name"].rstrip("/")) for each in entries if not _is_folder_marker(each))


def _is_folder_marker(info: Mapping[str, Any]) -> bool:
    """Whether a listed file is the empty object whose name ends in /, which some tools put into S3 for a folder."""
    return info["type"] != "directory" and str(info["name"]).endswith("/")


def size(uri: str) -> int:
    """Bytes of a file, or of all files under a folder."""
    with system_errors(uri):
        return sum(int(info["size"]) for info in _on(uri, _find).values())


def is_folder(uri: str) -> bool:
    """Whether the folder exists; in an object store, whether a name begins with it."""
    if is_local(uri):
        return stat.S_ISDIR(_mode(uri) or 0)
    return bool(_on(uri, lambda fs, path: fs.isdir(path)))


def find_files(uri: str) -> list[str]:
    """Sorted paths of all files below a folder, relative to it; none if the folder is absent."""
    with system_errors(uri):
        return _on(uri, lambda fs, path: sorted(posixpath.relpath(found, path) for found in _find(fs, path)))


def _find(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, dict[str, Any]]:
    """All files below a path, or the file itself, with what the listing says of each; none if it is absent."""
    if fs.isdir(path):
        found = fs.find(path, detail=True)
    else:  # not by `find`, because s3fs asks for HEAD of an absent name
        try:
            found = {info["name"]: info for info in fs.ls(path, detail=True)}
        except FileNotFoundError:
            found = {}
    return {name: info for name, info in found.items() if not _is_folder_marker(info)}


def fixed_part(pattern: str) -> str:
    """The folder before the first wildcard of a pattern, which has one."""
    first = min(pattern.index(character) for character in WILDCARDS if character in pattern)
    return posixpath.dirname(pattern[:first]) or "/"


def glob_files(pattern: str) -> list[str]:
    """Sorted URIs of the files, not folders, that match a pattern with *, ?, [...] or **."""
    root = fixed_part(pattern)
    _, root_path = _filesystem(root)
    if is_local(pattern):
        with system_errors(pattern):
            matches = _on(pattern, lambda fs, path: fs.glob(path, detail=True))
        # fsspec calls links, pipes and devices "other": links are files or folders, and reading names the others.
        folders = {name for name, info in matches.items() if info["type"] == "directory" or os.path.isdir(name)}
        found = sorted(matches.keys() - folders)
    else:
        found = sorted(_on(pattern, _matching))
    return [join(root, posixpath.relpath(name, root_path)) for name in found]


def _matching(fs: fsspec.AbstractFileSystem, pattern: str) -> list[str]:
    """Names of a store's files that match; by listings alone, because fsspec's own glob asks for HEAD of folders."""
    root = fixed_part(pattern)
    if "**" in pattern or "/" in pattern[len(root) :].strip("/"):
        files = list(_find(fs, root))
    else:  # one level: the folders below may hold millions
        try:
            files = [each["name"] for each in fs.ls(root, detail=True) if each["type"] != "directory"]
        except FileNotFoundError:
            files = []
    wanted = re.compile(glob_translate(pattern))
    return [name for name in files if wanted.match(name) and not name.endswith("/")]


def remove(uri: str) -> None:
    """Delete a file, or a folder with all its content; nothing happens if it is absent."""

    def delete(fs: fsspec.AbstractFileSystem, path: str) -> None:
        if not remote.is_s3(uri):
            if fs.exists(path):
                fs.rm(path, recursive=True)
            return
        # By listings, because servers answer HEAD of a folder as they like. Not by s3fs's `rm`, which takes [] and * in
        # a name for a pattern and passes over objects that it could not delete.
        for name in fs.find(path) if fs.isdir(path) else fs.ls(path, detail=False):
            fs.rm_file(name)

    with system_errors(uri, writing=True), suppress(FileNotFoundError):  # another process deletes it too
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


@contextmanager
def _reading(uri: str) -> Iterator[None]:
    """Check a local file before the block reads it, because a pipe has no end; turn errors of the system into ours."""
    try:
        with system_errors(uri):
            if is_local(uri):
                check_is_file(absolute(uri), uri)
            yield
    except FileNotFoundError:
        raise MissingFileError("no such file", file=uri) from None


def _temporary_name() -> str:
    # Without the name of the file: with it the name could be longer than the file system allows.
    return f".tmp-{uuid.uuid4().hex}"


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
    """Whether a write that was killed left the file of this name. Older versions put the file's name before it."""
    return re.search(r"\.tmp-[0-9a-f]{32}$", name) is not None


def check_output(uri: str) -> None:
    """Check that a local folder can be made and written to, so that a command fails before its work, not after.

    Leaves nothing behind. A store is not asked: what may be written there depends on the name.

    Raises:
        UnwritableFileError: The system refuses, or the folder or one above it is a file.
    """
    if not is_local(uri):
        return
    folder = absolute(uri)
    while not exists(folder):
        folder = os.path.dirname(folder)
    with system_errors(uri, writing=True):
        probe = os.path.join(folder, _temporary_name())
        Path(probe).touch()
        os.unlink(probe)


def write_bytes(uri: str, data: bytes | memoryview) -> None:
    """Write a file; a reader sees the old content or the new, never a part."""
    if not is_local(uri):
        _on(uri, lambda fs, path: fs.pipe_file(path, bytes(data)))
        return
    with _replacing(uri, len(data)) as file:
        file.write(data)


def write_file(uri: str, source: Path) -> None:
    """Write a file with the content of a local one, which may be larger than memory; as `write_bytes` otherwise."""
    if not is_local(uri):
        _on(uri, lambda fs, path: fs.put_file(str(source), path))
        return
    with source.open("rb") as content, _replacing(uri, source.stat().st_size) as file:
        shutil.copyfileobj(content, file)


@contextmanager
def _replacing(uri: str, num_bytes: int) -> Iterator[BinaryIO]:
    """A temporary file that takes the place of a local file when the block ends without an error."""
    path = absolute(uri)
    temporary = os.path.join(os.path.dirname(path), _temporary_name())
    with system_errors(uri, writing=True, num_bytes=num_bytes):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            with Path(temporary).open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):  # what the system refused first is what to report
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
        raise InputError("not valid JSON", file=file, value=str(error), expected="one whole JSON value") from None


def write_json(uri: str, value: Any) -> None:
    """Write a value as indented JSON; as `write_bytes`."""
    write_bytes(uri, (json.dumps(value, indent=2, sort_keys=False) + "\n").encode())
