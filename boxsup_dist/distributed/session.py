"""The Ray session of a command: the running cluster at RAY_ADDRESS, else a quiet local one on the real cores."""

from __future__ import annotations

import logging
import math
import os
import tempfile
from pathlib import Path

import ray
from ray.data import DataContext
from ray.exceptions import AuthenticationError

import boxsup_dist
from boxsup_dist.distributed import ray_internals
from boxsup_dist.errors import SettingError
from boxsup_dist.io.local import check_room

_OBJECT_STORE_BYTES = 2 * 2**30  # blocks are small here; Ray's default is 30 % of the machine's memory
_START_ATTEMPTS = 3
_RAY_FOLDER_BYTES = 10 * 2**20  # logs and sockets of a short session
_log = logging.getLogger(__name__)


def num_cores() -> int:
    """Cores that this process may use: its CPU affinity and, in a container, its cgroup quota. At least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, _cgroup_quota()))


def _cgroup_quota() -> int:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no cgroup v2, or the quota is "max"
        return 10**6


def start(num_cpus: int | None = None) -> None:
    """Connect to Ray once; later calls keep the running session.

    With RAY_ADDRESS set, joins that cluster and sends this package along, so that every node runs the same code. Else
    starts a local cluster.

    Args:
        num_cpus: CPUs of a local cluster; None takes all real cores, but at least 2. More than these are capped,
            because an oversubscribed machine makes Ray Data several times slower.

    Raises:
        SettingError: The cluster cannot be joined, `num_cpus` is below 1, or it is set beside RAY_ADDRESS.
    """
    if num_cpus is not None and num_cpus < 1:
        raise SettingError("a Ray session needs a CPU", field="num_cpus", value=num_cpus, expected="1 or more")
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray_internals.silence_notices()
        address = os.environ.get("RAY_ADDRESS")
        if address:
            _join(address, num_cpus)
        else:
            _start_local(num_cpus)
    set_up_ray_data()


def total_cpus() -> int:
    """CPUs of the running session, over all nodes; at least 1."""
    return max(1, int(_resources().get("CPU", 1)))


def total_gpus() -> int:
    """GPUs of the running session, over all nodes."""
    return int(_resources().get("GPU", 0))


def describe() -> str:
    """The cluster at this moment, in words: its nodes, free CPUs and GPUs, and the nodes that were lost."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    free, size = ray.available_resources(), _resources()  # type: ignore[no-untyped-call]
    gone = [node["NodeManagerAddress"] for node in nodes if not node["Alive"]]
    kinds = [f"{free.get(kind, 0):g} of {size[kind]:g} {kind}s free" for kind in ("CPU", "GPU") if size.get(kind)]
    lost = [f"gone: {', '.join(gone)}"] if gone else []
    return ", ".join([f"nodes of the cluster: {len(nodes) - len(gone)}", *kinds, *lost])


def _resources() -> dict[str, float]:
    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]


def _join(address: str, num_cpus: int | None) -> None:
    if num_cpus is not None:
        raise SettingError(
            "num_cpus has no effect: the cluster at RAY_ADDRESS has its own CPUs",
            field="num_cpus",
            value=num_cpus,
            expected="not set; or remove RAY_ADDRESS to start a local cluster",
        )
    try:
        ray.init(
            address=address,
            runtime_env={"py_modules": [str(Path(boxsup_dist.__file__).parent)]},
            logging_level=logging.WARNING,
            log_to_driver=False,
        )
    except (ConnectionError, AuthenticationError) as error:
        raise SettingError(
            "cannot join the Ray cluster",
            field="RAY_ADDRESS",
            value=address,
            expected="a running cluster, and its token in RAY_AUTH_TOKEN if it asks for one. Is the cluster running, "
            "and is RAY_AUTH_TOKEN set?",
        ) from error


def _start_local(num_cpus: int | None) -> None:
    # The workers of a training and its data tasks need room beside each other, even on a single core.
    cores = max(num_cores(), 2)
    if num_cpus is not None and num_cpus > cores:
        _log.warning("num_cpus %d is more than the %d cores of this machine: using %d", num_cpus, cores, cores)
    # Workers inherit the environment, so they find the package of a checkout from any working directory.
    checkout = str(Path(boxsup_dist.__file__).parents[1])
    paths = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    if checkout not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([checkout, *paths])
    # Without room Ray's processes end without a word, and Ray waits for them.
    check_room(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), _RAY_FOLDER_BYTES)
    for attempt in range(_START_ATTEMPTS):
        try:
            ray.init(
                address="local",  # never another cluster that runs on this machine
                num_cpus=min(num_cpus or cores, cores),
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=False,
                logging_level=logging.WARNING,
                log_to_driver=False,
            )
            return
        except Exception as error:  # Ray raises a plain Exception when its processes take more than 30 s to start
            ray.shutdown()
            if "timed out during startup" not in str(error) or attempt == _START_ATTEMPTS - 1:
                raise
            _log.warning("Ray took more than 30 s to start because this machine is busy: trying again")


def set_up_ray_data() -> None:
    """Replace Ray Data's bars and notices by our own progress, and slow its scheduling loop down.

    Call it in each process that makes a dataset, before the dataset.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    ray_internals.hold_back(context)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray_internals.silence_notices()
