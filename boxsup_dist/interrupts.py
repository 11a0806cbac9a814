"""How a signal ends a command: with one line, the exit status 128 + N, and without leaving a process behind.

The package `jobs` calls `install` before it imports anything else. The first signal raises Interrupted in the main
thread, so that every open block closes: Ray's session, the MLflow run, temporary files. A thread sees each signal as
well (signal.set_wakeup_fd), whatever the main thread does: ray.init and Ray Train replace our handlers by theirs, and a
library may swallow the exception. The thread ends the process after GRACE_S, or at once on a second signal.

A training first saves a checkpoint at SIGTERM (`sigterm_asks`), for at most STOP_S.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import psutil

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_S = 10.0  # an orderly end of a training takes 3 s: Ray's session 2 s, MLflow's last calls less
STOP_S = 18.0  # with GRACE_S below the 30 s after which Kubernetes kills
SECOND_AFTER_S = 0.5  # `timeout` and some shells send one signal twice; a person needs longer
_LAST = 0  # no signal has this number
_SHOW_CURSOR = "\x1b[?25h"  # a progress bar hides it
_CONTINUES = re.compile(r"Run the (same )?command\s+again")  # what a job's help promises


class Interrupted(KeyboardInterrupt):
    """A signal asks this process to end."""


class _Watch:
    """What is known of the signal that ends this process."""

    def __init__(self) -> None:
        self.signals: set[signal.Signals] = set()  # that end this process as described above; none before `install`
        self.received: signal.Signals | None = None
        self.raised = False
        self.writer = -1  # end of the pipe into which Python writes the number of each signal
        self.all_seen = threading.Event()
        self.line: str | None = None
        self.children: set[psutil.Process] = set()
        self.stop: Callable[[], None] | None = None  # called at SIGTERM, which then ends nothing
        self.stop_asked_at: float | None = None


_watch = _Watch()


def install() -> None:
    """Let signals end this process as described above; signals that its caller ignores (nohup) stay ignored."""
    reader, _watch.writer = os.pipe()
    os.set_blocking(_watch.writer, False)
    _watch.signals = {number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN}
    signal.set_wakeup_fd(_watch.writer, warn_on_full_buffer=False)
    threading.Thread(target=_see_signals, args=(reader,), name="signals", daemon=True).start()
    os.register_at_fork(after_in_child=_forget)
    atexit.register(_end)  # the first to be registered is the last to be called: Ray's session is closed by then
    _silence_what_follows_a_signal()
    take_back()


def take_back() -> None:
    """Put our handlers in place of those that ray.init installed: that of its C++ part prints a stack at SIGTERM."""
    if threading.current_thread() is threading.main_thread():
        for number in _watch.signals:
            signal.signal(number, _raise)


def are_handled() -> bool:
    """Whether signals end this process as described above."""
    return bool(_watch.signals)


def received() -> signal.Signals | None:
    """The signal that ends this process; None before there was one."""
    return _watch.received


def is_interruption(error: BaseException) -> bool:
    """Whether an error is, or follows from, the wish of a person or the system to end this process."""
    return isinstance(error, KeyboardInterrupt) or _watch.received is not None


@contextmanager
def sigterm_asks(stop: Callable[[], None]) -> Iterator[None]:
    """In the block, SIGTERM calls `stop` in a thread; it ends the process when the block is over, or after STOP_S.

    A second SIGTERM does not wait for the block, and other signals never do.
    """
    if signal.SIGTERM not in _watch.signals:
        yield
        return
    _watch.stop = stop
    try:
        yield
    finally:
        _watch.stop = None
        if _watch.stop_asked_at is not None and _watch.received is None:
            signal.raise_signal(signal.SIGTERM)


def _ask_to_stop() -> None:
    """Answer a SIGTERM inside `sigterm_asks`; called in the thread that sees signals."""
    now = time.monotonic()
    if _watch.stop_asked_at is None and _watch.stop is not None:
        _watch.stop_asked_at = now
        threading.Thread(target=_watch.stop, name="stop", daemon=True).start()
        clock = threading.Timer(STOP_S, _stop_waiting)
        clock.daemon = True
        clock.start()
    elif _watch.stop_asked_at is not None and now - _watch.stop_asked_at > SECOND_AFTER_S:
        _stop_waiting()


def _stop_waiting() -> None:
    """End the process by the SIGTERM that its block has kept until now; nothing happens if the block is over."""
    if _watch.stop is not None:
        _watch.stop = None
        os.kill(os.getpid(), signal.SIGTERM)


def set_last_line(text: str) -> None:
    """Print this line, in place of the usual one, if a signal ends this process."""
    _watch.line = text


@contextmanager
def precedence() -> Iterator[None]:
    """After a signal, raise Interrupted in place of what the block raises: it failed because the process ends."""
    try:
        yield
    except Exception:
        if _watch.received is None:
            raise
        raise Interrupted from None


# -- the first signal --------------------------------------------------------------------------------------------------


def _raise(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGTERM and _watch.stop is not None:
        return  # the thread asks
    _note(number)
    if not _watch.raised:
        _watch.raised = True
        raise Interrupted


def _note(number: int) -> None:
    """Keep the first signal. The handler and the thread both call this, in either order."""
    if _watch.received is None:
        if _watch.line is None:
            _watch.line = _usual_line(signal.Signals(number))
        _watch.received = signal.Signals(number)
        logging.disable(logging.CRITICAL)  # what fails from here on fails because of the signal


def _usual_line(number: signal.Signals) -> str:
    cause = "interrupted" if number is signal.SIGINT else f"interrupted by {number.name}"
    continues = _CONTINUES.search(sys.modules["__main__"].__doc__ or "")
    return f"{cause}; the same command continues" if continues else cause


def _see_signals(reader: int) -> None:
    """Start the clock at the first signal, and end the process at a second one."""
    first_at: float | None = None
    while True:
        (number,) = os.read(reader, 1)
        if number == _LAST:
            _watch.all_seen.set()
        if number not in _watch.signals:  # a library watches others, such as SIGCHLD
            continue
        if number == signal.SIGTERM and _watch.stop is not None and first_at is None:
            _ask_to_stop()
            continue
        if first_at is None:
            first_at = time.monotonic()
            _note(number)
            clock = threading.Timer(GRACE_S, _end_at_once)
            clock.daemon = True
            clock.start()
            _watch.children |= _children()
        elif time.monotonic() - first_at > SECOND_AFTER_S:
            _end_at_once()


def _silence_what_follows_a_signal() -> None:
    """No traceback of an exception that a signal caused: not from the main thread, another thread or a destructor."""

    def silenced(hook: Callable[..., object]) -> Callable[..., None]:
        def call(*details: Any) -> None:
            if _watch.received is None:
                hook(*details)

        return call

    sys.excepthook = silenced(sys.excepthook)
    sys.unraisablehook = silenced(sys.unraisablehook)
    threading.excepthook = silenced(threading.excepthook)


# -- the end -----------------------------------------------------------------------------------------------------------


def _end() -> None:
    """Called by Python after everything else: end as interrupted, if a signal came."""
    for number in _watch.signals:
        signal.signal(number, signal.SIG_IGN)  # the work is done, and its exit status stands
    os.write(_watch.writer, bytes([_LAST]))
    _watch.all_seen.wait(timeout=1.0)
    if _watch.received is None:
        return
    _stop(_watch.children | _children(), patience_s=2.0)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # its reader has gone, or it is closed
            stream.flush()
    _exit()


def _end_at_once() -> None:
    _stop(_watch.children | _children(), patience_s=0.0)
    _exit()


def _exit() -> NoReturn:
    """Print the line and end this process without any more Python, which could fail or wait."""
    assert _watch.received is not None
    end = _SHOW_CURSOR if os.isatty(2) else ""
    with suppress(OSError):
        os.write(2, f"{end}{_watch.line}\n".encode(errors="replace"))
    os._exit(128 + _watch.received)


def _children() -> set[psutil.Process]:
    """All processes that descend from this one now."""
    import psutil  # only where a signal came

    return set(psutil.Process().children(recursive=True))


def _stop(processes: set[psutil.Process], patience_s: float) -> None:
    """End processes, by SIGKILL those that SIGTERM has not ended after `patience_s`."""
    import psutil

    for stop in ("terminate", "kill") if patience_s else ("kill",):
        for process in processes:
            with suppress(psutil.Error):
                getattr(process, stop)()
        _, alive = psutil.wait_procs(processes, timeout=patience_s)
        processes = set(alive)


def _forget() -> None:
    """A child of fork() is ended by a signal as any process is."""
    signal.set_wakeup_fd(-1)
    for number in _watch.signals:
        signal.signal(number, signal.SIG_DFL)
    atexit.unregister(_end)
