"""A real S3 server for tests (moto, in a process of its own), and in front of it a store that fails on purpose.

The address is chosen before Ray starts, so that its workers inherit it; the server itself starts with the first test
that asks for it. `python -m tests.s3_server PORT` is that process.

Another server in the place of moto: `npm install s3rver`, then
`BOXSUP_S3RVER=node_modules/.bin/s3rver pytest tests/distributed/test_s3.py`. It has no conditional writes, and answers
HEAD of a folder with status 500. Tests that need a fault of the server are skipped then.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import pytest

from jobs.drill.mlflow_server import free_port

BUCKET, FORBIDDEN = "boxsup-test", "forbidden"
PUBLIC = "public"  # a bucket that refuses signed requests
STRICT = "strict"  # a bucket that answers 403 where others answer 404 to HEAD
WAIT_S = 60.0
KINDS = ("slow_down", "internal", "drop", "cut", "delay")
CONTROL = "/_faults"

# -- the process of the tests -----------------------------------------------------------------------------------------


def choose_address() -> str:
    """Put an S3 server's address and credentials into the environment, unless they are there; returns the address."""
    if "BOXSUP_TEST_S3" not in os.environ:
        uri = f"http://127.0.0.1:{free_port()}"
        key = "S3RVER"  # the only one that s3rver knows; moto takes any
        names = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": key, "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ.update(names, AWS_ENDPOINT_URL=uri, BOXSUP_TEST_S3=uri, AWS_EC2_METADATA_DISABLED="true")
    return os.environ["BOXSUP_TEST_S3"]


@contextlib.contextmanager
def serve() -> Iterator[S3Server]:
    """The server at the chosen address, with an empty bucket, for as long as the block lasts."""
    uri = choose_address()
    if other := os.environ.get("BOXSUP_S3RVER"):
        with _serve_s3rver(other, uri):
            yield S3Server(uri, can_fail=False)
        return
    command = [sys.executable, "-m", "tests.s3_server", uri.rpartition(":")[2]]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()  # written once the server listens
        assert "ready" in line, line + process.stderr.read()
        yield S3Server(uri)
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _serve_s3rver(program: str, uri: str) -> Iterator[None]:
    port = uri.rpartition(":")[2]
    with tempfile.TemporaryDirectory() as folder:
        command = [program, "-s", "-d", folder, "-a", "127.0.0.1", "-p", port, "--configure-bucket", BUCKET]
        process = subprocess.Popen(command)
        try:
            deadline = time.monotonic() + WAIT_S
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(port)), timeout=1):
                    break
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
            yield
        finally:
            process.kill()
            process.wait()


class S3Server:
    """The running server."""

    def __init__(self, uri: str, can_fail: bool = True) -> None:
        self.uri, self.root, self._can_fail = uri, f"s3://{BUCKET}", can_fail

    def need_faults(self) -> None:
        """Skip a test that needs a server which fails on purpose."""
        if not self._can_fail:
            pytest.skip("s3rver does not fail on purpose")

    def put(self, key: str, data: bytes = b"") -> None:
        """Store an object under any key, such as that of a folder marker, which ends in a slash."""
        import s3fs  # an import of a second, which other tests do not need

        s3fs.S3FileSystem().call_s3("put_object", Bucket=BUCKET, Key=key, Body=data)

    def close(self, seconds: float) -> None:
        """Refuse connections, and drop those that are open, for so long; what is stored stays. Returns at once."""
        self._control({"closed_s": seconds})

    @contextlib.contextmanager
    def faults(
        self, share: float, seed: int = 0, kinds: tuple[str, ...] = KINDS
    ) -> Iterator[Callable[[], dict[str, int]]]:
        """Let this share of the requests fail, by a seeded draw; yields a function that returns the counts so far."""
        self.need_faults()
        self._control({"share": share, "seed": seed, "kinds": kinds})
        try:
            yield lambda: self._control(None)
        finally:
            self._control({"share": 0.0, "seed": 0, "kinds": kinds})

    def _control(self, values: dict[str, Any] | None) -> dict[str, int]:
        data = None if values is None else json.dumps(values).encode()
        with urllib.request.urlopen(self.uri + CONTROL, data, timeout=WAIT_S) as answer:
            counts: dict[str, int] = json.loads(answer.read())
        return counts


# -- the server's own process -----------------------------------------------------------------------------------------


