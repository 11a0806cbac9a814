"""Tracking to a real `mlflow server` that is killed and comes back, and to addresses where nobody answers."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from boxsup_dist.tracking.tracker import RunTracker, logger
from jobs.drill.mlflow_server import WAIT_S, Server, free_port

PROMPT_S = 5.0  # a caller that waited for the server would take longer: its requests time out after 10 s each


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all tests of the module: it takes seconds to start. The last test may leave it dead."""
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


def log_epochs(tracker: RunTracker, epochs: range) -> float:
    """Log some epochs; returns the longest time in seconds that one call took."""
    longest = 0.0
    for epoch in epochs:
        for call in (
            lambda epoch=epoch: tracker.log_metrics({"loss": float(epoch)}, epoch),
            lambda epoch=epoch: tracker.log_artifact(f"figures/{epoch}.txt", b"x" * 1000),
        ):
            started = time.monotonic()
            call()
            longest = max(longest, time.monotonic() - started)
    return longest


def test_a_server_that_is_killed_and_comes_back_loses_nothing(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    from mlflow.tracking import MlflowClient

    tracker = RunTracker(tracking_uri=server.uri)
    tracker.start("served", "killed midway")
    log_epochs(tracker, range(3))
    assert tracker.flush(WAIT_S)
    run_id = tracker.run_id()
    assert run_id is not None

    server.kill()
    assert log_epochs(tracker, range(3, 6)) < PROMPT_S
    assert not tracker.flush(3)
    assert sum("failed" in r.message for r in caplog.records) == 1

    server.start()
    assert tracker.flush(WAIT_S)
    log_epochs(tracker, range(6, 8))
    tracker.end()
    assert tracker.close(WAIT_S)

    client = MlflowClient(server.uri)
    assert sorted(m.step for m in client.get_metric_history(run_id, "loss")) == list(range(8))
    assert sorted(a.path for a in client.list_artifacts(run_id, "figures")) == [f"figures/{i}.txt" for i in range(8)]
    assert client.get_run(run_id).info.status == "FINISHED"
    assert any("answers again" in r.message for r in caplog.records)


def test_a_server_that_stays_down_does_not_delay_the_end(server: Server) -> None:
    tracker = RunTracker(tracking_uri=server.uri)
    tracker.start("served", "killed for good")
    log_epochs(tracker, range(2))
    assert tracker.flush(WAIT_S)
    server.kill()
    assert log_epochs(tracker, range(2, 40)) < PROMPT_S
    tracker.end("FAILED")
    started = time.monotonic()
    assert not tracker.close(60)
    assert time.monotonic() - started < 60


def test_an_address_where_nothing_listens(caplog: pytest.LogCaptureFixture) -> None:
    tracker = RunTracker(tracking_uri=f"http://127.0.0.1:{free_port()}")
    tracker.start("nobody", "home")
    tracker.log_params({"a": 1})
    assert log_epochs(tracker, range(20)) < PROMPT_S
    assert tracker.run_id(timeout_s=3) is None
    tracker.end()
    started = time.monotonic()
    assert not tracker.close(60)
    assert time.monotonic() - started < 60
    assert len([r for r in caplog.records if r.name == logger.name]) == 2, "one warning and one count"


def test_a_server_that_accepts_and_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracker = RunTracker(tracking_uri=f"http://127.0.0.1:{silent.getsockname()[1]}")
        tracker.start("silent", "run")
        assert log_epochs(tracker, range(20)) < PROMPT_S
        tracker.end()
        started = time.monotonic()
        assert not tracker.close(5)
        assert time.monotonic() - started < 30
