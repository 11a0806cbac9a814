"""Damaged files of every kind that a reader takes: a record whose parts fit together, or one line that names the file.

Each case changes a good file by chance: bits, cuts, repeated or missing pieces, or a value of a text replaced by one
that nobody expects.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boxsup_dist.data import rle
from boxsup_dist.data.images import decode_image, decode_png
from boxsup_dist.data.schema import Record
from boxsup_dist.errors import InputError, StorageError
from boxsup_dist.proposals.imported import import_proposals
from boxsup_dist.proposals.settings import ImportedSettings
from boxsup_dist.records import coco, context, inventory, sbd, voc
from tests import coco_set, devkit, mat_sets
from tests.mat73 import savemat73

HEIGHT, WIDTH = devkit.HEIGHT, devkit.WIDTH
Case = tuple[Path, Callable[[], Any]]  # a file that a reader takes, and the reader


def annotations() -> list[dict[str, Any]]:
    mask = np.eye(HEIGHT, WIDTH) > 0
    forms = [coco_set.SQUARE, {"size": [HEIGHT, WIDTH], "counts": rle.encode(mask).decode()}, [[0, 0, 39, 0, 20, 29]]]
    return [coco_set.annotation(id=k, segmentation=form, iscrowd=k % 2) for k, form in enumerate(forms)]


def make_cases(root: Path) -> dict[str, Case]:
    """A small good data set of every kind in a folder, and how to read it."""
    masks = {
        "SegmentationClass": devkit.mask(),
        "SegmentationObject": devkit.mask(np.eye(HEIGHT, WIDTH, dtype=np.uint8)),
    }
    devkit.write(root / "voc", "a", annotation='<?xml version="1.0" encoding="utf-8"?>' + devkit.xml(), masks=masks)
    devkit.write_list(root / "voc", "a\n")
    mat_sets.write_sbd(root / "sbd", "a")
    (root / "sbd" / "train.txt").write_text("a\n")
    devkit.write(root / "voc2010", "a")
    devkit.write_list(root / "voc2010", "a\n", folder="Main")
    mat_sets.write_context(
        root / "context", "a", np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) % 459
    )
    instances = Path(coco_set.write(root / "coco", annotations()))
    superpixels = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) // 100 + 1
    (root / "mcg").mkdir()
    savemat73(root / "mcg" / "a.mat", {"superpixels": superpixels, "labels": [np.array([[1, 2]]), np.array([[3]])]})
    (root / "rle").mkdir()
    results = [{"segmentation": {"size": [HEIGHT, WIDTH], "counts": [30, 70, HEIGHT * WIDTH - 100]}, "score": 0.5}]
    (root / "rle" / "a.json").write_text(json.dumps(results))

    def read_first(open_splits: Callable[..., Any], *arguments: str, **options: Any) -> Record:
        reader = open_splits(*arguments, **options)
        return reader.read(reader.entries[0])

    read_voc = functools.partial(read_first, voc.open_splits, str(root / "voc"), "train")
    read_clipped = functools.partial(read_voc, outside="clip")
    read_sbd = functools.partial(read_first, sbd.open_splits, str(root / "sbd"), "train")
    roots = [str(root / "context"), str(root / "voc2010")]
    read_context = functools.partial(read_first, context.open_splits, *roots, "train")
    read_coco = functools.partial(
        read_first, coco.open_splits, [str(instances)], [str(root / "coco")], "train", classes="all", outside="clip"
    )

    def proposals(kind: str) -> Callable[[], Any]:
        settings = ImportedSettings(str(root / kind), kind)
        return lambda: import_proposals(np.zeros((HEIGHT, WIDTH, 3), np.uint8), settings, image_id="voc/a")

    return {
        "voc image": (root / "voc/JPEGImages/a.jpg", read_voc),
        "voc annotation": (root / "voc/Annotations/a.xml", read_clipped),
        "voc mask": (root / "voc/SegmentationClass/a.png", read_voc),
        "voc objects": (root / "voc/SegmentationObject/a.png", read_voc),
        "voc list": (root / "voc/ImageSets/Segmentation/train.txt", read_voc),
        "voc inventory": (root / "voc/ImageSets/Segmentation/train.txt", lambda: inventory.take_inventory(str(root))),
        "sbd classes": (root / "sbd/cls/a.mat", read_sbd),
        "sbd objects": (root / "sbd/inst/a.mat", read_sbd),
        "context map": (root / "context/trainval/a.mat", read_context),
        "context names": (root / "context/labels.txt", read_context),
        "coco file": (instances, read_coco),
        "coco image": (root / "coco" / f"{1:012d}.jpg", read_coco),
        "mcg proposals": (root / "mcg/a.mat", proposals("mcg")),
        "rle proposals": (root / "rle/a.json", proposals("rle")),
    }


NAMES = [
    "voc image", "voc annotation", "voc mask", "voc objects", "voc list", "voc inventory", "sbd classes", "sbd objects",
    "context map", "context names", "coco file", "coco image", "mcg proposals", "rle proposals",
]  # fmt: skip
ODD = [b"-1", b"0", b"1", b"1e400", b"9" * 400, b"NaN", b"null", b"[]", b"{}", b'"x"', b"true", b"0.5", b"65536", b""]


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """The content with one change, by chance."""
    kind = rng.choice(
        ["bit", "bytes", "cut", "missing", "twice", "value", "other"], p=[0.25, 0.2, 0.1, 0.1, 0.1, 0.2, 0.05]
    )
    at = int(rng.integers(len(data)))
    length = int(rng.integers(1, 40))
    if kind == "bit":
        return data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :]
    if kind == "bytes":
        return data[:at] + rng.bytes(length) + data[at + length :]
    if kind == "cut":
        return data[:at]
    if kind == "missing":
        return data[:at] + data[at + length :]
    if kind == "twice":
        return data[: at + length] + data[at:]
    values = list(re.finditer(rb'-?\d+(?:\.\d+)?|"[^"]*"|utf-8', data))
    if kind == "value" and values:
        found = values[int(rng.integers(len(values)))]
        return data[: found.start()] + ODD[int(rng.integers(len(ODD)))] + data[found.end() :]
    return rng.bytes(int(rng.integers(200)))


def check(found: Any) -> None:
    """That the parts of a record fit together."""
    if not isinstance(found, Record):
        return
    assert found.image is not None and decode_image(found.image).shape == (found.height, found.width, 3)
    count = len(found.class_ids)
    assert found.boxes_xyxy.shape == (count, 4) and len(found.difficult) == len(found.crowd) == count
    assert (found.boxes_xyxy >= 0).all() and (found.boxes_xyxy <= (found.width, found.height) * 2).all()
    assert (found.boxes_xyxy[:, 2:] > found.boxes_xyxy[:, :2]).all() and (found.class_ids > 0).all()
    if found.gt_label_map is not None:
        assert decode_png(found.gt_label_map).shape == (found.height, found.width)
    for counts in found.instance_masks or []:
        rle.decode(counts, found.height, found.width)


def read_damaged(root: Path, name: str, count: int, seed: int) -> int:
    """Read `count` damaged files of a kind; return how many were refused."""
    file, read = make_cases(root)[name]
    good, refused = file.read_bytes(), 0
    check(read())
    rng = np.random.default_rng(seed)
    for _ in range(count):
        file.write_bytes(damage(good, rng))
        try:
            check(read())
        except InputError as error:
            assert not isinstance(error, StorageError) and len(str(error).splitlines()) == 1 and len(str(error)) < 2000
            refused += 1
    return refused


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_give_a_whole_record_or_one_line(tmp_path, name):
    assert read_damaged(tmp_path, name, 200, seed=0) > 20


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_thousands_of_damaged_files(tmp_path, name):
    assert read_damaged(tmp_path, name, 3_000, seed=1) > 300
