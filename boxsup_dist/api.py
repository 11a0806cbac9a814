"""The functions for programs that use boxsup_dist as a library; they need no Ray.

    from boxsup_dist import api

    network = api.load_network("runs/box")
    image = api.read_image("photo.jpg")
    label_map = api.predict(network, image)
    api.save_image("overlay.jpg", api.draw(image, label_map, network.class_names))

Images are RGB, uint8 (H, W, 3). Label maps are uint8 (H, W) of class ids: 0 is the background, 255 is void. Paths may
be URIs of any store, such as s3://BUCKET/KEY. Bad input raises errors.InputError, which says what to do. Only
`load_network` with an MLflow model needs MLflow.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from boxsup_dist.config import PredictionSettings
from boxsup_dist.data.images import MAX_PIXELS, decode_image, decode_png, encode_png
from boxsup_dist.data.labels import open_labels
from boxsup_dist.data.painting import GRANTED_COLUMNS, painter
from boxsup_dist.data.palette import class_palette, encode_palette_png
from boxsup_dist.data.schema import Record, iter_records
from boxsup_dist.data.tables import Table, open_table
from boxsup_dist.errors import InputError, RecordError, SettingError
from boxsup_dist.export.coco import class_regions
from boxsup_dist.export.images import read_image as _read_image
from boxsup_dist.io import storage
from boxsup_dist.model import inference
from boxsup_dist.model.networks import SegmentationNetwork, network_from_state
from boxsup_dist.reporting.overlay import overlay
from boxsup_dist.runs.inputs import open_inputs
from boxsup_dist.runs.kept_config import read_config
from boxsup_dist.runs.layout import RunFiles
from boxsup_dist.runs.trained import find_network

__all__ = [
    "Network",
    "Record",
    "Table",
    "decode_image",
    "draw",
    "load_network",
    "open_records",
    "predict",
    "predict_probs",
    "read_image",
    "read_label_map",
    "read_labels",
    "read_records",
    "regions",
    "save_image",
    "save_label_map",
]


@dataclass(frozen=True)
class Network:
    """A trained network, ready to predict."""

    uri: str  # the checkpoint or the MLflow model
    class_names: tuple[str, ...]  # by class id; 0 is the background
    module: SegmentationNetwork  # in evaluation mode


def load_network(uri: str, *, checkpoint: str | None = None, device: str = "cpu") -> Network:
    """Load a trained network.

    Args:
        uri: A run directory, the folder of a checkpoint, or an MLflow model (`models:/NAME/1`, `runs:/ID/model`).
        checkpoint: Which checkpoint of a run directory: "best" is the best on the run's validation data. None: the
            newest.
        device: Where to compute, such as "cuda".

    Raises:
        InputError: There is no such network, or it is damaged.
    """
    trained, class_names, _ = find_network(uri, checkpoint)
    return Network(trained.uri, class_names, network_from_state(trained.spec, dict(trained.weights)).to(device))


def read_image(uri: str, *, turn_by_exif: bool = True, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read an image file as RGB (H, W, 3).

    Args:
        uri: The file.
        turn_by_exif: Rotate the image by its EXIF tag, as viewers do.
        max_pixels: Refuse a larger image before it is decoded.

    Raises:
        InputError: There is no such file, it is not an image, it is damaged or too large.
    """
    try:
        return _read_image(storage.read_bytes(uri), turn_by_exif=turn_by_exif, max_pixels=max_pixels)
    except InputError as error:
        raise error.at(file=uri) from None


def predict(network: Network, image: NDArray[np.uint8], **options: Any) -> NDArray[np.uint8]:
    """Label map (H, W) of an image; `jobs.predict` writes the same.

    Args:
        network: From `load_network`.
        image: RGB, uint8 (H, W, 3), of any size from 1 x 1.
        options: Fields of config.PredictionSettings: `scales=(0.8, 1, 1.2)`, `flip=True`, `crf="deeplab_v2"`,
            `tile_px=512`.

    Raises:
        SettingError: An option is unknown or out of range.
        ValueError: `image` has another type or shape.
    """
    label_map: NDArray[np.uint8] = predict_probs(network, image, **options).argmax(0).astype(np.uint8)
    return label_map


def predict_probs(network: Network, image: NDArray[np.uint8], **options: Any) -> NDArray[np.float32]:
    """Probability of every class at every pixel of an image, (C, H, W). Arguments and errors are those of `predict`."""
    try:
        settings = PredictionSettings(**options)
    except TypeError:
        known = tuple(PredictionSettings.__dataclass_fields__)
        wrong = sorted(options.keys() - set(known))
        raise SettingError(
            "no such option of a prediction", field=", ".join(wrong), expected=f"one of {', '.join(known)}"
        ) from None
    return inference.predict_probs(network.module, image, settings.check())


