"""Stores on other machines (S3 and what else fsspec knows): a failure that passes is tried again, others are told.

This is the only place that tries again: what s3fs and botocore would do of themselves is off, else tries multiply.
Every operation that comes here may be done twice: reads, whole writes, deletions.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import fsspec

from boxsup_dist.errors import StorageError

MAX_TRIES = 9
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 10.0  # doubled from try to try, less a random half: clients must not come together
GIVE_UP_AFTER_S = 120.0  # no try begins later than that after the first
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5, 30
PASSING_STATUS = {408, 429, 500, 502, 503, 504}
# S3 says these with status 400.
PASSING_CODES = {"RequestTimeout", "IncompleteBody", "XAmzContentSHA256Mismatch"}
REFUSING_CODES = {"ExpiredToken", "InvalidToken"}
_S3_OPTIONS = {
    "config_kwargs": {
        "retries": {"total_max_attempts": 1},
        "connect_timeout": CONNECT_TIMEOUT_S,
        "read_timeout": READ_TIMEOUT_S,
    }
}

T = TypeVar("T")


class Clock(Protocol):
    """What of the module `time` the waiting needs."""

    def monotonic(self) -> float:
        """Seconds since some moment."""

    def sleep(self, seconds: float, /) -> None:
        """Wait."""


class CutShortError(Exception):
    """A store gave fewer bytes than it has, or deleted less than it was told to; passes."""


def open_store(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI and the path in it. StorageError if fsspec knows none."""
    is_s3 = uri.startswith(("s3://", "s3a://"))
    try:
        # Other processes write too: a listing that is kept would be out of date.
        fs, path = fsspec.core.url_to_fs(uri, use_listings_cache=False, **(_S3_OPTIONS if is_s3 else {}))
    except (ImportError, ValueError) as error:
        expected = "a local path, s3://..., or a scheme whose fsspec package is installed"
        raise StorageError("no file system for this URI", file=uri, value=str(error), expected=expected) from None
    if is_s3:
        fs.retries = 1
    return fs, path


def attempt(uri: str, operation: Callable[[], T], clock: Clock = time) -> T:
    """What `operation` gives, tried again with growing waits while the store fails in a way that passes.

    FileNotFoundError goes up as it is. StorageError, at once if the store refuses or has no such bucket, after
    MAX_TRIES or GIVE_UP_AFTER_S if it does not answer.
    """
    started = clock.monotonic()
    tries = 0
    while True:
        try:
            return operation()
        except Exception as error:
            found = error
        tries += 1
        _raise_unless_passing(uri, found)
        if tries == MAX_TRIES or clock.monotonic() - started > GIVE_UP_AFTER_S:
            raise StorageError(
                f"the store does not answer as it should, tried {tries} times",
                file=uri,
                value=f"{type(found).__name__}: {found}"[:300],
                expected="a store that can be reached, at AWS_ENDPOINT_URL if it is not that of AWS; then the same "
                "command again: it continues",
            ) from found
        wait_s = min(FIRST_WAIT_S * 2 ** (tries - 1), LONGEST_WAIT_S)
        clock.sleep(wait_s * random.SystemRandom().uniform(0.5, 1))


def _raise_unless_passing(uri: str, error: Exception) -> None:
    status, code = _answer(error)
    passing, refusing, others = _failures()
    if status in PASSING_STATUS or code in PASSING_CODES or isinstance(error, passing):
        return
    if code == "NoSuchBucket":
        expected = "a bucket that exists, at AWS_ENDPOINT_URL if it is not one of AWS"
        raise StorageError("no such bucket", file=uri, expected=expected) from error
    if status in (401, 403) or code in REFUSING_CODES or isinstance(error, refusing):
        raise StorageError(
            "the store refuses",
            file=uri,
            value=code or str(error),
            expected="credentials that may do this, in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ) from error
    if isinstance(error, others) or (status is not None and not isinstance(error, FileNotFoundError)):
        found = f"{code or status or type(error).__name__}: {error}"
        raise StorageError("the store can't do this", file=uri, value=found[:300]) from error
    raise error


def _answer(error: BaseException | None) -> tuple[int | None, str | None]:
    """HTTP status and error code of the answer that led to this error: of S3, or of another store of fsspec."""
    while error is not None:
        answer = getattr(error, "response", None)
        if isinstance(answer, dict):
            return answer.get("ResponseMetadata", {}).get("HTTPStatusCode"), answer.get("Error", {}).get("Code")
        for name in ("status", "code"):
            if isinstance(getattr(error, name, None), int):
                return getattr(error, name), None
        error = error.__cause__
    return None, None


@functools.cache
def _failures() -> tuple[tuple[Any, ...], tuple[Any, ...], type[Exception]]:
    """Exceptions without an answer of the store: of broken connections, of absent credentials, and S3's others."""
    # Takes a second that nobody should wait for whose files are local.
    import aiohttp
    from botocore import exceptions
    from s3fs.core import S3_RETRYABLE_ERRORS

    broken = (CutShortError, ConnectionError, TimeoutError, *S3_RETRYABLE_ERRORS)
    of_packages = (aiohttp.ClientConnectionError, exceptions.ConnectionError, exceptions.IncompleteReadError)
    refusing = (exceptions.NoCredentialsError, exceptions.PartialCredentialsError, exceptions.CredentialRetrievalError)
    return (*broken, *of_packages), (*refusing, PermissionError), exceptions.BotoCoreError
