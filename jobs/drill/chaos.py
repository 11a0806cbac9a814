"""The drill `network`: one training over three nodes, and every fault of a network while it runs.

The same training runs undisturbed first. Both must end with the same labels and the same losses, bit for bit.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from boxsup_dist.data.labels import open_labels
from boxsup_dist.errors import InputError
from boxsup_dist.io import storage
from boxsup_dist.reporting.text_table import format_table
from boxsup_dist.runs.history import read_history
from boxsup_dist.runs.layout import RunFiles
from boxsup_dist.runs.summary import write_result
from jobs.drill.cluster import Command
from jobs.drill.network import BUCKET, Host, Network, missing, network

EPOCHS = 12
DELAY_MS, JITTER_MS = 20, 10
CUT_S, STOPPED_S, STORE_AWAY_S = 20, 20, 60
CHECKPOINT_EVERY_STEPS = 4


@dataclass(frozen=True)
class Fault:
    """What a fault did to the run."""

    fault: str
    pause_s: float  # from the fault to the next epoch's end
    restarted: bool  # whether the workers started again, from a checkpoint


@dataclass(frozen=True)
class _Disturbance:
    epoch: int  # it begins when this epoch is over
    name: str
    begin: Callable[[], Any]
    lasts_s: float
    end: Callable[[], Any]


def run_network_drill(out: str) -> None:
    """Links are slow and cut, a node dies, workers stop, the store is away: all in one run over three nodes.

    Writes OUT/network/summary.json and prints it.

    Raises:
        InputError: This machine cannot do it, or the disturbed training did not end as the undisturbed one.
    """
    lacks = missing()
    if lacks is not None:
        raise InputError("this machine cannot run the drill", field="network", expected=lacks)
    folder = Path(storage.absolute(out), "network")
    storage.remove(str(folder))
    folder.mkdir(parents=True)
    root = f"s3://{BUCKET}"
    with network() as net:
        _run(net, ["jobs.drill.data", f"{root}/data"], folder / "data.log").finish()
        started = time.monotonic()
        _train(net, root, "undisturbed", folder).finish()
        quiet_s = time.monotonic() - started
        started = time.monotonic()
        slowed = [host.delay(DELAY_MS, JITTER_MS) for host in [*net.nodes, net.store]]
        faults = _disturb(net, _train(net, root, "disturbed", folder))
        disturbed_s = time.monotonic() - started
        compared = _compare(*(f"{root}/{name}" for name in ("disturbed", "undisturbed")))
    rows = [asdict(fault) for fault in faults]
    values = {"faults": rows, "undisturbed_s": quiet_s, "disturbed_s": disturbed_s,
              "goodput": quiet_s / disturbed_s, **compared}  # fmt: skip
    packets = f"every packet {DELAY_MS} +- {JITTER_MS} ms late" if all(slowed) else "no delay: this kernel lacks netem"
    title = f"three nodes, {EPOCHS} epochs, {packets}"
    goodput = f"goodput {quiet_s / disturbed_s:.2f}: {quiet_s:.0f} of {disturbed_s:.0f} s"
    line = f"{compared['labels']}, {compared['losses']}; {goodput}"
    write_result(str(folder), values, [format_table(rows, title), line])
    if not compared["labels"].startswith("same") or not compared["losses"].startswith("same"):
        expected = "the same labels and losses"
        raise InputError("the faults changed the result", file=str(folder), value=compared, expected=expected)


def _run(net: Network, words: list[str], log: Path) -> Command:
    return Command(words, str(log), prefix=net.nodes[0].words())


def _train(net: Network, root: str, name: str, folder: Path) -> Command:
    settings = {
        "run-dir": f"{root}/{name}",
        "records": f"{root}/data/records",
        "proposals": f"{root}/data/proposals",
        "supervision": "box",
        "network.name": "timm:test_resnet",
        "network.weights": "none",
        "assignment.warmup-epochs": 1,
        "optimizer.epochs": EPOCHS,
        "optimizer.global-batch-size": 4,
        "augment.crop-height-px": 65,
        "augment.crop-width-px": 65,
        "resources.num-workers": 2,
        "resources.max-failures": 10,
        "resources.cpus-per-worker": 1.6,  # nodes 1 and 2 have room for one worker each
        "resources.num-actors": 3,
        "resources.cpus-per-actor": 0.2,
        "resources.stream-tasks-per-worker": 1,
        "checkpoint-every-steps": CHECKPOINT_EVERY_STEPS,
    }
    words = ["jobs.train", "mini", *(word for key, value in settings.items() for word in (f"--{key}", str(value)))]
    return _run(net, words, folder / f"{name}.log")


def _disturb(net: Network, command: Command) -> list[Fault]:
    found = []
    for one in _disturbances(net):
        command.wait_for(lambda epoch=one.epoch: command.first_line(rf"^epoch {epoch}/", 0.0))  # type: ignore[misc]
        at = time.monotonic()
        one.begin()
        time.sleep(one.lasts_s)
        one.end()
        worked, _ = command.wait_for(lambda since=at + one.lasts_s: command.first_line(r"^epoch \d+/", since))  # type: ignore[misc]
        restarted = command.first_line("training continues", at) is not None
        found.append(Fault(one.name, worked - at, restarted))
        print(f"{one.name}: work after {worked - at:.0f} s", flush=True)
    command.finish()
    return found


def _disturbances(net: Network) -> list[_Disturbance]:
    def stop(kind: signal.Signals) -> Callable[[], None]:
        def send() -> None:
            for number in range(len(net.nodes)):
                for process in net.workers(number, "ray::RayTrainWorker"):
                    process.send_signal(kind)

        return send

    def lose(number: int) -> None:
        net.nodes[number].kill()
        net.start_node(number)

    def cut(host: Host, epoch: int, name: str, seconds: float) -> _Disturbance:
        return _Disturbance(epoch, name, host.cut, seconds, host.join)

    return [
        cut(net.nodes[1], 2, f"a node's link is cut for {CUT_S} s", CUT_S),
        _Disturbance(4, "a node is killed and starts again", lambda: lose(2), 0, lambda: None),
        _Disturbance(6, f"all train workers are stopped for {STOPPED_S} s", stop(signal.SIGSTOP), STOPPED_S,
                     stop(signal.SIGCONT)),
        cut(net.store, 8, f"the store is away for {STORE_AWAY_S} s", STORE_AWAY_S),
    ]  # fmt: skip


def _compare(ours: str, theirs: str) -> dict[str, str]:
    pairs = [[RunFiles(uri).labels(epoch) for uri in (ours, theirs)] for epoch in range(1, EPOCHS + 1)]
    same = all(open_labels(a).fingerprint == open_labels(b).fingerprint for a, b in pairs)
    curves = [[entry.train_loss for entry in read_history(uri).values()] for uri in (ours, theirs)]
    apart = [(a, b) for a, b in zip(*curves, strict=True) if a != b]
    return {
        "labels": "same labels" if same else "OTHER LABELS",
        "losses": "same losses" if not apart else f"OTHER LOSSES in {len(apart)} epochs, first {apart[0]}",
    }
