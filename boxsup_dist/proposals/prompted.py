"""Proposals of a segmenter that is prompted with the boxes of the records, in two ONNX files: encoder and decoder.

The encoder sees an image once; the decoder gives a few masks with scores for every box. The names and shapes are those
that `samexporter` writes for SAM, MobileSAM and SAM 2, and EfficientSAM's own export for EfficientSAM:

    family        encoder                                          decoder                               masks
    SAM           (H, W, 3) of 0..255, or (1, 3, S, S) normalised  image_embeddings, prompt,             image's size
                                                                   orig_im_size
    SAM 2         (1, 3, S, S) normalised, the image stretched     image_embed, high_res_feats, prompt   S / 4
    EfficientSAM  (N, 3, H, W) of 0..1                             image_embeddings, batched prompt,     image's size
                                                                   orig_im_size

https://github.com/vietanhdev/samexporter (sam_onnx.py, sam2_onnx.py), https://github.com/yformer/EfficientSAM
(export_to_onnx.py).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from boxsup_dist.data.schema import Proposals
from boxsup_dist.errors import InputError, RecordError, WeightsError
from boxsup_dist.io import storage
from boxsup_dist.proposals.encoding import encode, from_masks
from boxsup_dist.proposals.settings import PromptedSettings

_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of RGB in 0..255, in all of these families
_TOP_LEFT, _BOTTOM_RIGHT = 2, 3  # labels of points
_SIDE = 1024  # S: the image's longer side in SAM's encoder, both sides in SAM 2's
_MASK = [1, 1, _SIDE // 4, _SIDE // 4]  # a mask as a prompt, which is never given


class _Family(NamedTuple):
    """Segmenters of one signature."""

    name: str
    features: tuple[str, ...]  # what the encoder gives the decoder
    prompt: tuple[str, ...]  # the decoder's other inputs
    masks: str  # the decoder's output beside `iou_predictions`

    @property
    def inputs(self) -> tuple[str, ...]:
        """All inputs of the decoder."""
        return self.features + self.prompt


_POINTS = ("point_coords", "point_labels", "mask_input", "has_mask_input")
_SAM = _Family("SAM", ("image_embeddings",), (*_POINTS, "orig_im_size"), "masks")
_SAM2 = _Family("SAM 2", ("image_embed", "high_res_feats_0", "high_res_feats_1"), _POINTS, "masks")
_EFFICIENT = _Family(
    "EfficientSAM",
    ("image_embeddings",),
    ("batched_point_coords", "batched_point_labels", "orig_im_size"),
    "output_masks",
)
_FAMILIES = (_SAM, _SAM2, _EFFICIENT)


def prompted(
    image: NDArray[np.uint8], settings: PromptedSettings, *, boxes_xyxy: NDArray[np.floating], image_id: str = ""
) -> Proposals:
    """Propose the masks of the segmenter for every box of the image, best score first.

    Args:
        image: RGB (H, W, 3).
        settings: The files of the segmenter.
        boxes_xyxy: (K, 4), half-open; without a box there is no proposal.
        image_id: Id of the image.

    Raises:
        WeightsError: A file is no segmenter, see `open_segmenter`.
        RecordError: The segmenter fails on the image.
    """
    segmenter = open_segmenter(settings.onnx_encoder, settings.onnx_decoder)
    found = from_masks(segmenter.masks(image, boxes_xyxy), shape=(image.shape[0], image.shape[1]))
    return encode(found, image_id=image_id)


def identity(settings: PromptedSettings) -> dict[str, Any]:
    """JSON values that distinguish a build with these files from any other: their hashes.

    Raises:
        WeightsError: The files are no segmenter: said before a build starts.
        InputError: A file is missing or unreadable.
    """
    files = {"onnx_encoder": settings.onnx_encoder, "onnx_decoder": settings.onnx_decoder}
    values = {name: _hash(file) for name, file in files.items()}
    open_segmenter(**files)
    open_segmenter.cache_clear()  # the tasks open their own: this one would only fill the memory
    return values


def _hash(uri: str) -> str:
    """The SHA-256 of a file and of the weights beside it: those over 2 GB are in NAME_data.bin or NAME.onnx.data."""
    uri = storage.absolute(uri)
    digest = hashlib.sha256(storage.read_bytes(uri))
    folder, _, name = uri.rpartition("/")
    stem = name.removesuffix(".onnx")
    for other in storage.list_names(folder):
        if other.startswith((f"{stem}_", f"{stem}.")) and other.endswith((".bin", ".data")):
            digest.update(storage.read_bytes(storage.join(folder, other)))
    return f"sha256:{digest.hexdigest()}"


@dataclass(frozen=True)
class Segmenter:
    """An encoder and a decoder whose signatures fit each other."""

    encoder: Any  # onnxruntime.InferenceSession
    decoder: Any
    family: _Family

    def masks(
        self, image: NDArray[np.uint8], boxes_xyxy: NDArray[np.floating]
    ) -> Iterator[tuple[NDArray[np.bool_], float]]:
        """The masks (H, W) of an image, box by box, each with its score; the arguments are those of `prompted`."""
        if len(boxes_xyxy) == 0:
            return
        shape = (image.shape[0], image.shape[1])
        tensor, frame = self._prepare(image)
        given = dict(zip(self.family.features, self._encode(tensor), strict=True))
        for box in boxes_xyxy:
            points = box.reshape(2, 2) * np.divide(frame[::-1], shape[::-1])
            inputs = given | self._prompt(points, shape)
            logits, scores = _run(self.decoder, (self.family.masks, "iou_predictions"), inputs)
            for mask, score in zip(logits.reshape(-1, *logits.shape[-2:]), scores.ravel(), strict=True):
                yield _enlarge(mask, shape) > 0, float(score)

    def _encode(self, tensor: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        return _run(self.encoder, self.family.features, {self.encoder.get_inputs()[0].name: tensor})

    def _prepare(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], tuple[int, int]]:
        """The encoder's input, and the height and width of the image in the coordinates of the points."""
        height, width = image.shape[:2]
        if self.family is _EFFICIENT:
            whole = image.transpose(2, 0, 1)[None].astype(np.float32)
            whole /= 255
            return whole, (height, width)
        frame = (_SIDE, _SIDE)
        if self.family is _SAM:
            scale = _SIDE / max(height, width)
            frame = (int(height * scale + 0.5) or 1, int(width * scale + 0.5) or 1)  # as the decoder rounds
        small = np.asarray(Image.fromarray(image).resize(frame[::-1], Image.Resampling.BILINEAR), np.float32)
        if len(self.encoder.get_inputs()[0].shape) == 3:  # the encoder normalises and pads
            return small, frame
        tensor = np.zeros((1, 3, _SIDE, _SIDE), np.float32)
        tensor[0, :, : frame[0], : frame[1]] = ((small - _MEAN) / _STD).transpose(2, 0, 1)
        return tensor, frame

    def _prompt(self, points: NDArray[np.floating], shape: tuple[int, int]) -> dict[str, NDArray[Any]]:
        """The decoder's other inputs for a box, whose corners are two points (2, 2)."""
        points, labels = points.astype(np.float32), np.array([_TOP_LEFT, _BOTTOM_RIGHT], np.float32)
        values: dict[str, NDArray[Any]] = {
            "point_coords": points[None],
            "point_labels": labels[None],
            "batched_point_coords": points[None, None],
            "batched_point_labels": labels[None, None],
            "mask_input": np.zeros(_MASK, np.float32),
            "has_mask_input": np.zeros(1, np.float32),
            "orig_im_size": np.array(shape, np.int64 if self.family is _EFFICIENT else np.float32),
        }
        return {name: values[name] for name in self.family.prompt}


