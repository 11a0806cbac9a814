"""The rows of the paper's tables: every one is a run that passes its check and opens no mask that it does not grant."""

import pytest

from boxsup_dist.errors import SettingError
from boxsup_dist.paper import RECIPE_OF_SCALE, TABLES, find_row, make_config
from boxsup_dist.sources import GRANTED_COLUMNS

ROWS = [pytest.param(table, row, id=f"{table}: {row.name}") for table, rows in TABLES.items() for row in rows]
# What the paper says of each table's masks: data sets whose ground truth a row may open.
GRANTED_MASKS = {
    "mask V": {"voc12-train", "voc12-aug"},
    "semi V": {"voc12-train"},
    "mask V+C": {"voc12-train", "voc12-aug", "coco"},
    "semi V+C": {"voc12-train", "voc12-aug"},
    "semi V+C+V07": {"voc12-train", "voc12-aug"},
}


@pytest.mark.parametrize("scale", RECIPE_OF_SCALE)
@pytest.mark.parametrize("table, row", ROWS)
def test_every_row_is_a_run_and_opens_the_masks_that_it_grants_only(table, row, scale):
    config = make_config(row, scale, "data", "run", seed=3).check()
    assert config.seed == 3 and config.duplicates == "drop" and config.val_records == "data/voc12-val/records"
    opened = {s.records.split("/")[1] for s in config.sources if "gt_label_map" in GRANTED_COLUMNS[s.supervision]}
    assert opened == GRANTED_MASKS.get(row.name, set())
    assert [source.records for source in config.sources] == [f"data/{name}/records" for name, _ in row.parts]


def test_the_table_of_supervisions_differs_in_nothing_else():
    """Table 2: the same images, steps and network for every row."""
    configs = [make_config(row, "full", "data", "run") for row in TABLES[2]]
    assert len({(c.network, c.optimizer, c.augment, tuple(s.records for s in c.sources)) for c in configs}) == 1
    assert len({config.supervision for config in configs}) == 5
    assert [config.assignment.top_k for config in configs[-3:]] == [1, 5, 1]


def test_an_unknown_row_or_table_is_told_what_there_is():
    with pytest.raises(SettingError, match=r'no such row in table 2.*boxes.*"rectangles", "grabcut"'):
        find_row(2, "boxes")
    with pytest.raises(SettingError, match="a table of 1, 2, 3, 4"):
        find_row(9, "box")
