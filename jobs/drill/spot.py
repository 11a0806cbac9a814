"""Drills of nodes that come and go with notice, as spot machines do."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING

from boxsup_dist.errors import InputError
from jobs.drill.cluster import Command

if TYPE_CHECKING:
    from jobs.drill.drills import Drills, Outcome

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
