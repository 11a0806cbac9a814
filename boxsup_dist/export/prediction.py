"""What a pool member does with one unit of images: predict them, or list the regions of their label maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from boxsup_dist.config import PredictionSettings
from boxsup_dist.data.images import decode_png
from boxsup_dist.data.tables import Table
from boxsup_dist.errors import InputError, RecordError, StorageError
from boxsup_dist.export.coco import CocoImage, class_regions
from boxsup_dist.export.files import Kind, output_uri, write_outputs
from boxsup_dist.export.images import Item, read_image
from boxsup_dist.io import storage
from boxsup_dist.model.inference import predict_probs
from boxsup_dist.model.networks import SegmentationNetwork


@dataclass(frozen=True)
class PredictionJob:
    """What is made of every image."""

    out: str
    kinds: tuple[Kind, ...]
    settings: PredictionSettings
    turn_by_exif: bool  # files only: annotation lies on a table's images as they are stored
    max_pixels: int


class Outcome(NamedTuple):
    """What became of one image."""

    item: Item
    problem: str | None  # why there are no outputs, None where there are


def predict_unit(
    network: SegmentationNetwork, unit: Sequence[Item], *, job: PredictionJob, records: Table | None
) -> list[Outcome]:
    """Predict a unit's images and write their outputs; an image that can't be read is told and left out."""
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
        write_outputs(job.out, item.name, job.kinds, image, predict_probs(network, image, job.settings))
        outcomes.append(Outcome(item, None))
    return outcomes


def _read(unit: Sequence[Item], records: Table | None) -> Iterator[tuple[Item, bytes | InputError]]:
    """Bytes of each image, one at a time, or why there are none."""
    where = unit[0].where
    if where is not None:
        assert records is not None
        column = records.read(where, ("image",)).column("image")
        yield from ((item, column[item.row].as_py()) for item in unit)
        return
    for item in unit:
        try:
            yield item, storage.read_bytes(item.uri)
        except StorageError:  # no fault of this image
            raise
        except InputError as error:
            yield item, error
        except OSError as error:
            yield item, RecordError(f"can't be read: {type(error).__name__}: {error}")


def regions_unit(unit: Sequence[Item], *, out: str) -> list[CocoImage]:
    """Regions of each class in the label maps of a unit's images."""
    found = []
    for item in unit:
        label_map = decode_png(storage.read_bytes(output_uri(out, "label_maps", item.name)))
        height, width = label_map.shape
        found.append(CocoImage(item.name, height, width, class_regions(label_map)))
    return found
