"""Run a job of this project on a running Ray cluster: python -m jobs.submit [--address URL] -- python -m jobs.train ...

Sends the working tree along (or relies on the cluster's image, --no-upload), shows the job's log as it grows, and ends
with the job's exit status. The job lives on the cluster: an interrupted or detached one goes on, and is found again.

    python -m jobs.submit --detach -- python -m jobs.train mini --run-dir s3://bucket/runs/a ...    # prints its ID
    python -m jobs.submit --follow ID      # its log, from its begin
    python -m jobs.submit --stop ID

A remote cluster is best reached through a tunnel that ends on this machine (ray dashboard infra/ray-aws.yaml; kubectl
port-forward; ssh -L 8265:localhost:8265 HEAD), as Ray does not encrypt: the token would travel in the clear. The token
is Ray's own: RAY_AUTH_TOKEN, else the file RAY_AUTH_TOKEN_PATH, else ~/.ray/auth_token.
"""

from __future__ import annotations

import asyncio
import fnmatch
import os
import pkgutil
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import tyro
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from boxsup_dist.credentials import has_credentials
from boxsup_dist.errors import InputError, SettingError
from boxsup_dist.io import storage
from boxsup_dist.runs.command_line import clear_errors

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
# Besides what .gitignore names.
EXCLUDES = (
    "/.venv/",
    "/.git",
    "/runs/",
    "/data/",
    "/shared",
    "/infra/.env",
    "__pycache__/",
    ".mypy_cache/",
    ".ruff_cache/",
    ".pytest_cache/",
)
# Ray would take these before the address of the command line.
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
# Settings that name files: of no use on a cluster as a relative path.
FILE_FLAGS = ("--run-dir", "--out", "--data", "--root", "--records", "--val-records", "--proposals", "--label-maps")
POLL_S = 1.0
STOPPED_STATUS = 143  # as a shell tells of a process ended by SIGTERM
INTERRUPTED_STATUS = 130


@dataclass(frozen=True)
class Settings:
    """What to do with a job on a cluster; a new one's command stands after `--`."""

    address: str | None = None
    """URL of the cluster's dashboard; RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265."""
    detach: bool = False
    """Print the new job's ID and leave it to itself."""
    follow: str | None = None
    """ID of a job whose log to show from its begin, and with whose status to end."""
    stop: str | None = None
    """ID of a job to end."""
    upload: bool = True
    """Send the working tree along; --no-upload: the cluster's image has this project."""
    env: tuple[str, ...] = ()
    """Names of this machine's environment variables that the job shall have, as MLFLOW_TRACKING_URI or AWS_*. Ray keeps
    their values with the job, where who holds the token can read them: better give secrets to the cluster's nodes."""


def main(arguments: Sequence[str]) -> int:
    """Submit, follow or stop; returns the exit status."""
    settings, command = parse(arguments)
    if settings.stop:
        return stop(connect(settings.address), settings.stop)
    if settings.follow:
        return follow(connect(settings.address), settings.follow)
    environment = chosen_environment(settings.env)
    for warning in find_relative_paths(command):
        print(f"warning: {warning}", file=sys.stderr)
    client = connect(settings.address)
    job_id = submit(client, command, environment, upload=settings.upload)
    if settings.detach:
        print(job_id)
        return 0
    print(f"submitted {job_id}", file=sys.stderr, flush=True)
    return follow(client, job_id)


def parse(arguments: Sequence[str]) -> tuple[Settings, list[str]]:
    """Settings and the job's command. SettingError unless exactly one thing is to be done."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    command = list(arguments[end + 1 :])
    config = (tyro.conf.OmitArgPrefixes,)
    settings = tyro.cli(Settings, args=list(arguments[:end]), description=__doc__, config=config)
    wanted = [
        name for name, on in (("-- COMMAND", command), ("--follow", settings.follow), ("--stop", settings.stop)) if on
    ]
    if len(wanted) != 1:
        raise SettingError(
            "one thing at a time", value=wanted, expected="one of -- python -m jobs.NAME ..., --follow ID, --stop ID"
        )
    for word in (settings.address or "", *command):
        if has_credentials(word):
            expected = "none: all who see the processes or the cluster's jobs can read them"
            raise SettingError("an argument holds credentials", field="command", value=word, expected=expected)
    if command and command[:2] == ["python", "-m"] and settings.upload:
        names = sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
        name = command[2].removeprefix("jobs.") if len(command) > 2 else ""
        if name not in names:
            raise SettingError("no such job", field="command", value=name, expected=", ".join(names))
    return settings, command


def chosen_environment(patterns: Sequence[str]) -> dict[str, str]:
    """The variables whose names match. SettingError, never with a value in it, where none does or one is Ray's."""
    chosen: dict[str, str] = {}
    for pattern in patterns:
        name = pattern.partition("=")[0]
        if name != pattern:
            raise SettingError(
                "a value on the command line can be read by all users",
                field="env",
                value=name,
                expected="the variable's name only; set it in the environment",
            )
        if name.startswith("RAY_"):
            raise SettingError("the cluster has its own", field="env", value=name, expected="no variable of Ray's")
        found = {key: value for key, value in os.environ.items() if fnmatch.fnmatchcase(key, name)}
        found = {key: value for key, value in found.items() if not key.startswith("RAY_")}
        if not found:
            raise SettingError("no such variable is set here", field="env", value=name, expected="one that is set")
        chosen |= found
    return chosen


