"""Import of proposals: files that other programs wrote, one per image, converted to the encoding of all proposals.

    format  file     content
    mcg     ID.mat   MCG, SCG: superpixels (H, W); labels, a cell with the superpixel ids of each proposal; scores
    gop     ID.mat   superpixels, transposed (W, H); indicator_matrix (superpixels, proposals) of 0 and 1
    rigor   ID.mat   as gop, but superpixels (H, W)
    lpo     ID.mat   cells with several superpixel maps (H, W) and the labels of each; the maps are overlaid into one
    rle     ID.json  COCO's results, a list of {segmentation: {size, counts}, score}; a superpixel is the set of pixels
                     that lie in the same masks

In MATLAB files superpixel ids start at 1, and all variables may stand in a struct `proposals`. MCG's variable `bboxes`
is not read, because its rows are others. A proposal without a pixel is left out. Proposals are ordered by falling
score, equal scores in the order of the file; without scores they keep the order of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.data import rle
from boxsup_dist.data.schema import Proposals
from boxsup_dist.data.superpixels import superpixel_extents, union_boxes
from boxsup_dist.errors import InputError, MissingFileError, RecordError, UnreadableFileError
from boxsup_dist.io import storage
from boxsup_dist.io.mat_file import read_mat
from boxsup_dist.io.mat_values import Struct
from boxsup_dist.proposals.settings import ImportedSettings

_Integer = TypeVar("_Integer", bound=np.integer)
MAX_SUPERPIXELS = 2**16  # ids are uint16
_LARGEST = 1e30  # of a score; JSON also has NaN, Infinity and integers of any number of digits


class Found(NamedTuple):
    """The P proposals of a file, as the file has them."""

    superpixels: NDArray[np.int64] | NDArray[np.uint16]  # (H, W), any ids
    members: Sequence[NDArray[np.integer]]  # superpixel ids of each proposal; some may have no pixel
    scores: NDArray[np.float64] | None  # (P,)


def import_proposals(image: NDArray[np.uint8], settings: ImportedSettings, *, image_id: str) -> Proposals:
    """Read the proposals of an image from its file.

    Args:
        image: RGB (H, W, 3); only its size is used.
        settings: Folder and format of the files.
        image_id: Id of the image; its part after the source names the file.

    Raises:
        InputError: If the id would name a file outside the folder.
        RecordError: If the file is missing, unreadable, of another format or of another size than the image, or if it
            has more than 2**16 superpixels.
    """
    suffix = ".json" if settings.format == "rle" else ".mat"
    name = storage.safe_name(image_id.split("/", 1)[-1], field="image_id")
    file = storage.join(storage.absolute(settings.folder), name + suffix)
    try:
        data = storage.read_bytes(file)
    except MissingFileError:
        raise RecordError("no proposal file of this image", file=file) from None
    except UnreadableFileError as error:
        raise error.at(kind=RecordError) from None
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
    """Convert the proposals of a file: superpixel ids 0..S-1, sorted members, no empty proposal, best first.

    Args:
        found: The proposals as the file has them.
        max_candidates: Keep only that many, the best ones; None keeps all.
        image_id: Id of the image.

    Raises:
        RecordError: If the scores are bad or there are more than 2**16 superpixels.
    """
    ids, superpixels = _compact(found.superpixels)
    members: list[NDArray[np.uint16]] = []
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


def _order(scores: NDArray[np.float64] | None, count: int) -> NDArray[np.intp]:
    """Return the indices of `count` proposals by falling score; equal and missing scores keep the file's order."""
    if scores is None:
        return np.arange(count)
    if len(scores) != count or not np.isfinite(scores).all():
        raise RecordError(
            "the scores are not one number per proposal", field="scores", value=len(scores), expected=f"{count} numbers"
        )
    return np.argsort(-scores, kind="stable")


def _compact(superpixels: NDArray[_Integer]) -> tuple[NDArray[_Integer], NDArray[np.uint16]]:
    """Renumber a map (H, W): return the ids that occur, sorted, and the map of their indices in that list."""
    ids, places = np.unique(superpixels, return_inverse=True)
    if len(ids) > MAX_SUPERPIXELS:
        expected = f"<= {MAX_SUPERPIXELS}; for the format rle, set a smaller max_candidates"
        raise RecordError("too many superpixels", field="superpixels", value=len(ids), expected=expected)
    return ids, places.reshape(superpixels.shape).astype(np.uint16)


def _fields(data: bytes) -> Struct:
    """Read the variables of a MATLAB file, or the fields of its struct `proposals`."""
    variables = read_mat(data)
    inner = variables.get("proposals")
    return inner if isinstance(inner, Struct) else variables


def _field(fields: Struct, name: str) -> Any:
    if name not in fields:
        raise RecordError("the file lacks a variable", field=name, value=sorted(fields))
    return fields[name]


def _numbers(values: Any, name: str) -> NDArray[Any]:
    """Return a value that is an array of numbers; raise RecordError if it is anything else."""
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "buif":
        raise RecordError("not an array of numbers", field=name, value=type(values).__name__)
    return values


def _integers(values: Any, name: str, lowest: int, highest: int) -> NDArray[np.int64]:
    """Convert an array of numbers; raise RecordError if one is no integer from `lowest` to `highest`."""
    numbers = _numbers(values, name)
    if not ((numbers >= lowest) & (numbers <= highest) & (numbers == np.floor(numbers))).all():
        found = [float(numbers.min()), float(numbers.max())]
        raise RecordError("not superpixel ids", field=name, value=found, expected=f"integers {lowest} to {highest}")
    return numbers.astype(np.int64)


