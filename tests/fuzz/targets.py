"""What the product reads: small good files of every kind, and how each kind is read.

A stored target is one that the product itself wrote with a hash: damaged, it reads as before or is refused. Any other
target may read as another value (a digit of a foreign file is what it is), but as one whose parts fit together.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.io
import torch
from PIL import Image

from boxsup_dist.config import SourceSettings, TrainConfig
from boxsup_dist.data import rle, tables
from boxsup_dist.data.images import decode_image, decode_png
from boxsup_dist.data.labels import TableName, labels_table, open_labels, store_labels
from boxsup_dist.data.schema import (
    LABEL_MAPS,
    Record,
    iter_records,
    proposals_from_table,
    proposals_to_table,
    records_to_table,
)
from boxsup_dist.errors import decoding
from boxsup_dist.evaluation.by_image import sparse_rows
from boxsup_dist.evaluation.confusion import read_confusion
from boxsup_dist.evaluation.units import UnitResult
from boxsup_dist.io import storage
from boxsup_dist.model import checkpoint
from boxsup_dist.model.weights import read_state_dict
from boxsup_dist.proposals.imported import import_proposals
from boxsup_dist.proposals.settings import Format, ImportedSettings
from boxsup_dist.records import archives, coco, context, inventory, sbd, voc
from boxsup_dist.records.own.reader import open_own
from boxsup_dist.runs.evaluated import keep_matrices, read_matrices
from boxsup_dist.runs.history import HistoryEntry, read_history, write_history
from boxsup_dist.runs.kept_config import read_config, write_config
from boxsup_dist.runs.layout import RunFiles
from boxsup_dist.runs.summary import read_summary, write_result
from tests import coco_set, devkit, mat_sets, networks, own_formats
from tests.mat73 import savemat73
from tests.random_proposals import random_proposals

HEIGHT, WIDTH = devkit.HEIGHT, devkit.WIDTH


@dataclass(frozen=True)
class Target:
    """Files of one kind."""

    files: Sequence[Path]  # one of them is damaged in a case
    read: Callable[[], Any]  # reads all of them, in full
    is_stored: bool = False  # see the module


def make(name: str, root: Path) -> Target:
    """Write the good files of a target into an empty folder."""
    return TARGETS[name](root)


def digest(value: Any) -> str:
    """A hash of what was read: equal for equal values."""
    found = hashlib.sha256()
    _feed(value, found.update)
    return found.hexdigest()


def _feed(value: Any, update: Callable[[bytes], object]) -> None:
    update(type(value).__name__.encode())
    if isinstance(value, torch.Tensor):
        value = value.contiguous().numpy()
    if isinstance(value, np.ndarray):
        update(f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
    elif isinstance(value, pa.Table):
        _feed(value.to_pydict(), update)
    elif is_dataclass(value):
        _feed({item.name: getattr(value, item.name) for item in fields(value)}, update)
    elif isinstance(value, Mapping):
        for key in value:
            _feed(key, update)
            _feed(value[key], update)
    elif isinstance(value, list | tuple):
        for item in value:
            _feed(item, update)
    else:
        update(value if isinstance(value, bytes) else repr(value).encode())


def check(found: Any) -> None:
    """That the parts of what was read fit together."""
    if isinstance(found, Record):
        _check_record(found)
    elif isinstance(found, HistoryEntry):
        assert found.epoch >= 1


def _check_record(found: Record) -> None:
    assert found.image is not None and decode_image(found.image).shape == (found.height, found.width, 3)
    count = len(found.class_ids)
    assert found.boxes_xyxy.shape == (count, 4) and len(found.difficult) == len(found.crowd) == count
    assert (found.boxes_xyxy >= 0).all() and (found.boxes_xyxy <= (found.width, found.height) * 2).all()
    assert (found.boxes_xyxy[:, 2:] > found.boxes_xyxy[:, :2]).all() and (found.class_ids > 0).all()
    if found.gt_label_map is not None:
        assert decode_png(found.gt_label_map).shape == (found.height, found.width)
    for counts in found.instance_masks or []:
        rle.decode(counts, found.height, found.width)


# -- data sets ---------------------------------------------------------------------------------------------------------


def _first(open_splits: Callable[..., Any], *arguments: Any, **options: Any) -> Record:
    reader = open_splits(*arguments, **options)
    record: Record = reader.read(reader.entries[0])
    return record


def _voc(root: Path, *path: str) -> Target:
    devkit.write(root, "a", annotation='<?xml version="1.0" encoding="utf-8"?>' + devkit.xml(), masks={
        "SegmentationClass": devkit.mask(),
        "SegmentationObject": devkit.mask(np.eye(HEIGHT, WIDTH, dtype=np.uint8)),
    })  # fmt: skip
    devkit.write_list(root, "a\n")
    return Target([root.joinpath(*path)], lambda: _first(voc.open_splits, str(root), "train", outside="clip"))


def _own(root: Path, tool: str) -> Target:
    """A file of an annotation tool, with two images."""
    boxes = [("cat", (2.0, 3.0, 17.0, 21.0)), ("dog", (10.0, 6.0, 40.0, 30.0))]
    made = own_formats.WRITERS[tool](root, dict.fromkeys(("a.jpg", "b.jpg"), ((WIDTH, HEIGHT), boxes)))
    for name in ("a.jpg", "b.jpg"):
        (root / name).write_bytes(devkit.jpeg())
    file = sorted(path for path in made.rglob("*") if path.is_file())[0] if made.is_dir() else made
    return Target([file], lambda: _first(open_own, str(root), str(made), "train", outside="clip"))


def _inventory(root: Path) -> Target:
    target = _voc(root / "voc", "ImageSets", "Segmentation", "train.txt")
    return Target(target.files, lambda: inventory.take_inventory(str(root)))


def _sbd(root: Path, folder: str) -> Target:
    mat_sets.write_sbd(root, "a")
    (root / "train.txt").write_text("a\n")
    return Target([root / folder / "a.mat"], lambda: _first(sbd.open_splits, str(root), "train"))


def _context(root: Path, *path: str) -> Target:
    devkit.write(root / "voc2010", "a")
    devkit.write_list(root / "voc2010", "a\n", folder="Main")
    values = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) % 459
    mat_sets.write_context(root / "context", "a", values)
    roots = str(root / "context"), str(root / "voc2010")
    return Target([root.joinpath("context", *path)], lambda: _first(context.open_splits, *roots, "train"))


def _coco(root: Path, name: str) -> Target:
    mask = np.eye(HEIGHT, WIDTH) > 0
    forms: list[Any] = [coco_set.SQUARE, {"size": [HEIGHT, WIDTH], "counts": rle.encode(mask).decode()}]
    forms.append([[0, 0, 39, 0, 20, 29]])
    annotations = [coco_set.annotation(id=k, segmentation=form, iscrowd=k % 2) for k, form in enumerate(forms)]
    instances = coco_set.write(root, annotations)
    read = functools.partial(_first, coco.open_splits, [instances], [str(root)], "train", classes="all", outside="clip")
    return Target([root / name], read)


def _archive(root: Path, name: str) -> Target:
    content = devkit.xml().encode()
    if name.endswith(".zip"):
        with zipfile.ZipFile(root / name, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr("folder/a.xml", content)
    else:
        with tarfile.open(root / name, "w:gz") as opened:
            info = tarfile.TarInfo("folder/a.xml")
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))

    def read() -> list[str]:
        out = root / "out"
        archives.unpack(root, archives.Archive(f"https://example.org/{name}", None, "out"))
        found = sorted(str(path.relative_to(out)) for path in out.rglob("*"))
        assert {path.name for path in root.iterdir()} == {name, "out", f"{name}.unpacked"}, "written elsewhere"
        return found

    return Target([root / name], read)


# -- images and foreign proposals --------------------------------------------------------------------------------------


def _image(root: Path, name: str, **options: Any) -> Target:
    rng = np.random.default_rng(0)
    if name == "grey16.tif":
        image = Image.fromarray(rng.integers(0, 65536, (HEIGHT, WIDTH), np.uint16))
    elif name == "float.tif":
        image = Image.fromarray(rng.random((HEIGHT, WIDTH), np.float32))
    else:
        image = Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
    image.save(root / name, **options)

    def read() -> Any:
        with decoding("a", root / name):
            found = decode_image((root / name).read_bytes(), turn_by_exif=True)
        assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3
        return found

    return Target([root / name], read)


def _heic(root: Path) -> Target:
    target = _image(root, "a.png")
    (root / "a.png").write_bytes(devkit.heic(orientation=6))
    return target


def _png(root: Path) -> Target:
    (root / "a.png").write_bytes(devkit.mask())

    def read() -> Any:
        with decoding("a", root / "a.png"):
            return decode_png((root / "a.png").read_bytes())

    return Target([root / "a.png"], read)


def _imported(root: Path, kind: Format, *, is_73: bool = False) -> Target:
    superpixels = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) // 100 + 1
    labels = [np.array([[1, 2]]), np.array([[3]])]
    name = "a.json" if kind == "rle" else "a.mat"
    if kind == "rle":
        counts = {"size": [HEIGHT, WIDTH], "counts": [30, 70, HEIGHT * WIDTH - 100]}
        (root / name).write_text(json.dumps([{"segmentation": counts, "score": 0.5}]))
    elif is_73:
        savemat73(root / name, {"superpixels": superpixels, "labels": labels})
    else:
        cells = np.empty(2, object)
        cells[:] = labels
        scipy.io.savemat(root / name, {"superpixels": superpixels, "labels": cells})
    settings = ImportedSettings(str(root), kind)
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    return Target([root / name], lambda: import_proposals(image, settings, image_id="voc/a"))


def _sam_masks(root: Path) -> Target:
    """A file of SA-1B with run lengths, compressed run lengths, polygons and a binary mask."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[3:9, 4:8] = 1
    segmentations = [
        {"size": [HEIGHT, WIDTH], "counts": [30, 70, HEIGHT * WIDTH - 100]},
        {"size": [HEIGHT, WIDTH], "counts": rle.encode(mask).decode()},
        [[2, 2, 9.5, 2, 9.5, 8, 2, 8], [1, 1, 4, 1, 4, 4]],
        mask.tolist(),
    ]
    items = [{"segmentation": one, "predicted_iou": 0.9, "stability_score": 0.8} for one in segmentations]
    image = {"image_id": 1, "width": WIDTH, "height": HEIGHT, "file_name": "a.jpg"}
    (root / "a.json").write_text(json.dumps({"image": image, "annotations": items}))
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    return Target(
        [root / "a.json"], lambda: import_proposals(pixels, ImportedSettings(str(root), "rle"), image_id="sa/a")
    )


