"""Which failures of a store are tried again, how long, and how the others are reported; without waiting."""

from __future__ import annotations

from collections.abc import Callable

import aiohttp
import fsspec
import pyarrow as pa
import pytest
from botocore import exceptions
from botocore.exceptions import ClientError
from s3fs.errors import translate_boto_error

from boxsup_dist.data import parquet
from boxsup_dist.errors import MissingFileError, StorageError
from boxsup_dist.io import remote, storage

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


def test_waits_double_up_to_a_limit_less_a_random_part_and_the_tries_end():
    clock = FakeClock()
    operation = failing(*[answered(503, "SlowDown")] * 100)
    with pytest.raises(
        StorageError, match=rf"failed in each of {remote.MAX_TRIES} tries; file: {URI}.*same command again"
    ):
        remote.attempt(URI, operation, clock)
    longest = [min(remote.FIRST_WAIT_S * 2**i, remote.LONGEST_WAIT_S) for i in range(remote.MAX_TRIES - 1)]
    assert len(clock.slept) == len(longest)
    assert all(wait / 2 <= slept <= wait for slept, wait in zip(clock.slept, longest, strict=True))
    assert any(slept != wait for slept, wait in zip(clock.slept, longest, strict=True))


def test_a_store_that_answers_slowly_is_given_up_in_bounded_time():
    clock = FakeClock(step_s=remote.GIVE_UP_AFTER_S / 3)
    with pytest.raises(StorageError, match="failed in each of 3 tries"):
        remote.attempt(URI, failing(*[TimeoutError()] * 100), clock)


@pytest.mark.parametrize(
    "error, message",
    [
        (answered(403, "AccessDenied"), "the store refuses access; .*AccessDenied.*AWS_ACCESS_KEY_ID"),
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
        ("glob", lambda: storage.glob_files(f"{root}/*")),
        ("du", lambda: storage.size(root)),
        ("isdir", lambda: storage.is_folder(root)),
        ("cat_file", lambda: storage.read_bytes(f"{root}/b")),
        ("rm", lambda: storage.remove(root)),
    ]
    results = []
    for name, operation in operations:
        with monkeypatch.context() as patch:
            calls = break_times(patch, memory, name, 2, drop)
            results.append(operation())
            assert len(calls) >= (1 if name == "rm" else 3), name  # deleted, though the answer was lost
    assert results == [None, None, True, ["a", "b"], ["a", "b"], [f"{root}/a", f"{root}/b"], 8, True, b"content", None]
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
