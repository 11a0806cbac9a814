"""Published proposal files of other programs, one an image, in the encoding of all proposals.

Format, file, and what is in it:

    mcg    ID.mat   MCG, SCG: superpixels (H, W); labels, a cell of superpixel ids a proposal; scores. `bboxes`, which
                    has other rows, is not read.
    gop    ID.mat   superpixels transposed, (W, H); indicator_matrix (superpixels, proposals) of 0 and 1
    rigor  ID.mat   as gop, but superpixels (H, W)
    lpo    ID.mat   cells of several superpixel maps (H, W) and of their labels: the maps are laid over one another
    rle    ID.json  COCO's results, a list of {segmentation: {size, counts}, score}: the superpixels are the pixels that
                    lie in the same masks

In MATLAB files ids start at 1, and all may stand in a struct `proposals`. A proposal without a pixel is left out.
Candidates are ordered by falling score, equal ones as in the file; without scores they keep its order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from boxsup_dist.data import rle
from boxsup_dist.data.schema import Proposals
from boxsup_dist.data.superpixels import superpixel_extents, union_boxes
from boxsup_dist.errors import InputError, RecordError, SettingError
from boxsup_dist.io import storage
from boxsup_dist.io.mat_file import read_mat

Format = Literal["mcg", "gop", "rigor", "lpo", "rle"]
MAX_SUPERPIXELS = 2**16  # ids are uint16


@dataclass(frozen=True)
class ImportedSettings:
    """Where the files are and who wrote them."""

    folder: str = ""
    """Folder or URI of the files, named by the image id without its source (2007_000032.mat)."""
    format: Format = "mcg"
    """Program that wrote them; rle for masks of any program in COCO's results format."""
    max_candidates: int | None = None
    """Candidates kept of each image, best first; by default all."""

    def __post_init__(self) -> None:
        if not self.folder:
            raise SettingError("imports need the folder of the files", field="folder")
        if self.format not in get_args(Format):
            expected = " or ".join(get_args(Format))
            raise SettingError("no such format", field="format", value=self.format, expected=expected)
        if self.max_candidates is not None and self.max_candidates < 1:
            raise SettingError("out of range", field="max_candidates", value=self.max_candidates, expected=">= 1")


class Found(NamedTuple):
    """What a file holds of one image."""

    superpixels: np.ndarray  # (H, W) of any ids
    members: Sequence[np.ndarray]  # ids of each proposal; some may own no pixel
    scores: np.ndarray | None  # float64 (P,)


def import_proposals(image: np.ndarray, settings: ImportedSettings, *, image_id: str) -> Proposals:
    """The candidates that a file holds of an image, uint8 RGB (H, W, 3).

    Raises InputError for an id that would name a file outside the folder; RecordError: file missing, unreadable, not of
    this format, of another size than the image, or with more superpixels than 16 bits count.
    """
    suffix = ".json" if settings.format == "rle" else ".mat"
    name = storage.safe_name(image_id.split("/", 1)[-1], field="image_id")
    file = storage.join(storage.absolute(settings.folder), name + suffix)
    try:
        data = storage.read_bytes(file)
    except InputError:
        raise RecordError("no proposal file of this image", file=file) from None
    try:
        if settings.format == "rle":
            found = _read_rle(data, image.shape[:2], settings.max_candidates)
        else:
            found = _READERS[settings.format](_fields(data))
        if found.superpixels.shape != image.shape[:2]:
            raise RecordError(
                "the superpixels have another size than the image",
                field="superpixels",
                value=" x ".join(map(str, found.superpixels.shape[::-1])),
                expected=" x ".join(map(str, image.shape[1::-1])),
            )
        return encode(found, settings.max_candidates, image_id=image_id)
    except RecordError as error:
        raise error.at(file=file) from None