# -- what the product wrote --------------------------------------------------------------------------------------------


def _table(root: Path, kind: str, file: str) -> Target:
    rng = np.random.default_rng(0)
    ids = [f"test/{k}" for k in range(5)]
    if kind == "records":
        content = records_to_table([_record(image_id, rng) for image_id in ids])
    elif kind == "proposals":
        content = proposals_to_table([random_proposals(rng, HEIGHT, WIDTH, image_id=image_id) for image_id in ids])
    else:
        rows = [{"image_id": image_id, "label_map": devkit.mask()} for image_id in ids]
        content = pa.Table.from_pylist(rows, schema=LABEL_MAPS)
    uri, settings = str(root), {"classes": ["background", "dog"]}
    tables.begin(uri, kind, settings)
    parts = [content.slice(0, 3), content.slice(3)]
    shards = [tables.write_shard(uri, i, part, kind, row_group_size=2) for i, part in enumerate(parts)]
    tables.publish(uri, kind, settings, shards)

    def read() -> Any:
        table = tables.open_table(uri, kind)
        parts = [table.read(where) for where in table.row_groups()]
        if kind == "records":
            return [record for part in parts for record in iter_records(part)]
        return [proposals_from_table(part) if kind == "proposals" else part for part in parts]

    return Target([root / file], read, is_stored=True)


