"""Import of proposals: files that other programs wrote, converted to the encoding of all proposals.

    format  file     content
    mcg     ID.mat   MCG, SCG: superpixels (H, W); labels, a cell with the superpixel ids of each proposal; scores
    gop     ID.mat   superpixels, transposed (W, H); indicator_matrix (superpixels, proposals) of 0 and 1
    rigor   ID.mat   as gop, but superpixels (H, W)
    lpo     ID.mat   cells with several superpixel maps (H, W) and the labels of each; the maps are overlaid into one
    rle     ID.json  masks of SAM, SA-1B or COCO, as mask_files.py describes; or one such file for all images

In MATLAB files superpixel ids start at 1, and all variables may stand in a struct `proposals`. MCG's variable `bboxes`
is not read, because its rows are others. A proposal without a pixel is left out. Proposals are ordered by falling
score, equal scores in the order of the file; without scores they keep the order of the file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.data.schema import Proposals
from boxsup_dist.errors import MissingFileError, RecordError, UnreadableFileError
from boxsup_dist.io import storage
from boxsup_dist.io.mat_file import read_mat
from boxsup_dist.io.mat_values import Struct
from boxsup_dist.proposals import mask_files
from boxsup_dist.proposals.encoding import Found, compact, encode
from boxsup_dist.proposals.settings import ImportedSettings


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
    name = storage.safe_name(image_id.split("/", 1)[-1], field="image_id")
    folder, shape = storage.absolute(settings.folder), (image.shape[0], image.shape[1])
    file = storage.join(folder, name + (".json" if settings.format == "rle" else ".mat"))
    file = folder if _is_shared(settings) else file
    try:
        if _is_shared(settings):
            found = mask_files.decode(mask_files.parse_shared(file, name), {}, shape, settings.max_candidates)
        elif settings.format == "rle":
            items, said = mask_files.parse(_read(file), name)
            found = mask_files.decode(items, said, shape, settings.max_candidates)
        else:
            found = _READERS[settings.format](_fields(_read(file)))
        if found.superpixels.shape != shape:
            raise RecordError(
                "the superpixels have another size than the image",
                field="superpixels",
                value=" x ".join(map(str, found.superpixels.shape[::-1])),
                expected=" x ".join(map(str, shape[::-1])),
            )
        return encode(found, settings.max_candidates, image_id=image_id)
    except RecordError as error:
        raise error.at(file=file) from None


def identity(settings: ImportedSettings) -> dict[str, Any]:
    """The settings as JSON values: what distinguishes a build from any other.

    Raises:
        InputError: The folder is absent, or the one file of all images is missing or damaged: said before a build
            starts.
    """
    folder = storage.absolute(settings.folder)
    if not storage.exists(folder):
        raise MissingFileError("no such folder or file", file=folder, field="folder")
    if _is_shared(settings):
        mask_files.check_shared(folder)
    return asdict(settings)


def _is_shared(settings: ImportedSettings) -> bool:
    """Whether the files are one file with the masks of all images."""
    return settings.format == "rle" and settings.folder.endswith(".json")


def _read(file: str) -> bytes:
    try:
        return storage.read_bytes(file)
    except MissingFileError:
        raise RecordError("no proposal file of this image", file=file) from None
    except UnreadableFileError as error:
        raise error.at(kind=RecordError) from None


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
        overlay = compact(overlay * (int(item.max(initial=0)) + 1) + item)[1].astype(np.int64)
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
