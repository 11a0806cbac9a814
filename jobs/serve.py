"""Answer images over HTTP with a trained network, and show a page where one drops an image.

    python -m jobs.serve --run-dir R
    curl --data-binary @photo.jpg "http://127.0.0.1:8000/predict?as=overlay" --output overlay.jpg

It runs on Ray Serve until Ctrl-C or SIGTERM: pip install "boxsup-dist[serve]".
"""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import time
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from boxsup_dist import interrupts
from boxsup_dist.config import PredictionSettings
from boxsup_dist.config.checks import check_range
from boxsup_dist.errors import InputError, SettingError
from boxsup_dist.io import storage
from boxsup_dist.runs.command_line import Prediction, check_network, run

_NEEDED = ("fastapi", "starlette", "uvicorn")  # what ray[serve] adds to ray


@dataclass(frozen=True)
class Settings:
    """Which network, where it listens, and what it accepts."""

    run_dir: str | None = None
    """Run directory of a training: a folder or URI. Or set --checkpoint."""
    checkpoint: Annotated[
        str | None,
        tyro.conf.arg(
            help="Folder or URI of the checkpoint to use, best (the run's best on its validation records), or an "
            "MLflow model (models:/NAME/1, runs:/ID/model). Default: the run's newest."
        ),
    ] = None
    host: str = "127.0.0.1"
    """Address to listen on. The default is this machine alone; 0.0.0.0 is every network that reaches it, without a
    password."""
    port: int = 8000
    """Port to listen on."""
    prediction: Prediction = field(default_factory=PredictionSettings)
    max_upload_mb: float = 20.0
    """Refuse larger files (megabytes)."""
    max_megapixels: float = 25.0
    """Refuse larger images before they are decoded: the scores take 4 bytes per pixel, class and copy."""
    max_batch_size: int = 8
    """Most images that a replica predicts together."""
    num_replicas: int = 1
    """Processes that answer, each with a copy of the network, and with a GPU where there are any."""

    def check(self) -> None:
        """Raise SettingError on a value that cannot work."""
        check_network(self.run_dir, self.checkpoint)
        self.prediction.check()
        check_range(0 <= self.port < 2**16, "port", self.port, "0 to 65535")
        for name in ("max_upload_mb", "max_megapixels"):
            check_range(getattr(self, name) > 0, name, getattr(self, name), "> 0")
        for name in ("max_batch_size", "num_replicas"):
            check_range(getattr(self, name) >= 1, name, getattr(self, name), ">= 1")


def main(settings: Settings) -> None:
    """Serve until a signal ends this process."""
    settings.check()
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        expected = 'pip install "boxsup-dist[serve]"'
        raise InputError("Ray Serve is not installed", field=", ".join(missing), expected=expected)
    _check_free(settings.host, settings.port)
    from boxsup_dist.model.crf import crf_settings
    from boxsup_dist.runs.trained import find_network

    if settings.prediction.crf is not None:
        crf_settings(settings.prediction.crf)
    found = find_network(settings.run_dir, settings.checkpoint)  # errors show here, not in a log of a replica
    from ray import serve

    from boxsup_dist.distributed import session
    from boxsup_dist.runs import serving
    from boxsup_dist.runs.networks import pool_resources

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    session.start()
    resources = pool_resources(settings.num_replicas)
    uri = found.trained.uri
    served = serving.ServedNetwork(
        uri=uri if uri.startswith(("models:/", "runs:/")) else storage.absolute(uri),
        class_names=found.class_names,
        prediction=settings.prediction,
        threads=resources.threads_per_actor,
        max_batch_size=settings.max_batch_size,
        max_upload_bytes=round(settings.max_upload_mb * 1e6),
        max_pixels=round(settings.max_megapixels * 1e6),
    )
    interrupts.set_last_line("the service has stopped")
    try:
        serving.start(
            served,
            host=settings.host,
            port=settings.port,
            num_replicas=settings.num_replicas,
            cpus=resources.cpus_per_actor,
            gpus=resources.gpus_per_actor,
        )
        interrupts.take_back()
        print(f"network  {uri}\nclasses  {', '.join(found.class_names[1:])}", flush=True)
        print(f"open     http://{settings.host}:{settings.port}/   (Ctrl-C stops)", flush=True)
        while True:
            time.sleep(3600)
    finally:
        if os.environ.get("RAY_ADDRESS", "").strip() not in ("", "local"):
            serve.shutdown()  # type: ignore[no-untyped-call]  # a session of our own ends with this process, and Ray would report the end of Serve


def _check_free(host: str, port: int) -> None:
    """Raise SettingError unless the port can be listened on."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        raise SettingError(
            f"cannot listen here: {error.strerror or error}",
            field="host, port",
            value=f"{host}:{port}",
            expected="an address of this machine and a free port: --port 8001",
        ) from None


if __name__ == "__main__":
    run(main)