def _record(image_id: str, rng: np.random.Generator) -> Record:
    corners = rng.uniform(0, 10, (2, 2))
    return Record(
        image_id=image_id,
        source="test",
        split="train",
        image=devkit.jpeg(),
        height=HEIGHT,
        width=WIDTH,
        boxes_xyxy=np.concatenate([corners, corners + 5], axis=1).astype(np.float32),
        class_ids=np.ones(2, np.int32),
        difficult=np.zeros(2, bool),
        crowd=np.zeros(2, bool),
        gt_label_map=devkit.mask(),
        instance_masks=None,
    )


def _labels(root: Path) -> Target:
    row = {"class_id": 1, "proposal_index": 4, "superpixel_ids": [1, 2], "undecided_ids": [3],
           "undecided_probability": [0.5], "overlap_cost": 0.5, "regression_cost": 1.0, "rank": 0}  # fmt: skip
    parts = [labels_table([{"image_id": f"test/{k}", "box_index": b, **row} for b in range(2)]) for k in range(20)]
    uri = str(root / "labels")
    shard = Path(store_labels(uri, parts).shard_uri(7))

    def read() -> Any:
        found = open_labels(uri)
        return [found.segments(unit) for unit in range(20)], found.read_all()

    return Target([shard, root / "labels" / "manifest.json"], read, is_stored=True)


