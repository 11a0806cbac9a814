"""Real Ray: evaluation with test-time options, trimap and CRF search are the same for any number of actors."""

import functools
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch

from boxsup_dist.config import PredictionSettings
from boxsup_dist.distributed.pool import NetworkPool
from boxsup_dist.errors import SettingError, TableError
from boxsup_dist.evaluation import units
from boxsup_dist.evaluation.boxes import BOX_COLUMNS, BoxResult, box_unit
from boxsup_dist.evaluation.evaluate import evaluate, evaluate_boxes, measure_boundaries, score_crfs
from boxsup_dist.evaluation.slices import draw_slices
from boxsup_dist.evaluation.trimap import boundary_unit
from boxsup_dist.model.crf import crf_settings
from boxsup_dist.model.inference import predict_label_map, predict_log_probs
from tests.distributed import tiny

OPTIONS = PredictionSettings(scales=(0.8, 1.2), flip=True, crf="deeplab_vgg")
WIDTHS = (2, 8)
NUM_CLASSES = 21


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Three row groups; one record without ground truth."""
    made = [tiny.make_record(i, "val") for i in range(9)]
    made[5] = replace(made[5], gt_label_map=None)
    return tiny.write_records(tmp_path_factory.mktemp("tiny") / "records", made)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = tiny.build_network().eval()
    torch.nn.init.normal_(network.score.weight, std=1.0)
    return network


def in_process(network, records, settings, unit, total, columns=units.EVALUATION_COLUMNS):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the members have
    for where in records.row_groups():
        predict = partial(predict_label_map, network, settings=settings)
        total += unit(predict, records.read(where, columns))
    torch.set_num_threads(threads)
    return total


def assert_same(found, expected):
    for name, value in vars(expected).items():
        if isinstance(value, pa.Table):
            assert getattr(found, name).equals(value), name
            continue
        np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)


@pytest.fixture(scope="module")
def here(network, records):
    """What this process counts, by the settings: once for all numbers of actors."""

    @functools.cache
    def counts(settings, *, of_boundaries=False, of_boxes=False):
        if of_boxes:
            unit = partial(box_unit, num_classes=NUM_CLASSES)
            return in_process(network, records, settings, unit, BoxResult.empty(NUM_CLASSES), BOX_COLUMNS)
        if of_boundaries:
            unit = partial(boundary_unit, num_classes=NUM_CLASSES, widths_px=WIDTHS)
            return in_process(network, records, settings, unit, unit(None, records.read(records.row_groups()[0])[:0]))
        unit = partial(units.evaluate_unit, num_classes=NUM_CLASSES)
        return in_process(network, records, settings, unit, units.UnitResult.empty(NUM_CLASSES))

    return counts


@pytest.mark.parametrize("num_actors", [1, 2, 3])
def test_any_number_of_actors_gives_the_same_counts(ray_local, records, network, here, num_actors):
    pool = NetworkPool(tiny.build_network, num_actors=num_actors, num_cpus=0.25)
    common = {"weights": ray.put(network.state_dict()), "version": "a", "num_classes": NUM_CLASSES}

    plain = evaluate(pool, records, **common)
    assert_same(plain, here(PredictionSettings()))
    assert (plain.num_images, plain.num_skipped) == (8, 1)

    reports = []
    for crf_in_tasks in (False, True):
        found = evaluate(
            pool,
            records,
            settings=OPTIONS,
            crf_in_tasks=crf_in_tasks,
            on_progress=lambda done, total: reports.append((done, total)),
            **common,
        )
        assert_same(found, here(OPTIONS))
    assert reports.count((3, 3)) == 2 and all(total == 3 and done >= 1 for done, total in reports)
    assert not np.array_equal(here(OPTIONS).confusion, plain.confusion)

    for crf_in_tasks in (False, True):
        found = measure_boundaries(
            pool, records, settings=OPTIONS, widths_px=WIDTHS, crf_in_tasks=crf_in_tasks, **common
        )
        assert_same(found, here(OPTIONS, of_boundaries=True))

    for crf_in_tasks in (False, True):  # of all images: the one without ground truth has boxes, too
        found = evaluate_boxes(pool, records, settings=OPTIONS, crf_in_tasks=crf_in_tasks, **common)
        assert_same(found, here(OPTIONS, of_boxes=True))
        assert found.num_images == 9 and found.predicted_px.any()

    candidates = [crf_settings("deeplab_vgg"), crf_settings("4,10,3,3,1")]
    everything = draw_slices(records, 100, seed=0)
    without, scored = score_crfs(pool, records, everything, candidates, **common)
    assert_same(without, replace(plain, by_image=without.by_image))
    for crf, result in zip(("deeplab_vgg", "4,10,3,3,1"), scored, strict=True):
        assert_same(result, replace(here(PredictionSettings(crf=crf)), by_image=result.by_image))
    some = draw_slices(records, 4, seed=1)
    here, there = (
        score_crfs(pool, records, some, candidates, crf_in_tasks=in_tasks, **common) for in_tasks in (False, True)
    )
    for one, other in zip([here[0], *here[1]], [there[0], *there[1]], strict=True):
        assert_same(one, other)
        assert one.num_images + one.num_skipped == 4

    with pytest.raises(SettingError, match="unknown CRF"):
        evaluate(pool, records, settings=PredictionSettings(crf="best"), **common)
    pool.close()


def test_draws_are_seeded_and_of_the_images_alone(records):
    drawn = draw_slices(records, 4, seed=1)
    assert drawn == draw_slices(records, 4, seed=1) != draw_slices(records, 4, seed=2)
    assert sum(len(unit.rows) for unit in drawn) == 4
    everything = draw_slices(records, 100, seed=3)
    assert [unit.where for unit in everything] == records.row_groups()
    assert [unit.rows for unit in everything] == [tuple(range(where.num_rows)) for where in records.row_groups()]
    with pytest.raises(SettingError):
        draw_slices(records, 0, seed=0)


def test_records_without_any_ground_truth_are_refused(ray_local, tmp_path, network):
    bare = [replace(tiny.make_record(i, "val"), gt_label_map=None) for i in range(2)]
    records = tiny.write_records(tmp_path / "records", bare)
    pool = NetworkPool(tiny.build_network, num_actors=1, num_cpus=0.25)
    with pytest.raises(TableError, match="no record has ground truth"):
        measure_boundaries(
            pool, records, weights=None, version="", num_classes=NUM_CLASSES, widths_px=WIDTHS, settings=OPTIONS
        )
    pool.close()


def test_the_plain_settings_are_the_plain_forward_pass(records, network):
    row = records.read(records.row_groups()[0], units.EVALUATION_COLUMNS)
    before = units.evaluate_unit(lambda image: predict_log_probs(network, image).argmax(0), row, NUM_CLASSES)
    after = units.evaluate_unit(partial(predict_label_map, network, settings=PredictionSettings()), row, NUM_CLASSES)
    assert_same(after, before)
