"""What looks wrong in boxes is said, and nothing is said of boxes that are right."""

import numpy as np

from boxsup_dist.data.schema import Record, records_to_table
from boxsup_dist.data.tables import Table, begin, publish, write_shard
from boxsup_dist.records.own.doubts import find_doubts
from boxsup_dist.records.reader import count_records
from tests import devkit

CLASSES = ("background", "cat", "dog")
GOOD = [[2, 2, 14, 14], [20, 5, 36, 25]]


def table_of(tmp_path, boxes, class_ids, classes=CLASSES) -> Table:
    records = [
        Record(
            image_id=f"own/{n}",
            source="own",
            split="train",
            image=devkit.jpeg(),
            height=devkit.HEIGHT,
            width=devkit.WIDTH,
            boxes_xyxy=np.array(each, np.float32).reshape(-1, 4),
            class_ids=np.array(ids, np.int32),
            difficult=np.zeros(len(ids), bool),
            crowd=np.zeros(len(ids), bool),
        )
        for n, (each, ids) in enumerate(zip(boxes, class_ids, strict=True))
    ]
    uri, settings = str(tmp_path / "records"), {"classes": list(classes)}
    begin(uri, "records", settings)
    counts = count_records(records, classes)
    info = write_shard(uri, 0, records_to_table(records), "records", row_group_size=4, counts=counts)
    return publish(uri, "records", settings, [info])


def test_nothing_is_said_of_good_boxes(tmp_path):
    assert find_doubts(table_of(tmp_path, [GOOD] * 10, [[1, 2]] * 10)) == []


def test_classes_with_few_boxes_are_counted(tmp_path):
    (doubt,) = find_doubts(table_of(tmp_path, [GOOD] * 10 + [GOOD[:1]], [[1, 1]] * 10 + [[2]]))
    assert "dog (1)" in doubt.text and "cat" not in doubt.text


def test_doubled_small_and_whole_boxes_are_named_with_images(tmp_path):
    odd = {
        "drawn twice": [GOOD[0], [2, 2, 14, 14.5]],
        "fill their image": [[0, 0, 40, 30], GOOD[0]],
        "below 8 pixels": [[2, 2, 9, 20], GOOD[1]],
    }
    for number, (text, boxes) in enumerate(odd.items()):
        table = table_of(tmp_path / str(number), [boxes] * 10 + [GOOD], [[1, 1]] * 11)
        (doubt,) = [each for each in find_doubts(table) if text in each.text]
        assert doubt.text.startswith("10 of 22 ") and doubt.images == ("own/0", "own/1", "own/2")
        assert len(find_doubts(table)) == 2, "the other doubt is that there is no dog"


def test_one_whole_box_among_many_is_no_doubt(tmp_path):
    assert find_doubts(table_of(tmp_path, [GOOD] * 10 + [[[0, 0, 40, 30]]], [[1, 2]] * 10 + [[1]])) == []


def test_names_that_differ_in_case_alone_are_named(tmp_path):
    classes = ("background", "traffic light", "Traffic_Light")
    (doubt,) = find_doubts(table_of(tmp_path, [GOOD] * 10, [[1, 2]] * 10, classes))
    assert "traffic light, Traffic_Light" in doubt.text
