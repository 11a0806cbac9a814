"""Real Ray: several data sets with different supervisions in one run, and label maps that are made once."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from boxsup_dist.assignment import static
from boxsup_dist.assignment.build import build_label_maps
from boxsup_dist.config import ResourceSettings, SourceSettings, TrainConfig
from boxsup_dist.data.images import decode_image, decode_png
from boxsup_dist.data.labels import open_labels
from boxsup_dist.data.schema import iter_records
from boxsup_dist.data.tables import open_table
from boxsup_dist.errors import InputError, SettingError
from boxsup_dist.runs.history import read_history
from boxsup_dist.runs.inputs import open_inputs
from boxsup_dist.runs.layout import RunFiles
from boxsup_dist.runs.train import train
from tests.distributed import tiny

NUM_MASKED = 6


@pytest.fixture(scope="module")
def folder(ray_local, tmp_path_factory) -> Path:
    """Records with masks; others, with proposals and label maps, whose masks would break whoever opens one."""
    folder = tmp_path_factory.mktemp("mixture")
    tiny.write_tables(folder, mask=tiny.POISON)
    masked = [tiny.make_record(i, "masked") for i in range(NUM_MASKED)]
    tiny.write_records(folder / "masked", masked)
    for number, name in enumerate(("static", "em"), 1):
        records = [tiny.make_record(20 * number + i, name, tiny.POISON) for i in range(5)]
        tiny.write_records(folder / name, records)
    build_label_maps(str(folder / "static-maps"), str(folder / "static"), "grabcut")
    return folder


def sources(folder: Path) -> tuple[SourceSettings, ...]:
    return (
        SourceSettings(str(folder / "masked"), "mask"),
        tiny.make_source(folder),
        SourceSettings(str(folder / "static"), "grabcut", label_maps=str(folder / "static-maps")),
        SourceSettings(str(folder / "em"), "wssl_em"),
    )


def make_config(folder: Path, name: str, **changes) -> TrainConfig:
    return tiny.make_config(folder, folder / name, sources=sources(folder), measure_labels=False, **changes)


def test_a_mixture_trains_opens_no_mask_that_it_was_not_granted_and_is_the_same_for_any_number_of_workers(folder):
    """Two workers add up in another order than one: costs and losses differ in their last digits."""
    tables, histories = [], []
    for num_workers in (1, 2):
        resources = ResourceSettings(num_workers=num_workers, num_actors=num_workers)
        config = make_config(folder, f"run-{num_workers}", resources=resources)
        summary = train(config)
        assert summary["supervision"] == "mask+box+grabcut+wssl_em"
        assert summary["mean_iou"] is not None and summary["num_left_out"] == 0
        assert {"training", "training 2", "proposals 2", "label maps 3", "training 4"} < set(summary["data"])
        tables.append([open_labels(RunFiles(config.run_dir).labels(epoch)) for epoch in (1, 2)])
        histories.append(read_history(config.run_dir))
    choices = ["image_id", "box_index", "class_id", "proposal_index", "superpixel_ids", "undecided_ids", "rank"]
    for epoch in (0, 1):
        one, two = (labels[epoch].read_all(choices) for labels in tables)
        assert one.equals(two)
        entries = [history[epoch + 1] for history in histories]
        losses = [entry.train_loss for entry in entries]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)
        assert all(entry.images_per_s > 0 and entry.seconds["reassign"] > 0 for entry in entries)
    assert all(history[2].gap_s is not None for history in histories)
    # Labels are of the boxes of the second source alone.
    (labels, _), _ = tables
    assert {i.split("_")[0] for i in labels.read_all().column("image_id").to_pylist()} == {"tiny/train"}
    assert labels.num_units == len(open_inputs(config).mixture.units)


def test_label_maps_are_those_of_the_method_and_a_stopped_build_continues(folder):
    records = open_table(str(folder / "static"), "records")
    table = build_label_maps(str(folder / "static-maps"), records.uri, "grabcut")
    for where in records.row_groups():
        maps = table.read(where).column("label_map").to_pylist()
        for record, data in zip(iter_records(records.read(where)), maps, strict=True):
            expected = static.static_label_map(decode_image(record.image), record, static.grabcut)
            np.testing.assert_array_equal(decode_png(data), expected)
    with pytest.raises(InputError, match="other settings"):
        build_label_maps(table.uri, records.uri, "wssl")


def test_label_maps_of_another_method_are_refused(folder):
    wrong = SourceSettings(str(folder / "static"), "wssl", label_maps=str(folder / "static-maps"))
    with pytest.raises(SettingError, match="another method"):
        open_inputs(tiny.make_config(folder, folder / "wrong", sources=(wrong,)))


def test_an_image_that_validation_has_too_is_refused_or_left_out(folder):
    again = [tiny.make_record(i, "val") for i in (1, 3)] + [tiny.make_record(50, "own")]
    tiny.write_records(folder / "again", again)
    with_again = (*sources(folder), SourceSettings(str(folder / "again"), "mask"))
    config = replace(make_config(folder, "again-run"), sources=with_again)
    with pytest.raises(InputError, match=r"2 images are in two tables.*tiny/val_01.*val_records"):
        open_inputs(config)
    mixture = open_inputs(replace(config, duplicates="drop")).mixture
    assert [unit.rows for unit in mixture.units if unit.source.records.uri.endswith("again")] == [(2,)]
