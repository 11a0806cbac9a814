"""Masks that other programs wrote as JSON; what a file is shows its content.

    program        content
    SAM, SAM 2     [{segmentation, predicted_iou, stability_score, bbox, ...}, ...], the automatic masks of an image
    SA-1B          {image: {width, height, ...}, annotations: [as above]}
    COCO results   [{image_id, segmentation, score}, ...] of one image or of many; the scores may be missing
    COCO           {images: [{id, file_name}, ...], annotations: [{image_id, segmentation}, ...]}

A segmentation is run lengths {size: [H, W], counts}, compressed or not, a list of polygons [x, y, x, y, ...] in pixels,
or a binary mask of H rows of W zeros and ones. The score of a mask is its `score`, else its `predicted_iou`, else its
`stability_score`; without any, masks keep the order of the file. Masks without a pixel are left out.
"""

from __future__ import annotations

import functools
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from boxsup_dist.data import rle
from boxsup_dist.errors import InputError, RecordError
from boxsup_dist.io import storage
from boxsup_dist.proposals.encoding import Found, from_masks

_LARGEST = 1e30  # of a score; JSON also has NaN, Infinity and integers of any number of digits
_SCORES = ("score", "predicted_iou", "stability_score")
_FORMS = "[{segmentation, score}, ...], {image, annotations} or {images, annotations}"
_MARGIN_PX = 1.0  # by which a polygon may reach beyond its image


