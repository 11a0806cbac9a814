"""The file of a lease: read with its version, and replaced only if it still has the version that was read."""

from __future__ import annotations

import fcntl
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import fsspec.asyn

from boxsup_dist.errors import InputError, MissingFileError
from boxsup_dist.io import remote, storage

_CONFLICTS = {"PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey"}
_UNKNOWN_CONDITIONS = {"NotImplemented", "InvalidArgument", "InvalidRequest"}
T = TypeVar("T")


class LeaseFile(ABC):
    """A small file that several processes replace."""

    is_exact = True  # whether of two processes that replace the same version only one succeeds
    patience_s: float | None = None  # how long to wait for a store that is away; None: as long as for other files

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @abstractmethod
    def read(self) -> tuple[bytes | None, str | None]:
        """Content and version; None and None if the file is absent."""

    @abstractmethod
    def replace(self, data: bytes, version: str | None) -> str | None:
        """Replace the content that had this version (None: the file was absent).

        Returns:
            The new version; None if the file has another version now, and nothing was written.
        """


def open_lease_file(uri: str) -> LeaseFile:
    """The lease file at a URI, which may be absent."""
    if storage.is_local(uri):
        return _LocalFile(storage.absolute(uri))
    return _S3File(uri) if remote.is_s3(uri) else _StoredFile(uri)


class _LocalFile(LeaseFile):
    """A local file, or one on a shared file system: locked while it is read and written. Its content is its version."""

    def read(self) -> tuple[bytes | None, str | None]:
        try:
            with self._locked(os.O_RDONLY, fcntl.LOCK_SH) as file:
                data = _content(file)
        except FileNotFoundError:
            return None, None
        except OSError as error:
            raise InputError("cannot read the lease", file=self.uri, value=error.strerror or str(error)) from None
        return data or None, data.decode(errors="replace") or None

    def replace(self, data: bytes, version: str | None) -> str | None:
        try:
            if version is None:
                os.makedirs(os.path.dirname(self.uri), exist_ok=True)
            with self._locked(os.O_RDWR | (os.O_CREAT if version is None else 0), fcntl.LOCK_EX) as file:
                if (_content(file).decode(errors="replace") or None) != version:
                    return None
                os.pwrite(file, data, 0)  # in place, and cut afterwards: a full disk leaves the old content
                os.ftruncate(file, len(data))
                os.fsync(file)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError("cannot write the lease", file=self.uri, value=error.strerror or str(error)) from None
        return data.decode()

    @contextmanager
    def _locked(self, flags: int, kind: int) -> Iterator[int]:
        file = os.open(self.uri, flags | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(file, kind)
            except OSError:  # this file system has no locks
                self.is_exact = False
            yield file
        finally:
            os.close(file)


def _content(file: int) -> bytes:
    return os.pread(file, 100_000, 0)


class _S3File(LeaseFile):
    """An object of S3; the version is its ETag."""

    _proven = False  # that the store checks the conditions of writes

    def read(self) -> tuple[bytes | None, str | None]:
        async def get(fs: Any, bucket: str, key: str) -> tuple[bytes, str]:
            answer = await fs._call_s3("get_object", Bucket=bucket, Key=key)
            return await answer["Body"].read(), answer["ETag"]

        try:
            found: tuple[bytes, str] = self._call(lambda fs, *place: fsspec.asyn.sync(fs.loop, get, fs, *place))
        except FileNotFoundError:
            return None, None
        return found

    def replace(self, data: bytes, version: str | None) -> str | None:
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        if self.is_exact:
            taken = self._put(data, condition)
            if taken is not None and not self._proven:
                # A store that ignores conditions writes every time; elsewhere the old version does not match any more.
                self._proven = self._put(data, condition) is None
                self.is_exact = self._proven
                return taken
            if self.is_exact:
                return taken
        return self._put(data, {}) if self.read()[1] == version else None

    def _put(self, data: bytes, condition: dict[str, str]) -> str | None:
        """The new ETag; None if the condition does not hold."""

        def put(fs: Any, bucket: str, key: str) -> str | None:
            try:
                answer = fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, **condition)
            except Exception as error:
                code = remote.code_of(error)
                if code in _CONFLICTS:
                    return None
                if condition and code in _UNKNOWN_CONDITIONS:
                    self.is_exact = False
                    return None
                raise
            return str(answer["ETag"])

        return self._call(put)

    def _call(self, operation: Callable[[Any, str, str], T]) -> T:
        fs, path = remote.open_store(self.uri)
        bucket, key, _ = fs.split_path(path)
        return remote.attempt(self.uri, lambda: operation(fs, bucket, key), most_s=self.patience_s)


class _StoredFile(LeaseFile):
    """A file of another store, without conditions. Its content is its version."""

    is_exact = False

    def read(self) -> tuple[bytes | None, str | None]:
        try:
            data = storage.read_bytes(self.uri)
        except MissingFileError:
            return None, None
        return data, data.decode(errors="replace")

    def replace(self, data: bytes, version: str | None) -> str | None:
        if self.read()[1] != version:
            return None
        storage.write_bytes(self.uri, data)
        return data.decode()
