"""The request to stop, over a dictionary in place of the cluster's head."""

from __future__ import annotations

import threading
import time

import pytest

from boxsup_dist.distributed import ray_internals, stopping
from boxsup_dist.distributed.stopping import StopListener, StopRequest


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    values: dict[str, str] = {}

    def remove(prefix: str) -> None:
        for key in [key for key in values if key.startswith(prefix)]:
            del values[key]

    monkeypatch.setattr(ray_internals, "put_value", values.__setitem__)
    monkeypatch.setattr(
        ray_internals, "values_below", lambda p: {k: v for k, v in list(values.items()) if k.startswith(p)}
    )
    monkeypatch.setattr(ray_internals, "remove_values", remove)
    return values


def test_a_request_reaches_its_own_training_alone_and_an_end_comes_first(head: dict[str, str]) -> None:
    ours, another = StopRequest(), StopRequest()
    another.ask("terminated")
    assert ours.cause() is None
    ours.ask("resized")
    assert ours.cause() == "resized"
    ours.ask("terminated")
    assert ours.cause() == "terminated"
    ours.withdraw()
    assert ours.cause() is None and another.cause() == "terminated"


def test_who_waits_gets_the_answer_of_the_workers_that_run_and_leaves_sigterm_alone(head: dict[str, str]) -> None:
    request = StopRequest()
    request.confirm()  # of workers before
    request.ask("terminated")
    waiting = threading.Thread(target=request.ask_and_wait, args=("resized", 20.0))
    waiting.start()
    waiting.join(timeout=0.3)
    assert waiting.is_alive()
    request.confirm()
    waiting.join(timeout=5)
    assert not waiting.is_alive() and request.cause() == "terminated"
    request.withdraw()
    assert not head


def test_who_waits_goes_on_when_nobody_answers_or_the_head_is_away(
    head: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    request, started = StopRequest(), time.monotonic()
    request.ask_and_wait("resized", 0.3)
    assert 0.3 <= time.monotonic() - started < 3 and not head

    def away(*_: str) -> None:
        raise ConnectionError("the head is away")

    for name in ("put_value", "values_below", "remove_values"):
        monkeypatch.setattr(ray_internals, name, away)
    request.ask_and_wait("resized", 0.3)
    request.ask("terminated")


def test_the_listener_hears_it(head: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "POLL_EVERY_S", 0.01)
    request = StopRequest()
    listener = StopListener(request.cause)
    request.ask("terminated")
    deadline = time.monotonic() + 5
    while listener.cause != "terminated":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    listener.close()
