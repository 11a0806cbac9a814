"""What compared figures show, of hand-made runs on tiny tables; no Ray session."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from boxsup_dist.data.images import decode_png
from boxsup_dist.data.labels import labels_table, store_labels
from boxsup_dist.data.schema import VOC_CLASSES
from boxsup_dist.errors import InputError, SettingError
from boxsup_dist.evaluation.confusion import write_confusion
from boxsup_dist.io import storage
from boxsup_dist.model import checkpoint
from boxsup_dist.model.checkpoint import CheckpointState
from boxsup_dist.model.networks import build_network
from boxsup_dist.runs import comparison
from boxsup_dist.runs.history import HistoryEntry, write_history
from boxsup_dist.runs.kept_config import write_config
from boxsup_dist.runs.layout import RunFiles
from jobs import figures
from tests import networks
from tests.distributed import tiny

IDS = ["tiny/train_00", "tiny/train_09"]


def write_labels(run_dir: str, epoch: int) -> None:
    """Every box takes more superpixels each epoch."""
    parts = []
    records = [tiny.make_record(i, "train") for i in range(tiny.NUM_TRAIN)]
    units = [r for first in range(0, tiny.NUM_TRAIN, 8) for r in (range(first, min(first + 4, tiny.NUM_TRAIN)),
             range(first + 4, min(first + 8, tiny.NUM_TRAIN))) if len(r)]  # fmt: skip
    for unit in units:
        rows = [
            {"image_id": records[i].image_id, "box_index": box, "class_id": int(class_id), "proposal_index": epoch,
             "superpixel_ids": list(range(0, 64, 2 - epoch)), "undecided_ids": [], "undecided_probability": [],
             "overlap_cost": 0.0, "regression_cost": 0.0, "rank": 0}
            for i in unit for box, class_id in enumerate(records[i].class_ids)
        ]  # fmt: skip
        parts.append(labels_table(rows))
    store_labels(RunFiles(run_dir).labels(epoch + 1), parts)


@pytest.fixture(scope="module")
def run_dirs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A finished run with masks and one with boxes, without an MLflow run."""
    folder = tmp_path_factory.mktemp("figures")
    tiny.write_tables(folder)
    spec = networks.spec("timm:test_resnet", len(VOC_CLASSES), head_channels=8)
    found = []
    for supervision in ("mask", "box"):
        run_dir = str(folder / supervision)
        config = tiny.make_config(folder, Path(run_dir), sources=(tiny.make_source(folder, supervision),))
        write_config(config)
        torch.manual_seed(0)
        network = build_network(spec, "none")
        checkpoint.save(run_dir, CheckpointState(2, 0, 0, spec, network.state_dict()))
        iou = dict.fromkeys(VOC_CLASSES, 10.0)
        write_history(run_dir, {e: HistoryEntry(e, train_loss=3.0 - e, iou=iou) for e in (1, 2)})
        storage.write_json(storage.join(run_dir, "summary.json"), {})
        write_confusion(RunFiles(run_dir).confusion, np.eye(21, dtype=np.int64), VOC_CLASSES)
        found.append(run_dir)
    for epoch in range(2):
        write_labels(found[1], epoch)
    return found


def test_runs_are_named_by_what_differs(run_dirs: list[str]) -> None:
    assert [run.name for run in comparison.open_runs(run_dirs)] == ["mask", "box"]
    with pytest.raises(SettingError, match="named twice"):
        comparison.open_runs([run_dirs[0], run_dirs[0]])
    with pytest.raises(SettingError, match="no run"):
        comparison.open_runs([])
    with pytest.raises(InputError, match="no such file"):
        comparison.open_runs(["nowhere"])


def test_label_maps_change_over_the_epochs(run_dirs: list[str]) -> None:
    mask, box = comparison.open_runs(run_dirs)
    assert comparison.label_maps_by_epoch(mask, IDS) is None
    grid = comparison.label_maps_by_epoch(box, IDS)
    assert grid is not None
    titles, rows = grid
    assert titles == ["image", "epoch 1", "epoch 2", "ground truth"]
    assert len(rows) == 2
    assert not np.array_equal(rows[0][1], rows[0][2])
    record = tiny.make_record(0, "train")
    assert record.gt_label_map is not None
    np.testing.assert_array_equal(rows[0][3], decode_png(record.gt_label_map))
    chosen = comparison.label_maps_by_epoch(box, IDS, [2])
    assert chosen is not None and chosen[0] == ["image", "epoch 2", "ground truth"]
    with pytest.raises(InputError, match="no labels here"):
        comparison.label_maps_by_epoch(box, IDS, [5])


