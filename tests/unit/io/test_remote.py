"""Which failures of a store are tried again, how long, and how the others are reported; without waiting."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Callable

import aiohttp
import fsspec
import pyarrow as pa
import pytest
from botocore import exceptions
from botocore.exceptions import ClientError
from s3fs.errors import translate_boto_error

from boxsup_dist.data import parquet
from boxsup_dist.errors import MissingFileError, SettingError, StorageError, StoreUnavailableError
from boxsup_dist.io import remote, storage, waiting
from boxsup_dist.io.waiting import Notice
from boxsup_dist.progress import format_duration

URI = "s3://bucket/x"


class FakeClock:
    """Its seconds pass by sleeping, and by `step_s` whenever it is looked at."""

    def __init__(self, step_s: float = 0.0) -> None:
        self.now, self.step_s = 0.0, step_s
        self.slept: list[float] = []

    def monotonic(self) -> float:
        self.now += self.step_s
        return self.now

    def sleep(self, seconds: float, /) -> None:
        self.slept.append(seconds)
        self.now += seconds


def answered(status: int, code: str) -> Exception:
    """What s3fs raises for an answer of S3."""
    answer = {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return translate_boto_error(ClientError(answer, "GetObject"))


def certificate_refused() -> Exception:
    """What botocore raises for a certificate that nobody signed."""
    error = exceptions.SSLError(endpoint_url="u", error="certificate verify failed")
    error.__cause__ = ssl.SSLCertVerificationError(1, "self-signed certificate")
    return error


def failing(*errors: Exception) -> Callable[[], str]:
    """An operation that raises these errors, one per call, then returns "done"."""
    waiting = list(errors)

    def operation() -> str:
        if waiting:
            raise waiting.pop(0)
        return "done"

    return operation


PASSING = [
    answered(503, "SlowDown"),
    answered(429, "TooManyRequests"),
    answered(500, "InternalError"),
    answered(503, "503"),  # HEAD has no body that could name a code
    answered(400, "RequestTimeout"),
    answered(403, "RequestTimeTooSkewed"),
    ConnectionResetError(),
    TimeoutError(),
    aiohttp.ServerDisconnectedError(),
    aiohttp.ClientPayloadError(),
    exceptions.ConnectionClosedError(endpoint_url="u"),
    exceptions.EndpointConnectionError(endpoint_url="u"),
    exceptions.ReadTimeoutError(endpoint_url="u"),
    exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2),
    remote.CutShortError(),
]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_a_failure_that_passes_is_tried_again(error):
    clock = FakeClock()
    assert remote.attempt(URI, failing(error, error), clock) == "done"
    assert len(clock.slept) == 2


AWAY = exceptions.EndpointConnectionError(endpoint_url="http://store:9000/bucket")


def ever(error: Exception) -> Callable[[], str]:
    """An operation that always fails."""
    return failing(*[error] * 10_000)


def away_until(clock: FakeClock, now: float) -> Callable[[], str]:
    """An operation that fails before this time of the clock."""

    def operation() -> str:
        if clock.now < now:
            raise AWAY
        return "done"

    return operation


def test_waits_double_up_to_a_limit_less_a_random_part_and_end_after_ten_minutes():
    clock = FakeClock()
    with pytest.raises(
        StoreUnavailableError, match=rf"failed for 10m00s, in \d+ tries; file: {URI}.*same command again"
    ):
        remote.attempt(URI, ever(answered(503, "SlowDown")), clock)
    assert clock.now == remote.DEFAULT_PATIENCE_S
    longest = [min(remote.FIRST_WAIT_S * 2**i, remote.LONGEST_WAIT_S) for i in range(len(clock.slept))]
    assert all(wait / 2 <= slept <= wait for slept, wait in zip(clock.slept[:-1], longest[:-1], strict=True))
    assert any(slept != wait for slept, wait in zip(clock.slept, longest, strict=True))


@pytest.mark.parametrize("error", [AWAY, socket.gaierror(-3, "Temporary failure in name resolution")], ids=repr)
def test_a_store_may_be_away_for_nine_minutes(error):
    clock = FakeClock()
    assert remote.attempt(URI, away_until(clock, 540), clock) == "done"
    assert 540 <= clock.now < 540 + remote.LONGEST_WAIT_S


def test_the_time_of_an_operation_before_its_first_failure_is_no_wait():
    """An upload of an hour that fails at its end is tried again."""
    clock = FakeClock()
    results = iter([AWAY, None])

    def upload() -> str:
        clock.now += 3600
        if error := next(results):
            raise error
        return "done"

    assert remote.attempt(URI, upload, clock) == "done"


@pytest.mark.parametrize("text, seconds", [("45", 45), ("0", 0), ("0.5", 0.5)])
def test_the_patience_is_a_variable_of_the_environment(monkeypatch, text, seconds):
    monkeypatch.setenv(remote.PATIENCE_VARIABLE, text)
    clock = FakeClock()
    with pytest.raises(StoreUnavailableError, match=remote.PATIENCE_VARIABLE):
        remote.attempt(URI, ever(AWAY), clock)
    assert clock.now == seconds


@pytest.mark.parametrize("text", ["ten", "-1", "inf", "nan"])
def test_a_patience_that_is_no_time_is_refused(monkeypatch, text):
    monkeypatch.setenv(remote.PATIENCE_VARIABLE, text)
    with pytest.raises(SettingError, match=f"field: {remote.PATIENCE_VARIABLE}; found: '{text}'; expected: seconds"):
        remote.attempt(URI, failing(AWAY), FakeClock())


def test_a_command_waits_less_for_a_store_that_never_answered(monkeypatch):
    monkeypatch.setattr(remote, "_answered", None)
    remote.begin_command()
    clock = FakeClock()
    message = "failed for 30s, in .* has not answered since this command began; .*AWS_ENDPOINT_URL"
    with pytest.raises(StoreUnavailableError, match=message):
        remote.attempt(URI, ever(AWAY), clock)
    assert clock.now == remote.FIRST_PATIENCE_S
    remote.attempt(URI, failing(), clock)
    with pytest.raises(StoreUnavailableError, match="failed for 10m00s"):
        remote.attempt("s3://bucket/another", ever(AWAY), clock)
    with pytest.raises(StoreUnavailableError, match="failed for 30s"):
        remote.attempt("s3://bucket-2/x", ever(AWAY), clock)


def test_the_wait_is_announced_ever_more_rarely_and_its_end_once(monkeypatch):
    notices: list[Notice] = []
    monkeypatch.setattr(waiting, "_receive", notices.append)
    clock = FakeClock()
    remote.attempt(URI, away_until(clock, 200), clock)
    *away, back = notices
    problem = 'EndpointConnectionError: Could not connect to the endpoint URL: "http://store:9000/bucket"'
    pattern = re.escape(f"waiting for the store: {URI}: {problem}; trying for another ") + r"9m5\ds"
    assert re.fullmatch(pattern, away[0].text)
    assert 3 <= len(away) <= 7 and all(notice.store == "s3://bucket" and not notice.over for notice in away)
    assert back == Notice(
        "s3://bucket", f"the store answers again after {format_duration(clock.now)}: s3://bucket", True
    )


def test_that_a_file_is_absent_is_an_answer_too(monkeypatch):
    notices: list[Notice] = []
    monkeypatch.setattr(waiting, "_receive", notices.append)
    clock = FakeClock()

    def find() -> None:
        if clock.now < 20:
            raise AWAY
        raise FileNotFoundError(URI)

    with pytest.raises(FileNotFoundError):
        remote.attempt(URI, find, clock)
    assert [notice.over for notice in notices][-2:] == [False, True]


def test_a_short_failure_is_not_announced(monkeypatch):
    notices: list[Notice] = []
    monkeypatch.setattr(waiting, "_receive", notices.append)
    remote.attempt(URI, failing(AWAY, AWAY, AWAY), FakeClock())
    assert notices == []


def test_one_line_is_printed_for_all_that_wait(capsys):
    now = [0.0]
    printer = waiting.Printer(lambda: now[0])
    for now[0] in range(0, 300):
        for worker in range(4):
            printer(Notice("s3://a", f"a, worker {worker} at {now[0]}"))
    printer(Notice("s3://b", "b answers", over=True))
    printer(Notice("s3://a", "a answers", over=True))
    printer(Notice("s3://a", "a answers", over=True))
    printer(Notice("s3://a", "away again"))
    times = (0, 5, 15, 35, 75, 135, 195, 255)
    expected = [f"warning: a, worker 0 at {time}" for time in times] + ["a answers", "warning: away again"]
    assert capsys.readouterr().err.splitlines() == expected


def test_a_store_that_always_cuts_its_answers_is_not_away():
    clock = FakeClock()
    with pytest.raises(StorageError, match=f"answered {remote.MAX_CUT_SHORT} times with less") as caught:
        remote.attempt(URI, ever(remote.CutShortError("only 4 bytes arrived")), clock)
    assert not isinstance(caught.value, StoreUnavailableError) and clock.now < 60


@pytest.mark.parametrize(
    "error, message",
    [
        (answered(403, "AccessDenied"), "the store refuses access; .*AccessDenied.*AWS_ACCESS_KEY_ID"),
        (answered(403, "AccessDenied"), "public bucket without credentials, FSSPEC_S3_ANON=true"),
        (certificate_refused(), "certificate is not trusted; .*AWS_CA_BUNDLE"),
        (answered(403, "SignatureDoesNotMatch"), "the store refuses access; .*AWS_SECRET_ACCESS_KEY"),
        (answered(400, "ExpiredToken"), "the store refuses access; .*credentials"),
        (exceptions.NoCredentialsError(), "the store refuses access; .*Unable to locate credentials"),
        (answered(404, "NoSuchBucket"), "no such bucket; .*AWS_ENDPOINT_URL"),
        (answered(400, "InvalidArgument"), "the store reports an error; .*InvalidArgument"),
        (exceptions.ParamValidationError(report="bad bucket"), "the store reports an error; .*bad bucket"),
    ],
    ids=lambda value: repr(value) if isinstance(value, Exception) else "",
)
def test_a_lasting_error_is_reported_at_once(error, message):
    clock = FakeClock()
    with pytest.raises(StorageError, match=message) as caught:
        remote.attempt(URI, failing(error), clock)
    assert clock.slept == [] and f"file: {URI}" in str(caught.value)


@pytest.mark.parametrize("error", [answered(404, "NoSuchKey"), answered(404, "404"), KeyError("a mistake of ours")])
def test_absent_files_and_mistakes_go_up_as_they_are(error):
    clock = FakeClock()
    with pytest.raises(type(error)) as caught:
        remote.attempt(URI, failing(error), clock)
    assert caught.value is error and clock.slept == []


@pytest.mark.parametrize("uri", ["gs://bucket/x", "nothing://bucket/x"])
def test_a_scheme_without_a_file_system_is_reported(uri):
    with pytest.raises(StorageError, match=f"no file system for this URI; file: {uri}"):
        storage.exists(uri)


# -- storage's use of it ----------------------------------------------------------------------------------------------


@pytest.fixture
def memory(monkeypatch) -> type[fsspec.AbstractFileSystem]:
    """fsspec's store in memory, for a test to break; nobody waits."""
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    return fsspec.get_filesystem_class("memory")


