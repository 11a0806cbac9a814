"""Workers' notices of a store: each is shown once, in the order of their times; a late "away" hides no "answers"."""

from __future__ import annotations

import pytest
import ray

from boxsup_dist.distributed import notices, ray_internals
from boxsup_dist.io import waiting
from boxsup_dist.io.waiting import Notice


@pytest.fixture
def shown(monkeypatch) -> list[str]:
    """The texts that a driver shows; `notices._send` writes into a dictionary in place of Ray's store."""
    stored: dict[str, str] = {}
    texts: list[str] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(notices, "_prefix", lambda: "notices/")
    monkeypatch.setattr(notices, "_seen", {})
    monkeypatch.setattr(ray_internals, "put_value", stored.__setitem__)
    monkeypatch.setattr(ray_internals, "values_below", lambda prefix: dict(stored))
    monkeypatch.setattr(waiting, "_receive", lambda notice: texts.append(notice.text))
    return texts


def test_a_late_away_does_not_hide_that_the_store_answers(shown):
    notices._send(Notice("s3://a", "a is away"))
    notices._send(Notice("s3://a", "a answers", over=True))
    notices._send(Notice("s3://a", "a is away, says another"))
    notices.show_newest()
    assert shown == ["a answers", "a is away, says another"]
    notices.show_newest()
    assert len(shown) == 2


def test_the_times_order_the_notices(shown):
    for number, over in enumerate((False, True, False, True)):
        notices._send(Notice("s3://b", f"{number}", over))
        notices.show_newest()
    assert shown == ["0", "1", "2", "3"]
