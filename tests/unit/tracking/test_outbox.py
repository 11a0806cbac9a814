"""The outbox: it never raises or blocks, and delivers everything that can be delivered."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import pytest

from boxsup_dist.tracking.outbox import Outbox


class Service:
    """Keeps what it is given; can be switched off."""

    def __init__(self) -> None:
        self.up = True
        self.received: list[object] = []
        self.num_tries = 0

    def call(self, value: object) -> Callable[[], None]:
        def action() -> None:
            self.num_tries += 1
            if not self.up:
                raise ConnectionError("nobody answers")
            self.received.append(value)

        return action


@pytest.fixture
def service() -> Service:
    return Service()


def quick(**settings: object) -> Outbox:
    return Outbox("test", first_pause_s=0.01, longest_pause_s=0.05, **settings)  # type: ignore[arg-type]


def test_calls_of_a_healthy_service_arrive_in_order(service: Service) -> None:
    outbox = quick()
    for value in range(100):
        outbox.put("value", service.call(value))
    assert outbox.close(5)
    assert service.received == list(range(100))


def test_calls_wait_until_the_service_is_back(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    outbox = quick()
    service.up = False
    for value in range(10):
        outbox.put("value", service.call(value))
    assert not outbox.flush(0.3)
    assert service.num_tries > 3
    service.up = True
    assert outbox.flush(5)
    assert sorted(service.received, key=str) == list(range(10))
    assert outbox.num_lost == 0
    failures = [r for r in caplog.records if "nobody answers" in r.message]
    assert len(failures) == 1, "one warning, not one a try"
    assert any("answers again" in r.message for r in caplog.records)
    assert outbox.close(5)


def test_a_second_warning_comes_after_its_time(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    outbox = quick(warn_every_s=0.2)
    service.up = False
    outbox.put("value", service.call(0))
    time.sleep(0.55)
    outbox.close(1)
    assert 2 <= sum("nobody answers" in r.message for r in caplog.records) <= 4


def test_a_full_queue_loses_the_oldest(service: Service) -> None:
    outbox = quick(max_calls=5)
    service.up = False
    for value in range(50):
        outbox.put("value", service.call(value))
    assert outbox.num_waiting <= 6
    service.up = True
    assert outbox.flush(5)
    assert {45, 46, 47, 48, 49} <= set(service.received)
    assert outbox.num_lost + len(service.received) == 50
    assert not outbox.close(5)


def test_memory_held_by_waiting_calls_is_bounded(service: Service) -> None:
    outbox = quick(max_bytes=1000)
    service.up = False
    for value in range(20):
        outbox.put("figure", service.call(value), num_bytes=300)
    assert outbox.num_waiting <= 4
    outbox.close(1)


def test_a_refused_call_is_given_up_at_once(service: Service) -> None:
    def refused() -> None:
        service.num_tries += 1
        raise PermissionError("no")

    outbox = quick(is_refusal=lambda error: isinstance(error, PermissionError))
    outbox.put("bad", refused)
    outbox.put("good", service.call(1))
    assert outbox.flush(5)
    assert (service.received, outbox.num_lost, service.num_tries) == ([1], 1, 2)
    outbox.close(1)


def test_a_call_at_fault_does_not_block_the_others(service: Service) -> None:
    def faulty() -> None:
        raise OSError("disk full")

    outbox = quick()
    outbox.put("faulty", faulty)
    for value in range(20):
        outbox.put("value", service.call(value))
        time.sleep(0.02)
    assert outbox.flush(5)
    assert len(service.received) == 20
    assert outbox.num_lost == 1
    outbox.close(1)


def test_put_and_close_are_quick_while_a_call_hangs(caplog: pytest.LogCaptureFixture) -> None:
    release = threading.Event()
    outbox = quick()
    outbox.put("hanging", lambda: (release.wait(30), None)[1])
    started = time.monotonic()
    for _ in range(500):
        outbox.put("next", lambda: None)
    assert not outbox.close(0.3)
    assert time.monotonic() - started < 2
    assert any("501 calls were not delivered" in r.message for r in caplog.records)
    release.set()


def test_closing_does_not_wait_for_a_dead_service(service: Service) -> None:
    outbox = quick()
    service.up = False
    for value in range(100):
        outbox.put("value", service.call(value))
    started = time.monotonic()
    assert not outbox.close(60)
    assert time.monotonic() - started < 5


def test_put_after_close_is_counted_as_lost(service: Service) -> None:
    outbox = quick()
    assert outbox.close(5)
    outbox.put("late", service.call(1))
    assert outbox.num_lost == 1


def test_an_odd_error_never_kills_the_thread(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    class OddError(Exception):
        def __str__(self) -> str:
            return ""

    def odd() -> None:
        raise OddError

    with caplog.at_level(logging.WARNING):
        outbox = quick(is_refusal=lambda error: True)
        outbox.put("odd", odd)
        outbox.put("good", service.call(1))
        assert outbox.flush(5)
    assert service.received == [1]
    assert any("OddError" in r.message for r in caplog.records)
    outbox.close(1)
