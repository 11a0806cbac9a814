"""Real VOC images, through reader and table."""

import numpy as np
import pytest

from boxsup_dist.data.images import decode_image, decode_png
from boxsup_dist.data.schema import IGNORE_INDEX, VOC_CLASSES, iter_records
from boxsup_dist.records import voc
from boxsup_dist.records.build import build_records


@pytest.fixture(scope="module")
def voc2012(shared) -> str:
    return str(shared / "voc-mini" / "VOCdevkit" / "VOC2012")


@pytest.mark.parametrize(
    ("split", "count"),
    [("train", 663), ("val", 335), ("aug", 2694), ("trainaug", 3357), ("core_train", 311), ("core_val", 161)],
)
def test_lists_have_the_documented_lengths(voc2012, split, count):
    assert len(voc.read_split(voc2012, split)) == count


def test_the_first_images_of_trainaug_are_all_good(voc2012):
    for image_id in voc.read_split(voc2012, "trainaug")[:50]:
        record = voc.read_record(voc2012, image_id, "trainaug", source="voc2012")
        shape = decode_image(record.image).shape[:2]
        assert shape == (record.height, record.width) == decode_png(record.gt_label_map).shape


def test_boxes_of_val_lie_inside_and_hold_the_masks(voc2012):
    """With exact boxes nearly every labelled pixel lies in a box of its class (VOC leaves out a few small objects)."""
    inside_pixels = all_pixels = 0
    for image_id in voc.read_split(voc2012, "val")[:100]:
        record = voc.read_record(voc2012, image_id, "val", source="voc2012")
        boxes = record.boxes_xyxy
        assert (boxes >= 0).all() and (boxes[:, 2:] <= (record.width, record.height)).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all() and set(record.class_ids) <= set(range(1, 21))
        label_map = decode_png(record.gt_label_map)
        covered = np.zeros((len(VOC_CLASSES), *label_map.shape), bool)
        for (x0, y0, x1, y1), class_id in zip(boxes.astype(int), record.class_ids, strict=True):
            covered[class_id, y0:y1, x0:x1] = True
        rows, columns = np.nonzero((label_map > 0) & (label_map != IGNORE_INDEX))
        all_pixels += len(rows)
        inside_pixels += int(covered[label_map[rows, columns], rows, columns].sum())
    assert inside_pixels / all_pixels > 0.995


def test_voc2007_images_have_boxes_and_no_mask(shared):
    root = str(shared / "voc-mini" / "VOCdevkit" / "VOC2007")
    ids = voc.read_split(root, "trainval")
    assert len(ids) == 124
    for image_id in ids[:30]:
        record = voc.read_record(root, image_id, "trainval", source="voc2007")
        assert record.gt_label_map is None and len(record.boxes_xyxy) > 0


def test_the_table_holds_val_unchanged(ray_local, voc2012, tmp_path):
    table = build_records(str(tmp_path / "val"), voc.open_splits(voc2012, "val"))
    assert table.num_rows == table.counts["images"] == table.counts["with_mask"] == 335
    assert table.counts["skipped"] == 0
    per_class = {name: table.counts.get(f"boxes.{name}", 0) for name in VOC_CLASSES[1:]}
    assert min(per_class.values()) > 0 and sum(per_class.values()) == table.counts["boxes"]
    ids = [i for where in table.row_groups() for i in table.read(where, ["image_id"])["image_id"].to_pylist()]
    assert ids == [f"voc2012/{i}" for i in voc.read_split(voc2012, "val")]
    last = list(iter_records(table.read(table.row_groups()[-1])))[-1]
    again = voc.read_record(voc2012, last.image_id.split("/")[1], "val", source="voc2012")
    assert last.image == again.image and last.gt_label_map == again.gt_label_map
    assert (last.boxes_xyxy == again.boxes_xyxy).all() and last.class_ids.tolist() == again.class_ids.tolist()