class FaultyStore:
    """A WSGI application in front of another: some requests, chosen by a seeded draw, fail as they do in a bad hour."""

    DELAY_S = 0.2

    def __init__(self, inner: WSGIApplication) -> None:
        self.inner, self.lock = inner, threading.Lock()
        self.closing = threading.Event()  # set: the listener closes for closed_s, and open connections are dropped
        self.closed_s = 0.0
        self.set_rule(0.0, 0, KINDS)

    def set_rule(self, share: float, seed: int, kinds: Iterable[str]) -> None:
        """Let this share of the coming requests fail, and count from zero."""
        self.share, self.kinds, self.draws = share, tuple(kinds), random.Random(seed)
        self.counts = dict.fromkeys(("requests", *KINDS), 0)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == CONTROL:
            return self._answer_control(environ, start_response)
        if self.closing.is_set():
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionAbortedError
        bucket = environ["PATH_INFO"].split("/")[1]
        if bucket == FORBIDDEN or (bucket == PUBLIC and "HTTP_AUTHORIZATION" in environ):
            return _error(environ, start_response, "403 Forbidden", "AccessDenied")
        if bucket == STRICT and environ["REQUEST_METHOD"] == "HEAD":
            return self._forbid_absent(environ, start_response)
        fault = self._draw()
        if fault == "slow_down":
            return _error(environ, start_response, "503 Slow Down", "SlowDown")
        if fault == "internal":
            return _error(environ, start_response, "500 Internal Server Error", "InternalError")
        if fault == "delay":
            time.sleep(self.DELAY_S)
        if fault not in ("drop", "cut"):
            return self.inner(environ, start_response)
        return self._break(environ, start_response, fault)

    def _forbid_absent(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        kept: list[Any] = []

        def keep(status: str, headers: list[tuple[str, str]], problem: Any = None, /) -> Callable[[bytes], object]:
            kept.extend((status, headers))
            return kept.append

        body = list(self.inner(environ, keep))
        if kept[0].startswith("404"):
            return _error(environ, start_response, "403 Forbidden", "AccessDenied")
        start_response(*kept)
        return body

    def _draw(self) -> str | None:
        with self.lock:
            self.counts["requests"] += 1
            if self.draws.random() >= self.share:
                return None
            kind = self.draws.choice(self.kinds)
            self.counts[kind] += 1
            return kind

    def _break(self, environ: WSGIEnvironment, start_response: StartResponse, fault: str) -> Iterator[bytes]:
        """Do what was asked, then close the connection before the answer or inside it."""
        kept: list[Any] = []

        def keep(status: str, headers: list[tuple[str, str]], problem: Any = None, /) -> Callable[[bytes], object]:
            kept.extend((status, headers))
            return kept.append  # to be called by old applications only; moto returns its body

        body = b"".join(self.inner(environ, keep))
        if fault == "cut" and len(body) > 1:
            start_response(*kept)
            yield body[: len(body) // 2]
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionAbortedError

    def _answer_control(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with self.lock:
            counts = dict(self.counts)
            if environ["REQUEST_METHOD"] == "POST":
                rule = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
                if "closed_s" in rule:
                    self.closed_s = rule["closed_s"]
                    self.closing.set()
                else:
                    self.set_rule(**rule)
        body = json.dumps(counts).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]


def _error(environ: WSGIEnvironment, start_response: StartResponse, status: str, code: str) -> Iterable[bytes]:
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))  # else the connection breaks, too
    body = b"" if environ["REQUEST_METHOD"] == "HEAD" else f"<Error><Code>{code}</Code></Error>".encode()
    start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


def main(port: int) -> None:
    """Serve until killed."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"  # connections are kept

        def log(self, *args: Any) -> None:
            """Nothing."""

    store = FaultyStore(DomainDispatcherApplication(create_backend_app))

    def listen() -> BaseWSGIServer:
        server = make_server("127.0.0.1", port, store, threaded=True, request_handler=Quiet)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    server = listen()
    for bucket in (BUCKET, PUBLIC, STRICT):
        urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/{bucket}", method="PUT")).close()
    print("ready", file=sys.stderr, flush=True)
    os.close(2)  # nobody reads what werkzeug prints about the connections that we break
    os.open(os.devnull, os.O_WRONLY)
    while True:
        store.closing.wait()
        server.shutdown()
        server.server_close()
        time.sleep(store.closed_s)
        store.closing.clear()
        server = listen()


if __name__ == "__main__":
    main(int(sys.argv[1]))
