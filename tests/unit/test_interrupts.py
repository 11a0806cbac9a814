"""A signal ends a command with one line and 128 + N, whenever it comes: processes of their own, without Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
# A package `jobs` whose commands need no second to start, with the real handling of signals.
COMMAND = '''"""{doc}"""
import atexit, os, signal, subprocess, sys, threading, time
import numpy
{body}
'''


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start `python -m jobs.work`, whose module is the body given; returns when the body prints its first line."""
    package = tmp_path / "jobs"
    package.mkdir()
    (package / "__init__.py").write_text((ROOT / "jobs" / "__init__.py").read_text())

    def start(body: str, doc: str = "", prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        (package / "work.py").write_text(COMMAND.format(doc=doc, body=body))
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        words = [*prefix, sys.executable, "-m", "jobs.work"]
        process = subprocess.Popen(
            words,
            cwd=tmp_path,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_as_in_a_terminal,
        )
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        return process

    return start


def _as_in_a_terminal() -> None:
    """The tests themselves may run under nohup, whose ignored signal their processes would inherit."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


WAIT = "print('ready', flush=True); time.sleep(60)"


@pytest.mark.parametrize(
    ("number", "status", "line"),
    [
        (signal.SIGINT, 130, "interrupted; the same command continues\n"),
        (signal.SIGTERM, 143, "interrupted by SIGTERM; the same command continues\n"),
        (signal.SIGHUP, 129, "interrupted by SIGHUP; the same command continues\n"),
    ],
)
def test_a_signal_is_answered_with_its_line_and_status(command, number, status, line) -> None:
    process = command(WAIT, "Run the same command again to continue.")
    process.send_signal(number)
    assert process.communicate(timeout=20) == ("", line) and process.returncode == status


def test_a_command_that_begins_anew_does_not_promise_to_continue(command) -> None:
    process = command(WAIT, "Measure something.")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20) == ("", "interrupted\n") and process.returncode == 130


STUBBORN = {
    "an import that fails instead": """
class Odd:
    def find_spec(self, name, *_):
        if name == "odd":
            print("ready", flush=True)
            try: time.sleep(60)
            except BaseException: raise ImportError("no odd") from None
sys.meta_path.insert(0, Odd())
import odd
""",
    "the exception of a library": """
from boxsup_dist.errors import StorageError
from boxsup_dist.runs.command_line import clear_errors
with clear_errors():
    try: print("ready", flush=True); time.sleep(60)
    except BaseException: raise StorageError("the store did not answer") from None
""",
    "SystemExit(0), as of Ray Train": """
signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
print("ready", flush=True); time.sleep(60)
""",
    "at exit": """
@atexit.register
def last(): print("ready", flush=True); time.sleep(60)
""",
    "while threads are joined": """
threading.Thread(target=lambda: time.sleep(3)).start()
print("ready", flush=True)
""",
    "a thread that fails too": """
def fail():
    while main.is_alive() and not main.interrupted: time.sleep(0.01)
    raise RuntimeError("no connection")
main = threading.current_thread(); main.interrupted = False
threading.Thread(target=fail).start()
try: print("ready", flush=True); time.sleep(60)
finally: main.interrupted = True; time.sleep(0.1)
""",
    "in a destructor": """
class Late:
    def __del__(self): print("ready", flush=True); time.sleep(60)
late = Late()
del late
""",
}


@pytest.mark.parametrize("body", STUBBORN.values(), ids=STUBBORN)
def test_whatever_becomes_of_the_exception_the_end_is_the_same(command, body) -> None:
    process = command(body)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20) == ("", "interrupted\n") and process.returncode == 130


def test_blocks_are_closed_and_what_they_print_is_kept(command) -> None:
    process = command("try: print('ready', flush=True); time.sleep(60)\nfinally: print('closed')")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20) == ("closed\n", "interrupted\n") and process.returncode == 130


DEAF = """
while True:
    try: print("ready", flush=True); time.sleep(60)
    except BaseException: pass
"""


def test_a_second_signal_ends_at_once_even_what_does_not_listen(command) -> None:
    process = command(DEAF)
    process.send_signal(signal.SIGINT)
    time.sleep(0.8)
    assert process.poll() is None
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert (errors, process.returncode) == ("interrupted\n", 130) and time.monotonic() - started < 2


def test_one_signal_sent_twice_is_one(command) -> None:
    """`timeout` and terminals signal a process and its group: the blocks are still closed in order."""
    body = "try: print('ready', flush=True); time.sleep(60)\nfinally: time.sleep(0.3); print('closed')"
    process = command(body)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20) == ("closed\n", "interrupted by SIGTERM\n") and process.returncode == 143


def test_what_does_not_listen_ends_after_a_while(command) -> None:
    process = command("from boxsup_dist import interrupts\ninterrupts.GRACE_S = 0.5\n" + DEAF)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert (errors, process.returncode) == ("interrupted by SIGTERM\n", 143)


def test_children_end_with_it_and_theirs(command) -> None:
    child = f"import subprocess, sys; subprocess.run([{sys.executable!r}, '-c', 'import time; time.sleep(60)'])"
    process = command(f"subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(0.5)\n{WAIT}")
    deadline = time.monotonic() + 20
    while len(children := psutil.Process(process.pid).children(recursive=True)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[1] == "interrupted\n" and process.returncode == 130
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


def test_a_forked_child_is_none_of_its_parents_business(command) -> None:
    body = "pid = os.fork()\nif not pid: os.kill(os.getpid(), signal.SIGTERM)\n"
    body += "print('ready' if os.waitpid(pid, 0)[1] == signal.SIGTERM else 'no', flush=True); time.sleep(0.5)"
    process = command(body)
    assert process.communicate(timeout=20) == ("", "") and process.returncode == 0


def test_what_the_caller_ignores_stays_ignored(command) -> None:
    process = command("print('ready', flush=True); time.sleep(1)", prefix=("nohup",))
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=20) == 0


# -- what saves first -------------------------------------------------------------------------------------------------

SAVES = """
from boxsup_dist import interrupts
interrupts.STOP_S = 3.0
asked = threading.Event()
try:
    with interrupts.sigterm_asks(asked.set):
        print("ready", flush=True)
        {wait}
        interrupts.set_last_line("saved")
finally: print("closed")
"""


@pytest.mark.parametrize(
    ("wait", "number", "output", "line", "least_s", "most_s"),
    [
        ("asked.wait(); time.sleep(1)", signal.SIGTERM, "closed\n", "saved\n", 1, 2.9),
        ("time.sleep(60)", signal.SIGTERM, "closed\n", "interrupted by SIGTERM\n", 3, 10),
        ("time.sleep(60)", signal.SIGINT, "closed\n", "interrupted\n", 0, 2.9),
    ],
    ids=["saves in time", "takes too long", "another signal"],
)
def test_sigterm_lets_a_training_save_first_for_a_while(command, wait, number, output, line, least_s, most_s) -> None:
    process = command(SAVES.format(wait=wait))
    started = time.monotonic()
    process.send_signal(number)
    assert process.communicate(timeout=20) == (output, line) and process.returncode == 128 + number
    assert least_s <= time.monotonic() - started < most_s


def test_a_second_sigterm_does_not_wait_for_the_save(command) -> None:
    process = command(SAVES.format(wait="time.sleep(60)").replace("3.0", "30.0"))
    process.send_signal(signal.SIGTERM)
    time.sleep(0.8)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=10) == ("closed\n", "interrupted by SIGTERM\n") and process.returncode == 143


def test_without_a_sigterm_what_would_save_ends_as_usual(command) -> None:
    process = command(SAVES.format(wait="time.sleep(0.1)"))
    assert process.communicate(timeout=20) == ("closed\n", "") and process.returncode == 0


# -- the real commands -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["-m", "jobs.train", "mini", "--help"], ["-m", "jobs", "train"]], ids=" ".join)
def test_a_command_is_covered_while_it_is_imported(words: list[str]) -> None:
    """At many moments of its first second: either one line and 130, or it was over, or Python itself had not begun."""
    seen = set()
    for delay_s in (0.05, 0.08, 0.12, 0.2, 0.3, 0.5):
        process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        time.sleep(delay_s)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        if process.returncode == 130:
            assert errors in ("interrupted\n", "interrupted; the same command continues\n")
            seen.add(delay_s)
    assert seen, "no signal came in time"


def test_the_script_is_covered_too(tmp_path: Path) -> None:
    script = tmp_path / "boxsup"
    script.write_text("import time\nfrom jobs.__main__ import main\nprint('ready', flush=True); time.sleep(60)\n")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, str(script)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20) == ("", "interrupted by SIGTERM\n") and process.returncode == 143


def test_importing_the_commands_elsewhere_leaves_signals_alone() -> None:
    code = "import signal, sys, jobs.train; sys.exit(signal.getsignal(signal.SIGINT) is not signal.default_int_handler)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
