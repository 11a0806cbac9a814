"""A trained network behind HTTP, on Ray Serve: what one replica holds and answers.

    GET  /          a page where a person drops an image
    GET  /health    the network and its classes
    POST /predict   an image file as the body; ?as=json (or Accept) chooses the answer

Images that wait together share a batch. Images of one size share a forward pass on a GPU; on a CPU, where that would
save nothing, each has its own, so that the answer equals that of jobs.predict.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from boxsup_dist.config import PredictionSettings
from boxsup_dist.data.palette import class_palette, encode_palette_png
from boxsup_dist.errors import InputError
from boxsup_dist.export.coco import class_regions
from boxsup_dist.export.files import encode_overlay
from boxsup_dist.export.images import read_image
from boxsup_dist.model.inference import class_scores, predict_probs
from boxsup_dist.model.networks import SegmentationNetwork, network_from_state
from boxsup_dist.reporting.html import render
from boxsup_dist.runs.trained import find_network

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

ANSWERS = {"json": "application/json", "label_map": "image/png", "overlay": "image/jpeg"}
"""Kinds of answer, and the media type that a request may name in Accept instead."""
CLASSES_HEADER = "X-Boxsup-Classes"  # JSON of an overlay's classes, for the legend of the page
_BATCH_WAIT_S = 0.01


@dataclass(frozen=True)
class ServedNetwork:
    """Which network is served, and how."""

    uri: str  # checkpoint or MLflow model
    class_names: tuple[str, ...]
    prediction: PredictionSettings
    threads: int  # of torch, per replica
    max_batch_size: int
    max_upload_bytes: int
    max_pixels: int


class RefusedError(Exception):
    """A request that gets no answer; the text says in one line what to do."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


def label_maps(
    network: SegmentationNetwork, images: Sequence[NDArray[np.uint8]], settings: PredictionSettings
) -> list[NDArray[np.uint8]]:
    """Label maps (H, W) of a batch of images of any sizes, in their order; on a CPU those of jobs.predict."""
    found: dict[int, NDArray[np.uint8]] = {}
    if settings == PredictionSettings():
        all_classes = [range(network.spec.num_classes)] * len(images)
        for index, log_probs in class_scores(network, images, all_classes, normalise=True):
            found[index] = np.exp(log_probs.cpu().numpy()).argmax(0).astype(np.uint8)
    else:
        for index, image in enumerate(images):
            found[index] = predict_probs(network, image, settings).argmax(0).astype(np.uint8)
    return [found[index] for index in range(len(images))]


