"""The drill `chaos`: a train worker or a node is killed again and again while a run trains."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil

from boxsup_dist.io import storage
from boxsup_dist.runs.summary import read_summary
from jobs.drill.cluster import Command, Raylets
from jobs.drill.settings import Chaos

SHARE_UNDISTURBED = 0.5  # of the drill's time: the run is as long as it trains in this part of it
MAX_FAILURES = 10_000  # the drill ends by its time, not by this limit


def num_epochs(minutes: float, epoch_s: float) -> int:
    """Epochs of a run that takes the drill's time if half of it goes to failures; at least two."""
    return max(round(60 * minutes * SHARE_UNDISTURBED / epoch_s), 2)


def run_chaos(
    settings: Chaos,
    out: str,
    cluster: Raylets,
    train: Callable[..., Command],
    compare: Callable[..., dict[str, str]],
) -> dict[str, Any]:
    """Train undisturbed, then with kills; `train` is that of Drills, `compare` that of `runs` for its folder.

    Returns:
        The fields of an Outcome, without its name.
    """
    short = read_summary(storage.join(out, "undisturbed"))
    trains_s = short["time"]["wall_s"] - short["time"]["seconds"]["start"]
    epochs = num_epochs(settings.minutes, trains_s / short["epochs"])
    quiet, disturbed = "chaos-undisturbed", "chaos"
    for name in (quiet, disturbed):
        storage.remove(storage.join(out, name))
    train(quiet, max_failures=MAX_FAILURES, epochs=epochs).finish()
    command = train(disturbed, max_failures=MAX_FAILURES, epochs=epochs)
    command.wait_for(lambda: command.first_line("training begins", 0.0))
    num_killed = kill_again_and_again(cluster, command, settings.minutes, settings.every_s)
    command.finish()
    times = {name: read_summary(storage.join(out, name))["time"] for name in (quiet, disturbed)}
    found = times[disturbed]
    pauses = [restart["seconds"] for restart in found["restarts"]]
    goodput = f"goodput {found['goodput']:.2f}, undisturbed {times[quiet]['goodput']:.2f}"
    return {
        "fault": f"a worker or a node dies every {settings.every_s:g} s, {num_killed} times; {goodput}",
        "continues_after_s": sum(pauses) / max(len(pauses), 1),
        "continues_from": f"{found['redone_steps']} steps trained again in {len(pauses)} starts",
        "workers": "2 -> 2",
        **compare(disturbed, same_workers=True, reference=quiet, epochs=epochs),
    }


def kill_again_and_again(cluster: Raylets, command: Command, minutes: float, every_s: float) -> int:
    """Kill a worker and a node in turns, every so many seconds, until the command or the time is over.

    A killed node comes back at once. The time begins with the call.

    Returns:
        How many were killed.
    """
    ends = time.monotonic() + 60 * minutes
    num_killed = 0
    due = time.monotonic()
    while True:
        due += every_s
        while time.monotonic() < due:
            if command.process.poll() is not None:
                return num_killed
            time.sleep(0.1)
        if due > ends:
            return num_killed
        if num_killed % 2:
            cluster.kill_node()
            cluster.add_node()
        elif not _kill_worker(cluster):  # none there just now: the last failure is not over
            continue
        num_killed += 1
        print(f"chaos: {num_killed} killed", flush=True)


def _kill_worker(cluster: Raylets) -> bool:
    for process in cluster.processes("ray::RayTrainWorker"):
        with suppress(psutil.Error):  # it ended meanwhile
            process.kill()
            return True
    return False
