"""Stores on other machines (S3 and what else fsspec knows): failures that pass are waited out, others are reported.

This is the only place that retries: the retries of s3fs and botocore are off, because the tries would multiply.
Every operation that comes here may be done twice: reads, whole writes, deletions.

The wait for a store that is away is bound by time, not by tries: BOXSUP_STORE_PATIENCE_S seconds, 600 if it is not set.
A command whose store has never answered waits FIRST_PATIENCE_S only, because the address may be wrong. Each wait is
announced (`boxsup_dist/io/waiting.py`).
"""

from __future__ import annotations

import functools
import math
import os
import random
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import fsspec

from boxsup_dist.errors import SettingError, StorageError, StoreUnavailableError
from boxsup_dist.io import waiting
from boxsup_dist.progress import format_duration

PATIENCE_VARIABLE = "BOXSUP_STORE_PATIENCE_S"
DEFAULT_PATIENCE_S = 600.0
FIRST_PATIENCE_S = 30.0
# The wait doubles from try to try; up to half of it is taken off at random, so that clients do not return together.
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 10.0
MAX_CUT_SHORT = 9  # a store that answers each time, but with less than it should, is not away
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5, 30
PASSING_STATUS = {408, 429, 500, 502, 503, 504}
# S3 sends these with status 400 or 403. A clock that is wrong after a pause of the machine is set again in seconds.
PASSING_CODES = {"RequestTimeout", "IncompleteBody", "XAmzContentSHA256Mismatch", "RequestTimeTooSkewed"}
REFUSING_CODES = {"ExpiredToken", "InvalidToken"}
_S3_OPTIONS = {
    "config_kwargs": {
        "retries": {"total_max_attempts": 1},
        "connect_timeout": CONNECT_TIMEOUT_S,
        "read_timeout": READ_TIMEOUT_S,
    }
}
_CREDENTIALS = (
    "credentials that may do this, in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a public bucket without "
    "credentials, FSSPEC_S3_ANON=true"
)

T = TypeVar("T")
# Stores that have answered this command; None in a process that is no command: a worker's store answered its driver.
_answered: set[str] | None = None


class Clock(Protocol):
    """The two functions of the module `time` that waiting needs."""

    def monotonic(self) -> float:
        """Seconds since a fixed moment."""

    def sleep(self, seconds: float, /) -> None:
        """Wait."""


class CutShortError(Exception):
    """A store gave fewer bytes than it has, or deleted less than it was asked to: a temporary failure."""


def is_s3(uri: str) -> bool:
    """Whether the URI is one of S3."""
    return uri.startswith(("s3://", "s3a://"))


