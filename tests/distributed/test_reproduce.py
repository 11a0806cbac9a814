"""Real Ray: rows of the paper's tables on a tiny data root, one command, which does no run twice."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from boxsup_dist.model import checkpoint
from boxsup_dist.records.context import CONTEXT_CLASSES
from boxsup_dist.runs.recipes import RECIPES
from jobs import reproduce
from tests.distributed import tiny

ALL_COCO = tuple(f"thing {i}" for i in range(80))


def write(folder: Path, split: str, count: int, classes: tuple[str, ...], *, with_proposals: bool = True) -> None:
    records = [tiny.make_record(i, split) for i in range(count)]
    table = tiny.write_records(folder / "records", records, classes)
    if with_proposals:
        tiny.write_proposals(folder / "proposals-mcg", table, records)


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """A data root for Table 5, and `mini` as a run of seconds."""
    root = tmp_path / "data"
    coco, context = (("background", *names) for names in (ALL_COCO, CONTEXT_CLASSES[-59:]))
    write(root / "coco80", "coco", 5, coco)
    write(root / "context-train", "context", 5, context, with_proposals=False)
    write(root / "context-val", "unseen", 3, context, with_proposals=False)

    def recipe(run_dir, sources, val_records):
        config = tiny.make_config(tmp_path, Path(run_dir))
        return replace(config, sources=sources, val_records=val_records)

    monkeypatch.setitem(RECIPES, "mini", recipe)
    return root


def test_a_row_is_trained_once_after_the_one_that_it_begins_with(ray_local, data, tmp_path, capsys):
    out = tmp_path / "out"
    settings = reproduce.Settings(5, str(data), str(out), rows=("boxsup",), epochs=1)
    reproduce.main(replace(settings, train_missing=False))
    reproduce.main(replace(settings, dry_run=True))
    assert "boxsup" in capsys.readouterr().out and not list((out / "runs").glob("*seed*"))

    reproduce.main(settings)
    table = json.loads((out / "table5.json").read_text())
    (row,) = table["rows"]
    assert (row["row"], row["paper"], row["spread"], table["seeds"]) == ("boxsup", 40.5, None, [0])
    assert row["interval"]["value"] == row["mean_iou"] and row["interval"]["low"] <= row["interval"]["high"]
    own, begun = "context-train-mask_from-coco80_seed0", "coco80-box_mcg_k3_seed0"
    specs = [checkpoint.load_weights(checkpoint.latest(str(out / "runs" / name)))[0] for name in (begun, own)]
    assert [spec.num_classes for spec in specs] == [81, 60]
    for kind in ("md", "html"):
        text = (out / f"table5.{kind}").read_text()
        assert "boxsup" in text and "40.5" in text

    client = MlflowClient(f"sqlite:///{out / 'runs' / 'mlflow.db'}")
    parent = (out / "mlflow_run_id").read_text().strip()
    found = client.search_runs([client.get_experiment_by_name("boxsup").experiment_id])
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent]
    assert len(children) == 2 and len(found) == 3
    assert client.get_run(parent).data.metrics["table5/boxsup"] == row["mean_iou"]

    capsys.readouterr()
    reproduce.main(settings)
    assert capsys.readouterr().out.count("this run is finished") == 2
    assert json.loads((out / "table5.json").read_text())["rows"] == [row]
    reproduce.main(replace(settings, seeds=(0, 2), dry_run=True))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " boxsup " in line]
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells[5:7] == ["4", "2"] and float(cells[7]) >= 0 and float(cells[8]) >= 0  # runs, missing, hours, GB
