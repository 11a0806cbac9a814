"""The rows of the paper's tables: every one is a run that passes its check and opens no mask that it does not grant."""

import pytest

from boxsup_dist.data.painting import GRANTED_COLUMNS
from boxsup_dist.errors import SettingError
from boxsup_dist.runs.paper import RECIPE_OF_SCALE, TABLES, find_row, make_configs

ROWS = [pytest.param(table, row, id=f"{table}: {row.name}") for table, rows in TABLES.items() for row in rows]
# What the paper says of each table's masks: data sets whose ground truth a row may open.
GRANTED_MASKS = {
    "mask V": {"voc12-train", "voc12-aug"},
    "semi V": {"voc12-train"},
    "mask V+C": {"voc12-train", "voc12-aug", "coco"},
    "semi V+C": {"voc12-train", "voc12-aug"},
    "semi V+C+V07": {"voc12-train", "voc12-aug"},
    "baseline": {"context-train"},
    "boxsup": {"context-train"},
}


def opened(config):
    return {s.records.split("/")[1] for s in config.sources if "gt_label_map" in GRANTED_COLUMNS[s.supervision]}


@pytest.mark.parametrize("scale", RECIPE_OF_SCALE)
@pytest.mark.parametrize("table, row", ROWS)
def test_every_row_is_a_run_and_opens_the_masks_that_it_grants_only(table, row, scale):
    *before, config = [config.check() for config in make_configs(row, scale, "data", "runs", seed=3)]
    assert config.seed == 3 and config.duplicates == "drop" and config.val_records == f"data/{row.val}/records"
    assert opened(config) == GRANTED_MASKS.get(row.name, set())
    assert not any(opened(other) for other in before)
    assert [source.records for source in config.sources] == [f"data/{name}/records" for name, _ in row.sources]


def test_rows_are_one_run_only_if_they_are_the_same():
    """A folder holds one run: two rows with the same folder have the same configuration."""
    for scale in RECIPE_OF_SCALE:
        configs = {}
        for rows in TABLES.values():
            for row in rows:
                for config in make_configs(row, scale, "data", "runs"):
                    assert configs.setdefault(config.run_dir, config) == config
        assert len(configs) >= 16


def test_context_begins_with_the_network_that_coco_boxes_trained():
    boxes, own = make_configs(find_row(5, "boxsup"), "full", "data", "runs")
    assert boxes.supervision == "box" and boxes.val_records is None and boxes.evaluate_every == 0
    assert own.network.weights == f"checkpoint:{boxes.run_dir}"


def test_fewer_epochs_keep_the_share_of_the_warm_up():
    (config,) = make_configs(find_row(2, "box, refined"), "mini", "data", "runs", epochs=6)
    assert config.optimizer.epochs == 6 and config.assignment.warmup_epochs == 2
    assert config.assignment.refine_from_epoch == 6
    assert all(source.label_maps.endswith("label-maps-grabcut") for source in config.sources)


def test_the_table_of_supervisions_differs_in_nothing_else():
    """Table 2: the same images, steps and network for every row."""
    configs = [make_configs(row, "full", "data", "runs")[0] for row in TABLES[2]]
    assert len({(c.network, c.optimizer, c.augment, tuple(s.records for s in c.sources)) for c in configs}) == 1
    assert len({config.supervision for config in configs}) == 5
    assert [config.assignment.top_k for config in configs[-3:]] == [1, 5, 1]


def test_an_unknown_row_or_table_is_answered_with_the_known_ones():
    with pytest.raises(SettingError, match=r'no such row in table 2.*boxes.*"rectangles", "grabcut"'):
        find_row(2, "boxes")
    with pytest.raises(SettingError, match="a table of 1, 2, 3, 4, 5"):
        find_row(9, "box")
