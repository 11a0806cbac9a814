"""The rows of the measurements and their table."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from boxsup_dist.errors import SettingError
from jobs.bench import all as all_of_them
from jobs.bench.rows import row, store_rows
from jobs.bench.settings import MEASUREMENTS, All


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
    commands = ["make bench", "python -m jobs.bench crf --run-dir RUN --records RECORDS"]
    assert stored == {"command": commands, "seeds": None, "rows": [other, {**new, "reached": "yes"}]}


def test_rows_of_each_measurement_come_into_the_table_and_a_failed_one_is_named(tmp_path, monkeypatch, capsys):
    """Each measurement is called with its own folder and one table; `crf` runs only with its run and records."""
    called = []

    def run(command: list[str]) -> SimpleNamespace:
        name, options = command[3], dict(zip(command[4::2], command[5::2], strict=True))
        MEASUREMENTS[name](**{option[2:].replace("-", "_"): value for option, value in options.items()})
        called.append(name)
        if name == "actors":
            return SimpleNamespace(returncode=2)
        store_rows(options["--bench-table"], name, [row(f"row of {name}", "s", [0.5], 1.0)])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(all_of_them.subprocess, "run", run)
    out = str(tmp_path / "out")
    with pytest.raises(SystemExit, match="1"):
        all_of_them.main(All(out=out))
    skipped = all_of_them.left_out(All())
    always = {"scale", "crf", "networks", "segments"}
    assert always <= set(skipped) <= {*always, "gpu"}
    assert called == [name for name in MEASUREMENTS if name != "all" and name not in skipped]
    shown = capsys.readouterr()
    assert "crf is left out: it needs --run-dir RUN --records RECORDS" in shown.out
    assert all(f"row of {name}" in shown.out for name in called if name != "actors")
    assert shown.err.count("\n") == 1 and "actors failed" in shown.err

    table = str(tmp_path / "bench.json")
    with pytest.raises(SystemExit, match="1"):
        all_of_them.main(All(out=out, bench_table=table, run_dir="r", records="t"))
    assert "crf" in called and "row of crf" in Path(table).read_text()
    with pytest.raises(SettingError, match="run_dir needs records"):
        All(out=out, run_dir="r").check()
