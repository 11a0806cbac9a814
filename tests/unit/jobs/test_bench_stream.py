"""The plan takes the memory of the stream from the stream."""

from boxsup_dist.runs import planning
from boxsup_dist.training.stream import max_slices


def test_the_plan_counts_as_many_slices_as_a_stream_may_hold():
    for num_lanes, max_tasks in ((1, 1), (10, 2), (20, 4)):
        slices = planning.SLICES_OF_A_LANE * num_lanes + planning.SLICES_OF_A_TASK * max_tasks
        assert slices == max_slices(num_lanes, max_tasks)
