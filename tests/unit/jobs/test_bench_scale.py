"""The synthetic set of the measurement scale, and how its watch sums up."""

from __future__ import annotations

import numpy as np
import pytest

from boxsup_dist.data.images import decode_image
from boxsup_dist.data.schema import proposals_from_table, proposals_to_table
from jobs.bench.scale_set import entries, index_of, scene_proposals, scene_record
from jobs.bench.watch import Sample, kind_of, thirds

# Four images of two bases: the second time in another order and mirrored otherwise.
IDS = ["scale/0000000", "scale/0000001", "scale/0000064", "scale/0000065"]


@pytest.mark.parametrize("image_id", IDS)
def test_proposals_are_whole_and_their_boxes_tight(image_id):
    found = scene_proposals(0, image_id)
    assert found.image_id == image_id and len(found) == 2000
    assert set(np.unique(found.superpixels)) == set(range(found.num_superpixels))
    assert (np.diff(found.objectness) <= 0).all()
    for j in range(0, 2000, 50):
        members = found.members(j)
        assert len(members) > 0 and (np.diff(members.astype(int)) > 0).all()
        y, x = np.nonzero(np.isin(found.superpixels, members))
        assert found.boxes[j].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_sizes_are_spread_as_those_of_mcg():
    lengths = np.concatenate([np.diff(scene_proposals(0, image_id).indptr) for image_id in IDS[:2]])
    tenth, half, nine_tenths = np.percentile(lengths, [10, 50, 90])
    assert tenth <= 2 and 5 <= half <= 15 and 60 <= nine_tenths <= 250 and 25 <= lengths.mean() <= 80


def test_images_of_one_base_differ():
    first, second = (scene_proposals(0, image_id) for image_id in ("scale/0000000", "scale/0000064"))
    assert sorted(np.diff(first.indptr)) == sorted(np.diff(second.indptr)), "the same base"
    assert not np.array_equal(first.indices, second.indices)


def test_a_record_is_a_function_of_seed_and_index():
    entry = entries(3)[2]
    record, again, other = (scene_record(entry, seed) for seed in (0, 0, 1))
    assert record.image == again.image != other.image
    assert np.array_equal(record.boxes_xyxy, again.boxes_xyxy)
    assert index_of(record.image_id) == 2
    assert decode_image(record.image).shape == (record.height, record.width, 3)
    assert 64 <= record.height <= 96 and 64 <= record.width <= 96
    low, high = record.boxes_xyxy[:, :2], record.boxes_xyxy[:, 2:]
    assert (low >= 0).all() and (high > low).all() and (high <= [record.width, record.height]).all()


def test_images_have_five_boxes_on_average_and_are_of_their_proposals():
    records = [scene_record(entry, 0) for entry in entries(60)]
    assert 4 < np.mean([len(record.class_ids) for record in records]) < 6
    assert len({record.image for record in records}) == 60
    for record in records[:5]:
        assert scene_proposals(0, record.image_id).superpixels.shape == (record.height, record.width)


def test_proposals_survive_their_table():
    found = scene_proposals(0, "scale/0000007")
    (back,) = proposals_from_table(proposals_to_table([found]))
    assert np.array_equal(back.indices, found.indices) and np.array_equal(back.superpixels, found.superpixels)


def test_peaks_of_the_first_and_the_last_third():
    samples = [Sample(float(t), {"job": 10.0 + t, "actor": 7.0}, 20.0 + t, float(t == 5)) for t in range(10)]
    assert thirds(samples) == [
        {"process": "actor", "first third": 7, "last third": 7},
        {"process": "job", "first third": 13, "last third": 19},
        {"process": "all together", "first third": 23, "last third": 29},
        {"process": "object store", "first third": 0, "last third": 0},
    ]


@pytest.mark.parametrize(
    "title, kind",
    [
        ("ray::_Member.run", "actor"),
        ("ray::RayTrainWorker.execute", "train worker"),
        ("ray::_load_slice", "data task"),
        ("ray::_continue", "data task"),
        ("ray::ReadRange->Map(write_one)", "data task"),
        ("ray::IDLE", "idle"),
        ("/usr/bin/raylet", "ray itself"),
    ],
)
def test_kinds_of_processes(title, kind):
    assert kind_of(title) == kind
