"""Run a command as a job on a running Ray cluster, follow its log, or stop it.

    python -m jobs.submit -- python -m jobs.train mini --run-dir s3://bucket/runs/a ...
    python -m jobs.submit --detach -- python -m jobs.train mini ...      # print the job's ID and end
    python -m jobs.submit --follow ID                                    # its log, from the start
    python -m jobs.submit --stop ID

It sends the working tree to the cluster, shows the log of the job as it grows, and ends with the job's exit status.
The job continues on the cluster if this command is interrupted.

Reach a remote cluster through a tunnel that ends on this machine (ray dashboard infra/ray-aws.yaml; kubectl
port-forward; ssh -L 8265:localhost:8265 HEAD): Ray does not encrypt, and without a tunnel others can read the token.
Ray stores the values of --env with the job, and everybody who has the token can read them: give secrets to the nodes
instead. The token is Ray's own: RAY_AUTH_TOKEN, else the file RAY_AUTH_TOKEN_PATH, else ~/.ray/auth_token.
"""

from __future__ import annotations

import asyncio
import fnmatch
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boxsup_dist import interrupts
from boxsup_dist.credentials import has_credentials
from boxsup_dist.errors import InputError, SettingError
from boxsup_dist.io import storage
from boxsup_dist.runs.command_line import check_choice, clear_errors, read
from jobs.__main__ import COMMANDS

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

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
# Ray would prefer these to the address of the command line.
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
# Settings that name files: a relative path is useless on a cluster.
FILE_FLAGS = (
    "--run-dir",
    "--checkpoint",
    "--out",
    "--data",
    "--root",
    "--records",
    "--val-records",
    "--proposals",
    "--label-maps",
    "--images",
)
POLL_S = 1.0
RECONNECT_S = 600.0  # without an answer, until --follow gives up
SILENCE_S = 60.0  # of a log, until --follow asks whether the cluster is still there
ANSWER_S = 30.0  # for an answer, before the connection counts as lost
LOG_TRIES = 5  # to read the rest of the log of a job that has ended
STOPPED_STATUS = 143  # as a shell reports a process ended by SIGTERM


