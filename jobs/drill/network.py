"""Three nodes and a store, each in a network namespace of its own: links can be slowed, cut and joined again."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import psutil

import boxsup_dist
from boxsup_dist.errors import InputError
from jobs.drill.cluster import HEAD_CPUS, NODE_CPUS, NODE_MEMORY

BRIDGE, PREFIX, NETWORK = "boxsup0", "boxsup-", "10.77.0"
OURS, STORE = f"{NETWORK}.254", f"{NETWORK}.253"  # this process, the store; node k is .(k + 1)
GCS_PORT, STORE_PORT = 6379, 5000
BUCKET = "boxsup-drill"
WAIT_S = 240.0
_AWS = {"AWS_ACCESS_KEY_ID": "drill", "AWS_SECRET_ACCESS_KEY": "drill", "AWS_DEFAULT_REGION": "us-east-1"}


def missing() -> str | None:
    """What this drill needs and this machine lacks; None if nothing."""
    if os.geteuid() != 0:
        return "root"
    if shutil.which("ip") is None or shutil.which("tc") is None:
        return "the commands ip and tc (package iproute2)"
    if importlib.util.find_spec("moto") is None:
        return "the package moto (pip install .[dev])"
    probe = subprocess.run(["ip", "netns", "add", f"{PREFIX}probe"], capture_output=True, check=False)
    if probe.returncode:
        return "network namespaces"
    _ip("netns", "del", f"{PREFIX}probe")
    return None


def _lines(*words: str) -> list[str]:
    return subprocess.run(["ip", "netns", *words], capture_output=True, text=True, check=True).stdout.splitlines()


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError("a command failed", field=f"ip {' '.join(words)}", value=done.stderr.strip())


class Host:
    """A network namespace with one address, and the processes that run in it."""

    def __init__(self, name: str, address: str) -> None:
        self.name, self.address, self.namespace = name, address, PREFIX + name
        self.processes: list[subprocess.Popen[bytes]] = []
        outside = f"{PREFIX}{name}"
        _ip("netns", "add", self.namespace)
        _ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        _ip("link", "set", outside, "master", BRIDGE, "up")
        for words in (["addr", "add", f"{address}/24", "dev", "eth0"], ["link", "set", "eth0", "up"],
                      ["link", "set", "lo", "up"]):  # fmt: skip
            _ip("-n", self.namespace, *words)

    def words(self) -> list[str]:
        """What precedes a command that is to run here."""
        return ["ip", "netns", "exec", self.namespace]

    def start(self, command: list[str], log: Path) -> None:
        """Start a process here."""
        with log.open("ab") as file:
            process = subprocess.Popen([*self.words(), *command], stdout=file, stderr=file, start_new_session=True)
        self.processes.append(process)

    def cut(self) -> None:
        """Cut the link: nothing arrives and nobody is told."""
        _ip("link", "set", self.namespace, "down")

    def join(self) -> None:
        """Join the link again."""
        _ip("link", "set", self.namespace, "up")

    def delay(self, milliseconds: float, jitter: float) -> bool:
        """Delay every packet that leaves the host; False if this kernel has no netem, which delays them."""
        words = ["tc", "qdisc", "add", "dev", "eth0", "root", "netem", "delay", f"{milliseconds}ms", f"{jitter}ms"]
        done = subprocess.run([*self.words(), *words], capture_output=True, text=True, check=False)
        return done.returncode == 0

    def family(self) -> list[psutil.Process]:
        """All processes that run here."""
        found = []
        for process in self.processes:
            with suppress(psutil.Error):
                found += [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        return found

    def kill(self) -> None:
        """Kill all processes at once, like a machine that loses power."""
        for process in self.family():
            with suppress(psutil.Error):
                process.kill()
        for started in self.processes:
            started.wait()
        self.processes.clear()


class Network:
    """Node 0 is Ray's head and runs the driver; `root` is a folder for logs and Ray's session."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = Host("store", STORE)
        self.nodes = [Host(f"node{k}", f"{NETWORK}.{k + 1}") for k in range(3)]
        self.address = f"{self.nodes[0].address}:{GCS_PORT}"
        self.env = {
            **_AWS,
            "AWS_ENDPOINT_URL": f"http://{STORE}:{STORE_PORT}",
            "BOXSUP_STORE_PATIENCE_S": "90",  # more than a store is away here; it also bounds how long workers wait
            "RAY_ADDRESS": self.address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }

    def start(self) -> None:
        """Start the store, the head and the other nodes.

        Raises:
            InputError: The store or a node does not answer in time.
        """
        command = [sys.executable, "-m", "moto.server", "-H", STORE, "-p", str(STORE_PORT)]
        self.store.start(command, self.root / "store.log")
        uri = f"http://{STORE}:{STORE_PORT}/{BUCKET}"
        _until(lambda: urllib.request.urlopen(urllib.request.Request(uri, method="PUT"), timeout=2), uri)
        for number in range(len(self.nodes)):  # one by one: a node that starts slowly, or finds no head, gives up
            self.start_node(number)
            _until(partial(self._check_nodes, number + 1), self.address)

    def start_node(self, number: int) -> None:
        """Start Ray on a node, as `ray start` on a machine of its own."""
        host = self.nodes[number]
        place = ["--head", f"--port={GCS_PORT}", f"--temp-dir={self.root}/ray", "--include-dashboard=false"]
        command = [
            str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats",
            f"--node-ip-address={host.address}", f"--num-cpus={NODE_CPUS if number else HEAD_CPUS}",
            f"--object-store-memory={NODE_MEMORY}", *(place if number == 0 else [f"--address={self.address}"]),
        ]  # fmt: skip
        host.start(command, self.root / f"node{number}.log")

    def _check_nodes(self, expected: int) -> None:
        words = [sys.executable, "-c", _COUNT_NODES, self.address]
        done = subprocess.run([*self.nodes[0].words(), *words], capture_output=True, text=True, timeout=60, check=False)
        if done.stdout.strip() != str(expected):
            raise OSError(f"{done.stdout.strip() or 'no'} of {expected} nodes are there")

    def workers(self, number: int, title: str) -> list[psutil.Process]:
        """Ray's processes on a node whose title begins with `title`."""
        return [process for process in self.nodes[number].family() if _title(process).startswith(title)]