def encode(found: Found, max_candidates: int | None = None, *, image_id: str = "") -> Proposals:
    """Proposals with superpixel ids 0..S-1, sorted members, no empty candidate, best first."""
    ids, superpixels = _compact(found.superpixels)
    members: list[np.ndarray] = []
    scores: list[float] = []
    for j in _order(found.scores, len(found.members)):
        if len(members) == max_candidates:
            break
        places = np.searchsorted(ids, found.members[j]).clip(max=len(ids) - 1)
        own = np.unique(places[ids[places] == found.members[j]])
        if len(own):
            members.append(own.astype(np.uint16))
            scores.append(0.0 if found.scores is None else found.scores[j])
    indptr = np.cumsum([0, *map(len, members)])
    indices = np.concatenate([np.empty(0, np.uint16), *members])
    by_rank = np.linspace(1, 0, len(members), endpoint=False, dtype=np.float32)
    extents = superpixel_extents(superpixels, len(ids))
    return Proposals(
        image_id=image_id,
        superpixels=superpixels,
        num_superpixels=len(ids),
        indptr=indptr,
        indices=indices,
        objectness=by_rank if found.scores is None else np.array(scores, np.float32),
        boxes=union_boxes(extents, indptr, indices).astype(np.uint16),
    )


def _order(scores: np.ndarray | None, count: int) -> np.ndarray:
    """Indices of `count` proposals by falling score, equal ones and those without scores as they stand."""
    if scores is None:
        return np.arange(count)
    if len(scores) != count or not np.isfinite(scores).all():
        raise RecordError(
            "not a score for each proposal", field="scores", value=len(scores), expected=f"{count} numbers"
        )
    return np.argsort(-scores, kind="stable")


