"""The measurement of the stream: its rows, its table, and the memory that the plan takes from the stream."""

import json

from boxsup_dist.runs import planning
from boxsup_dist.training.stream import max_slices
from jobs.bench.stream import row, store_rows


def test_a_row_is_the_median_of_its_rounds_with_their_spread():
    line = row("epoch", "times", [0.99, 0.97, 0.985], 0.98)
    assert (line["measured"], line["spread"], line["goal"], line["reached"]) == (
        0.985,
        "0.97 to 0.99",
        ">= 0.98",
        "yes",
    )
    assert row("first batch", "s", [0.4, 3.0, 2.5], 2.0, at_most=True)["reached"] == "no"


def test_the_rows_replace_those_of_an_earlier_call_in_the_table(tmp_path):
    table = tmp_path / "bench.json"
    other = {"bench": "crf", "measurement": "m", "measured": "1", "goal": None}
    old = {"bench": "stream", "measurement": "old", "measured": "1", "goal": None}
    table.write_text(json.dumps({"command": ["c"], "seeds": None, "rows": [old, other]}))
    store_rows(str(table), [row("first batch", "s", [0.5], 2.0, at_most=True)])
    stored = json.loads(table.read_text())
    new = {"bench": "stream", "measurement": "first batch", "measured": "0.5 s (0.5 to 0.5)", "goal": "<= 2"}
    assert stored == {"command": ["c"], "seeds": None, "rows": [other, new]}


def test_the_plan_counts_as_many_slices_as_a_stream_may_hold():
    for num_lanes, max_tasks in ((1, 1), (10, 2), (20, 4)):
        slices = planning.SLICES_OF_A_LANE * num_lanes + planning.SLICES_OF_A_TASK * max_tasks
        assert slices == max_slices(num_lanes, max_tasks)
