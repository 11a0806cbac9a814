"""The SBD reader on MATLAB files as published, and train_aug with the official lists."""

import fsspec
import numpy as np
import pytest
import scipy.io

from boxsup_dist.data import rle
from boxsup_dist.data.images import decode_png
from boxsup_dist.errors import InputError, RecordError
from boxsup_dist.records import sbd, voc
from tests import devkit, mat_sets
from tests.mat_sets import DOG, PERSON

HEIGHT, WIDTH = devkit.HEIGHT, devkit.WIDTH


def masks_of(record) -> list[np.ndarray]:
    return [rle.decode(counts, record.height, record.width) for counts in record.instance_masks]


@pytest.fixture
def root(tmp_path):
    return tmp_path / "benchmark_RELEASE" / "dataset"


def test_a_record_without_a_devkit_has_tight_boxes_and_true_instances(root):
    mat_sets.write_sbd(root, "a")
    record = sbd.read_record(str(root), "a", "train")
    objects = mat_sets.objects_map()
    assert record.image_id == "sbd/a" and record.image == devkit.jpeg() and record.split == "train"
    assert record.boxes_xyxy.dtype == np.float32
    assert record.boxes_xyxy.tolist() == [[1, 0, 20, 29], [11, 6, 39, 25]]
    assert record.class_ids.tolist() == [DOG, PERSON]
    assert not record.difficult.any() and not record.crowd.any()
    label_map = decode_png(record.gt_label_map)
    assert label_map.dtype == np.uint8 and (label_map == np.array([0, DOG, PERSON])[objects]).all()
    assert all((mask == (objects == k)).all() for k, mask in enumerate(masks_of(record), start=1))


def test_with_a_devkit_image_and_boxes_are_vocs(root, tmp_path):
    year = tmp_path / "VOC2012"
    devkit.write(year, "a", image=devkit.jpeg(quality=50))
    mat_sets.write_sbd(root, "a", image=None)
    record = sbd.read_record(str(root), "a", "train", devkit=str(year), source="voc2012")
    assert record.image_id == "voc2012/a" and record.image == devkit.jpeg(quality=50)
    assert record.boxes_xyxy.tolist() == [[0, 0, 20, 30], [10, 5, 40, 25]] and record.difficult.tolist() == [0, 1]
    assert all((mask == (mat_sets.objects_map() == k)).all() for k, mask in enumerate(masks_of(record), start=1))


def test_a_box_without_an_object_of_its_class_has_an_empty_mask(root, tmp_path):
    year = tmp_path / "VOC2012"
    devkit.write(year, "a", annotation=devkit.xml([("person", (1, 1, 20, 30)), ("cat", (11, 6, 40, 25))]))
    mat_sets.write_sbd(root, "a", categories=(PERSON, DOG))
    record = sbd.read_record(str(root), "a", "train", devkit=str(year))
    assert [int(mask.sum()) for mask in masks_of(record)] == [(mat_sets.objects_map() == 1).sum(), 0]


def test_objects_without_a_pixel_are_no_boxes_and_there_may_be_none_at_all(root):
    mat_sets.write_sbd(root, "a", categories=(DOG, PERSON, DOG))
    assert len(sbd.read_record(str(root), "a", "train").boxes_xyxy) == 2
    mat_sets.write_sbd(root, "b", objects=np.zeros((HEIGHT, WIDTH), np.uint8), categories=())
    record = sbd.read_record(str(root), "b", "train")
    assert (
        record.boxes_xyxy.shape == (0, 4) and record.instance_masks == [] and not decode_png(record.gt_label_map).any()
    )


_TURNED = np.zeros((WIDTH, HEIGHT), np.uint8)
_CLASS_21 = np.full((HEIGHT, WIDTH), 21, np.uint8)
_ZEROS = np.zeros((HEIGHT, WIDTH), np.uint8)
BAD = {
    "no image": ({"image": None}, r"missing file.*a\.jpg"),
    "class 21": ({"classes": _CLASS_21}, r"unknown values.*cls/a\.mat.*GTcls.*\[21\].*0\.\.20"),
    "class map turned": ({"classes": _TURNED}, r"another size.*cls.*30 x 40.*40 x 30"),
    "object map turned": ({"objects": _TURNED}, r"another size.*30 x 40.*40 x 30"),
    "object without class": ({"categories": (DOG,), "classes": _ZEROS}, r"unknown values.*inst.*\[2\].*0\.\.1"),
    "class 0 of object": ({"categories": (DOG, 0)}, r"of unknown class.*GTinst.Categories.*1\.\.20"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_reported(root, name):
    changes, match = BAD[name]
    mat_sets.write_sbd(root, "a", **changes)
    with pytest.raises(RecordError, match=match):
        sbd.read_record(str(root), "a", "train")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, r"missing file.*cls/a\.mat"),
        (b"no MATLAB", r"not a readable MATLAB file.*cls/a\.mat"),
        ({"other": 1}, r"lacks a value.*cls/a\.mat; field: GTcls; found: \['other'\]"),
        ({"GTcls": {"Boundaries": 1}}, r"field: GTcls\.Segmentation; found: \['Boundaries'\]"),
        ({"GTcls": {"Segmentation": "text"}}, "not a matrix of numbers"),
        ({"GTcls": 3.0}, r"field: GTcls\.Segmentation; found: 'ndarray'"),
    ],
)
def test_mat_files_of_another_kind_are_reported(root, content, match):
    mat_sets.write_sbd(root, "a")
    file = root / "cls" / "a.mat"
    if content is None:
        file.unlink()
    elif isinstance(content, bytes):
        file.write_bytes(content)
    else:
        scipy.io.savemat(file, content)
    with pytest.raises(RecordError, match=match):
        sbd.read_record(str(root), "a", "train")


