"""jobs.start: which steps it runs. tests/distributed/test_start.py runs them."""

from __future__ import annotations

import pytest

from boxsup_dist.errors import TableError
from jobs import start
from tests.distributed import tiny


@pytest.fixture
def steps(monkeypatch):
    """Names and arguments of the steps, which do nothing."""
    called = []
    monkeypatch.setattr(start, "run_step", lambda name, arguments: called.append((name, arguments)))
    return called


def settings_of(tmp_path, **changes):
    return start.Settings("photos", "boxes.json", str(tmp_path / "out"), **changes)


def test_a_table_of_proposals_replaces_the_step_that_builds_one(tmp_path, steps, capsys):
    records, _, _ = tiny.write_tables(tmp_path / "out")
    own = tiny.write_proposals(tmp_path / "own", records, [tiny.make_record(n, "train") for n in range(tiny.NUM_TRAIN)])
    start.main(settings_of(tmp_path))
    assert [name for name, _ in steps] == ["build_records", "build_proposals", "train", "export_labels", "gallery"]
    assert str(tmp_path / "out" / "proposals") in dict(steps)["train"]
    steps.clear()
    start.main(settings_of(tmp_path, proposals=own.uri))
    assert [name for name, _ in steps] == ["build_records", "train", "export_labels", "gallery"]
    assert own.uri in dict(steps)["train"] and str(tmp_path / "out" / "proposals") not in dict(steps)["train"]
    assert "warning: " in capsys.readouterr().out  # what looks wrong is said both times


def test_proposals_of_other_records_are_refused_before_a_long_step(tmp_path, steps):
    tiny.write_tables(tmp_path / "out")
    others = [tiny.make_record(n, "val") for n in range(tiny.NUM_VAL)]
    other = tiny.write_proposals(tmp_path / "own", tiny.write_records(tmp_path / "other", others), others)
    with pytest.raises(TableError, match="other records"):
        start.main(settings_of(tmp_path, proposals=other.uri))
    assert [name for name, _ in steps] == ["build_records"]