def open_store(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI and the path in it. Raises StorageError if fsspec knows no such file system."""
    try:
        # Other processes write too: a kept listing would be out of date.
        fs, path = fsspec.core.url_to_fs(uri, use_listings_cache=False, **(_S3_OPTIONS if is_s3(uri) else {}))
    except (ImportError, ValueError) as error:
        expected = "a local path, s3://..., or a scheme whose fsspec package is installed"
        raise StorageError("no file system for this URI", file=uri, value=str(error), expected=expected) from None
    if is_s3(uri):
        fs.retries = 1
    return fs, path


def begin_command() -> None:
    """Note that this process is a command of a user: its first access to each store waits FIRST_PATIENCE_S only."""
    global _answered
    _answered = set()


def patience_s() -> float:
    """Seconds to wait for a store that is away. Raises SettingError if BOXSUP_STORE_PATIENCE_S is no such number."""
    text = os.environ.get(PATIENCE_VARIABLE) or str(DEFAULT_PATIENCE_S)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise SettingError("no time to wait", field=PATIENCE_VARIABLE, value=text, expected="seconds, 0 or more")
    return seconds


def attempt(uri: str, operation: Callable[[], T], clock: Clock = time, most_s: float | None = None) -> T:
    """The result of `operation`, tried again with growing waits while the store fails temporarily.

    Args:
        uri: What the operation is about, for messages.
        operation: Reads, writes or deletes; may be done twice.
        clock: Measures and waits.
        most_s: Wait no longer than this, whatever the patience, and without a word: the caller tries again later.

    Raises:
        FileNotFoundError: As the store raised it.
        StorageError: At once if the store refuses access or lacks the bucket.
        StoreUnavailableError: The store was away longer than `patience_s` after the first failure.
    """
    wait: _Wait | None = None
    while True:
        try:
            result = operation()
        except Exception as error:
            try:
                _raise_unless_passing(uri, error)
            except FileNotFoundError:
                _note_answer(uri, wait)
                raise
            wait = wait or _Wait(uri, clock, most_s)
            wait.sleep(error)
        else:
            _note_answer(uri, wait)
            return result


def _note_answer(uri: str, wait: _Wait | None) -> None:
    """Note that a store has answered, be it that there is no such file; whoever waited for it is told."""
    if _answered is not None:
        _answered.add(_store_of(uri))
    if wait is not None:
        wait.end()


class _Wait:
    """The wait for a store that fails, from its first failure on: growing pauses, announced, with an end."""

    def __init__(self, uri: str, clock: Clock, most_s: float | None) -> None:
        self.uri, self.store, self.clock = uri, _store_of(uri), clock
        self.is_first = _answered is not None and self.store not in _answered
        self.patience_s = min(patience_s(), FIRST_PATIENCE_S if self.is_first else math.inf, most_s or math.inf)
        self.is_silent = most_s is not None
        self.started = clock.monotonic()
        self.num_tries = self.num_cut_short = 0
        self.next_line_s = waiting.FIRST_LINE_S / 5 if self.is_first else waiting.FIRST_LINE_S
        self.announced = False

    def sleep(self, error: Exception) -> None:
        """Pause before the next try; StorageError if there is none."""
        self.num_tries += 1
        self.num_cut_short += isinstance(error, CutShortError)
        waited_s = self.clock.monotonic() - self.started
        if self.num_cut_short >= MAX_CUT_SHORT:
            expected = "all of it; then run the same command again, which continues"
            problem = f"the store answered {MAX_CUT_SHORT} times with less than it was asked for"
            raise StorageError(problem, file=self.uri, value=str(error), expected=expected) from error
        if waited_s >= self.patience_s:
            raise self._unavailable(waited_s, error) from error
        pause_s = min(FIRST_WAIT_S * 2 ** min(self.num_tries - 1, 30), LONGEST_WAIT_S)
        pause_s = min(pause_s * random.SystemRandom().uniform(0.5, 1), self.patience_s - waited_s)
        if waited_s + pause_s >= self.next_line_s and not self.is_silent:
            self.next_line_s = 2 * (waited_s + pause_s)
            self.announced = True
            left = format_duration(self.patience_s - waited_s)
            text = f"waiting for the store: {self.uri}: {_in_words(error)}; trying for another {left}"
            waiting.announce(waiting.Notice(self.store, text))
        self.clock.sleep(pause_s)

    def end(self) -> None:
        """Note that the store answers again."""
        if self.announced:
            away = format_duration(self.clock.monotonic() - self.started)
            text = f"the store answers again after {away}: {self.store}"
            waiting.announce(waiting.Notice(self.store, text, over=True))

    def _unavailable(self, waited_s: float, error: Exception) -> StoreUnavailableError:
        never = " and has not answered since this command began" if self.is_first else ""
        tries = "" if self.num_tries == 1 else f" for {format_duration(waited_s)}, in {self.num_tries} tries"
        return StoreUnavailableError(
            f"the store failed{tries}{never}",
            file=self.uri,
            value=_in_words(error),
            expected="a store that can be reached, at AWS_ENDPOINT_URL unless it is AWS "
            f"({PATIENCE_VARIABLE} sets how long to wait); then run the same command again, which continues",
        )


def code_of(error: Exception) -> str | None:
    """The code of the store's answer that led to this error, such as PreconditionFailed; None without an answer."""
    return _answer(error)[1]


def _store_of(uri: str) -> str:
    """Scheme and bucket: s3://bucket."""
    return "/".join(uri.split("/")[:3])


def _in_words(error: Exception) -> str:
    """What went wrong, in one short line."""
    status, code = _answer(error)
    text = " ".join(str(error).split())
    return f"{code or status or type(error).__name__}: {text}"[:200]


def _raise_unless_passing(uri: str, error: Exception) -> None:
    status, code = _answer(error)
    passing, refusing, others = _failures()
    if status in PASSING_STATUS or code in PASSING_CODES:
        return
    if _has_cause(error, ssl.SSLCertVerificationError):
        expected = "a certificate that this machine trusts; AWS_CA_BUNDLE names a file with others"
        raise StorageError(
            "the store's certificate is not trusted", file=uri, value=_in_words(error), expected=expected
        ) from error
    if isinstance(error, passing):
        return
    if code == "NoSuchBucket":
        expected = "a bucket that exists, at AWS_ENDPOINT_URL if it is not one of AWS"
        raise StorageError("no such bucket", file=uri, expected=expected) from error
    if status in (401, 403) or code in REFUSING_CODES or isinstance(error, refusing):
        problem = "the store refuses access"
        raise StorageError(problem, file=uri, value=code or str(error), expected=_CREDENTIALS) from error
    if isinstance(error, others) or (status is not None and not isinstance(error, FileNotFoundError)):
        raise StorageError("the store reports an error", file=uri, value=_in_words(error)) from error
    raise error


def _has_cause(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error is not None


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

    broken = (CutShortError, ConnectionError, TimeoutError, socket.gaierror, *S3_RETRYABLE_ERRORS)
    of_packages = (aiohttp.ClientConnectionError, exceptions.ConnectionError, exceptions.IncompleteReadError)
    refusing = (exceptions.NoCredentialsError, exceptions.PartialCredentialsError, exceptions.CredentialRetrievalError)
    return (*broken, *of_packages), (*refusing, PermissionError), exceptions.BotoCoreError