def draw(
    image: NDArray[np.uint8],
    label_map: NDArray[np.uint8],
    class_names: Sequence[str] = (),
    *,
    boxes_of: Record | None = None,
) -> NDArray[np.uint8]:
    """The image (H, W, 3) with its label map (H, W) laid over it; the background shows the image alone.

    Args:
        image: RGB, uint8 (H, W, 3).
        label_map: Class ids, uint8 (H, W).
        class_names: Names by class id, which choose the colours as in all other pictures: `network.class_names`, or
            `classes` of a records table. (): VOC's colours.
        boxes_of: Also frame the boxes of this record.

    Raises:
        SettingError: The sizes differ.
    """
    if image.shape[:2] != label_map.shape:
        raise SettingError(
            "image and label map differ in size",
            field="label_map",
            value=label_map.shape,
            expected=f"{image.shape[:2]}",
        )
    colours = class_palette(class_names)
    if boxes_of is None:
        return overlay(image, label_map, colours)
    return overlay(image, label_map, colours, boxes=boxes_of.boxes_xyxy, box_classes=boxes_of.class_ids)


def regions(label_map: NDArray[np.uint8], class_names: Sequence[str]) -> list[dict[str, Any]]:
    """The region of each class in a label map (H, W), except background and void.

    Returns:
        For each class, by class id: `class_id`, `name`, `area` in pixels, `bbox` (x, y, width, height), and
        `segmentation`: COCO's compressed run lengths, which pycocotools.mask.decode reads.
    """
    return [
        {
            "class_id": found["category_id"],
            "name": class_names[found["category_id"]],
            **{key: found[key] for key in ("area", "bbox", "segmentation")},
        }
        for found in class_regions(label_map)
    ]


def save_label_map(uri: str, label_map: NDArray[np.uint8], class_names: Sequence[str] = ()) -> None:
    """Write a label map (H, W) as a PNG of class ids, with a palette that shows them in the colours of `draw`."""
    storage.write_bytes(uri, encode_palette_png(label_map, class_names))


def read_label_map(uri: str) -> NDArray[np.uint8]:
    """Read a label map (H, W), a PNG of class ids: of `save_label_map`, of a command, or the mask of a VOC devkit.

    Raises:
        InputError: There is no such file, or it is no PNG of 8 bits per pixel.
    """
    data = storage.read_bytes(uri)
    try:
        label_map = decode_png(data)
    except OSError as error:
        raise RecordError("the label map does not decode", file=uri, value=str(error)) from None
    if label_map.ndim != 2 or label_map.dtype != np.uint8:
        found = f"{label_map.dtype} {label_map.shape}"
        raise RecordError("not a label map", file=uri, value=found, expected="a palette or grey PNG of 8 bits")
    return label_map


def save_image(uri: str, image: NDArray[np.uint8]) -> None:
    """Write an image (H, W, 3) as a JPEG, or as a PNG if `uri` ends with .png."""
    if uri.lower().endswith(".png"):
        storage.write_bytes(uri, encode_png(image))
        return
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=90)
    storage.write_bytes(uri, buffer.getvalue())


def open_records(uri: str) -> Table:
    """Open a records table, as `jobs.build_records` makes it: `classes` are its class names, `num_rows` its images.

    Raises:
        TableError: The table is absent, unfinished or damaged.
    """
    return open_table(uri, "records")


def read_records(table: Table) -> Iterator[Record]:
    """The images of a records table in order, with their boxes; a row group at a time is in memory.

    `decode_image` reads the field `image`, the bytes of the image file.
    """
    for where in table.row_groups():
        yield from iter_records(table.read(where))


def read_labels(run_dir: str, epoch: int | None = None) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """The label maps that an epoch of a run trained on, for the images with box supervision.

    Args:
        run_dir: Run directory of a training.
        epoch: The first is 1. None: the last that has labels.

    Yields:
        The image_id, and the label map (H, W), with 255 for pixels that training ignored.

    Raises:
        InputError: There is no such run or epoch, or a table of the run is absent or damaged.
    """
    mixture = open_inputs(read_config(run_dir)).mixture
    files = RunFiles(run_dir)
    epochs = files.epochs_with_labels()
    chosen = epoch if epoch is not None else max(epochs, default=None)
    if chosen is None or chosen not in epochs:
        expected = f"one of {epochs}" if epochs else "a run with box supervision that has begun its first epoch"
        raise SettingError("the run has no such labels", file=run_dir, field="epoch", value=epoch, expected=expected)
    labels = open_labels(files.labels(chosen))
    for index in mixture.with_supervision("box"):
        unit = mixture.units[index]
        paint = painter(unit, labels.segments(index), mixture.assignment)
        for record in iter_records(unit.trained(unit.source.records.read(unit.where, GRANTED_COLUMNS["box"]))):
            yield record.image_id, paint(record)
