"""The plan takes the memory of the stream from the stream; labels of repeated units."""

from boxsup_dist.data.labels import labels_table, store_labels
from boxsup_dist.runs import planning
from boxsup_dist.training.stream import max_slices
from jobs.bench.stream import repeated


def test_the_plan_counts_as_many_slices_as_a_stream_may_hold():
    for num_lanes, max_tasks in ((1, 1), (10, 2), (20, 4)):
        slices = planning.SLICES_OF_A_LANE * num_lanes + planning.SLICES_OF_A_TASK * max_tasks
        assert slices == max_slices(num_lanes, max_tasks)


def test_repeated_labels_are_those_of_the_units(tmp_path):
    box = {"box_index": 0, "class_id": 1, "proposal_index": 0, "superpixel_ids": [1], "undecided_ids": [],
           "undecided_probability": [], "overlap_cost": 0.0, "regression_cost": 0.0, "rank": 0}  # fmt: skip
    parts = [labels_table([{"image_id": "a", **box}]), labels_table([]), labels_table([{"image_id": "b", **box}])]
    labels = repeated(store_labels(str(tmp_path / "labels"), parts), [0, 1, 2, 0, 1, 2])
    assert [list(labels.segments(unit)) for unit in range(6)] == [["a"], [], ["b"], ["a"], [], ["b"]]
