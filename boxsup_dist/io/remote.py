"""Stores on other machines (S3 and what else fsspec knows): temporary failures are retried, others are reported.

This is the only place that retries: the retries of s3fs and botocore are off, because the tries would multiply.
Every operation that comes here may be done twice: reads, whole writes, deletions.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable
from typing import Any, NoReturn, Protocol, TypeVar

import fsspec
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_exponential

from boxsup_dist.errors import StorageError

MAX_TRIES = 9
# The wait doubles from try to try; up to half of it is taken off at random, so that clients do not return together.
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 10.0
GIVE_UP_AFTER_S = 120.0  # no try begins later than this after the first
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5, 30
PASSING_STATUS = {408, 429, 500, 502, 503, 504}
# S3 sends these with status 400.
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
    """The two functions of the module `time` that waiting needs."""

    def monotonic(self) -> float:
        """Seconds since a fixed moment."""

    def sleep(self, seconds: float, /) -> None:
        """Wait."""


class CutShortError(Exception):
    """A store gave fewer bytes than it has, or deleted less than it was asked to: a temporary failure."""


def open_store(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI and the path in it. Raises StorageError if fsspec knows no such file system."""
    is_s3 = uri.startswith(("s3://", "s3a://"))
    try:
        # Other processes write too: a kept listing would be out of date.
        fs, path = fsspec.core.url_to_fs(uri, use_listings_cache=False, **(_S3_OPTIONS if is_s3 else {}))
    except (ImportError, ValueError) as error:
        expected = "a local path, s3://..., or a scheme whose fsspec package is installed"
        raise StorageError("no file system for this URI", file=uri, value=str(error), expected=expected) from None
    if is_s3:
        fs.retries = 1
    return fs, path


def attempt(uri: str, operation: Callable[[], T], clock: Clock = time) -> T:
    """The result of `operation`, retried with growing waits while the store fails temporarily.

    Args:
        uri: What the operation is about, for messages.
        operation: Reads, writes or deletes; may be done twice.
        clock: Measures and waits.

    Raises:
        FileNotFoundError: As the store raised it.
        StorageError: At once if the store refuses access or lacks the bucket; after MAX_TRIES or GIVE_UP_AFTER_S if it
            keeps failing.
    """
    started = clock.monotonic()
    backoff = wait_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S)

    def is_temporary(error: BaseException) -> bool:
        if not isinstance(error, Exception):
            return False
        _raise_unless_passing(uri, error)
        return True

    def is_hopeless(state: RetryCallState) -> bool:
        return state.attempt_number == MAX_TRIES or clock.monotonic() - started > GIVE_UP_AFTER_S

    retrying = Retrying(
        sleep=clock.sleep,
        retry=retry_if_exception(is_temporary),
        wait=lambda state: backoff(state) * random.SystemRandom().uniform(0.5, 1),
        stop=is_hopeless,
        retry_error_callback=lambda state: _give_up(uri, state),
    )
    return retrying(operation)


def _give_up(uri: str, state: RetryCallState) -> NoReturn:
    assert state.outcome is not None
    found = state.outcome.exception()
    raise StorageError(
        f"the store failed in each of {state.attempt_number} tries",
        file=uri,
        value=f"{type(found).__name__}: {found}"[:300],
        expected="a store that can be reached, at AWS_ENDPOINT_URL unless it is AWS; then run the same command again, "
        "which continues",
    ) from found


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
            "the store refuses access",
            file=uri,
            value=code or str(error),
            expected="credentials that may do this, in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ) from error
    if isinstance(error, others) or (status is not None and not isinstance(error, FileNotFoundError)):
        found = f"{code or status or type(error).__name__}: {error}"
        raise StorageError("the store reports an error", file=uri, value=found[:300]) from error
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
    # Imported here because it takes a second, and a command with local files does not need it.
    import aiohttp
    from botocore import exceptions
    from s3fs.core import S3_RETRYABLE_ERRORS

    broken = (CutShortError, ConnectionError, TimeoutError, *S3_RETRYABLE_ERRORS)
    of_packages = (aiohttp.ClientConnectionError, exceptions.ConnectionError, exceptions.IncompleteReadError)
    refusing = (exceptions.NoCredentialsError, exceptions.PartialCredentialsError, exceptions.CredentialRetrievalError)
    return (*broken, *of_packages), (*refusing, PermissionError), exceptions.BotoCoreError
