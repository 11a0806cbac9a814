"""Real COCO images, through reader, table and quality tool."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from boxsup_dist.data import rle
from boxsup_dist.data.images import decode_png
from boxsup_dist.data.schema import iter_records
from boxsup_dist.proposals import quality
from boxsup_dist.records import coco
from boxsup_dist.records.build import build_records


@pytest.fixture(scope="module")
def files(shared) -> tuple[str, str]:
    root = shared / "coco-mini"
    return str(root / "annotations" / "instances_train2017.json"), str(root / "train2017")


def test_the_table_holds_every_image_and_instance(ray_local, files, tmp_path):
    table = build_records(
        str(tmp_path / "t"), coco.open_splits([files[0]], [files[1]], "train2017", classes="all"), expect_images=128
    )
    counts = {"images": 128, "boxes": 929, "skipped": 0, "left_out_boxes": 0, "crowd": 0, "with_instances": 128}
    assert {**table.counts, **counts} == table.counts
    assert len(table.classes) == 81 and table.counts["boxes.person"] == 254
    records = [r for where in table.row_groups() for r in iter_records(table.read(where))]
    stated = {f"coco/{image.name}": image for image in coco.read_index(files[0], "all").images}
    assert [r.image_id for r in records] == list(stated)
    overlaps = [
        _overlap(mask, annotation["segmentation"])
        for r in records
        for mask, annotation in zip(quality.objects_of(r).masks, stated[r.image_id].annotations, strict=True)
        if mask.sum() > 400
    ]
    assert min(overlaps) > 0.75 and np.mean(overlaps) > 0.93


def _overlap(mask: np.ndarray, polygons: list[list[float]]) -> float:
    """Jaccard index with the polygons as Pillow fills them, whose rule for border pixels is another."""
    picture = Image.new("1", mask.shape[::-1])
    for polygon in polygons:
        corners = np.reshape(polygon, (-1, 2)) - 0.5
        ImageDraw.Draw(picture).polygon([tuple(corner) for corner in corners], fill=1)
    drawn = np.asarray(picture)
    return (mask & drawn).sum() / (mask | drawn).sum()


def test_masks_lie_in_their_boxes_and_the_label_map_shows_them(files):
    index = coco.read_index(files[0], "voc")
    assert sum(len(image.annotations) for image in index.images) == _count_voc(files[0])
    for image in index.images[:40]:
        record = coco.read_record(files[1], image, "train2017", index.class_of)
        label_map = decode_png(record.gt_label_map)
        union = np.zeros(label_map.shape, bool)
        for (x0, y0, x1, y1), counts in zip(record.boxes_xyxy, record.instance_masks, strict=True):
            mask = rle.decode(counts, *label_map.shape)
            rows, columns = np.nonzero(mask)
            union |= mask
            assert columns.min() >= x0 - 1 and columns.max() < x1 + 1 and rows.min() >= y0 - 1 and rows.max() < y1 + 1
        assert ((label_map > 0) == union).all() and set(np.unique(label_map)) <= {0, *record.class_ids}


def _count_voc(file: str) -> int:
    """Annotations of VOC's classes, by COCO's ids of them."""
    ids = {1, 2, 3, 4, 5, 6, 7, 9, 16, 17, 18, 19, 20, 21, 44, 62, 63, 64, 67, 72}
    with open(file) as opened:
        return sum(annotation["category_id"] in ids for annotation in json.load(opened)["annotations"])
