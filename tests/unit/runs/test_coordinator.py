"""What rank 0 warns of after an epoch; the whole of it is tested with Ray."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from boxsup_dist.runs.coordinator import (
    ALL_BACKGROUND_WARNING,
    COLLAPSE_WARNING,
    NO_OBJECT_WARNING,
    Coordinator,
    foreground_warning,
)
from boxsup_dist.runs.events import Warned
from boxsup_dist.runs.history import read_history


@pytest.mark.parametrize(
    ("predicted", "labelled", "expected"),
    [
        (0.3, 0.3, None),
        (0.08, 0.3, None),
        (0.07, 0.3, COLLAPSE_WARNING),
        (0.0, 0.3, ALL_BACKGROUND_WARNING),
        (0.0, 0.0, NO_OBJECT_WARNING),
        (0.1, 0.0, NO_OBJECT_WARNING),
    ],
)
def test_predicted_foreground_is_compared_with_that_of_the_labels(predicted, labelled, expected):
    assert foreground_warning(predicted, labelled) == expected


def test_a_run_without_masks_is_warned(tmp_path: Path):
    """Data without any mask: nothing is measured or evaluated, and the warning comes from the training alone."""
    posted: list[Any] = []
    coordinator = object.__new__(Coordinator)
    coordinator.config = SimpleNamespace(run_dir=str(tmp_path), evaluate_every=0)  # type: ignore[assignment]
    coordinator.inputs = SimpleNamespace(val_records=None)  # type: ignore[assignment]
    coordinator.claim = SimpleNamespace(check=lambda: None)  # type: ignore[assignment]
    coordinator.post, coordinator.history = posted.append, {}  # type: ignore[assignment]
    metrics = {"train_loss": 1.0, "foreground_share": 0.0, "label_foreground_share": 0.2}
    coordinator.record(0, metrics, {})
    assert [event.text for event in posted if isinstance(event, Warned)] == [f"epoch 1: {ALL_BACKGROUND_WARNING}"]
    coordinator.record(1, metrics, {})
    assert len([event for event in posted if isinstance(event, Warned)]) == 1, "said once"
    assert read_history(str(tmp_path))[2].warnings == (ALL_BACKGROUND_WARNING,)
    entry = read_history(str(tmp_path))[1]
    assert entry.warnings == (ALL_BACKGROUND_WARNING,) and entry.label_foreground_share == 0.2
