"""jobs.prepare: archives in the published layout become data sets, which are counted; --check counts a folder's."""

import tarfile
from pathlib import Path

import pytest

from boxsup_dist.errors import InputError, SettingError
from boxsup_dist.records import archives
from boxsup_dist.records.inventory import Count, take_inventory
from jobs import prepare
from tests import coco_set, devkit, mat_sets


def by_split(counts: list[Count]) -> dict[str, tuple[int, ...]]:
    """images, absent, boxes, masks, instances of every split."""
    return {f"{c.source} {c.split}": (c.images, c.absent, c.boxes, c.masks, c.instances) for c in counts}


@pytest.fixture
def root(tmp_path):
    """Every data set in the folders that prepare makes: three images each, some files missing."""
    root = tmp_path / "data"
    for year in ("VOC2007", "VOC2010", "VOC2012"):
        folder = root / "VOCdevkit" / year
        masks = {"SegmentationClass": devkit.mask()}
        devkit.write(folder, "a", masks=masks | {"SegmentationObject": devkit.mask()})
        devkit.write(folder, "b", masks={"SegmentationClassAug": devkit.mask()})
        devkit.write(folder, "c", annotation=None)
        devkit.write_list(folder, "a\nb\n", "train", folder="Main")
        devkit.write_list(folder, "a 1\nb -1\n", "dog_train", folder="Main")
        devkit.write_list(folder, "c\nabsent\n", "val", folder="Main")
    devkit.write_list(root / "VOCdevkit/VOC2012", "a\n", "train")
    devkit.write_list(root / "VOCdevkit/VOC2012", "c\n", "val")
    sbd = root / "benchmark_RELEASE" / "dataset"
    for image_id in "ab":
        mat_sets.write_sbd(sbd, image_id)
    (sbd / "train.txt").write_text("a\nb\n")
    (sbd / "val.txt").write_text("c\n")
    items = [coco_set.annotation(), coco_set.annotation(2, segmentation=[])]
    file = Path(coco_set.write(root / "coco" / "train2014", items, 3))
    (root / "coco" / "annotations").mkdir()
    file.rename(root / "coco" / "annotations" / "instances_train2014.json")
    (root / "coco" / "annotations" / "captions_train2014.json").write_text("{}")
    mat_sets.write_context(root / "context", "a", mat_sets.objects_map())
    return root


def test_every_data_set_is_counted_by_source_split_and_supervision(root):
    counts = take_inventory(str(root))
    found = by_split(counts)
    assert found["voc2012 Segmentation/train"] == (1, 0, 1, 1, 1)
    assert found["voc2012 Main/train"] == found["voc2007 Main/train"] == (2, 0, 2, 2, 1)
    assert found["voc2012 Main/val"] == (2, 1, 0, 0, 0)
    assert found["sbd train"] == (2, 0, 2, 2, 2) and found["sbd val"] == (1, 1, 0, 0, 0)
    assert found["voc2012 + sbd train_aug"] == (2, 0, 2, 2, 2)
    assert found["coco train2014"] == (3, 0, 2, 2, 2)
    assert found["context train"] == (2, 0, 0, 1, 0) and found["context val"] == (2, 1, 0, 0, 0)
    assert not any("dog" in name for name in found)
    published = {f"{c.source} {c.split}": c.published for c in counts}
    assert published["voc2012 + sbd train_aug"] == 10582 and published["context val"] == 5105
    assert published["coco train2014"] == 82783 and published["voc2007 Main/train"] is None


def test_a_folder_without_data_sets_is_reported(tmp_path):
    with pytest.raises(InputError, match="no data set found"):
        take_inventory(str(tmp_path))


def test_check_prints_the_counts(root, capsys):
    prepare.main(prepare.Settings(check=str(root)))
    printed = capsys.readouterr().out
    assert "train_aug" in printed and "10,582" in printed and str(root / "coco") in printed


def test_a_present_archive_is_unpacked_and_an_absent_one_reported(tmp_path, monkeypatch, capsys):
    year = tmp_path / "made" / "VOCdevkit" / "VOC2007"
    devkit.write(year, "a")
    devkit.write_list(year, "a\n", "trainval", folder="Main")
    root = tmp_path / "data"
    root.mkdir()
    here, absent = archives.DATA_SETS["voc2007"].archives
    with tarfile.open(root / here.name, "w") as opened:
        opened.add(tmp_path / "made", arcname=".")
    with pytest.raises(InputError, match="not the published file"):
        prepare.main(prepare.Settings("voc2007", root=str(root)))
    small = archives.Published("page", (archives.Archive(here.url, None), absent))
    monkeypatch.setitem(archives.DATA_SETS, "voc2007", small)
    for _ in range(2):
        capsys.readouterr()
        prepare.main(prepare.Settings("voc2007", root=str(root)))
        printed = capsys.readouterr().out
        assert f"{here.name}: unpacked" in printed and f"{absent.name}: not here. Get {absent.url}" in printed
        assert "Main/trainval" in printed and "5,011" in printed


def test_without_archives_it_says_where_to_get_them(tmp_path, capsys):
    prepare.main(prepare.Settings("coco2014", root=str(tmp_path)))
    printed = capsys.readouterr().out
    assert printed.count("not here. Get http") == 3 and "train2014.zip" in printed


@pytest.mark.parametrize(
    "settings",
    [prepare.Settings(), prepare.Settings("sbd", check="x"), prepare.Settings("sbd", root="s3://bucket/data")],
)
def test_settings_that_contradict_are_refused(settings):
    with pytest.raises(SettingError):
        prepare.main(settings)


def test_the_small_data_sets_are_counted(shared):
    for name in ("voc-mini", "coco-mini"):
        if not (shared / name).is_dir():
            pytest.skip(f"no real data at {shared / name}")
    found = by_split(take_inventory(str(shared)))
    assert found["coco train2017"] == (128, 0, 126, 128, 128)
    assert found["voc2007 Main/trainval"] == (124, 0, 124, 0, 0)
    assert found["voc2012 Segmentation/train"][:2] == (663, 0)
    assert found["voc2012 Segmentation/aug"] == (2694, 0, 2694, 2694, 0)
    assert found["voc2012 Segmentation/val"] == (335, 0, 335, 335, 0)