def break_times(monkeypatch, memory, name: str, times: int, breaks: Callable) -> list[int]:
    """Replace the first results of a method by `breaks(result)`; returns a list with one entry per call."""
    whole, calls = getattr(memory, name), []

    def method(self, *args, **kwargs):
        calls.append(1)
        result = whole(self, *args, **kwargs)
        return breaks(result) if len(calls) <= times else result

    monkeypatch.setattr(memory, name, method)
    return calls


def drop(result: object) -> object:
    raise ConnectionResetError


def test_a_read_that_was_cut_short_is_read_again(memory, monkeypatch):
    storage.write_bytes("memory://remote/x", b"0123456789")
    calls = break_times(monkeypatch, memory, "cat_file", 2, lambda data: data[:4])
    assert storage.read_bytes("memory://remote/x") == b"0123456789" and len(calls) == 3


def test_a_parquet_range_that_was_cut_short_is_read_again(memory, monkeypatch):
    uri = "memory://remote/t.parquet"
    data = parquet.encode(pa.table({"a": list(range(1000))}), row_group_size=100)
    storage.write_bytes(uri, data)
    calls = break_times(monkeypatch, memory, "cat_file", 2, lambda data: data[:-1])
    file = parquet.ProvedFile(uri, parquet.prove(data))
    assert [file.read([i])["a"][0].as_py() for i in range(10)] == list(range(0, 1000, 100))
    assert len(calls) == 2 + 1 + 10  # the footer once, and one request per row group


