"""What rank 0 warns of after an epoch; the whole of it is tested with Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from boxsup_dist.data.labels import open_labels
from boxsup_dist.data.sources import Mixture, Source, make_units
from boxsup_dist.runs import coordinator as coordinator_module
from boxsup_dist.runs.coordinator import (
    ALL_BACKGROUND_WARNING,
    COLLAPSE_WARNING,
    NO_OBJECT_WARNING,
    Coordinator,
    foreground_warning,
)
from boxsup_dist.runs.events import Warned
from boxsup_dist.runs.history import read_history
from boxsup_dist.runs.layout import RunFiles
from tests.distributed import tiny


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


class PoolHere:
    """Runs the units in this process, and knows what came back to it."""

    def __init__(self) -> None:
        self.returned: list[Any] = []

        torch.manual_seed(0)
        self.network = tiny.build_network().eval()
        torch.nn.init.normal_(self.network.score.weight)  # it starts at zero, and all classes would be alike

    def map(self, function, units, *, weights, version, on_progress, on_lost, **kwargs):
        for unit in units:
            self.returned.append(function(self.network, unit, **kwargs))
            yield self.returned[-1]


def test_labels_of_each_epoch_are_tables_and_this_process_holds_none(tmp_path: Path, monkeypatch):
    """Epoch 2 repeats the labels of epoch 1 (the cheapest candidate in the warm-up); epoch 3 asks the network."""
    monkeypatch.setattr(coordinator_module.ray, "put", lambda value: value)
    records, proposals, _ = tiny.write_tables(tmp_path)
    assignment = replace(tiny.ASSIGNMENT, top_k=1, warmup_epochs=2)
    mixture = Mixture(make_units([Source(records, "box", proposals)]), assignment, tiny.AUGMENT, seed=0)
    coordinator = object.__new__(Coordinator)
    coordinator.config = SimpleNamespace(run_dir=str(tmp_path / "run"))  # type: ignore[assignment]
    coordinator.files = RunFiles(coordinator.config.run_dir)
    coordinator.inputs = SimpleNamespace(mixture=mixture, can_measure_labels=False)  # type: ignore[assignment]
    coordinator.claim = SimpleNamespace(check=lambda: None)  # type: ignore[assignment]
    coordinator.rates = SimpleNamespace(set=lambda *_: None, set_boxes=lambda _: None)  # type: ignore[assignment]
    coordinator.post, coordinator.history, coordinator.stages_s = lambda _: None, {}, 0.0  # type: ignore[assignment]
    coordinator.pool = pool = PoolHere()  # type: ignore[assignment]
    tables = [coordinator.labels(epoch, {}) for epoch in range(3)]

    assert tables == [open_labels(coordinator.files.labels(number)) for number in (1, 2, 3)]
    assert coordinator.stored_labels(1) == tables[1] and coordinator.files.epochs_with_labels() == [1, 2, 3]
    assert tables[0].fingerprint == tables[1].fingerprint != tables[2].fingerprint
    assert [path.name for path in Path(tables[1].uri).iterdir()] == ["manifest.json"]
    assert tables[0].num_rows == records.counts["boxes"]
    boxes, repeated = tables[0].read_all(), tables[1].read_all()
    assert boxes.select(["image_id", "superpixel_ids"]).equals(repeated.select(["image_id", "superpixel_ids"]))

    history = read_history(coordinator.config.run_dir)
    found = boxes["proposal_index"].to_numpy() >= 0
    assert history[1].mean_overlap_cost == pytest.approx(boxes["overlap_cost"].to_numpy()[found].mean(), rel=1e-6)
    assert history[1].share_without_candidate == 1 - found.mean()
    changed = boxes["proposal_index"].to_numpy() != tables[2].read_all()["proposal_index"].to_numpy()
    assert [history[number].share_changed for number in (1, 2, 3)] == [None, 0.0, changed.mean()]
    assert changed.any()
    # What came back has names, hashes and sums: its size does not depend on the boxes of a unit.
    assert {type(each).__name__ for each in pool.returned} <= {"LabelsShard", "NoneType"}
    assert all(len(repr(each)) < 1500 for each in pool.returned)
