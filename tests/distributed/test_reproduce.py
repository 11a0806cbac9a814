"""Real Ray: rows of the paper's tables on a tiny data root, one command, which does no run twice."""

import json
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from boxsup_dist.model import checkpoint
from boxsup_dist.recipes import RECIPES
from boxsup_dist.records.context import CONTEXT_CLASSES
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
    """A data root for Tables 1, 2 and 5, and `mini` as a run of seconds."""
    root, voc = tmp_path / "data", tiny.VOC_CLASSES
    with_background = [("background", *names) for names in (ALL_COCO, CONTEXT_CLASSES[-59:])]
    write(root / "voc12-train", "train", 6, voc)
    write(root / "voc12-aug", "more", 6, voc)
    write(root / "voc12-val", "val", 3, voc, with_proposals=False)
    write(root / "coco80", "coco", 5, with_background[0])
    write(root / "context-train", "context", 5, with_background[1], with_proposals=False)
    write(root / "context-val", "unseen", 3, with_background[1], with_proposals=False)

    def recipe(run_dir, sources, val_records):
        config = tiny.make_config(tmp_path, Path(run_dir))
        return tiny.replace(config, sources=sources, val_records=val_records)

    monkeypatch.setitem(RECIPES, "mini", recipe)
    return root


def test_tables_share_runs_and_a_second_call_trains_nothing(ray_local, data, tmp_path, capsys):
    def call(table: int, **changes) -> dict:
        out = tmp_path / "out"
        reproduce.main(reproduce.Settings(table, str(data), str(out), epochs=1, **changes))
        return json.loads((out / f"table{table}.json").read_text()) if not changes.get("dry_run") else {}

    call(1, rows=("semi V",), seeds=(0, 1), dry_run=True)
    assert "mask+box" in capsys.readouterr().out and not (tmp_path / "out").exists()

    table = call(1, rows=("semi V",), seeds=(0, 1))
    (row,) = table["rows"]
    scores = [run["mean_iou"] for run in row["runs"].values()]
    assert table["seeds"] == [0, 1] and row["row"] == "semi V"
    assert row["mean_iou"] == sum(scores) / 2 and row["spread"] == max(scores) - min(scores)

    capsys.readouterr()
    shared = call(4, rows=("semi V",), seeds=(0, 1))
    assert shared["rows"][0]["runs"] == row["runs"]
    assert capsys.readouterr().out.count("this run is finished") == 2
    for kind in ("md", "html"):
        text = (tmp_path / "out" / f"table1.{kind}").read_text()
        assert "semi V" in text and "63.5" in text

    context = call(5, rows=("boxsup",))
    assert context["rows"][0]["paper"] == 40.5
    own, coco = "context-train-mask_from-coco80_seed0", "coco80-box_mcg_k3_seed0"
    spec, state = checkpoint.load_weights(checkpoint.latest(str(tmp_path / "out" / "runs" / own)))
    assert spec.num_classes == 60
    begun = checkpoint.load_weights(checkpoint.latest(str(tmp_path / "out" / "runs" / coco)))
    assert begun[0].num_classes == 81 and state["score.weight"].shape[0] == 60

    client = MlflowClient(f"sqlite:///{tmp_path / 'out' / 'runs' / 'mlflow.db'}")
    parent = (tmp_path / "out" / "mlflow_run_id").read_text().strip()
    found = client.search_runs([client.get_experiment_by_name("boxsup").experiment_id])
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent]
    assert len(children) == 4 and len(found) == 5
    assert client.get_run(parent).data.metrics["table5/boxsup"] == context["rows"][0]["mean_iou"]

    call(1, rows=("semi V",), seeds=(0, 2), dry_run=True)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " semi V " in line]
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells[5:7] == ["2", "1"] and float(cells[7]) >= 0 and float(cells[8]) >= 0  # runs, missing, hours, GB
