"""Files on local disk or any fsspec store (s3://...), written whole or not at all.

Local files are written to a temporary name, synced and renamed; object stores publish a PUT at its end.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from boxsup_dist.errors import InputError
from boxsup_dist.secrets import has_credentials

WILDCARDS = "*?["


def is_local(uri: str) -> bool:
    """True for plain paths and file:// URIs."""
    return "://" not in uri or uri.startswith("file://")


def absolute(uri: str | os.PathLike) -> str:
    """The URI in a form that means the same on every process: local paths become absolute.

    InputError if it holds credentials: it would be kept in files and shown.
    """
    text = os.fspath(uri)
    _refuse_credentials(text)
    if is_local(text):
        return os.path.abspath(os.path.expanduser(text.removeprefix("file://")))
    return text.rstrip("/")


def join(uri: str, *parts: str) -> str:
    """`uri` with path parts added."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def _refuse_credentials(uri: str) -> None:
    if has_credentials(uri):
        expected = "none in it; for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment"
        raise InputError("the URI holds credentials", file=uri, expected=expected)


def safe_name(name: str, *, file: object = None, field: str | None = None) -> str:
    """The name if it is a relative path that stays below its folder. InputError, naming file and field, otherwise."""
    is_path = all(part not in ("", ".", "..") for part in name.split("/"))
    if not is_path or any(ord(character) < ord(" ") for character in name):
        expected = "a relative path without . and .., without control characters"
        raise InputError("a name that leaves its folder", file=file, field=field, value=name, expected=expected)
    return name


def _filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    _refuse_credentials(uri)
    return fsspec.core.url_to_fs(uri)


def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    fs, path = _filesystem(uri)
    return fs.exists(path)


def list_names(uri: str) -> list[str]:
    """Sorted base names in a folder; an absent folder is empty."""
    fs, path = _filesystem(uri)
    fs.invalidate_cache()
    if not fs.exists(path):
        return []
    return sorted(os.path.basename(entry.rstrip("/")) for entry in fs.ls(path, detail=False))


def size(uri: str) -> int:
    """Bytes of a file, or of all files under a folder."""
    fs, path = _filesystem(uri)
    return int(fs.du(path))


def is_folder(uri: str) -> bool:
    """Whether a folder is there; in an object store, a prefix of names."""
    fs, path = _filesystem(uri)
    return fs.isdir(path)


def find_files(uri: str) -> list[str]:
    """Sorted paths of all files below a folder, relative to it; an absent folder is empty."""
    fs, path = _filesystem(uri)
    fs.invalidate_cache()
    return sorted(posixpath.relpath(found, path) for found in fs.find(path))


def fixed_part(pattern: str) -> str:
    """The folder before a pattern's first wildcard."""
    first = min(pattern.index(character) for character in WILDCARDS if character in pattern)
    return posixpath.dirname(pattern[:first]) or "/"


def glob_files(pattern: str) -> list[str]:
    """Sorted URIs of the files that match a pattern with *, ?, [...] or **."""
    root = fixed_part(pattern)
    fs, path = _filesystem(pattern)
    _, root_path = _filesystem(root)
    fs.invalidate_cache()
    found = sorted(name for name, info in fs.glob(path, detail=True).items() if info["type"] == "file")
    return [join(root, posixpath.relpath(name, root_path)) for name in found]


def remove(uri: str) -> None:
    """Delete a file or a folder with all in it; absent is fine."""
    fs, path = _filesystem(uri)
    if fs.exists(path):
        fs.rm(path, recursive=True)


def read_bytes(uri: str) -> bytes:
    """Whole content of a file. InputError if it is not there."""
    fs, path = _filesystem(uri)
    try:
        return fs.cat_file(path)
    except FileNotFoundError:
        raise InputError("no such file", file=uri) from None


def is_unfinished(name: str) -> bool:
    """Whether a file's name is that of a write which was killed."""
    return re.search(r"\.tmp-[0-9a-f]{32}$", name) is not None


def write_bytes(uri: str, data: bytes | memoryview) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    fs, path = _filesystem(uri)
    if not is_local(uri):
        fs.pipe_file(path, bytes(data))
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with _replacing(path) as file:
        file.write(data)


def write_file(uri: str, source: Path) -> None:
    """As write_bytes, with the content of a local file, which need not fit into memory."""
    fs, path = _filesystem(uri)
    if not is_local(uri):
        fs.put_file(str(source), path)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with source.open("rb") as content, _replacing(path) as file:
        shutil.copyfileobj(content, file)


@contextmanager
def _replacing(path: str) -> Iterator[BinaryIO]:
    """A temporary file that takes the place of `path` once it is written."""
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
    """Parsed JSON file. InputError if it is absent or not JSON."""
    data = read_bytes(uri)
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        raise InputError("not valid JSON", file=uri, value=str(error)) from None


def write_json(uri: str, value: Any) -> None:
    """Write JSON, indented, atomically."""
    write_bytes(uri, (json.dumps(value, indent=2, sort_keys=False) + "\n").encode())


def encode_parquet(
    table: pa.Table, row_group_size: int, *, split_bytes: Sequence[str] = (), level: int | None = None
) -> memoryview:
    """The table as Parquet bytes with zstd compression of this level, its default if None.

    `split_bytes` are Parquet paths of integer columns whose high and low bytes are compressed apart.
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
    """A Parquet file opened for reading single row groups and columns."""
    fs, path = _filesystem(uri)
    try:
        return pq.ParquetFile(fs.open(path, "rb"), pre_buffer=not is_local(uri))
    except FileNotFoundError:
        raise InputError("no such file", file=uri) from None
    except (ValueError, TypeError, AttributeError) as error:  # the last two: Ray's types in a foreign file
        raise InputError("not a readable Parquet file", file=uri, value=str(error)) from None
