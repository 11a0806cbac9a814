"""Sources: tables that belong together, units in a fixed order, and the weights of classes."""

from dataclasses import replace

import numpy as np
import pytest

from boxsup_dist.config import AssignmentSettings, AugmentSettings
from boxsup_dist.data.sources import Mixture, Source, class_weights, make_units
from boxsup_dist.errors import TableError
from tests.unit.data.small_tables import make_record, make_source, write_records


def test_tables_that_do_not_belong_together_are_an_error(tmp_path):
    source = make_source(tmp_path / "a", "box", [make_record()])
    other = make_source(tmp_path / "b", "box", [make_record("b")])
    with pytest.raises(TableError, match="made from other records"):
        Source(source.records, "box", other.proposals)
    maps = make_source(tmp_path / "c", "grabcut", [make_record("c")])
    with pytest.raises(TableError, match="label maps were made from other records"):
        Source(source.records, "grabcut", label_maps=maps.label_maps)


def test_units_keep_the_order_of_the_sources_and_know_their_supervision(tmp_path):
    first = make_source(tmp_path / "a", "mask", [make_record(name) for name in "abc"])
    second = make_source(tmp_path / "b", "rectangles", [make_record(name) for name in "de"])
    units = make_units([first, second], [frozenset({1, 2}), frozenset()])
    assert [(unit.source is first, unit.where.row_group, unit.rows) for unit in units] == [
        (True, 0, (0,)),
        (True, 1, ()),
        (False, 0, (0, 1)),
    ]
    mixture = Mixture(units, AssignmentSettings(), AugmentSettings(), 0)
    assert mixture.sources == [first, second]
    assert mixture.with_supervision("rectangles", "box") == [2] and mixture.with_supervision("mask") == [0, 1]
    assert mixture.with_measurable_labels() == [2]
    trained = [unit.trained(unit.source.records.read(unit.where, ("image_id",))) for unit in units]
    assert [table.column("image_id").to_pylist() for table in trained] == [["a"], [], ["d", "e"]]


def test_rare_classes_weigh_more_and_no_class_more_than_the_limit(tmp_path):
    def source(name: str, class_ids: list[int], sides: list[int]) -> Source:
        boxes = np.array([[0, 0, side, side] for side in sides], np.float32).reshape(-1, 4)
        none = np.zeros(len(sides), bool)
        record = replace(make_record(name), boxes_xyxy=boxes, class_ids=np.array(class_ids), difficult=none, crowd=none)
        return Source(write_records(tmp_path / name, [record]), "rectangles")

    sources = [source("a", [1, 1], [6, 8]), source("b", [2], [10]), source("c", [], [])]
    assert class_weights(sources, 1.0) == (1.0, 1.0, 1.0)
    sources = [source("d", [1, 1, 2], [6, 8, 5])]  # summed areas 100 and 25, their mean 62.5
    assert class_weights(sources, 1.0) == pytest.approx((1.0, 0.625, 2.5))
    assert class_weights(sources, 0.5) == pytest.approx((1.0, 0.625**0.5, 2.5**0.5))
    assert class_weights(sources, 9.0) == (1.0, pytest.approx(0.2), 5.0)
    assert class_weights([source("e", [2], [4])], 1.0) == (1.0, 1.0, 1.0)
    # The factor on the foreground comes after the limit, and a class without a box has it too.
    assert class_weights(sources, 0.5, 2.0) == pytest.approx((1.0, 2 * 0.625**0.5, 2 * 2.5**0.5))
    assert class_weights(sources, 9.0, 2.0) == (1.0, pytest.approx(0.4), 10.0)
    assert class_weights([source("f", [2], [4])], 0.0, 3.0) == (1.0, 3.0, 3.0)