_COUNT_NODES = (
    "import sys; from ray._raylet import GcsClient; "
    "print(sum(node.state == 0 for node in GcsClient(address=sys.argv[1]).get_all_node_info().values()))"
)


def _title(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _until(attempt: Callable[[], object], name: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            attempt()
        except (OSError, subprocess.TimeoutExpired) as error:
            if time.monotonic() > deadline:
                raise InputError(f"no answer within {WAIT_S:g} s", file=name, value=str(error)) from None
            time.sleep(0.5)
        else:
            return


@contextmanager
def network() -> Iterator[Network]:
    """The running network; everything is taken down at the end, also what a killed call left."""
    clean()
    checkout = str(Path(boxsup_dist.__file__).parents[1])
    before = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [checkout, os.environ.get("PYTHONPATH", "")]))
    os.environ |= {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", "RAY_raylet_start_wait_time_s": "120"}
    os.environ["GLOO_SOCKET_IFNAME"] = "eth0"  # all hosts have this machine's name, which is that of its loopback
    make_bridge(f"{OURS}/24")
    folder = tempfile.TemporaryDirectory(prefix="bsn", ignore_cleanup_errors=True)  # short: Ray puts sockets below it
    net = Network(Path(folder.name))
    try:
        os.environ.update(net.env)
        net.start()
        yield net
    finally:
        for host in [*net.nodes, net.store]:
            for process in host.family():
                with suppress(psutil.Error):
                    process.send_signal(signal.SIGCONT)
            host.kill()
        clean()
        os.environ.clear()
        os.environ.update(before)
        folder.cleanup()


def make_bridge(address: str) -> None:
    """The bridge that joins all hosts, with the address of this process."""
    _ip("link", "add", BRIDGE, "type", "bridge")
    _ip("addr", "add", address, "dev", BRIDGE)
    _ip("link", "set", BRIDGE, "up")


def clean() -> None:
    """End all hosts with their processes, and remove the bridge."""
    for name in (line.split()[0] for line in _lines("list") if line.startswith(PREFIX)):
        for pid in _lines("pids", name):
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        _ip("netns", "del", name)
    if Path("/sys/class/net", BRIDGE).exists():
        _ip("link", "del", BRIDGE)
