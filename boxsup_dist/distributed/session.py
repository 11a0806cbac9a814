"""The Ray session of a command: the running cluster at RAY_ADDRESS, else a quiet local one on the real cores."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

import boxsup_dist
from boxsup_dist import interrupts
from boxsup_dist.config.packing import Node, Share, num_placed
from boxsup_dist.config.packing import describe as describe_nodes
from boxsup_dist.distributed import notices, ray_internals
from boxsup_dist.distributed.address import check_address, token_refusal
from boxsup_dist.errors import SettingError
from boxsup_dist.io import remote
from boxsup_dist.io.local import check_room

_OBJECT_STORE_BYTES = 2 * 2**30  # blocks are small here; Ray's default is 30 % of the machine's memory
_START_ATTEMPTS = 3
_RAY_FOLDER_BYTES = 10 * 2**20  # logs and sockets of a short session
_log = logging.getLogger(__name__)


def num_cores() -> int:
    """Cores that this process may use: its CPU affinity and, in a container, its cgroup quota. At least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, _cgroup_quota()))


def _cgroup_quota(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """CPUs that the cgroups of this process grant, of version 1 or 2; a container sees its own as the root."""
    quotas = [10**6]
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            root = cgroups / controllers  # of version 2: no controllers, one tree
            for folder in (root / path.lstrip("/"), *(root / path.lstrip("/")).parents):
                if folder.is_relative_to(root):
                    quotas += _quota_of(folder)
    return min(quotas)


def _quota_of(folder: Path) -> list[int]:
    """The quota that a cgroup's folder has, as CPUs; empty without one."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError):  # no such file; "max" or -1: no limit
            quota, period = (int(word) for name in names for word in (folder / name).read_text().split())
            if quota > 0:
                return [math.ceil(quota / period)]
    return []


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
        address = os.environ.get("RAY_ADDRESS", "").strip()
        if address not in ("", "local"):
            _join(address, num_cpus)
        else:
            _start_local(num_cpus)
        notices.listen()
        interrupts.take_back()
    set_up_ray_data()


def total_cpus() -> int:
    """CPUs of the running session, over all nodes; at least 1."""
    return max(1, int(_resources().get("CPU", 1)))


def nodes() -> list[Node]:
    """The living nodes of the running session, with all that they have."""
    alive = [node["Resources"] for node in _nodes() if node["Alive"]]
    return [Node(size.get("CPU", 0.0), int(size.get("GPU", 0))) for size in alive]


def check_task_room(gpus_per_task: float) -> None:
    """Raise SettingError if no node has room for a task of one CPU and this share of a GPU: Ray would wait forever."""
    share, found = Share(1.0, gpus_per_task), nodes()
    if num_placed(found, share, 1, (0, share)) == 0:
        raise SettingError(
            "no node has room for a task",
            field="gpus_per_task",
            value=f"{share}",
            expected=f"a share that a node has; the nodes are {describe_nodes(found)}",
        )


def describe() -> str:
    """The cluster at this moment, in words: what each node has free, lost nodes, train workers that wait for room."""
    free = ray_internals.free_resources()
    parts, gone = [], []
    for node in _nodes():
        if node["Alive"]:
            here, size = free.get(node["NodeID"], {}), node["Resources"]
            kinds = [
                f"{here.get(kind, 0):g} of {size[kind]:g} {kind}s free" for kind in ("CPU", "GPU") if size.get(kind)
            ]
            parts.append(f"{node['NodeManagerAddress']} has {' and '.join(kinds) or 'no CPU'}")
        else:
            gone.append(node["NodeManagerAddress"])
    text = f"nodes of the cluster: {len(parts)}: {', '.join(parts)}"
    if gone:
        text += f"; gone: {', '.join(gone)}"
    return "; ".join([text, *_waiting_workers()])


def _waiting_workers() -> list[str]:
    """Train workers without a node: Ray Train reserves them in a placement group."""
    waiting: Counter[Share] = Counter()
    for group in _own_groups().values():
        if group["state"] in ("PENDING", "PREPARED", "RESCHEDULING"):
            waiting.update(
                Share(size.get("CPU", 0.0), size.get("GPU", 0.0))
                for index, size in group["bundles"].items()
                if not group["bundles_to_node_id"].get(index)
            )
    return [f"train workers that wait for {share} each: {number}" for share, number in waiting.items()]


def remove_own_groups() -> None:
    """Free what the train workers of a lost controller had reserved.

    Ray Train's own cleaner asks the dashboard whether the controller lives, and local sessions have no dashboard.
    """
    for number, group in _own_groups().items():
        if group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(number))))


def _own_groups() -> dict[str, dict[str, Any]]:
    """Placement groups of this job by their ids, which end with the id of the job."""
    job = ray.get_runtime_context().get_job_id()
    return {number: group for number, group in placement_group_table().items() if number.endswith(job)}


def _nodes() -> list[dict[str, Any]]:
    return list(ray.nodes())  # type: ignore[no-untyped-call]


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
    check_address(address)
    try:
        ray.init(
            address=address,
            runtime_env=_runtime_env(),
            logging_level=logging.WARNING,
            log_to_driver=False,
        )
    except AuthenticationError:
        raise token_refusal(address) from None
    except (ConnectionError, RuntimeError) as error:  # RuntimeError: another version of Ray or Python
        text = " ".join(str(error).splitlines())
        problem, expected = f"cannot join the Ray cluster: {text}", "a running cluster of the same Ray and Python"
        raise SettingError(problem, field="RAY_ADDRESS", value=address, expected=expected) from None


def _runtime_env() -> dict[str, Any]:
    """What every worker of a cluster gets from this process: the package, and how long to wait for a store."""
    found: dict[str, Any] = {"py_modules": [str(Path(boxsup_dist.__file__).parent)]}
    patience = os.environ.get(remote.PATIENCE_VARIABLE)
    # A job that jobs.submit --env gave the variable passes it on already, and Ray refuses to have it twice.
    if patience and remote.PATIENCE_VARIABLE not in os.environ.get(ray_internals.JOB_CONFIG_VARIABLE, ""):
        found["env_vars"] = {remote.PATIENCE_VARIABLE: patience}
    return found


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
    folder = ray_internals.short_folder()
    check_room(folder or os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), _RAY_FOLDER_BYTES)
    for attempt in range(_START_ATTEMPTS):
        try:
            ray.init(
                address="local",  # never another cluster that runs on this machine
                num_cpus=min(num_cpus or cores, cores),
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=False,
                logging_level=logging.WARNING,
                log_to_driver=False,
                _temp_dir=folder,
            )
            return
        except Exception as error:  # Ray raises a plain Exception when its processes take more than 30 s to start
            ray.shutdown()
            if "timed out during startup" not in str(error) or attempt == _START_ATTEMPTS - 1:
                raise
            _log.warning("Ray took more than 30 s to start because this machine is busy: trying again")


def set_up_ray_data() -> None:
    """Replace Ray Data's bars and notices by our own progress, for the datasets that this process makes."""
    from ray.data import DataContext  # imports pandas: half a second that the stream's processes do not need

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray_internals.silence_notices()
