"""The work of a pool member on one unit of images: predict them, or list the regions of their label maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from boxsup_dist.config import PredictionSettings
from boxsup_dist.data.images import decode_png
from boxsup_dist.data.tables import Table
from boxsup_dist.errors import InputError, MachineError, StorageError, decoding
from boxsup_dist.export.coco import CocoImage, connected_regions
from boxsup_dist.export.files import Kind, output_uri, write_outputs
from boxsup_dist.export.images import Item, ending_of, read_image
from boxsup_dist.io import storage
from boxsup_dist.model.inference import predict_probs
from boxsup_dist.model.networks import SegmentationNetwork


@dataclass(frozen=True)
class PredictionJob:
    """What to make of every image."""

    out: str
    kinds: tuple[Kind, ...]
    settings: PredictionSettings
    turn_by_exif: bool  # rotate files by their EXIF tag; never images of a table, whose annotation fits them as stored
    max_pixels: int  # larger images are skipped
    class_names: tuple[str, ...] = ()  # for their colours


class Outcome(NamedTuple):
    """The result of one image."""

    item: Item
    problem: str | None = None  # why it was skipped; None if its outputs are written
    is_background: bool = False  # whether every pixel is predicted as background


def predict_unit(
    network: SegmentationNetwork, unit: Sequence[Item], *, job: PredictionJob, records: Table | None
) -> list[Outcome]:
    """Predict the images of a unit and write their outputs; unreadable images are skipped.

    Args:
        network: The network, in evaluation mode.
        unit: The images: files, or rows of one row group.
        job: What to make of them.
        records: The records table, for images that are rows of one.

    Returns:
        One outcome per image, in their order.

    Raises:
        StorageError: A store does not answer.
        UnwritableFileError: An output cannot be written.
    """
    outcomes = []
    for item, data in _read(unit, records):
        try:
            if isinstance(data, InputError):
                raise data
            turn = job.turn_by_exif and item.where is None
            image = read_image(data, turn_by_exif=turn, max_pixels=job.max_pixels)
        except InputError as error:
            outcomes.append(Outcome(item, str(error)))
            continue
        probs = predict_probs(network, image, job.settings)
        label_map = write_outputs(job.out, item.name, job.kinds, image, probs, job.class_names)
        outcomes.append(Outcome(item, is_background=not label_map.any()))
    return outcomes


def _read(unit: Sequence[Item], records: Table | None) -> Iterator[tuple[Item, bytes | InputError]]:
    """Read one image after the other; yields its bytes, or the error if it cannot be read."""
    where = unit[0].where
    if where is not None:
        assert records is not None
        column = records.read(where, ("image",)).column("image")
        yield from ((item, column[item.row].as_py()) for item in unit)
        return
    for item in unit:
        try:
            yield item, storage.read_bytes(item.uri)
        except (StorageError, MachineError):  # not this image is at fault
            raise
        except InputError as error:
            yield item, error


def regions_unit(unit: Sequence[Item], *, out: str, records: Table | None) -> list[CocoImage]:
    """List the regions of each class in the label maps that `predict_unit` wrote.

    Args:
        unit: The images.
        out: Folder of the outputs.
        records: The records table, for images that are rows of one.

    Returns:
        One entry per image for the COCO file.

    Raises:
        RecordError: A label map is damaged.
    """
    endings = {item.name: item.ending for item in unit}
    if unit[0].where is not None:
        endings = {item.name: ending_of(data) for item, data in _read(unit, records) if isinstance(data, bytes)}
    found = []
    for item in unit:
        uri = output_uri(out, "label_maps", item.name)
        with decoding(item.name, uri):
            label_map = decode_png(storage.read_bytes(uri))
        height, width = label_map.shape
        found.append(CocoImage(item.name, endings[item.name], height, width, connected_regions(label_map)))
    return found