def _enlarge(mask: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    if mask.shape == shape:
        return mask
    return np.asarray(cv2.resize(mask, shape[::-1], interpolation=cv2.INTER_LINEAR))


def _run(session: Any, outputs: tuple[str, ...], inputs: dict[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
    try:
        return [np.asarray(value, np.float32) for value in session.run(list(outputs), inputs)]
    except Exception as error:  # ONNX Runtime has a class of its own for each failure, and no common one
        text = " ".join(str(error).split())[:200]
        raise RecordError("the segmenter fails on the image", value=text) from None


@functools.cache
def open_segmenter(onnx_encoder: str, onnx_decoder: str) -> Segmenter:
    """Open the two files, on the GPU if there is one, else on one core; the next call in a process reuses them.

    Raises:
        WeightsError: A file is no ONNX network, or the two have another signature; names what was found.
    """
    encoder, decoder = _open(onnx_encoder), _open(onnx_decoder)
    inputs, outputs = ({item.name for item in items} for items in (decoder.get_inputs(), decoder.get_outputs()))
    fitting = [one for one in _FAMILIES if set(one.inputs) == inputs and {one.masks, "iou_predictions"} <= outputs]
    if not fitting:
        known = (f"{one.name}: {', '.join(one.inputs)} -> {one.masks}, iou_predictions" for one in _FAMILIES)
        problem = "not the decoder of a box-prompted segmenter"
        raise WeightsError(problem, file=onnx_decoder, value=_signature(decoder), expected="; or ".join(known))
    family = fitting[0]
    _check_points(onnx_decoder, decoder)
    _check_encoder(onnx_encoder, encoder, family)
    return Segmenter(encoder, decoder, family)


def _check_points(file: str, decoder: Any) -> None:
    """The decoder must take the two corners of a box, and SAM's and SAM 2's a mask of their usual size."""
    expected = {
        "point_coords": [1, 2, 2], "point_labels": [1, 2], "batched_point_coords": [1, 1, 2, 2],
        "batched_point_labels": [1, 1, 2], "mask_input": _MASK,
    }  # fmt: skip
    for item in decoder.get_inputs():
        wanted = expected.get(item.name, item.shape)
        fits = [found == size or not isinstance(found, int) for found, size in zip(item.shape, wanted, strict=False)]
        if len(item.shape) != len(wanted) or not all(fits):
            problem = "the decoder does not take the two corners of one box, or is of another image size"
            raise WeightsError(problem, file=file, field=item.name, value=item.shape, expected=str(wanted))


def _check_encoder(file: str, encoder: Any, family: _Family) -> None:
    """The encoder must take one image of a known form, and give what the decoder takes."""
    first, shape = encoder.get_inputs()[0], list(encoder.get_inputs()[0].shape)
    fixed = [size for size in shape if isinstance(size, int)]
    if family is _EFFICIENT:
        forms, is_known = "(N, 3, any, any)", len(shape) == 4 and fixed in ([3], [1, 3])
    else:
        is_known = shape == [1, 3, _SIDE, _SIDE]
        forms = f"(1, 3, {_SIDE}, {_SIDE})"
        if family is _SAM:
            is_known, forms = is_known or (len(shape) == 3 and fixed == [3]), f"(any, any, 3) or {forms}"
    outputs = {item.name for item in encoder.get_outputs()}
    is_known = is_known and len(encoder.get_inputs()) == 1 and first.type == "tensor(float)"
    if not is_known or not {*family.features} <= outputs:
        expected = f"an image {forms} of floats -> {', '.join(family.features)} (the decoder is {family.name}'s)"
        raise WeightsError(
            "the encoder does not fit the decoder", file=file, value=_signature(encoder), expected=expected
        )


def _signature(session: Any) -> str:
    """Inputs and outputs of a network, as text."""

    def text(items: Any) -> str:
        return ", ".join(f"{item.name} {item.shape} {item.type}" for item in items)

    return f"{text(session.get_inputs())} -> {text(session.get_outputs())}"


def _open(uri: str) -> Any:
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # a task has one core
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    if torch.cuda.is_available() and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, "CUDAExecutionProvider")
    file = storage.absolute(uri)
    is_local = storage.is_local(file)
    storage.file_size(file)  # raises if the file is missing
    try:  # a local file by its path: the weights of a large network are in a file beside it
        network = file if is_local else storage.read_bytes(file)
        return onnxruntime.InferenceSession(network, options, providers=providers)
    except InputError:
        raise
    except Exception as error:  # as in _run
        raise WeightsError(
            "not a network that ONNX Runtime opens",
            file=uri,
            value=" ".join(str(error).split())[:200],
            expected="an ONNX file; weights in a second file only of a local path",
        ) from None
