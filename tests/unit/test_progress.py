"""Progress shows rate and time left of this call's own work."""

import pytest

from boxsup_dist.progress import ProgressMeter, format_duration


@pytest.mark.parametrize(("seconds", "text"), [(0, "0s"), (59.4, "59s"), (187, "3m07s"), (7500, "2h05m")])
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_earlier_work_counts_for_the_bar_but_not_for_the_rate(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a notebook, whose output is no terminal either
    clock = [0.0]
    monkeypatch.setattr("boxsup_dist.progress.time.monotonic", lambda: clock[0])
    with ProgressMeter("records", 10, done=6) as progress:
        clock[0] = 4.0
        progress.advance(20)
        progress.advance(20)
        assert progress.status() == "8/10  40 images  10.0 images/s  left 4s"
        clock[0] = 20.0
        progress.advance(20)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["records: 9/10  60 images  3.0 images/s  left 7s"] * 2
