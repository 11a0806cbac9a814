"""Brings what worker processes say while they wait for a store to the user's console.

A worker leaves its newest notices in Ray's key-value store, two keys per store: that it is away, that it answers again.
So no worker's late "away" hides that another one heard from the store. A thread of the driver looks there. No actor is
needed, so this works in every stage, and costs one small request each POLL_EVERY_S.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from dataclasses import asdict

import ray

from boxsup_dist.distributed import ray_internals
from boxsup_dist.io import waiting
from boxsup_dist.io.waiting import Notice

POLL_EVERY_S = 2.0
_listener: threading.Thread | None = None
_looking = threading.Lock()
_seen: dict[str, str] = {}  # key -> newest value that was shown; keys differ from session to session


def forward() -> None:
    """Send this process's notices to the driver, if this process is a worker of Ray. Cheap: every task calls it."""
    if ray_internals.is_worker():
        waiting.announce_with(_send)


def listen() -> None:
    """Show the workers' notices in this process, the driver, until its Ray session ends."""
    global _listener
    if _listener is None or not _listener.is_alive():
        _listener = threading.Thread(target=_listen, name="store-notices", daemon=True)
        _listener.start()


def _prefix() -> str:
    return f"boxsup-notice/{ray.get_runtime_context().get_job_id()}/"


def _send(notice: Notice) -> None:
    # The time makes each value another one, so that the same notice is seen again.
    value = json.dumps({"notice": asdict(notice), "time": time.time()})
    with suppress(Exception):  # the head node is away, too: a notice is no reason to fail
        ray_internals.put_value(f"{_prefix()}{'over' if notice.over else 'away'}/{notice.store}", value)


def _listen() -> None:
    while ray.is_initialized():
        show_newest()
        time.sleep(POLL_EVERY_S)


def show_newest() -> None:
    """Show what workers have said since the last look. At the end of a stage it shows what the thread would miss."""
    if not ray.is_initialized():
        return
    with _looking:
        values: dict[str, str] = {}
        with suppress(Exception):  # as above; or the session ends just now
            values = ray_internals.values_below(_prefix())
        new = {key: json.loads(value) for key, value in values.items() if _seen.get(key) != value}
        _seen.update(values)
        for said in sorted(new.values(), key=lambda said: float(said["time"])):
            waiting.announce(Notice(**said["notice"]))
