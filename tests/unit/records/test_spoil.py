"""Records with boxes made wrong on purpose: how many, which, and that nothing else changes."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np

from boxsup_dist.data.schema import VOC_CLASSES, iter_records
from boxsup_dist.records.spoil import KINDS, SPOILT_FILE, spoil_record, spoil_table
from tests.distributed import tiny


def read(table):
    return [record for where in table.row_groups() for record in iter_records(table.read(where))]


def test_the_share_of_boxes_is_wrong_and_the_list_says_which(tmp_path):
    records = [tiny.make_record(n, "train") for n in range(14)]
    source = tiny.write_records(tmp_path / "records", records)
    table, spoilt = spoil_table(source, str(tmp_path / "spoilt"), share=0.5, seed=0)
    num_boxes = source.counts["boxes"]
    assert len(spoilt) == round(0.5 * num_boxes)
    kinds = Counter(each.kind for each in spoilt)
    assert set(kinds) == set(KINDS)
    assert table.counts["boxes"] == num_boxes - kinds["missing"]
    assert json.loads((tmp_path / "spoilt" / SPOILT_FILE).read_text()) == [
        vars(each) | {"box": list(each.box)} for each in spoilt
    ]
    wrong = {(each.image_id, each.box_index) for each in spoilt}
    for before, after in zip(read(source), read(table), strict=True):
        assert (before.image_id, before.image, before.gt_label_map) == (after.image_id, after.image, after.gt_label_map)
        known = {(*box, c) for box, c in zip(before.boxes_xyxy.tolist(), before.class_ids.tolist(), strict=True)
                 for box in [tuple(box)]}  # fmt: skip
        for k, (box, class_id) in enumerate(zip(after.boxes_xyxy.tolist(), after.class_ids.tolist(), strict=True)):
            assert ((*box, class_id) in known) != ((after.image_id, k) in wrong)
            x0, y0, x1, y1 = box
            assert 0 <= x0 < x1 <= after.width and 0 <= y0 < y1 <= after.height
            assert 0 < class_id < len(VOC_CLASSES)


def test_the_same_seed_spoils_the_same_boxes(tmp_path):
    source = tiny.write_records(tmp_path / "records", [tiny.make_record(n, "train") for n in range(8)])
    runs = [spoil_table(source, str(tmp_path / name), share=0.3, seed=seed) for name, seed in
            (("a", 0), ("b", 0), ("c", 1))]  # fmt: skip
    assert runs[0][0].fingerprint == runs[1][0].fingerprint != runs[2][0].fingerprint
    assert runs[0][1] == runs[1][1] != runs[2][1]


def test_a_box_that_the_border_keeps_in_place_gets_another_class_instead():
    record = tiny.make_record(0, "train")
    boxes = np.array([[0, 0, record.width, record.height]] * len(record.class_ids), np.float32)
    whole = type(record)(**{**vars(record), "boxes_xyxy": boxes})
    changed, spoilt = spoil_record(whole, {0: "doubled"}, len(VOC_CLASSES), np.random.default_rng(0))
    assert [each.kind for each in spoilt] == ["class"]
    assert changed.class_ids[0] != whole.class_ids[0] and (changed.boxes_xyxy == boxes).all()