def _checkpoint(root: Path, name: str) -> Target:
    network = networks.build_network("timm:test_resnet", 3, "none", head_channels=2)
    training = {"average": {"a": torch.arange(100)}}
    state = checkpoint.CheckpointState(
        1,
        0,
        0,
        network.spec,
        network.state_dict(),
        training,
        TableName("labels/epoch-001", "0" * 16),
        {"loss": 1.0},
        {"step": 3},
    )
    uri = checkpoint.save(str(root), state)
    return Target([Path(uri) / name], lambda: checkpoint.load(uri), is_stored=name != "manifest.json")


def _weights(root: Path, name: str) -> Target:
    state = {"layer.weight": torch.arange(60.0).reshape(3, 20), "layer.bias": torch.ones(3)}
    if name.endswith(".safetensors"):
        from safetensors.torch import save_file

        save_file(state, root / name)
    else:
        torch.save(state, root / name)
    return Target([root / name], lambda: read_state_dict(str(root / name)))


def _run(root: Path, name: str) -> Target:
    source = SourceSettings("records", "box", "proposals")
    config = TrainConfig(str(root), (source,), "val").check()
    files = RunFiles(str(root))
    write_config(config)
    entries = {k: HistoryEntry(k, {"train": 1.5}, train_loss=0.5, iou={"cat": None, "dog": 0.0}) for k in (1, 2, 3)}
    write_history(str(root), entries)
    matrix = np.arange(9).reshape(3, 3)
    rows = sparse_rows((f"image_{i}", matrix) for i in range(20))
    keep_matrices(str(root), UnitResult(20 * matrix, 20, 0, rows), ["background", "cat", "dog"])
    summary = {
        "supervision": "box", "mean_iou": 50.0, "iou": None, "label_mean_iou": None, "epochs": 3, "train_loss": 0.5,
        "seconds": {"all": 9.0}, "gap_s_median": None, "checkpoint": None, "resumed_from": None, "bad_records": {},
        "data": {}, "num_images": 5, "num_left_out": 0, "mlflow": {"tracking_uri": "sqlite:///x.db", "run_id": None},
    }  # fmt: skip
    write_result(str(root), summary)
    readers: dict[str, Callable[[], Any]] = {
        "config.json": lambda: read_config(str(root)),
        "history.jsonl": lambda: list(read_history(str(root), strict=True).values()),
        "confusion.json": lambda: read_confusion(files.confusion),
        "confusion-by-image.parquet": lambda: read_matrices(str(root)).total,
        "summary.json": lambda: read_summary(str(root)),
    }
    assert storage.exists(str(root / name))
    return Target([root / name], readers[name], is_stored=name.endswith(".parquet"))


