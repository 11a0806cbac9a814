"""Runs cases in a process of its own, which may crash or hang without ending the tests."""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import traceback
import warnings
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from boxsup_dist.errors import InputError, StorageError
from tests.fuzz import mutators, targets

CASE_S = 20.0  # a case that takes longer hangs; the slowest takes a second on a busy machine
MEMORY_BYTES = 6 * 2**30  # beyond what the process has at its start: a damaged size must not fill the machine
MAX_LINE = 2000
GOOD = ("same", "changed", "refused")


class Outcome(NamedTuple):
    """What became of a case: "same", "changed" (another value), "refused" (one line), or what is wrong."""

    target: str
    seed: int
    mutator: str
    verdict: str
    detail: str


def run(name: str, seeds: Iterable[int]) -> Iterator[Outcome]:
    """The outcomes of the cases of a target, in order. A process that ends or hangs is replaced."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.fuzz.runner"])  # imports once, not for every process
    waiting = list(seeds)
    while waiting:
        ours, theirs = context.Pipe()
        child = context.Process(target=_work, args=(name, waiting, theirs), daemon=True)
        child.start()
        theirs.close()
        done = 0
        try:
            while done < len(waiting) and ours.poll(CASE_S + 40 * (done == 0)):  # the first one imports and prepares
                yield ours.recv()
                done += 1
        except EOFError:
            child.join()
            yield Outcome(name, waiting[done], "?", "crash", f"the process ended with {child.exitcode}")
            done += 1
        else:
            if done < len(waiting):
                yield Outcome(name, waiting[done], "?", "hang", f"no answer for {CASE_S:g} s")
                done += 1
        child.kill()
        child.join()
        waiting = waiting[done:]


def _work(name: str, seeds: list[int], results: Connection) -> None:
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        target = targets.make(name, Path(folder))
        good = targets.digest(target.read())
        _limit_memory()
        for seed in seeds:
            results.send(_run_case(name, target, good, seed))


def _limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, resource.RLIM_INFINITY))


def _run_case(name: str, target: targets.Target, good: str, seed: int) -> Outcome:
    rng = np.random.default_rng(seed)
    file = target.files[int(rng.integers(len(target.files)))]
    content = file.read_bytes()
    mutator, damaged = mutators.damage(content, rng)
    file.write_bytes(damaged)
    try:
        found = target.read()
        targets.check(found)
        same = targets.digest(found) == good
        verdict, detail = "same" if same else "silent change" if target.is_stored else "changed", ""
    except InputError as error:
        detail = str(error)
        is_one_line = len(detail.splitlines()) == 1 and len(detail) < MAX_LINE and not isinstance(error, StorageError)
        verdict = "refused" if is_one_line else "not one line"
    except Exception:
        verdict, detail = "traceback", traceback.format_exc()
    finally:
        file.write_bytes(content)
    return Outcome(name, seed, mutator, verdict, detail)
