"""Files on local disk or any fsspec store (s3://...), written whole or not at all.

Local files are written to a temporary name, synced and renamed; object stores publish a PUT at its end. Temporary
failures of a store are retried (`remote.py`). Every function may raise StorageError if the URI is not local.
"""

from __future__ import annotations

import io
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
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.utils import glob_translate

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
    return sum(int(info["size"]) for info in _on(uri, _find).values())


def is_folder(uri: str) -> bool:
    """Whether the folder exists; in an object store, whether a name begins with it."""
    return bool(_on(uri, lambda fs, path: fs.isdir(path)))


def find_files(uri: str) -> list[str]:
    """Sorted paths of all files below a folder, relative to it; none if the folder is absent."""
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


def encode_parquet(
    table: pa.Table, row_group_size: int, *, split_bytes: Sequence[str] = (), level: int | None = None
) -> memoryview:
    """The table as the bytes of a Parquet file with zstd compression.

    Args:
        table: The rows.
        row_group_size: Rows of one row group.
        split_bytes: Parquet paths of integer columns whose high and low bytes are compressed apart.
        level: Level of the compression; None is the default of zstd.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=row_group_size,
        compression="zstd",
        compression_level=level,
        use_dictionary=not split_bytes,
        column_encoding=dict.fromkeys(split_bytes, "BYTE_STREAM_SPLIT") or None,
    )
    return memoryview(sink.getvalue())


def open_parquet(uri: str) -> pq.ParquetFile:
    """Open a Parquet file to read single row groups and columns.

    Raises:
        MissingFileError: The file is absent.
        UnreadableFileError: As `read_bytes`.
        InputError: It is no Parquet file.
    """
    try:
        with _reading(uri):
            source = absolute(uri) if is_local(uri) else pa.PythonFile(_StoredFile(uri), mode="r")
            return pq.ParquetFile(source, pre_buffer=not is_local(uri))
    except InputError:
        raise
    except (ValueError, TypeError, AttributeError) as error:  # the last two: Ray's types in a foreign file
        raise InputError("not a readable Parquet file", file=uri, value=str(error)) from None


class _StoredFile(io.RawIOBase):
    """A file in a store that is read by ranges; each range arrives whole or is retried."""

    def __init__(self, uri: str) -> None:
        self._uri, self._position = uri, 0
        # Kept, because the reader of Parquet has threads and fsspec opens a new file system for each thread.
        self._fs, self._path = _filesystem(uri)
        self._size = int(remote.attempt(uri, lambda: self._fs.info(self._path)["size"]))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        start = min(self._position, self._size)
        end = self._size if size is None or size < 0 else min(start + size, self._size)
        data = remote.attempt(self._uri, lambda: self._range(start, end)) if end > start else b""
        self._position = end
        return data

    def _range(self, start: int, end: int) -> bytes:
        data = bytes(self._fs.cat_file(self._path, start=start, end=end))
        if len(data) != end - start:
            raise remote.CutShortError(f"only {len(data)} of {end - start} bytes arrived")
        return data