def test_boxes_label_maps_and_prediction_in_one_row(run_dirs: list[str]) -> None:
    mask, box = comparison.open_runs(run_dirs)
    assert comparison.labels_and_prediction(mask, IDS) is None
    grid = comparison.labels_and_prediction(box, IDS)
    by_epoch = comparison.label_maps_by_epoch(box, IDS)
    assert grid is not None and by_epoch is not None
    titles, rows = grid
    assert titles == ["image and boxes", "labels, epoch 1", "labels, epoch 2", "prediction"]
    for row, other in zip(rows, by_epoch[1], strict=True):
        np.testing.assert_array_equal(row[1], other[1])
        np.testing.assert_array_equal(row[2], other[2])
        assert row[0] is not None and other[0] is not None and row[3] is not None
        assert row[0].shape == other[0].shape and not np.array_equal(row[0], other[0])
        assert row[3].shape == other[0].shape[:2] and row[3].dtype == np.uint8


def test_label_maps_of_each_supervision(run_dirs: list[str]) -> None:
    titles, rows = comparison.label_maps_by_run(comparison.open_runs(run_dirs), IDS)
    assert titles == ["image", "mask", "box", "ground truth"]
    for row in rows:
        np.testing.assert_array_equal(row[1], row[3])  # mask supervision is the ground truth
        assert not np.array_equal(row[1], row[2])
    with pytest.raises(InputError, match="no run trains on"):
        comparison.label_maps_by_run(comparison.open_runs(run_dirs), ["tiny/nobody"])


def test_the_ground_truth_is_not_opened_where_the_run_may_not(run_dirs: list[str]) -> None:
    box = comparison.open_runs(run_dirs)[1]
    blind = replace(box, config=replace(box.config, measure_labels=False))
    grid = comparison.label_maps_by_epoch(blind, IDS)
    assert grid is not None and grid[1][0][-1] is None


def test_predictions_of_each_run(run_dirs: list[str]) -> None:
    runs = comparison.open_runs(run_dirs)
    ids = comparison.validation_examples(runs[0], 3)
    titles, rows = comparison.predictions_by_run(runs, ids)
    assert titles == ["image", "mask", "box", "ground truth"]
    assert len(rows) == 3
    for row in rows:
        assert all(panel is not None and panel.shape[:2] == row[0].shape[:2] for panel in row if row[0] is not None)
        np.testing.assert_array_equal(row[1], row[2])  # of the same weights
    with pytest.raises(InputError, match="has no image"):
        comparison.predictions_by_run(runs, ["tiny/nobody"])


def test_examples_are_spread_and_have_boxes(run_dirs: list[str]) -> None:
    run = comparison.open_runs(run_dirs)[1]
    ids = comparison.training_examples(run, 4)
    assert len(ids) == len(set(ids)) == 4
    assert len(comparison.validation_examples(run, 99)) == tiny.NUM_VAL


def test_the_job_draws_everything(run_dirs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    figures.main(figures.Settings(tuple(run_dirs), str(tmp_path / "out"), num_images=2))
    names = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert names == ["confusion-box.png", "confusion-mask.png", "curves.png", "iou.png", "label-maps-by-epoch-box.png",
                     "label-maps-by-run.png", "labels-and-prediction-box.png", "predictions.png"]  # fmt: skip
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["figures"]["iou.png"] == run_dirs
    assert "not in MLflow" in capsys.readouterr().out


@pytest.mark.parametrize("changes, field", [({"kinds": ("pie",)}, "kinds"), ({"num_images": 0}, "num_images")])
def test_bad_settings(changes: dict, field: str) -> None:
    with pytest.raises(SettingError) as caught:
        figures.main(figures.Settings(("a",), "out", **changes))
    assert caught.value.field == field