def _compact(superpixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ids that occur, rising, and the map of their places among them, uint16 (H, W)."""
    ids, places = np.unique(superpixels, return_inverse=True)
    if len(ids) > MAX_SUPERPIXELS:
        expected = f"<= {MAX_SUPERPIXELS}; in masks, a smaller max_candidates leaves fewer"
        raise RecordError("too many superpixels", field="superpixels", value=len(ids), expected=expected)
    return ids, places.reshape(superpixels.shape).astype(np.uint16)


def _fields(data: bytes) -> dict[str, Any]:
    """The variables of a MATLAB file, or the fields of its struct `proposals`."""
    variables = read_mat(data)
    inner = variables.get("proposals")
    return inner if isinstance(inner, dict) else variables


def _field(fields: dict[str, Any], name: str) -> Any:
    if name not in fields:
        raise RecordError("the file lacks a variable", field=name, value=sorted(fields))
    return fields[name]


def _numbers(values: Any, name: str) -> np.ndarray:
    """The array itself; RecordError if it is none or holds no numbers."""
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "buif":
        raise RecordError("no numbers", field=name, value=type(values).__name__)
    return values


def _integers(values: Any, name: str, lowest: int, highest: int) -> np.ndarray:
    """int64 array of the same shape; RecordError if a value is no integer of that range."""
    numbers = _numbers(values, name)
    if not ((numbers >= lowest) & (numbers <= highest) & (numbers == np.floor(numbers))).all():
        found = [float(numbers.min()), float(numbers.max())]
        raise RecordError("not superpixel ids", field=name, value=found, expected=f"integers {lowest} to {highest}")
    return numbers.astype(np.int64)


def _superpixel_map(values: Any) -> np.ndarray:
    """int64 (H, W); 0 is a pixel without superpixel, ids may be absent."""
    return _integers(values, "superpixels", 0, _numbers(values, "superpixels").size)


def _label_lists(labels: Any, superpixels: np.ndarray) -> list[np.ndarray]:
    """Superpixel ids of each proposal, 1 to the largest of the map."""
    if not isinstance(labels, list):
        raise RecordError("no cell with the superpixels of each proposal", field="labels", value=type(labels).__name__)
    return [_integers(item, "labels", 1, int(superpixels.max(initial=0))).ravel() for item in labels]


def _read_mcg(fields: dict[str, Any]) -> Found:
    superpixels = _superpixel_map(_field(fields, "superpixels"))
    members = _label_lists(_field(fields, "labels"), superpixels)
    scores = fields.get("scores")
    return Found(
        superpixels, members, None if scores is None else _numbers(scores, "scores").ravel().astype(np.float64)
    )


def _read_rigor(fields: dict[str, Any]) -> Found:
    superpixels = _superpixel_map(_field(fields, "superpixels"))
    indicator = _numbers(_field(fields, "indicator_matrix"), "indicator_matrix")
    largest = int(superpixels.max(initial=0))
    first = 0 if (superpixels == 0).any() and largest < len(indicator) else 1  # GOP's own library counts from 0
    if largest - first >= len(indicator):
        expected = f"{largest - first + 1} rows, one a superpixel"
        raise RecordError("too few rows", field="indicator_matrix", value=indicator.shape, expected=expected)
    return Found(superpixels, [np.flatnonzero(column) + first for column in indicator.T], None)


def _read_gop(fields: dict[str, Any]) -> Found:
    found = _read_rigor(fields)
    return found._replace(superpixels=found.superpixels.T)


def _read_lpo(fields: dict[str, Any]) -> Found:
    maps, labels = _field(fields, "superpixels"), _field(fields, "labels")
    if not isinstance(maps, list) or not isinstance(labels, list) or len(maps) != len(labels) or not maps:
        raise RecordError("not as many cells of labels as superpixel maps", field="superpixels, labels")
    maps = [_superpixel_map(item) for item in maps]
    if len({item.shape for item in maps}) > 1:
        raise RecordError("maps of several sizes", field="superpixels", value=[item.shape for item in maps])
    overlay = np.zeros(maps[0].shape, np.int64)
    for item in maps:
        overlay = _compact(overlay * (int(item.max(initial=0)) + 1) + item)[1].astype(np.int64)
    members: list[np.ndarray] = []
    for item, part in zip(maps, labels, strict=True):
        id_of = np.zeros(int(overlay.max(initial=0)) + 1, np.int64)  # this map's id of every piece of the overlay
        id_of[overlay] = item
        members += [np.flatnonzero(np.isin(id_of, ids)) for ids in _label_lists(part, item)]
    return Found(overlay, members, None)


_READERS: dict[str, Callable[[dict[str, Any]], Found]] = {
    "mcg": _read_mcg,
    "gop": _read_gop,
    "rigor": _read_rigor,
    "lpo": _read_lpo,
}


def _read_rle(data: bytes, shape: tuple[int, ...], max_candidates: int | None) -> Found:
    """The best `max_candidates` masks, cut into the pieces that lie in the same ones."""
    try:
        results = json.loads(data)
    except ValueError as error:
        raise RecordError("not valid JSON", value=str(error)) from None
    if not isinstance(results, list) or not all(isinstance(item, dict) for item in results):
        raise RecordError("no list of results", value=type(results).__name__, expected="[{segmentation, score}, ...]")
    scores = [item.get("score") for item in results]
    if not all(isinstance(score, int | float) and math.isfinite(score) for score in scores):
        raise RecordError("a result without score", field="score", expected="a number for each mask")
    order = _order(np.array(scores, np.float64), len(scores))
    masks = [(_decode_mask(results[j].get("segmentation"), shape), scores[j]) for j in order]
    return from_masks(*zip(*[pair for pair in masks if pair[0].any()][:max_candidates], strict=True), shape=shape)


def _decode_mask(segmentation: Any, shape: tuple[int, ...]) -> np.ndarray:
    size = segmentation.get("size") if isinstance(segmentation, dict) else segmentation
    if size != list(shape):
        raise RecordError(
            "no mask of the image's size", field="segmentation.size", value=size, expected=str(list(shape))
        )
    counts = segmentation.get("counts")
    if not isinstance(counts, list | str):
        raise RecordError("no run lengths", field="segmentation.counts", value=type(counts).__name__)
    return rle.decode(counts, *shape)


def from_masks(masks: Sequence[np.ndarray] = (), scores: Sequence[float] = (), *, shape: tuple[int, ...]) -> Found:
    """Bool masks (H, W) as unions of the pieces of the image whose pixels lie in the same masks."""
    numbers = np.random.default_rng(0).integers(2**64, size=len(masks), dtype=np.uint64)
    total = np.zeros(shape, np.uint64)  # the sum of a pixel's masks' random numbers tells which they are
    for mask, number in zip(masks, numbers, strict=True):
        total[mask] += number
    pieces = _compact(total)[1]
    sizes = np.bincount(pieces.ravel())
    members = [np.unique(pieces[mask]) for mask in masks]
    assert all(sizes[own].sum() == mask.sum() for own, mask in zip(members, masks, strict=True)), "two sums are equal"
    return Found(pieces, members, np.array(scores, np.float64))