def parse(data: bytes, name: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The masks of an image in a file of its own, and what the file says of the image ({}: nothing).

    Args:
        data: The file.
        name: The image: its id without the source. Only in a file with masks of several images it matters.

    Raises:
        RecordError: The file has another form, or masks of other images only.
    """
    value = _json(data)
    items, image = _items(value), value.get("image") if isinstance(value, dict) else None
    ids = {str(item.get("image_id")) for item in items}
    if len(ids) > 1 or (isinstance(value, dict) and "images" in value):
        return _of_image(_by_image(value), name), {}
    return items, image if isinstance(image, dict) else {}


def parse_shared(uri: str, name: str) -> list[dict[str, Any]]:
    """The masks of an image in a file of all images. The file is kept in memory for the next image.

    Raises:
        RecordError: As in `parse`.
        InputError: The file is missing or unreadable.
    """
    return _of_image(_read_shared(uri), name)


def check_shared(uri: str) -> None:
    """Raise InputError if a file of all images is missing, or has another form."""
    _read_shared(uri)
    _read_shared.cache_clear()  # the tasks read their own: this one would only fill the memory


def decode(
    items: Sequence[dict[str, Any]], image: Mapping[str, Any], shape: tuple[int, int], max_candidates: int | None
) -> Found:
    """The best `max_candidates` masks of an image (H, W), and their superpixels.

    Args:
        items: The masks, as the file has them.
        image: What the file says of the image: width and height are compared.
        shape: Height and width of the image.
        max_candidates: None takes all masks.

    Raises:
        RecordError: A mask or a score is bad, or a mask is of an image of another size.
    """
    said = (image.get("height", shape[0]), image.get("width", shape[1]))
    if said != shape:
        found, expected = f"{said[1]} x {said[0]}", f"{shape[1]} x {shape[0]}"
        raise RecordError(
            "the file is of an image of another size", field="image.width, image.height", value=found, expected=expected
        )
    scores = _scores(items)
    order: Sequence[int] = range(len(items))
    if scores is not None:
        order = np.argsort(-np.array(scores, np.float64), kind="stable").tolist()

    def scored() -> Iterator[tuple[NDArray[np.bool_], float | None]]:
        for j in order:
            try:
                mask = _decode_mask(items[j].get("segmentation"), shape)
            except RecordError as error:
                raise error.at(field=f"segmentation of mask {j + 1}") from None
            yield mask, None if scores is None else scores[j]

    return from_masks(scored(), shape=shape, most=max_candidates)


def _json(data: bytes) -> Any:
    if not data.strip():
        raise RecordError("the file is empty", expected=f"{_FORMS}; [] for an image without masks")
    try:
        return storage.parse_json(data)
    except InputError as error:
        raise error.at(kind=RecordError) from None


def _items(value: Any) -> list[dict[str, Any]]:
    """All masks of a file."""
    items = value.get("annotations") if isinstance(value, dict) else value
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        found = f"an object with {', '.join(map(str, value)) or 'nothing'}" if isinstance(value, dict) else None
        raise RecordError("not a list of masks", value=found or type(value).__name__, expected=_FORMS)
    return items


@functools.cache
def _read_shared(uri: str) -> dict[str, list[dict[str, Any]]]:
    try:
        return _by_image(_json(storage.read_bytes(uri)))
    except RecordError as error:
        raise error.at(file=uri, kind=InputError) from None  # of all images, not of one


def _by_image(value: Any) -> dict[str, list[dict[str, Any]]]:
    """The masks of each image, by the name of its file without ending, or by its id where the file has no names."""
    images = value.get("images", []) if isinstance(value, dict) else []
    if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
        raise RecordError("not a list of images", field="images", value=type(images).__name__)
    names = {str(image.get("id")): posixpath.splitext(str(image.get("file_name")))[0] for image in images}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names.values()}
    for item in _items(value):
        own = str(item.get("image_id"))
        found.setdefault(names.get(own, own), []).append(item)
    return found


def _of_image(masks: dict[str, list[dict[str, Any]]], name: str) -> list[dict[str, Any]]:
    """The masks of the image `name`: "train/0042" is also known as "0042" and as 42."""
    base = posixpath.basename(name)
    for known in (name, base, base.lstrip("0") or "0" if base.isdigit() else base):
        if known in masks:
            return masks[known]
    expected = f"image_id {name}" + (f" or {int(base)}" if base.isdigit() else ", or {images: [{id, file_name}]}")
    raise RecordError("no mask is of this image", field="image_id", value=sorted(masks)[:3], expected=expected)


def _scores(items: Sequence[dict[str, Any]]) -> list[float] | None:
    """The score of each mask; None if the masks have none."""
    present = [name for name in _SCORES if any(item.get(name) is not None for item in items)]
    if not present:
        return None
    scores: list[float] = []
    for j, item in enumerate(items):
        value = item.get(present[0])
        if not isinstance(value, int | float) or isinstance(value, bool) or not -_LARGEST < value < _LARGEST:
            raise RecordError(
                f"mask {j + 1} has no score", field=present[0], value=value, expected="a number for each mask, or none"
            )
        scores.append(value)
    return scores


def _decode_mask(segmentation: Any, shape: tuple[int, int]) -> NDArray[np.bool_]:
    if isinstance(segmentation, dict):
        _check_size(segmentation.get("size"), shape)
        counts = segmentation.get("counts")
        if not isinstance(counts, list | str):
            raise RecordError("the counts are no run lengths", value=type(counts).__name__)
        return rle.decode(counts, *shape)
    if not isinstance(segmentation, list) or not all(isinstance(part, list) for part in segmentation):
        expected = "run lengths {size, counts}, polygons or a binary mask"
        raise RecordError("the segmentation is no mask", value=type(segmentation).__name__, expected=expected)
    if _is_binary(segmentation):
        _check_size([len(segmentation), len(segmentation[0])], shape)
        return np.array(segmentation, bool)
    return _draw([_points(part, shape) for part in segmentation], shape)


def _check_size(size: Any, shape: tuple[int, int]) -> None:
    if size != list(shape):
        expected = f"{list(shape)}, height and width of the image"
        raise RecordError("the mask has another size than the image", value=size, expected=expected)


def _is_binary(rows: list[list[Any]]) -> bool:
    """Whether these are rows of zeros and ones, of one length."""
    width = len(rows[0]) if rows else 0
    return width > 0 and all(len(row) == width and all(value in (0, 1) for value in row) for row in rows)


def _points(polygon: list[Any], shape: tuple[int, int]) -> list[float]:
    """The points of a polygon, cut at the border of the image."""
    is_polygon = len(polygon) >= 6 and len(polygon) % 2 == 0
    if not is_polygon or not all(isinstance(value, int | float) and abs(value) < _LARGEST for value in polygon):
        expected = "x, y, x, y, ... in pixels, of three points or more"
        raise RecordError("not a polygon", value=str(polygon)[:60], expected=expected)
    points, size = np.array(polygon, np.float64).reshape(-1, 2), np.array(shape[::-1])
    if (points < -_MARGIN_PX).any() or (points > size + _MARGIN_PX).any():
        found = [points.min(0).tolist(), points.max(0).tolist()]
        expected = f"x from 0 to {shape[1]}, y from 0 to {shape[0]}"
        raise RecordError("a polygon reaches beyond the image: of another size?", value=found, expected=expected)
    cut: list[float] = points.clip(0, size).ravel().tolist()
    return cut


def _draw(polygons: list[list[float]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    if not polygons:
        return np.zeros(shape, bool)
    return np.asarray(coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *shape))), bool)
