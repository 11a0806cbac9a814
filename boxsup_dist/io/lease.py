"""One writer per folder: a small file names the process that writes there, and that process renews it while it lives.

    FOLDER/writer.json   host, process, start and token of the writer; "released" once it ended in order

A lease of a process that died is taken over: on the same machine at once, because the process and its start time say
that it is gone; from another machine once nobody has renewed it for STALE_S. Clocks of two machines are never compared.
Replacing the file is exact where it can be: local files are locked, S3 compares the version that was read (If-Match,
If-None-Match). On other stores two processes that start within a second may both be let in; `acquire` says so.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import psutil

from boxsup_dist.errors import InputError, LeaseError
from boxsup_dist.io.lease_file import LeaseFile, open_lease_file
from boxsup_dist.io.remote import Clock

RENEW_EVERY_S = 15.0
STALE_S = 60.0
LOOK_EVERY_S = 3.0


@dataclass(frozen=True)
class Writer:
    """The process that writes into a folder."""

    token: str  # another one for each lease
    host: str
    process: int
    place: str  # processes of the same place see each other
    process_started: float  # Unix time, by the clock of that place
    since: str  # for people
    renewals: int = 0
    released: bool = False

    @classmethod
    def here(cls) -> Writer:
        """This process, as a new writer."""
        started = psutil.Process().create_time()
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return cls(uuid.uuid4().hex, socket.gethostname(), os.getpid(), _place(), started, now)

    @classmethod
    def parse(cls, data: bytes | None) -> Writer | None:
        """The writer that a lease file names; None if it names none or cannot be read."""
        try:
            found = None if data is None else cls(**json.loads(data))
        except (ValueError, TypeError, RecursionError):
            return None
        return found if found is not None and found._is_valid() else None

    def _is_valid(self) -> bool:
        texts = (self.token, self.host, self.place, self.since)
        numbers = (self.process, self.process_started, self.renewals)
        return (
            all(isinstance(text, str) for text in texts)
            and all(isinstance(number, int | float) for number in numbers)
            and isinstance(self.process, int)
            and 0 < self.process < 2**31
        )

    def encode(self) -> bytes:
        """The content of the lease file."""
        return (json.dumps(asdict(self)) + "\n").encode()

    def is_dead(self) -> bool | None:
        """Whether the process is gone; None if it runs where this process cannot see it."""
        if self.place != _place():
            return None
        try:
            process = psutil.Process(self.process)
            same = abs(process.create_time() - self.process_started) < 1.0
            return not same or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def __str__(self) -> str:
        return f"host {self.host}, process {self.process}, since {self.since}"


@dataclass(frozen=True)
class Claim:
    """What another process needs to check that a lease still holds; can be pickled."""

    uri: str  # of the lease file
    folder: str
    token: str

    def check(self) -> None:
        """Raise LeaseError if another process has taken the folder over, or the lease file was deleted."""
        found = Writer.parse(open_lease_file(self.uri).read()[0])
        if found is None or found.token != self.token:
            raise _taken_over(self.folder, found)


class Lease:
    """The lease that this process holds; a thread renews it until `release`. `claim` says whether it still holds."""

    def __init__(self, file: LeaseFile, folder: str, writer: Writer, version: str | None) -> None:
        self.claim = Claim(file.uri, folder, writer.token)
        self._file, self._writer, self._version = file, writer, version
        file.patience_s = RENEW_EVERY_S  # the next renewal comes anyway
        self._lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, name="lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Let others write; the file stays and says who wrote last."""
        self._ended.set()
        self._thread.join()
        with suppress(InputError):  # then it is taken over when it is stale
            self._write(replace(self._writer, released=True))

    def _keep_renewing(self) -> None:
        while not self._lost and not self._ended.wait(RENEW_EVERY_S):
            with suppress(InputError):  # the store is away: the next renewal says whether the lease still holds
                self._write(replace(self._writer, renewals=self._writer.renewals + 1))

    def _write(self, writer: Writer) -> None:
        if self._lost:
            return
        version = self._file.replace(writer.encode(), self._version)
        if version is None:
            data, version = self._file.read()
            found = Writer.parse(data)
            if found is None or found.token != writer.token:
                self._lost = True
                return
            # Else it is our own write, whose answer was lost: it counts.
        self._writer, self._version = writer, version


@contextmanager
def held(folder: str, uri: str, say: Callable[[str], None], clock: Clock = time) -> Iterator[Lease]:
    """The lease of a folder for as long as the block lasts; arguments and errors as those of `acquire`."""
    lease = acquire(folder, uri, say, clock)
    try:
        yield lease
    finally:
        lease.release()


def refuse_held(folder: str, uri: str) -> None:
    """Raise LeaseError if a living process of this machine holds the lease: a cheap look before a slow start."""
    found = Writer.parse(open_lease_file(uri).read()[0])
    if found is not None and not found.released and found.is_dead() is False:
        raise _busy(folder, found)


def acquire(folder: str, uri: str, say: Callable[[str], None], clock: Clock = time) -> Lease:
    """Become the one writer of a folder.

    Args:
        folder: What the lease is for, in messages.
        uri: Its lease file.
        say: Gets a line before a wait, and where the store cannot keep two writers apart.
        clock: Measures and waits.

    Raises:
        LeaseError: Another process writes there; names its host, process and start.
    """
    file, own = open_lease_file(uri), Writer.here()
    while True:
        data, version = file.read()
        if data is not None:
            _wait_until_free(file, folder, data, say, clock)
        taken = file.replace(own.encode(), version)
        if taken is None:  # another process was faster, or the answer to our own write was lost
            data, taken = file.read()
            found = Writer.parse(data)
            if found is None or found.token != own.token:
                continue
        if not file.is_exact:
            say(f"the store has no conditional writes: it would let two commands that start at once into {folder}")
            clock.sleep(LOOK_EVERY_S)
            if file.read()[0] != own.encode():
                continue
        return Lease(file, folder, own, taken)


def _wait_until_free(file: LeaseFile, folder: str, data: bytes, say: Callable[[str], None], clock: Clock) -> None:
    """Return when the lease with this content may be taken over; LeaseError if its holder lives."""
    found = Writer.parse(data)
    is_dead = None if found is None else found.is_dead()
    if found is not None and is_dead is False and not found.released:
        raise _busy(folder, found)
    if is_dead or (found is not None and found.released):
        return
    who = "an unknown process" if found is None else str(found)
    say(f"{folder} was written by {who}: waiting up to {STALE_S:.0f} s to see whether it still runs")
    started = clock.monotonic()
    while clock.monotonic() - started < STALE_S:
        clock.sleep(LOOK_EVERY_S)
        again = file.read()[0]
        if again != data:
            renewed = Writer.parse(again)
            if renewed is None or renewed.released:
                return
            raise _busy(folder, renewed)


def _busy(folder: str, writer: Writer) -> LeaseError:
    return LeaseError(
        "another command writes into this folder",
        file=folder,
        value=str(writer),
        expected="another folder; or stop that process, then run the same command again, which continues",
    )


def _taken_over(folder: str, writer: Writer | None) -> LeaseError:
    return LeaseError(
        "another command has taken this folder over, so this one stops",
        file=folder,
        value="its lease file is gone" if writer is None else str(writer),
        expected="one command for each folder; this one was silent for a minute, or its lease file was deleted",
    )


def _place() -> str:
    """Names what processes share that see each other: the running system and the namespace of process ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return f"{socket.gethostname()} {uuid.getnode()}"
