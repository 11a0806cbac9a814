"""The rows of the measurements and their table."""

import json

from jobs.bench.rows import row, store_rows


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
    store_rows(str(table), "stream", [row("first batch", "s", [0.5], 2.0, at_most=True)])
    stored = json.loads(table.read_text())
    new = {"bench": "stream", "measurement": "first batch", "measured": "0.5 s (0.5 to 0.5)", "goal": "<= 2"}
    assert stored == {"command": ["c"], "seeds": None, "rows": [other, new]}
