"""Checks RAY_ADDRESS before Ray tries it: one line within half a minute, where Ray alone is silent for ten minutes."""

from __future__ import annotations

import logging
import socket
import time

from ray.exceptions import AuthenticationError

from boxsup_dist.distributed import ray_internals
from boxsup_dist.errors import SettingError

PATIENCE_S = 30.0  # for a head or a node that is starting
_RETRY_S = 1.0
_log = logging.getLogger(__name__)


def check_address(address: str, patience_s: float = PATIENCE_S) -> None:
    """Return when the cluster at `address` answers and one of its nodes runs on this machine, so that Ray can join it.

    Args:
        address: HOST:PORT of the head, or "auto" for the newest cluster on this machine.
        patience_s: How long to wait for an answer and for a node.

    Raises:
        SettingError: The address has another form, nobody answers, or this machine is no node of the cluster.
    """
    deadline = time.monotonic() + patience_s
    place = _resolve(address)
    announced = False
    while True:
        try:
            problem, expected = _problem(place, max(deadline - time.monotonic(), _RETRY_S))
        except AuthenticationError:
            raise token_refusal(address) from None
        if problem is None:
            return
        if time.monotonic() + _RETRY_S > deadline:
            raise _refusal(problem, address, expected)
        if not announced:
            _log.warning("RAY_ADDRESS=%s: %s; trying for %.0f s", address, problem, patience_s)
            announced = True
        time.sleep(_RETRY_S)


def _resolve(address: str) -> str:
    """The address as Ray uses it: "auto" replaced by the cluster that it means, localhost by this machine's address."""
    if address == "auto":
        try:
            return ray_internals.gcs_address(address)
        except ConnectionError:
            raise _refusal("no Ray cluster runs on this machine", address, "HOST:PORT of a running cluster") from None
    form = "HOST:PORT of the head, such as 10.0.0.1:6379, or auto"
    if "://" in address:
        expected = f"{form}; python -m jobs.submit sends a command to a cluster from elsewhere"
        raise _refusal("a command joins a cluster on one of its nodes, by no URL", address, expected)
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise _refusal("not an address", address, form)
    try:
        socket.getaddrinfo(host.strip("[]"), int(port))
    except (OSError, UnicodeError) as error:
        raise _refusal(f"no host of this name is known ({error})", address, form) from None
    return ray_internals.gcs_address(address)


def _problem(place: str, timeout_s: float) -> tuple[str | None, str]:
    """What keeps this process from joining now, None for nothing; and what a person should see to."""
    try:
        nodes = ray_internals.living_nodes(place, timeout_s)
    except ray_internals.NoAnswerError as error:
        return f"no Ray cluster answers ({error})", "the address of a running cluster (`ray status` on its head)"
    if set(nodes) & ray_internals.local_node_ids():
        return None, ""
    shown = ", ".join(sorted(nodes.values())) or "none"
    return (
        f"no node of the cluster runs on this machine (its nodes: {shown})",
        "a machine of the cluster: run the command there, send it with python -m jobs.submit, or run `ray start "
        f"--address={place}` here first",
    )


def token_refusal(address: str) -> SettingError:
    """The error of a command that lacks the token of the cluster."""
    expected = "the token of the cluster in RAY_AUTH_TOKEN, and RAY_AUTH_MODE=token"
    return _refusal("it asks for a token, and there is none here, or another one", address, expected)


def _refusal(problem: str, address: str, expected: str) -> SettingError:
    return SettingError(
        f"cannot join the Ray cluster: {problem}", field="RAY_ADDRESS", value=address, expected=expected
    )
