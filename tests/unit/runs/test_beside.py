"""Stages beside the training: their order, when they are awaited, and where their errors come out."""

from __future__ import annotations

import threading

import pytest

from boxsup_dist.errors import InputError
from boxsup_dist.runs.beside import Beside


def fail() -> None:
    raise InputError("the validation images are damaged")


def test_stages_run_one_after_another_while_nobody_waits() -> None:
    beside, done, go = Beside(), list[int](), threading.Event()
    beside.start(lambda: (go.wait(60), done.append(1))[1])
    beside.start(lambda: done.append(2))
    beside.check()
    assert done == []
    go.set()
    beside.wait()
    assert done == [1, 2]
    beside.wait()
    beside.close()


def test_an_error_comes_out_at_the_next_check_and_at_the_wait() -> None:
    beside, done = Beside(), threading.Event()
    beside.start(fail)
    beside.start(done.set)
    assert done.wait(60)
    with pytest.raises(InputError, match="damaged"):
        beside.check()
    with pytest.raises(InputError, match="damaged"):
        beside.wait()
    beside.close()


def test_at_once_is_in_the_callers_own_thread() -> None:
    beside, seen = Beside(at_once=True), list[str]()
    beside.start(lambda: seen.append(threading.current_thread().name))
    assert seen == [threading.current_thread().name]
    with pytest.raises(InputError, match="damaged"):
        beside.start(fail)
    beside.check()
    beside.wait()
    beside.close()


def test_close_forgets_what_has_not_begun() -> None:
    beside, begun, go, done = Beside(), threading.Event(), threading.Event(), list[int]()

    def first() -> None:
        begun.set()
        go.wait(60)

    beside.start(first)
    beside.start(lambda: done.append(2))
    assert begun.wait(60)
    beside.close()
    go.set()
    assert done == []