def _superpixel_map(values: Any) -> NDArray[np.int64]:
    """Convert a superpixel map (H, W); 0 is a pixel without superpixel, and some ids may not occur."""
    return _integers(values, "superpixels", 0, _numbers(values, "superpixels").size)


def _label_lists(labels: Any, superpixels: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Convert the superpixel ids of each proposal, 1 to the largest id of the map."""
    if not isinstance(labels, list):
        problem = "not a cell with the superpixels of each proposal"
        raise RecordError(problem, field="labels", value=type(labels).__name__)
    return [_integers(item, "labels", 1, int(superpixels.max(initial=0))).ravel() for item in labels]


def _read_mcg(fields: Struct) -> Found:
    superpixels = _superpixel_map(_field(fields, "superpixels"))
    members = _label_lists(_field(fields, "labels"), superpixels)
    scores = fields.get("scores")
    return Found(
        superpixels, members, None if scores is None else _numbers(scores, "scores").ravel().astype(np.float64)
    )


def _read_rigor(fields: Struct) -> Found:
    superpixels = _superpixel_map(_field(fields, "superpixels"))
    indicator = _numbers(_field(fields, "indicator_matrix"), "indicator_matrix")
    largest = int(superpixels.max(initial=0))
    first = 0 if (superpixels == 0).any() and largest < len(indicator) else 1  # GOP's own library counts from 0
    if largest - first >= len(indicator):
        expected = f"{largest - first + 1} rows, one per superpixel"
        raise RecordError("too few rows", field="indicator_matrix", value=indicator.shape, expected=expected)
    return Found(superpixels, [np.flatnonzero(column) + first for column in indicator.T], None)


def _read_gop(fields: Struct) -> Found:
    found = _read_rigor(fields)
    return found._replace(superpixels=found.superpixels.T)


def _read_lpo(fields: Struct) -> Found:
    maps, labels = _field(fields, "superpixels"), _field(fields, "labels")
    if not isinstance(maps, list) or not isinstance(labels, list) or len(maps) != len(labels) or not maps:
        raise RecordError("the cells differ in length: one of labels per superpixel map", field="superpixels, labels")
    maps = [_superpixel_map(item) for item in maps]
    if len({item.shape for item in maps}) > 1:
        raise RecordError(
            "the superpixel maps differ in size", field="superpixels", value=[item.shape for item in maps]
        )
    overlay = np.zeros(maps[0].shape, np.int64)
    for item in maps:
        overlay = _compact(overlay * (int(item.max(initial=0)) + 1) + item)[1].astype(np.int64)
    members: list[NDArray[np.int64]] = []
    for item, part in zip(maps, labels, strict=True):
        id_of = np.zeros(int(overlay.max(initial=0)) + 1, np.int64)  # id in this map of every piece of the overlay
        id_of[overlay] = item
        members += [np.flatnonzero(np.isin(id_of, ids)) for ids in _label_lists(part, item)]
    return Found(overlay, members, None)


_READERS: dict[str, Callable[[Struct], Found]] = {
    "mcg": _read_mcg,
    "gop": _read_gop,
    "rigor": _read_rigor,
    "lpo": _read_lpo,
}


def _read_rle(data: bytes, shape: tuple[int, ...], max_candidates: int | None) -> Found:
    """Read the best `max_candidates` masks, and make superpixels of the pixels that lie in the same masks."""
    try:
        results = storage.parse_json(data)
    except InputError as error:
        raise error.at(kind=RecordError) from None
    if not isinstance(results, list) or not all(isinstance(item, dict) for item in results):
        raise RecordError(
            "not a list of results", value=type(results).__name__, expected="[{segmentation, score}, ...]"
        )
    scores = [item.get("score") for item in results]
    if not all(isinstance(score, int | float) and -_LARGEST < score < _LARGEST for score in scores):
        raise RecordError("a result has no score", field="score", expected="a number for each mask")
    order = _order(np.array(scores, np.float64), len(scores))
    masks = [(_decode_mask(results[j].get("segmentation"), shape), scores[j]) for j in order]
    return from_masks(*zip(*[pair for pair in masks if pair[0].any()][:max_candidates], strict=True), shape=shape)


def _decode_mask(segmentation: Any, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    size = segmentation.get("size") if isinstance(segmentation, dict) else segmentation
    if size != list(shape):
        raise RecordError(
            "the mask has another size than the image", field="segmentation.size", value=size, expected=str(list(shape))
        )
    counts = segmentation.get("counts")
    if not isinstance(counts, list | str):
        raise RecordError("the counts are no run lengths", field="segmentation.counts", value=type(counts).__name__)
    return rle.decode(counts, *shape)


def from_masks(
    masks: Sequence[NDArray[np.bool_]] = (), scores: Sequence[float] = (), *, shape: tuple[int, ...]
) -> Found:
    """Convert masks to unions of superpixels; a superpixel is the set of pixels that lie in the same masks.

    Args:
        masks: P masks (H, W).
        scores: P scores.
        shape: (H, W) of the image.
    """
    numbers = np.random.default_rng(0).integers(2**64, size=len(masks), dtype=np.uint64)
    total = np.zeros(shape, np.uint64)  # per pixel the sum of its masks' random numbers: equal sums, the same masks
    for mask, number in zip(masks, numbers, strict=True):
        total[mask] += number
    pieces = _compact(total)[1]
    sizes = np.bincount(pieces.ravel())
    members = [np.unique(pieces[mask]) for mask in masks]
    assert all(sizes[own].sum() == mask.sum() for own, mask in zip(members, masks, strict=True)), "two sums are equal"
    return Found(pieces, members, np.array(scores, np.float64))
