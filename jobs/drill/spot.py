"""Drills of nodes that come and go with notice, as spot machines do."""

from __future__ import annotations

import re
import threading
import time
from typing import TYPE_CHECKING

from boxsup_dist.errors import InputError
from boxsup_dist.io import storage
from boxsup_dist.model.checkpoint import checkpoint_name, latest
from jobs.drill.cluster import Command
from jobs.drill.runs import BEGINS, CHECKPOINT_EVERY_STEPS, Outcome, compare, reached, train_words

if TYPE_CHECKING:
    from jobs.drill.drills import Drills

NOTICE_S = 30.0  # from the notice of a cloud to the end of its machine: 120 s on AWS, 30 s on Google Cloud
SAVED = re.compile(r"being taken away: a checkpoint is saved at epoch (\d+), after (\d+) steps")


def drain(drills: Drills) -> Outcome:
    """A node is announced to go away in an epoch and does so, and a new one comes: no step is trained again."""
    cluster, leaving = drills.cluster, drills.cluster.node
    commands: list[Command] = []
    ending = threading.Timer(NOTICE_S, cluster.kill_node, [leaving])

    def disturb(command: Command) -> Command:
        cluster.add_node()
        cluster.drain(leaving, NOTICE_S)
        ending.start()
        commands.append(command)
        return command

    outcome = drills.disturb_epoch("drain", "a node goes away after a notice, another comes", disturb)
    ending.join()  # the next drill finds two nodes
    saved = commands[0].first_line(SAVED.pattern, 0.0)
    found = SAVED.search(saved[1]) if saved is not None else None
    expected = f"epoch {found[1]}, after {found[2]} steps" if found is not None else "where a checkpoint was saved"
    if outcome.continues_from != expected:
        raise InputError("steps were trained again after a notice", value=outcome.continues_from, expected=expected)
    return outcome


def grow(drills: Drills) -> Outcome:
    """A run begins on one node, with one worker beside two actors; a node comes, and a worker; no step is lost."""
    cluster = drills.cluster
    cluster.kill_node()
    run_dir = storage.join(drills.out, "grow")
    _, *words = train_words(drills.out, "grow", min_workers=1)
    command = Command(["jobs.drill.quick_growth", *words], f"{run_dir}.log")
    try:
        command.wait_for(reached(run_dir, 0, CHECKPOINT_EVERY_STEPS))
    finally:
        cluster.add_node()
    at = time.monotonic()
    reported, line = command.wait_for(lambda: command.first_line(BEGINS.pattern, at))
    before = latest(run_dir)
    command.finish()
    match = BEGINS.search(line)
    assert match is not None and before is not None
    epoch, step, workers = (int(group or 0) for group in match.groups())
    if checkpoint_name(max(epoch - 1, 0), step) != before.rpartition("/")[2]:
        raise InputError("growth trained steps again", file=run_dir, value=line, expected=f"to continue from {before}")
    compared = compare(drills.out, "grow", same_workers=False)
    where = f"epoch {max(epoch, 1)}, after {step} steps"
    return Outcome("grow", "a node comes, min_workers 1", reported - at, where, f"1 -> {workers}", **compared)