def test_every_operation_is_tried_again(memory, monkeypatch, tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    root = "memory://remote/all"
    operations: list[tuple[str, Callable[[], object]]] = [
        ("pipe_file", lambda: storage.write_bytes(f"{root}/a", b"a")),
        ("put_file", lambda: storage.write_file(f"{root}/b", tmp_path / "file")),
        ("info", lambda: storage.exists(f"{root}/a")),
        ("ls", lambda: storage.list_names(root)),
        ("find", lambda: storage.find_files(root)),
        ("ls", lambda: storage.glob_files(f"{root}/*")),
        ("find", lambda: storage.glob_files(f"{root}/**")),
        ("find", lambda: storage.size(root)),
        ("isdir", lambda: storage.is_folder(root)),
        ("cat_file", lambda: storage.read_bytes(f"{root}/b")),
        ("rm", lambda: storage.remove(root)),
    ]
    results = []
    for name, operation in operations:
        with monkeypatch.context() as patch:
            calls = break_times(patch, memory, name, 2, drop)
            results.append(operation())
            # rm: deleted, though the answer was lost. info: a listing answers in its place.
            assert len(calls) >= (1 if name in ("rm", "info") else 3), name
    names, uris = ["a", "b"], [f"{root}/a", f"{root}/b"]
    assert results == [None, None, True, names, names, uris, uris, 8, True, b"content", None]
    assert storage.find_files(root) == []


def test_absent_files_of_a_store_are_named(memory):
    for read in (
        storage.read_bytes,
        storage.read_json,
        storage.file_size,
        lambda uri: storage.read_ranges(uri, [(0, 1)]),
    ):
        with pytest.raises(MissingFileError, match="no such file; file: memory://remote/absent"):
            read("memory://remote/absent")
