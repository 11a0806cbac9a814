"""The synthetic data set, written as a VOC devkit so that the reader of VOC reads it.

    ROOT/VOC2012/JPEGImages, Annotations, SegmentationClass, SegmentationObject, ImageSets/Segmentation/{train,val}.txt
    ROOT/VOC2012/synthetic.json    the settings, written last: the data set is whole

As in VOC, masks are palette PNGs with a void band (255) along every outline, and a box is tight round the visible part
of its object. Every image is a pure function of (seed, split, index), so a larger data set begins with the images of a
smaller one.
"""

from __future__ import annotations

import io
import shutil
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from boxsup_dist.data.palette import voc_palette
from boxsup_dist.data.schema import IGNORE_INDEX, VOC_CLASSES
from boxsup_dist.errors import InputError, SettingError
from boxsup_dist.io import storage
from boxsup_dist.records.settings import NUM_TRAIN, NUM_VAL, SEED
from boxsup_dist.records.synthetic_scene import Scene, make_scene, tight_box

MARKER, STARTED = "synthetic.json", "synthetic-unfinished.json"
_VERSION = 2  # raise it when the scenes change: data sets of an older version are then replaced
_DIFFICULT_BELOW = 0.6  # an object with a smaller visible share is marked difficult


def write_synthetic(
    root: str,
    num_train: int = NUM_TRAIN,
    num_val: int = NUM_VAL,
    seed: int = SEED,
    *,
    on_image: Callable[[], None] | None = None,
) -> str:
    """Write the data set, unless it is there already with the same settings.

    An unfinished synthetic data set, or one with other settings, is replaced.

    Args:
        root: Folder, on this machine, that will hold VOC2012.
        num_train: Number of images of the split train.
        num_val: Number of images of the split val.
        seed: Seed of all scenes.
        on_image: Called after every image that was written.

    Returns:
        The year folder, ROOT/VOC2012.

    Raises:
        SettingError: If a number of images is below 1.
        InputError: If ROOT/VOC2012 holds another data set.
    """
    splits = {"train": num_train, "val": num_val}
    for name, count in splits.items():
        if count < 1:
            raise SettingError("a split needs an image", field=f"num_{name}", value=count, expected="1 or more")
    settings = {"version": _VERSION, "seed": seed, **splits}
    folder = Path(storage.absolute(root)) / "VOC2012"
    marker, started = folder / MARKER, folder / STARTED
    if marker.exists() and storage.read_json(str(marker)) == settings:
        return str(folder)
    if folder.exists():
        if not marker.exists() and not started.exists() and any(folder.iterdir()):
            problem = "the folder holds another data set: choose another folder"
            raise InputError(problem, file=folder, expected="a new or empty folder")
        shutil.rmtree(folder)
    storage.write_json(str(started), settings)
    for split, count in splits.items():
        ids = [image_name(split, index) for index in range(count)]
        for index, image_id in enumerate(ids):
            _write_image(folder, image_id, scene_of(seed, split, index))
            if on_image is not None:
                on_image()
        _write(folder / "ImageSets" / "Segmentation" / f"{split}.txt", "".join(f"{i}\n" for i in ids).encode())
    started.rename(marker)
    return str(folder)


def image_name(split: str, index: int) -> str:
    """Return the name of an image, such as train_00012."""
    return f"{split}_{index:05d}"


def scene_of(seed: int, split: str, index: int) -> Scene:
    """Make the scene of one image; the same arguments give the same scene."""
    return make_scene(np.random.default_rng([seed, zlib.crc32(split.encode()), index]))


def label_map_of(scene: Scene) -> NDArray[np.uint8]:
    """Return the label map (H, W) of a scene, with a void band two pixels wide along every instance's outline."""
    class_ids = np.array([0, *(VOC_CLASSES.index(name) for name in scene.names)], np.uint8)
    void = ndimage.maximum_filter(scene.instances, 3) != ndimage.minimum_filter(scene.instances, 3)
    return np.where(void, IGNORE_INDEX, class_ids[scene.instances]).astype(np.uint8)


def annotation_of(scene: Scene, image_id: str) -> bytes:
    """Return the devkit's XML of a scene, with boxes 1-based and both ends inside."""
    height, width = scene.instances.shape
    root = ET.Element("annotation")
    for tag, text in (("folder", "VOC2012"), ("filename", f"{image_id}.jpg"), ("segmented", "1")):
        ET.SubElement(root, tag).text = text
    size = ET.SubElement(root, "size")
    for tag, value in (("width", width), ("height", height), ("depth", 3)):
        ET.SubElement(size, tag).text = str(value)
    for index, name in enumerate(scene.names):
        x0, y0, x1, y1 = tight_box(scene.instances == index + 1)
        item = ET.SubElement(root, "object")
        cut = x0 == 0 or y0 == 0 or x1 == width or y1 == height
        flags = {"truncated": cut, "difficult": scene.visible[index] < _DIFFICULT_BELOW}
        ET.SubElement(item, "name").text = name
        for tag, flag in flags.items():
            ET.SubElement(item, tag).text = str(int(flag))
        box = ET.SubElement(item, "bndbox")
        for tag, value in (("xmin", x0 + 1), ("ymin", y0 + 1), ("xmax", x1), ("ymax", y1)):
            ET.SubElement(box, tag).text = str(value)
    ET.indent(root)
    return ET.tostring(root)


def _write_image(folder: Path, image_id: str, scene: Scene) -> None:
    buffer = io.BytesIO()
    Image.fromarray(scene.image).save(buffer, format="JPEG", quality=90)
    label_map = label_map_of(scene)
    objects = np.where(label_map == IGNORE_INDEX, IGNORE_INDEX, scene.instances).astype(np.uint8)
    _write(folder / "JPEGImages" / f"{image_id}.jpg", buffer.getvalue())
    _write(folder / "Annotations" / f"{image_id}.xml", annotation_of(scene, image_id))
    _write(folder / "SegmentationClass" / f"{image_id}.png", _palette_png(label_map))
    _write(folder / "SegmentationObject" / f"{image_id}.png", _palette_png(objects))


def _palette_png(values: NDArray[np.uint8]) -> bytes:
    image = Image.fromarray(values).convert("P")
    image.putpalette(voc_palette().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _write(file: Path, data: bytes) -> None:
    """Write a file plainly, not atomically: only MARKER says that the data set is whole."""
    with storage.system_errors(str(file), writing=True, num_bytes=len(data)):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