@pytest.fixture
def both(root, tmp_path):
    """VOC: a, b train, c val. SBD: b, c, d train, e val."""
    year = tmp_path / "VOCdevkit" / "VOC2012"
    for image_id in "abc":
        devkit.write(year, image_id, masks={"SegmentationClass": devkit.mask()})
    for image_id in "de":
        devkit.write(year, image_id)
    devkit.write_list(year, "b\na\n", "train")
    devkit.write_list(year, "c\n", "val")
    for image_id in "bcde":
        mat_sets.write_sbd(root, image_id)
    (root / "train.txt").write_text("d\nc\nb\n")
    (root / "val.txt").write_text("e\n")
    return root, year


def test_train_aug_joins_the_lists_and_takes_vocs_own_masks_first(both, tmp_path):
    _, year = both
    reader = sbd.open_splits(str(tmp_path / "benchmark_RELEASE"), "train_aug", voc_root=str(year))
    assert [tuple(entry) for entry in reader.entries] == [("b", "train"), ("a", "train"), ("d", "aug"), ("e", "aug")]
    assert (reader.source, reader.split, reader.published) == ("voc2012", "train_aug", 10582)
    records = [reader.read(entry) for entry in reader.entries]
    assert [record.image_id for record in records] == [f"voc2012/{i}" for i in "bade"]
    assert [record.gt_label_map == devkit.mask() for record in records] == [True, True, False, False]
    assert all(len(record.boxes_xyxy) == 2 for record in records)
    added = sbd.open_splits(str(tmp_path / "benchmark_RELEASE"), "aug", voc_root=str(year))
    assert [entry.name for entry in added.entries] == ["d", "e"] and added.published == 9118


def test_roots_may_be_any_fsspec_uri(both):
    root, year = both
    store = fsspec.filesystem("memory")
    store.put(str(root), "/sbd-store/dataset", recursive=True)
    store.put(str(year), "/sbd-store/VOC2012", recursive=True)
    reader = sbd.open_splits("memory://sbd-store", "train_aug", voc_root="memory://sbd-store/VOC2012")
    records = [reader.read(entry) for entry in reader.entries]
    assert [record.image_id for record in records] == [f"voc2012/{i}" for i in "bade"]
    store.rm("/sbd-store", recursive=True)


def test_own_splits_and_lists(both):
    root, year = both
    reader = sbd.open_splits(str(root), "train+val")
    assert [tuple(entry) for entry in reader.entries] == [(i, "train") for i in "dcb"] + [("e", "val")]
    assert (reader.source, reader.published, reader.classes) == ("sbd", 8498 + 2857, voc.VOC_CLASSES)
    assert sbd.open_splits(str(root), "val", voc_root=str(year)).source == "voc2012"
    (root / "own.txt").write_text("d\n")
    own = sbd.open_splits(str(root), str(root / "own.txt"))
    assert (own.split, own.published, len(own.entries)) == ("own", None, 1)
    for split, problem in (("test", "no such split.*train, val, train_aug"), ("train+train", "share images")):
        with pytest.raises(InputError, match=problem):
            sbd.open_splits(str(root), split)
    with pytest.raises(InputError, match="field: voc_root"):
        sbd.open_splits(str(root), "train_aug")
    with pytest.raises(InputError, match="not the data set SBD"):
        sbd.open_splits(str(year), "train")


def test_train_aug_of_the_official_lists_has_10582_images(shared):
    folder = shared / "published" / "splits"
    if not folder.is_dir():
        pytest.skip(f"no official lists at {folder}")
    names = ("Pascal_Segmentation_train_2012", "Pascal_Segmentation_val_2012", "SBD_train", "SBD_val")
    lists = [voc.read_list(str(folder / f"{name}.txt")) for name in names]
    assert [len(ids) for ids in lists] == [1464, 1449, 8498, 2857]
    entries = sbd.train_aug(*lists)
    assert len(entries) == len({entry.name for entry in entries}) == 10582
    assert sum(entry.split == "train" for entry in entries) == 1464
    assert not {entry.name for entry in entries} & set(lists[1])
    voc2007 = [len(voc.read_list(str(folder / f"Pascal_Main_{name}_2007.txt"))) for name in ("trainval", "test")]
    assert voc2007 == [5011, 4952]
