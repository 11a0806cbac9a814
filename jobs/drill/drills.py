"""The drills: each disturbs a run and compares it with the undisturbed one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, get_args

import ray

from boxsup_dist.data.tables import open_table
from boxsup_dist.distributed import session
from boxsup_dist.errors import InputError
from boxsup_dist.io import storage
from boxsup_dist.model.checkpoint import checkpoint_name, latest
from boxsup_dist.reporting.text_table import format_table
from boxsup_dist.runs.summary import is_finished, write_result
from jobs.drill import chaos, spot
from jobs.drill.cluster import NODE_MEMORY, Command, Raylets, raylets
from jobs.drill.data import NUM_IMAGES, make_data
from jobs.drill.disk import Hoards, SmallDisk, may_mount, small_disk
from jobs.drill.kills import run_chaos
from jobs.drill.mlflow_server import Server, untracked
from jobs.drill.network import missing
from jobs.drill.runs import BEGINS, CHECKPOINT_EVERY_STEPS, Outcome, compare, reached, train_words
from jobs.drill.settings import Chaos, Name

STORE_ROOM = 24 << 20  # of an object store, before the disk is full and other programs take the rest
CLEAR_ERROR = 2  # exit status of a command that reported a user error


# -- drills ------------------------------------------------------------------------------------------------------------


class Drills:
    """Each public method is a drill: it runs, disturbs and compares."""

    def __init__(self, out: str, cluster: Raylets, chaos: Chaos) -> None:
        self.out, self.cluster, self.settings = out, cluster, chaos

    def _train(self, name: str, env: dict[str, str] | None = None, **options: Any) -> Command:
        return Command(train_words(self.out, name, **options), f"{self.out}/{name}.log", env)

    def undisturbed(self) -> None:
        """Train once without a fault, unless an earlier call did."""
        if not is_finished(storage.join(self.out, "undisturbed")):
            self._train("undisturbed").finish()

    def disturb_epoch(self, name: str, fault: str, disturb: Callable[[Command], Command], **options: Any) -> Outcome:
        """Disturb the second epoch between two checkpoints; `disturb` returns the command that continues."""
        command = self._train(name, **options)
        run_dir = storage.join(self.out, name)
        command.wait_for(reached(run_dir, 1, 2 * CHECKPOINT_EVERY_STEPS))
        kept, at = latest(run_dir), time.monotonic()
        before = command.first_line(BEGINS.pattern, 0.0)
        command = disturb(command)
        reported, line = command.wait_for(lambda: command.first_line(BEGINS.pattern, at))
        command.finish()
        match, began = BEGINS.search(line), BEGINS.search(before[1] if before else "")
        assert match is not None and began is not None and kept is not None
        epoch, step, workers = (int(group or 0) for group in match.groups())
        if checkpoint_name(max(epoch - 1, 0), step) < storage.join(kept).rpartition("/")[2]:
            raise InputError("the run continued from before its newest checkpoint", file=kept, value=line)
        return Outcome(
            name,
            fault,
            continues_after_s=reported - at,
            continues_from=f"epoch {max(epoch, 1)}, after {step} steps",
            workers=f"{began[3]} -> {workers}",
            **compare(self.out, name, same_workers=int(began[3]) == workers),
        )

    def worker(self) -> Outcome:
        """A train worker dies in an epoch."""

        def disturb(command: Command) -> Command:
            self.cluster.processes("ray::RayTrainWorker")[0].kill()
            return command

        return self.disturb_epoch("worker", "a train worker dies in an epoch", disturb)

    def node_epoch(self) -> Outcome:
        """A node goes away in an epoch, and a new one comes."""

        def disturb(command: Command) -> Command:
            self.cluster.kill_node()
            self.cluster.add_node()
            return command

        return self.disturb_epoch("node-epoch", "a node goes away in an epoch, another comes", disturb)

    def elastic(self) -> Outcome:
        """A node goes away in an epoch for good: the run continues with one worker."""

        def disturb(command: Command) -> Command:
            self.cluster.kill_node()
            return command

        try:
            return self.disturb_epoch("elastic", "a node goes away for good, min_workers 1", disturb, min_workers=1)
        finally:
            self.cluster.add_node()

    def driver(self) -> Outcome:
        """The driver dies in an epoch, and its command is given again."""

        def disturb(command: Command) -> Command:
            command.kill()
            return self._train("driver")

        return self.disturb_epoch("driver", "the driver dies in an epoch, same command again", disturb)

    def _disturb_reassignment(self, name: str, fault: str, disturb: Callable[[], None]) -> Outcome:
        """Disturb while the labels of the third epoch are made, and wait until the pool reports a lost member."""
        command = self._train(name)
        run_dir = storage.join(self.out, name)
        command.wait_for(reached(run_dir, 2, 0))
        at = time.monotonic()
        disturb()
        reported, _ = command.wait_for(
            lambda: command.first_line("an actor was lost|training (begins|continues)|epoch 3/3", at)
        )
        lost = command.first_line("an actor was lost", at)
        command.finish()
        if lost is None and command.first_line(BEGINS.pattern, at) is None:
            raise InputError("the fault came too late: the reassignment was over", file=f"{self.out}/{name}.log")
        return Outcome(
            name, fault, reported - at, "the lost units", "2 -> 2", **compare(self.out, name, same_workers=True)
        )

    def actor(self) -> Outcome:
        """An actor dies in a reassignment."""
        return self._disturb_reassignment(
            "actor", "an actor dies in a reassignment", lambda: self.cluster.processes("ray::_Member")[0].kill()
        )

    def node_reassign(self) -> Outcome:
        """A node goes away in a reassignment, and a new one comes."""

        def disturb() -> None:
            self.cluster.kill_node()
            self.cluster.add_node()

        return self._disturb_reassignment("node-reassign", "a node goes away in a reassignment, another comes", disturb)

    def node_ingest(self) -> Outcome:
        """A node goes away while a table is built, and a new one comes."""
        out = storage.join(self.out, "ingest")
        records = storage.join(self.out, "data", "records")
        words = ["jobs.build_proposals", "--records", records, "--method", "selective_search"]
        Command([*words, "--out", out + "-undisturbed"], f"{self.out}/node-ingest.log").finish()
        command = Command([*words, "--out", out], f"{self.out}/node-ingest.log")
        command.wait_for(lambda: any(name.endswith(".json") for name in _parts(out)))
        at, done = time.monotonic(), len(_parts(out))
        self.cluster.kill_node()
        self.cluster.add_node()
        command.wait_for(lambda: len(_parts(out)) > done + 2)
        reported = time.monotonic()
        command.finish()
        tables = [open_table(uri, "proposals").fingerprint for uri in (out, out + "-undisturbed")]
        same = "same table" if tables[0] == tables[1] else "ANOTHER TABLE"
        return Outcome(
            "node-ingest",
            "a node goes away in an ingest, another comes",
            reported - at,
            "the lost shards",
            "",
            same,
            "",
        )

    def disk(self) -> Outcome:
        """The disk for spilled objects and the object stores fill until the run ends; its command is given again."""
        with small_disk(Path(self.out, "spill")) as disk, raylets(str(disk.folder)):
            session.start()
            try:
                return self._fill_disk(disk)
            finally:
                ray.shutdown()

    def _fill_disk(self, disk: SmallDisk) -> Outcome:
        hoards = Hoards()
        disk.fill()
        hoards.put(NODE_MEMORY - STORE_ROOM)  # so far nothing of this run must be spilled

        def disturb(command: Command) -> Command:
            at = time.monotonic()
            hoards.fill()
            reported, _ = command.wait_for(lambda: command.first_line("OutOfDiskError", at))
            code, end = command.end(), command.first_line("^error: Ray has no room", at)
            if code != CLEAR_ERROR or end is None:
                raise InputError(
                    f"the run ended with status {code}, without a clear error", file=f"{self.out}/disk.log"
                )
            print(
                f"disk: reported after {reported - at:.1f} s, the run ended after {end[0] - at:.1f} s: {end[1]}",
                flush=True,
            )
            disk.free()
            hoards.free()
            return self._train("disk", max_failures=1)

        fault = "the disk for spilled objects and the stores are full until the run ends, same command again"
        return self.disturb_epoch("disk", fault, disturb, max_failures=1)

    def tracking(self) -> Outcome:
        """The tracking server dies in an epoch and is back after the run, whose command is given again."""
        folder, run_dir = Path(self.out, "tracking-server"), storage.join(self.out, "tracking")
        storage.remove(str(folder))
        folder.mkdir()
        server = Server(folder)
        env = {"MLFLOW_TRACKING_URI": server.uri}
        try:
            server.start()
            command = self._train("tracking", env)
            command.wait_for(reached(run_dir, 1, 2 * CHECKPOINT_EVERY_STEPS))
            at = time.monotonic()
            server.kill()
            reported, _ = command.wait_for(lambda: command.first_line(r"^epoch \d", at))
            command.finish()
            if command.first_line(BEGINS.pattern, at):
                raise InputError(
                    "the run restarted because its tracking server was away", file=f"{self.out}/tracking.log"
                )
            server.start()
            lost = untracked(run_dir, server.uri)
            self._train("tracking", env).finish()
            left = untracked(run_dir, server.uri)
        finally:
            server.kill()
        print(f"tracking: MLflow lacked {len(lost)} numbers of history.jsonl, now {len(left)}", flush=True)
        if left or not lost:
            found = f"{len(lost)} numbers came late, these never: {left}"
            raise InputError(
                "MLflow lacks metrics of the run", file=run_dir, value=found, expected="some late, none never"
            )
        fault = "the tracking server dies in an epoch and is back after the end"
        return Outcome(
            "tracking", fault, reported - at, "nothing is redone", "2 -> 2", **compare(self.out, "tracking", True)
        )

    def chaos(self) -> Outcome:
        """A worker or a node dies again and again; --minutes and --every-s say how often."""
        return Outcome(
            "chaos", **run_chaos(self.settings, self.out, self.cluster, self._train, partial(compare, self.out))
        )


def _parts(out: str) -> list[str]:
    return [name for name in storage.list_names(out) if name.startswith("part-")]


DRILLS: tuple[Name, ...] = get_args(Name)


def describe() -> str:
    """The drills, one line per drill."""
    lines = [f"  {name:<15}{(_drill(name).__doc__ or '').partition(chr(10))[0]}" for name in DRILLS]
    return "\n".join(["drills:", *lines])


def _drill(name: Name) -> Callable[..., Any]:
    if name == "network":
        return chaos.run_network_drill
    if name in ("drain", "grow"):
        drill: Callable[..., Any] = getattr(spot, name)
        return drill
    method: Callable[..., Any] = getattr(Drills, name.replace("-", "_"))
    return method


def run_drills(names: Sequence[Name], out: str, settings: Chaos) -> None:
    """Run drills, write OUT/summary.json (OUT/network/summary.json of the drill network) and print their results.

    Args:
        names: Names of the drills. Empty: all that this machine can run; the others are named with the reason.
        out: Folder of the data and the runs.
        settings: Of the drill chaos.

    Raises:
        InputError: A disturbed run did not end as the undisturbed one.
    """
    out = storage.absolute(out)
    Path(out).mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{out}/mlflow.db")
    chosen = list(names) or _possible()
    on_cluster = [name for name in chosen if name != "network"]
    if on_cluster:
        _run_on_cluster(on_cluster, out, settings)
    if "network" in chosen:
        chaos.run_network_drill(out)


def _possible() -> list[Name]:
    lacks: dict[Name, str | None] = {"disk": None if may_mount() else "root", "network": missing()}
    for name, reason in lacks.items():
        if reason is not None:
            print(f"{name}: left out, this machine lacks {reason}", flush=True)
    return [name for name in DRILLS if lacks.get(name) is None]


def _run_on_cluster(names: Sequence[Name], out: str, settings: Chaos) -> None:
    outcomes = []
    with raylets() as cluster:
        make_data(storage.join(out, "data"))
        drills = Drills(out, cluster, settings)
        drills.undisturbed()
        for name in names:
            for old in (storage.join(out, name), storage.join(out, "ingest")):
                storage.remove(old)
            outcome: Outcome = _drill(name)(drills)
            print(f"{outcome.drill}: continues after {outcome.continues_after_s:.1f} s, {outcome.labels}", flush=True)
            outcomes.append(outcome)
    rows = [asdict(outcome) for outcome in outcomes]
    title = f"{NUM_IMAGES} images, checkpoints every {CHECKPOINT_EVERY_STEPS} steps"
    write_result(out, {"drills": rows}, [format_table(rows, title)])
    bad = [row["drill"] for row in rows if row["labels"].isupper() or row["losses"].isupper()]
    if bad:
        raise InputError("a fault changed the result", file=out, field="drill", value=bad, expected="the same result")
