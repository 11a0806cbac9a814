"""The Ray session of a job: a running cluster when RAY_ADDRESS names one, else a quiet local one on the real cores."""

from __future__ import annotations

import logging
import math
import os
import time
from pathlib import Path

import ray
from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback  # the only place that has it
from ray.exceptions import AuthenticationError

import boxsup_dist
from boxsup_dist.errors import SettingError

_OBJECT_STORE_BYTES = 2 * 2**30  # blocks are small here; Ray's default takes 30 % of the machine's memory
_START_ATTEMPTS = 3
_STEP_S = 0.02  # finished tasks wait no longer than this for Ray Data to notice
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


def start(num_cpus: int | None = None, *, worker_logs: bool = False) -> None:
    """Connect to Ray once; later calls keep the running session.

    With RAY_ADDRESS set, joins that cluster and sends this package along, so that every node runs the same code;
    `num_cpus` then has no meaning and is refused. Else starts a local cluster with `num_cpus`, all real cores (but at
    least 2) where None; more is capped, because an oversubscribed machine makes Ray Data several times slower.
    `worker_logs` shows what workers print. Raises SettingError if the cluster can't be reached.
    """
    if num_cpus is not None and num_cpus < 1:
        raise SettingError("a Ray session needs a CPU", field="num_cpus", value=num_cpus, expected="1 or more")
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # warns that its default is on
        address = os.environ.get("RAY_ADDRESS")
        if address:
            _join(address, num_cpus, worker_logs)
        else:
            _start_local(num_cpus, worker_logs)
    set_up_ray_data()


def total_cpus() -> int:
    """CPUs of the running session, over all nodes; at least 1."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def total_gpus() -> int:
    """GPUs of the running session, over all nodes."""
    return int(ray.cluster_resources().get("GPU", 0))


def describe() -> str:
    """What the cluster has at this moment, in words: nodes, free CPUs and GPUs, and the nodes that went away."""
    nodes, free, size = ray.nodes(), ray.available_resources(), ray.cluster_resources()
    gone = [node["NodeManagerAddress"] for node in nodes if not node["Alive"]]
    kinds = [f"{free.get(kind, 0):g} of {size[kind]:g} {kind}s free" for kind in ("CPU", "GPU") if size.get(kind)]
    lost = [f"gone: {', '.join(gone)}"] if gone else []
    return ", ".join([f"the cluster has {len(nodes) - len(gone)} nodes", *kinds, *lost])


def _join(address: str, num_cpus: int | None, worker_logs: bool) -> None:
    if num_cpus is not None:
        raise SettingError("the cluster at RAY_ADDRESS has its own CPUs", field="num_cpus", value=num_cpus)
    try:
        ray.init(
            address=address,
            runtime_env={"py_modules": [str(Path(boxsup_dist.__file__).parent)]},
            logging_level=logging.WARNING,
            log_to_driver=worker_logs,
        )
    except (ConnectionError, AuthenticationError) as error:
        raise SettingError(
            "no Ray cluster lets us in",
            field="RAY_ADDRESS",
            value=address,
            expected="a running cluster and, if it asks for one, its token in RAY_AUTH_TOKEN",
        ) from error


def _start_local(num_cpus: int | None, worker_logs: bool) -> None:
    # A training's workers and its data tasks need room beside each other, on a single core too.
    cores = max(num_cores(), 2)
    if num_cpus is not None and num_cpus > cores:
        _log.warning("num_cpus %d is above the %d cores of this machine: using %d", num_cpus, cores, cores)
    # Workers inherit the environment: they find a checkout's package from any working directory.
    checkout = str(Path(boxsup_dist.__file__).parents[1])
    paths = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    if checkout not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([checkout, *paths])
    for attempt in range(_START_ATTEMPTS):
        try:
            ray.init(
                address="local",  # never a cluster that happens to run on this machine
                num_cpus=min(num_cpus or cores, cores),
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=False,
                logging_level=logging.WARNING,
                log_to_driver=worker_logs,
            )
            return
        except Exception as error:  # Ray raises a bare Exception when its processes take more than 30 s to start
            ray.shutdown()
            if "timed out during startup" not in str(error) or attempt == _START_ATTEMPTS - 1:
                raise
            _log.warning("Ray took too long to start, this machine is busy: trying again")


def set_up_ray_data() -> None:
    """In each process that makes a dataset, before it: our own progress and summaries replace Ray Data's bars and
    notices, and its scheduling takes its time.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.custom_execution_callback_classes = [UnhurriedSteps]
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that its bars are off


class UnhurriedSteps(ExecutionCallback):
    """Holds a dataset's scheduling loop to a step every _STEP_S.

    Ray 2.60's loop waits only for running tasks. While it may start none, as when the training is slower than its
    stream, it spins in a thread beside that training: it took a third of a train worker's core.
    """

    def __init__(self) -> None:
        self.ended = 0.0

    def on_execution_step(self, executor: object) -> None:
        """Called after each step: sleep what is left of _STEP_S since the last one."""
        time.sleep(max(0.0, self.ended + _STEP_S - time.monotonic()))
        self.ended = time.monotonic()
