"""Ray workers that are forked from a process that has imported their libraries, instead of started one by one.

A worker spends 2 to 5 CPU seconds on imports before its first task, and one tiny training starts nine workers. `use`
makes the Ray sessions of this process start this file in place of Ray's own `setup_worker.py`. The first call becomes
the parent of the session: it starts its own worker as Ray would, imports LIBRARIES, and forks a worker for every later
call. A call whose runtime environment names another program starts its worker as Ray would.

Commands that tests run in processes of their own start their workers as for a user. BOXSUP_FORKED_WORKERS=0 turns
forking off.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

LIBRARIES = (
    "ray._private.workers.default_worker",
    "ray.train.torch",
    "ray.train.v2._internal.execution.controller",
    "timm",
    "boxsup_dist.runs.coordinator",
    "boxsup_dist.training.loop",
    "boxsup_dist.training.stream",
    "boxsup_dist.assignment.build",
    "boxsup_dist.proposals.build",
    "boxsup_dist.export.prediction",
)
MAX_REQUEST_BYTES = 2**20


def use() -> None:
    """Make the Ray sessions that this process starts from now on fork their workers."""
    if os.environ.get("BOXSUP_FORKED_WORKERS") == "0":
        return
    from ray._private.parameter import RayParams

    RayParams.__init__ = functools.partialmethod(RayParams.__init__, setup_worker_path=__file__)  # type: ignore[method-assign]


# -- a process that the raylet starts ---------------------------------------------------------------------------------


def main() -> None:
    """Have a worker forked by the raylet's parent; without one start it, and become the parent."""
    address = f"\0boxsup-forked-workers-{os.getppid()}"  # abstract: it vanishes with its process
    context = _runtime_env()
    if context["command_prefix"] or context["override_worker_entrypoint"] or context["py_executable"] != sys.executable:
        _exec_as_ray()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            listener.bind(address)
        except OSError:  # another process is the parent
            _ask(address, context["env_vars"])
            return
        listener.listen(64)  # calls wait in the listener's queue until the libraries are there
        if os.fork() == 0:
            listener.close()
            os.setpgid(0, 0)
            _exec_as_ray()
        _be_parent(listener)


def _runtime_env() -> dict[str, Any]:
    name = "--serialized-runtime-env-context="
    values = [word.removeprefix(name) for word in sys.argv if word.startswith(name)]
    empty = {"command_prefix": [], "env_vars": {}, "py_executable": sys.executable, "override_worker_entrypoint": None}
    return empty | json.loads(values[-1] if values else "{}")


def _exec_as_ray() -> NoReturn:
    import ray

    program = Path(ray.__file__).parent / "_private" / "workers" / "setup_worker.py"
    os.execv(sys.executable, [sys.executable, str(program), *sys.argv[1:]])


def _ask(address: str, env_vars: dict[str, str]) -> None:
    """Send the parent this process's arguments and environment; without an answer start the worker as Ray would."""
    request = json.dumps({"argv": sys.argv[1:], "env": {**os.environ, **env_vars}, "folder": os.getcwd()}).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(address)
        except OSError:
            _exec_as_ray()
        connection.sendall(request)


def _be_parent(listener: socket.socket) -> None:
    """Import the libraries, then fork a worker per request, until the raylet ends."""
    raylet = os.getppid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel forgets ended workers
    _leave_random_generator_unused()
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # else the collector of each worker would copy all pages
    listener.settimeout(1.0)
    while os.getppid() == raylet:
        with contextlib.suppress(TimeoutError):
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(None)
                request = b"".join(iter(functools.partial(connection.recv, MAX_REQUEST_BYTES), b""))
            if os.fork() == 0:
                listener.close()
                _be_worker(**json.loads(request))


def _leave_random_generator_unused() -> None:
    """Let classes of actors take their ids from the system.

    Ray draws ids from one generator per process. Workers that are forked with a generator in use all draw the same ids,
    and then take the objects of one training for those of another.
    """
    import ray.actor

    class_id = ray.actor.ActorClassID
    ray.actor.ActorClassID = SimpleNamespace(from_random=lambda: class_id(os.urandom(class_id.size())))


def _be_worker(argv: list[str], env: dict[str, str], folder: str) -> NoReturn:
    """What `setup_worker.py` would have started, in this process."""
    import numpy

    os.setpgid(0, 0)  # the raylet kills a worker's whole group
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    own = ("--serialized-runtime-env-context=", "--language=")
    sys.argv = [word for word in argv if not word.startswith(own)]
    numpy.random.seed()
    sys.path[0] = os.path.dirname(sys.argv[0])
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except BaseException:
        traceback.print_exc()
    finally:  # workers end inside of Ray, and never return to the parent's code
        os._exit(1)


if __name__ == "__main__":
    main()