TARGETS: dict[str, Callable[[Path], Target]] = {
    "voc image": lambda root: _voc(root, "JPEGImages", "a.jpg"),
    "voc annotation": lambda root: _voc(root, "Annotations", "a.xml"),
    "voc mask": lambda root: _voc(root, "SegmentationClass", "a.png"),
    "voc objects": lambda root: _voc(root, "SegmentationObject", "a.png"),
    "voc list": lambda root: _voc(root, "ImageSets", "Segmentation", "train.txt"),
    "inventory": _inventory,
    "sbd classes": lambda root: _sbd(root, "cls"),
    "sbd objects": lambda root: _sbd(root, "inst"),
    "context map": lambda root: _context(root, "trainval", "a.mat"),
    "context names": lambda root: _context(root, "labels.txt"),
    "coco file": lambda root: _coco(root, "instances.json"),
    "coco image": lambda root: _coco(root, f"{1:012d}.jpg"),
    **{f"boxes, {tool}": functools.partial(_own, tool=tool) for tool in own_formats.WRITERS},
    "zip": lambda root: _archive(root, "a.zip"),
    "tar": lambda root: _archive(root, "a.tgz"),
    "jpeg image": lambda root: _image(root, "a.jpg", exif=devkit.exif(6)),
    "png image": lambda root: _image(root, "a.png"),
    "webp image": lambda root: _image(root, "a.webp"),
    "avif image": lambda root: _image(root, "a.avif"),
    "heic image": _heic,
    "gif image": lambda root: _image(root, "a.gif"),
    "tiff image": lambda root: _image(root, "a.tif", compression="tiff_lzw"),
    "16-bit image": lambda root: _image(root, "grey16.tif"),
    "float image": lambda root: _image(root, "float.tif"),
    "label map": _png,
    "mcg proposals": lambda root: _imported(root, "mcg"),
    "mcg proposals 7.3": lambda root: _imported(root, "mcg", is_73=True),
    "rle proposals": lambda root: _imported(root, "rle"),
    "sam proposals": _sam_masks,
    "records shard": lambda root: _table(root, "records", "part-00000.parquet"),
    "records manifest": lambda root: _table(root, "records", "manifest.json"),
    "proposals shard": lambda root: _table(root, "proposals", "part-00000.parquet"),
    "label maps shard": lambda root: _table(root, "label_maps", "part-00001.parquet"),
    "labels": _labels,
    "checkpoint model": lambda root: _checkpoint(root, "model.pt"),
    "checkpoint training": lambda root: _checkpoint(root, "training.pt"),
    "checkpoint state": lambda root: _checkpoint(root, "state.json"),
    "checkpoint manifest": lambda root: _checkpoint(root, "manifest.json"),
    "pth weights": lambda root: _weights(root, "a.pth"),
    "safetensors weights": lambda root: _weights(root, "a.safetensors"),
    "run config": lambda root: _run(root, "config.json"),
    "run history": lambda root: _run(root, "history.jsonl"),
    "run confusion": lambda root: _run(root, "confusion.json"),
    "run confusion by image": lambda root: _run(root, "confusion-by-image.parquet"),
    "run summary": lambda root: _run(root, "summary.json"),
}