@dataclass(frozen=True)
class Settings:
    """What to do with a job on a cluster. The command of a new job stands after `--`."""

    address: str | None = None
    """URL of the cluster's dashboard. Default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265."""
    detach: bool = False
    """Print the ID of the new job and end at once."""
    follow: str | None = None
    """ID of a job to follow: show its log from the start and end with its status."""
    stop: str | None = None
    """ID of a job to stop."""
    upload: bool = True
    """Send the working tree to the cluster. --no-upload: the cluster's image has this project."""
    env: tuple[str, ...] = ()
    """Environment variables to hand to the job: names or patterns (AWS_*). Whoever has the token can read them."""


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
    """Settings, and the command of the job.

    Raises:
        SettingError: The arguments do not ask for exactly one thing, or the working tree does not have the command.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    command = list(arguments[end + 1 :])
    settings = read(Settings, __doc__, arguments[:end])
    wanted = [
        name for name, on in (("-- COMMAND", command), ("--follow", settings.follow), ("--stop", settings.stop)) if on
    ]
    if len(wanted) != 1:
        raise SettingError(
            "give exactly one of a command, --follow and --stop",
            value=wanted,
            expected="-- python -m jobs.NAME ..., or --follow ID, or --stop ID",
        )
    for word in (settings.address or "", *command):
        if has_credentials(word):
            expected = "none: all who see the processes or the cluster's jobs can read them"
            raise SettingError("an argument holds credentials", field="command", value=word, expected=expected)
    if command and command[:2] == ["python", "-m"] and settings.upload:
        words = [word.removeprefix("jobs.") for word in command[2:] if word != "jobs"]
        names = [name for group in COMMANDS.values() for name in group]
        check_choice(words[0].split(".")[0] if words else "", names, "command")
    return settings, command


def chosen_environment(patterns: Sequence[str]) -> dict[str, str]:
    """The environment variables whose names match.

    Raises:
        SettingError: No name matches a pattern, or a name is one of Ray's. It never holds the value of a variable.
    """
    chosen: dict[str, str] = {}
    for pattern in patterns:
        name = pattern.partition("=")[0]
        if name != pattern:
            raise SettingError(
                "all users of this machine can read a value on the command line",
                field="env",
                value=name,
                expected="only the name; set the value in the environment",
            )
        if name.startswith("RAY_"):
            raise SettingError(
                "the cluster sets the variables of Ray itself", field="env", value=name, expected="another name"
            )
        found = {key: value for key, value in os.environ.items() if fnmatch.fnmatchcase(key, name)}
        found = {key: value for key, value in found.items() if not key.startswith("RAY_")}
        if not found:
            raise SettingError(
                "no variable of this name is set here", field="env", value=name, expected="a variable that is set"
            )
        chosen |= found
    return chosen


def find_relative_paths(command: Sequence[str]) -> list[str]:
    """A warning for every file setting with a relative path: on the cluster it is in a temporary folder of the job."""
    words = [part for word in command for part in (word.split("=", 1) if word.startswith("--") else [word])]
    return [
        f"{flag} {value} is relative: on the cluster it is in a temporary folder of the head; "
        "set a path that all nodes share, or s3://..."
        for flag, value in pairwise(words)
        if flag in FILE_FLAGS
        and (flag, value) != ("--checkpoint", "best")
        and storage.is_local(value)
        and not os.path.isabs(value)
    ]


def connect(address: str | None) -> JobSubmissionClient:
    """A client of the cluster's job server.

    Raises:
        SettingError: No job server answers, or it refuses the token.
    """
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

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
            "the cluster refuses our token" if token else "the cluster asks for a token and none is set here",
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
    """The token, from where Ray itself looks for it (ray-security/token-auth in Ray's documentation); None without one.

    We hand it to the client ourselves: Ray sends it only if RAY_AUTH_MODE was set before Ray was imported.

    Raises:
        InputError: RAY_AUTH_TOKEN_PATH names a file that cannot be read.
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
    """Start the command on the cluster and return the ID of the job.

    Raises:
        InputError: Ray refuses the job, or the working tree is too large to send.
    """
    runtime_env: dict[str, Any] = {"env_vars": {"PYTHONUNBUFFERED": "1", **environment}}
    if upload:
        root = Path(__file__).parents[1]
        runtime_env |= {"working_dir": str(root), "excludes": list(EXCLUDES)}
    try:
        return client.submit_job(entrypoint=shlex.join(command), runtime_env=runtime_env)
    except (OSError, RuntimeError, ValueError) as error:
        # Without the error's text, which may quote the values of variables.
        problem = (
            "the working tree is too large to send"
            if "exceeds the maximum size" in str(error)
            else "Ray refuses the job"
        )
        raise InputError(f"{problem} ({type(error).__name__})", field="command", value=shlex.join(command)) from None


def follow(client: JobSubmissionClient, job_id: str) -> int:
    """Print a job's log until it ends and return its exit status. The job continues if this is interrupted."""
    from ray.job_submission import JobStatus

    info_of(client, job_id)
    interrupts.set_last_line(f"{job_id} continues; --follow {job_id} shows it again, --stop {job_id} stops it")
    details = asyncio.run(_print_log(client, job_id))
    print(f"{job_id} {details.status.value.lower()}", file=sys.stderr)
    if details.status == JobStatus.SUCCEEDED:
        return 0
    if details.status == JobStatus.STOPPED:
        return STOPPED_STATUS
    if details.driver_exit_code is None:  # it never began
        print(f"error: {details.message}", file=sys.stderr)
    return exit_status(details.driver_exit_code)


def exit_status(code: int | None) -> int:
    """What a shell reports of a failed process: its code, 128 + N if signal N ended it, 1 if the code is unknown."""
    if code is None or code == 0:
        return 1
    return 128 - code if code < 0 else code


async def _print_log(client: JobSubmissionClient, job_id: str) -> JobDetails:
    """Print the log once from start to end, however often the connection is lost; returns how the job ended."""
    log, tries = _Log(client, job_id), LOG_TRIES
    while True:
        whole = await log.print_on()
        details = await _info_at_last(client, job_id)
        if details.status.is_terminal():
            tries -= 1
            if whole or tries == 0:
                return details
        await asyncio.sleep(POLL_S)


class _Log:
    """A job's log, and how much of it is printed."""

    def __init__(self, client: JobSubmissionClient, job_id: str) -> None:
        self._client, self._job_id, self._printed = client, job_id, 0

    async def print_on(self) -> bool:
        """Print what is not printed yet, while it grows; returns whether the log ended, or the connection was lost."""
        position = 0
        chunks = self._client.tail_job_logs(self._job_id)
        coming: asyncio.Task[str] | None = None
        try:
            while True:
                coming = coming or asyncio.ensure_future(anext(chunks))
                if not (await asyncio.wait({coming}, timeout=SILENCE_S))[0]:
                    # A dead tunnel may look like a quiet job. A new connection tells them apart.
                    if await _info_now(self._client, self._job_id) is None:
                        return False
                    continue
                text, coming = coming.result(), None
                print(text[max(self._printed - position, 0) :], end="", flush=True)
                position += len(text)
                self._printed = max(self._printed, position)
        except StopAsyncIteration:
            return True
        except (OSError, RuntimeError):
            return False
        finally:
            if coming is not None:
                coming.cancel()


async def _info_at_last(client: JobSubmissionClient, job_id: str) -> JobDetails:
    """The state of a job, as soon as the cluster answers; says when the connection is lost and when it is back.

    Raises:
        SettingError: The cluster knows no such job, or did not answer for RECONNECT_S.
    """
    lost_at = time.monotonic()
    announced = False
    while (details := await _info_now(client, job_id)) is None:
        if not announced:
            words = f"the connection is lost, {job_id} continues; trying again for {RECONNECT_S / 60:g} minutes"
            print(words, file=sys.stderr, flush=True)
            announced = True
        if time.monotonic() - lost_at > RECONNECT_S:
            expected = f"an open tunnel; then --follow {job_id} shows the job again"
            raise SettingError("the cluster does not answer any more", field="ID", value=job_id, expected=expected)
        await asyncio.sleep(POLL_S)
    if announced:
        print("connected again", file=sys.stderr, flush=True)
    return details


async def _info_now(client: JobSubmissionClient, job_id: str) -> JobDetails | None:
    """The state of a job; None if the cluster does not answer."""
    try:
        return await asyncio.wait_for(asyncio.to_thread(info_of, client, job_id), ANSWER_S)
    except (_NoAnswerError, TimeoutError):
        return None


class _NoAnswerError(SettingError):
    """The cluster does not answer."""


def info_of(client: JobSubmissionClient, job_id: str) -> JobDetails:
    """The state of a job.

    Raises:
        SettingError: The cluster knows no such job, or does not answer.
    """
    try:
        try:
            return client.get_job_info(job_id)
        except RuntimeError:  # no such job, or a proxy answers in the cluster's place
            known = [job.submission_id for job in client.list_jobs() if job.submission_id]
    except (OSError, RuntimeError) as error:
        raise _NoAnswerError("the cluster does not answer", value=type(error).__name__) from None
    raise SettingError(
        "the cluster knows no such job", field="ID", value=job_id, expected=f"one of {', '.join(known) or 'none'}"
    )


def stop(client: JobSubmissionClient, job_id: str) -> int:
    """Stop a job, wait until it has ended and print its status; returns 0, also if it had ended before."""
    if not info_of(client, job_id).status.is_terminal():
        client.stop_job(job_id)
    while not (status := info_of(client, job_id).status).is_terminal():
        time.sleep(POLL_S)
    print(f"{job_id} {status.value.lower()}")
    return 0


if __name__ == "__main__":
    with clear_errors():
        raise SystemExit(main(sys.argv[1:]))