def find_relative_paths(command: Sequence[str]) -> list[str]:
    """A line for every file setting that names a relative path: it would lie in a job's temporary folder."""
    words = [part for word in command for part in (word.split("=", 1) if word.startswith("--") else [word])]
    return [
        f"{flag} {value} is relative: on the cluster that is a temporary folder of the head; "
        "take a path that all nodes share, or s3://..."
        for flag, value in pairwise(words)
        if flag in FILE_FLAGS and storage.is_local(value) and not os.path.isabs(value)
    ]


def connect(address: str | None) -> JobSubmissionClient:
    """A client of the cluster's job server. SettingError where none answers or the token is refused."""
    address = address or os.environ.get(ADDRESS_VARIABLES[0]) or DEFAULT_ADDRESS
    if not address.startswith(("http://", "https://")):
        raise SettingError("not a dashboard's URL", field="address", value=address, expected="http://HOST:8265")
    for name in ADDRESS_VARIABLES:
        os.environ.pop(name, None)
    token = find_token()
    try:
        return JobSubmissionClient(address, headers={"Authorization": f"Bearer {token}"} if token else None)
    except AuthenticationError:
        raise SettingError(
            "the cluster refuses our token" if token else "the cluster asks for a token, and there is none here",
            field="RAY_AUTH_TOKEN",
            expected=f"the token of {address} in RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token",
        ) from None
    except (OSError, RuntimeError, ValueError, KeyError) as error:  # no connection; a server, but not Ray's
        raise SettingError(
            f"no Ray job server answers ({type(error).__name__})",
            field="address",
            value=address,
            expected="the dashboard of a running cluster with ray[default]; is the tunnel open?",
        ) from None


def find_token() -> str | None:
    """The token where Ray itself looks for it (ray-security/token-auth in Ray's documentation); None: there is none.

    Given to the client by us: Ray's sends it only if RAY_AUTH_MODE was set before Ray was imported.
    """
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        return path.read_text().strip() or None
    except OSError as error:
        if named:
            raise InputError(f"the token is not readable: {error.strerror}", file=path) from None
        return None


def submit(client: JobSubmissionClient, command: Sequence[str], environment: dict[str, str], *, upload: bool) -> str:
    """Start the command on the cluster; returns the job's ID. InputError where Ray refuses it."""
    runtime_env: dict[str, Any] = {"env_vars": {"PYTHONUNBUFFERED": "1", **environment}}
    if upload:
        root = Path(__file__).parents[1]
        runtime_env |= {"working_dir": str(root), "excludes": list(EXCLUDES)}
    try:
        return client.submit_job(entrypoint=shlex.join(command), runtime_env=runtime_env)
    except (OSError, RuntimeError, ValueError) as error:
        # Not the error's text: it may quote the variables.
        problem = (
            "the working tree is too large to send"
            if "exceeds the maximum size" in str(error)
            else "Ray refuses the job"
        )
        raise InputError(f"{problem} ({type(error).__name__})", field="command", value=shlex.join(command)) from None


def follow(client: JobSubmissionClient, job_id: str) -> int:
    """Print a job's log until it ends; returns its exit status. Interrupted, it leaves the job alone."""
    status_of(client, job_id)
    try:
        asyncio.run(_print_log(client, job_id))
    except KeyboardInterrupt:
        print(f"\n{job_id} goes on; --follow {job_id} shows it again, --stop {job_id} ends it", file=sys.stderr)
        return INTERRUPTED_STATUS
    status = status_of(client, job_id)
    details = client.get_job_info(job_id)
    print(f"{job_id} {status.value.lower()}", file=sys.stderr)
    if status == JobStatus.SUCCEEDED:
        return 0
    if status == JobStatus.STOPPED:
        return STOPPED_STATUS
    if details.driver_exit_code is None:  # it never began
        print(f"error: {details.message}", file=sys.stderr)
    return exit_status(details.driver_exit_code)


def exit_status(code: int | None) -> int:
    """What a shell would tell of a failed process: its code, 128 + N if signal N ended it, 1 if it is not known."""
    if code is None or code == 0:
        return 1
    return 128 - code if code < 0 else code


async def _print_log(client: JobSubmissionClient, job_id: str) -> None:
    """The log from its begin to its end, once, however often the connection is lost."""
    printed = 0
    while True:
        position = 0
        try:
            async for text in client.tail_job_logs(job_id):
                new = text[max(printed - position, 0) :]
                position += len(text)
                print(new, end="", flush=True)
                printed = max(printed, position)
        except (OSError, RuntimeError) as error:
            print(f"the connection was lost ({type(error).__name__}), trying again", file=sys.stderr)
        if status_of(client, job_id).is_terminal():
            return
        await asyncio.sleep(POLL_S)


def status_of(client: JobSubmissionClient, job_id: str) -> JobStatus:
    """A job's status. SettingError if the cluster knows no such job."""
    try:
        return client.get_job_status(job_id)
    except OSError as error:
        raise SettingError("the cluster does not answer any more", value=type(error).__name__) from None
    except RuntimeError:
        known = [job.submission_id for job in client.list_jobs() if job.submission_id]
        raise SettingError(
            "the cluster knows no such job", field="ID", value=job_id, expected=f"one of {', '.join(known) or 'none'}"
        ) from None


def stop(client: JobSubmissionClient, job_id: str) -> int:
    """End a job, wait until it has ended, and tell how; 0, also if it had ended before."""
    if not status_of(client, job_id).is_terminal():
        client.stop_job(job_id)
    while not (status := status_of(client, job_id)).is_terminal():
        time.sleep(POLL_S)
    print(f"{job_id} {status.value.lower()}")
    return 0


if __name__ == "__main__":
    with clear_errors():
        raise SystemExit(main(sys.argv[1:]))