class Replica:
    """One process of the service: the network, and the answers to requests. Ray Serve calls it."""

    def __init__(self, served: ServedNetwork) -> None:
        from ray import serve

        torch.set_num_threads(served.threads)
        trained = find_network(None, served.uri).trained
        network = network_from_state(trained.spec, trained.weights)
        self._network = network.to("cuda" if torch.cuda.is_available() else "cpu")
        self._served = served
        batched = serve.batch(max_batch_size=served.max_batch_size, batch_wait_timeout_s=_BATCH_WAIT_S)
        self._predict: Any = batched(self._predict_batch)

    async def _predict_batch(self, images: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
        # In a thread, so that other requests are read, and /health answers, while the network computes.
        return await asyncio.to_thread(label_maps, self._network, images, self._served.prediction)

    async def __call__(self, request: Request) -> Response:
        """Answer a request."""
        from starlette.responses import PlainTextResponse

        try:
            return await self._answer(request)
        except RefusedError as refused:
            return PlainTextResponse(f"{refused.text}\n", refused.status)

    async def _answer(self, request: Request) -> Response:
        from starlette.responses import HTMLResponse, JSONResponse

        place = (request.method, request.url.path.rstrip("/") or "/")
        if place == ("GET", "/"):
            return HTMLResponse(page(self._served))
        if place == ("GET", "/health"):
            return JSONResponse({"network": self._served.uri, "classes": list(self._served.class_names)})
        if place != ("POST", "/predict"):
            known = place[1] in ("/", "/health", "/predict")
            raise RefusedError(405 if known else 404, "POST an image to /predict, or GET / or /health")
        kind = chosen_answer(request.query_params.get("as"), request.headers.get("accept", ""))
        data = await read_upload(request, self._served.max_upload_bytes)
        image = await asyncio.to_thread(decode_upload, data, self._served.max_pixels)
        label_map = await self._predict(image)
        return await asyncio.to_thread(self._response, kind, image, label_map)

    def _response(self, kind: str, image: NDArray[np.uint8], label_map: NDArray[np.uint8]) -> Response:
        from starlette.responses import JSONResponse, Response

        if kind == "label_map":
            return Response(encode_palette_png(label_map, self._served.class_names), media_type=ANSWERS[kind])
        classes = regions(label_map, self._served.class_names)
        if kind == "json":
            height, width = label_map.shape
            return JSONResponse({"height": height, "width": width, "classes": classes})
        size = label_map.size
        shown = [{**{key: found[key] for key in ("name", "color")}, "share": found["area"] / size} for found in classes]
        headers = {CLASSES_HEADER: json.dumps(shown)}
        return Response(
            encode_overlay(image, label_map, self._served.class_names), media_type=ANSWERS[kind], headers=headers
        )


def regions(label_map: NDArray[np.uint8], class_names: Sequence[str]) -> list[dict[str, Any]]:
    """JSON of each class in a label map (H, W): id, name, colour, area, bbox, and COCO's compressed run lengths."""
    colours = class_palette(class_names)
    return [
        {
            "class_id": found["category_id"],
            "name": class_names[found["category_id"]],
            "color": "#" + colours[found["category_id"]].tobytes().hex(),
            **{key: found[key] for key in ("area", "bbox", "segmentation")},
        }
        for found in class_regions(label_map)
    ]


def chosen_answer(wish: str | None, accept: str) -> str:
    """The kind of answer: what the query says, else the first kind that the Accept header names, else JSON.

    Raises:
        RefusedError: There is no such kind.
    """
    if wish is not None:
        if wish not in ANSWERS:
            raise RefusedError(400, f"as={wish[:40]!r} is unknown: choose one of {', '.join(ANSWERS)}")
        return wish
    named = {media: kind for kind, media in ANSWERS.items()}
    wanted = (part.partition(";")[0].strip() for part in accept.split(","))
    return next((named[media] for media in wanted if media in named), "json")


async def read_upload(request: Request, most: int) -> bytes:
    """The body of a request.

    Raises:
        RefusedError: It is empty, larger than `most` bytes, or a form.
    """
    too_large = RefusedError(413, f"the file is larger than {most / 1e6:g} MB, which --max-upload-mb allows")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most:
        raise too_large
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise RefusedError(415, "send the image file itself as the body: curl --data-binary @photo.jpg URL/predict")
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise too_large
        parts.append(part)
    if size == 0:
        raise RefusedError(400, "no file: send an image as the body: curl --data-binary @photo.jpg URL/predict")
    return b"".join(parts)


def decode_upload(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """The image (H, W, 3) of an uploaded file, turned by its EXIF tag.

    Raises:
        RefusedError: The bytes are not an image, damaged, or have too many pixels.
    """
    try:
        return read_image(data, turn_by_exif=True, max_pixels=max_pixels)
    except InputError as error:
        raise RefusedError(422, " ".join(str(error).split())) from None


def page(served: ServedNetwork) -> str:
    """The page where a person drops an image."""
    names = served.class_names[1:]
    return render("serve", uri=served.uri, names=names, most_mb=f"{served.max_upload_bytes / 1e6:g}")


def start(served: ServedNetwork, *, host: str, port: int, num_replicas: int, cpus: float, gpus: float) -> None:
    """Start the service on this session's cluster; returns once it answers.

    Args:
        served: The network.
        host: Address to listen on.
        port: Port to listen on.
        num_replicas: Processes that answer.
        cpus: CPUs of each.
        gpus: GPUs of each.
    """
    from ray import serve

    options = {"num_cpus": cpus, "num_gpus": gpus}
    deployment = serve.deployment(
        num_replicas=num_replicas, ray_actor_options=options, max_ongoing_requests=4 * served.max_batch_size
    )(Replica)
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port}, logging_config=quiet)
    serve.run(cast(Any, deployment).bind(served), name="boxsup", route_prefix="/", logging_config=quiet)
