"""A run continues only on the tables that it began with."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from boxsup_dist.config import SourceSettings
from boxsup_dist.errors import InputError, SettingError, TableError
from boxsup_dist.model import checkpoint
from boxsup_dist.runs.inputs import check_tables, keep_tables, open_inputs
from boxsup_dist.runs.layout import RunFiles
from tests.distributed import tiny


@pytest.fixture
def run_dir(tmp_path) -> str:
    """A run that has trained."""
    network = tiny.build_network()
    checkpoint.save(str(tmp_path / "run"), checkpoint.CheckpointState(1, 0, 0, network.spec, network.state_dict()))
    return str(tmp_path / "run")


def test_a_table_that_was_built_again_with_other_content_is_refused(tmp_path, run_dir):
    first = tiny.write_records(tmp_path / "first", [tiny.make_record(i, "train") for i in range(4)])
    same = tiny.write_records(tmp_path / "same", [tiny.make_record(i, "train") for i in range(4)])
    other = tiny.write_records(tmp_path / "other", [tiny.make_record(i, "train") for i in range(1, 5)])
    check_tables(run_dir, {"training": first})  # a run of an older version has no tables.json
    keep_tables(run_dir, {"training": first})
    assert json.loads(Path(RunFiles(run_dir).tables).read_text()) == {"training": first.fingerprint}
    check_tables(run_dir, {"training": same, "evaluation": other})
    match = (
        rf"other content than when the run began.*file: {other.uri}; field: fingerprint of training, in .*tables.json"
    )
    with pytest.raises(TableError, match=match) as caught:
        check_tables(run_dir, {"training": other})
    assert (caught.value.value, caught.value.expected) == (other.fingerprint, first.fingerprint)


def test_a_run_that_has_not_trained_takes_any_tables(tmp_path):
    records = tiny.write_records(tmp_path / "records", [tiny.make_record(0, "train")])
    Path(tmp_path / "run").mkdir()
    Path(tmp_path / "run" / "tables.json").write_text('{"training": "0"}')
    check_tables(str(tmp_path / "run"), {"training": records})


@pytest.mark.parametrize("text", ["", "[]", '{"training": 7}', "\xff"])
def test_a_damaged_file_is_named(tmp_path, run_dir, text):
    Path(RunFiles(run_dir).tables).write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"file: .*tables\.json"):
        check_tables(run_dir, {})


def test_of_one_table_masks_train_where_there_are_some_and_boxes_elsewhere(tmp_path):
    records = [tiny.make_record(i, "train", b"" if i % 3 == 0 else None) for i in range(8)]
    table = tiny.write_records(tmp_path / "records", records)
    proposals = tiny.write_proposals(tmp_path / "proposals", table, records)
    masks, boxes = SourceSettings(table.uri, "mask"), SourceSettings(table.uri, "box", proposals.uri)
    config = tiny.make_config(tmp_path, tmp_path / "run", sources=(masks, boxes), val_records=None, evaluate_every=0)
    inputs = open_inputs(config)
    trained = {"mask": [], "box": []}
    for unit in inputs.mixture.units:
        ids = unit.trained(unit.source.records.read(unit.where, ("image_id",))).column("image_id").to_pylist()
        trained[unit.source.supervision] += ids
    assert trained["mask"] == [records[i].image_id for i in (0, 3, 6)]
    assert trained["box"] == [records[i].image_id for i in (1, 2, 4, 5, 7)]
    assert not inputs.can_measure_labels, "no image with boxes is left whose mask is known"
    with pytest.raises(SettingError, match=r"3 of 8 records have one.*--also records=.*,supervision=box,proposals=URI"):
        open_inputs(replace(config, sources=(masks,)))
    with pytest.raises(InputError, match="8 images are in two tables"):
        open_inputs(replace(config, sources=(boxes, boxes)))


def test_classes_weigh_alike_unless_a_setting_says_otherwise(tmp_path):
    table = tiny.write_records(tmp_path / "records", [tiny.make_record(i, "train") for i in range(4)])
    config = tiny.make_config(
        tmp_path,
        tmp_path / "run",
        sources=(SourceSettings(table.uri, "rectangles"),),
        val_records=None,
        evaluate_every=0,
    )
    config = replace(config, optimizer=replace(config.optimizer, class_balance=0.0))
    assert open_inputs(config).mixture.class_weights is None
    weighed = replace(config, optimizer=replace(config.optimizer, foreground_weight=2.0))
    assert open_inputs(weighed).mixture.class_weights == (1.0, *[2.0] * (len(table.classes) - 1))
