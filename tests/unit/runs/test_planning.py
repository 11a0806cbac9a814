"""The arithmetic of a plan: by hand, and how it grows with what is put in."""

from __future__ import annotations

from dataclasses import replace

import pytest

from boxsup_dist.config import ResourceSettings
from boxsup_dist.errors import InputError, SettingError
from boxsup_dist.runs.planning import VOC_IMAGE_PX, Cluster, Plan, Rates, Workload, make_plan, read_rates, write_rates
from boxsup_dist.runs.recipes import mini, paper

RATES = Rates(
    recipe="mini",
    machine="a CPU",
    gpu=False,
    image_px=VOC_IMAGE_PX,
    batch_images=5,
    train_images_per_s=10.0,
    stream_s_per_image=0.01,
    assign_images_per_s=5.0,
    evaluate_images_per_s=8.0,
    proposals_method="selective_search",
    proposals_s_per_image=0.2,
    record_bytes=100e3,
    proposals_bytes=74e3,
    label_stored_bytes=100,
    weights_bytes=20e6,
    checkpoint_bytes=60e6,
    process_bytes=0.5e9,
    train_bytes_per_image=0.2e9,
)
WORK = Workload(num_images=3600, boxes_per_image=2.0, num_val_images=720)
TWO_CORES = ResourceSettings(num_workers=2, num_actors=2)


def plan_of(
    cluster: Cluster, rates: Rates = RATES, work: Workload = WORK, resources: ResourceSettings = TWO_CORES
) -> Plan:
    return make_plan(replace(mini("", (), None), resources=resources), work, cluster, rates)


def basis(plan: Plan, name: str) -> str:
    return next(line.basis for line in plan.lines if line.name == name)


def test_numbers_computed_by_hand():
    plan = plan_of(Cluster(1, 8, memory_gib_per_node=32, price_per_node_hour=3.0))
    hours = {
        "proposals": 3600 * 0.2 / 8 / 3600,
        "train": 3600 * 10 / (2 * 10.0) / 3600,
        "reassignment": 3600 * 10 / (2 * 5.0) / 3600,
        "evaluation": 720 / (2 * 8.0) / 3600,
        "between epochs": 2.0 * 10 / 3600,
    }
    assert {name: plan.value(name) for name in hours} == pytest.approx(hours)
    assert plan.value("steps") == 360 * 10
    assert plan.value("all stages") == pytest.approx(sum(hours.values()))
    assert plan.value("cost") == pytest.approx(3.0 * sum(hours.values()))
    assert plan.value("records") == pytest.approx((3600 + 720) * 100e3 / 1e9)
    assert plan.value("proposals table") == pytest.approx(3600 * 74e3 / 1e9)
    assert plan.value("labels") == pytest.approx(3600 * 2 * 100 * 10 / 1e9)
    assert plan.value("checkpoints") == pytest.approx(3 * 60e6 / 1e9)
    assert plan.warnings == ()


def test_each_line_says_what_it_is_based_on():
    one = ResourceSettings(num_workers=1, num_actors=1)
    same = plan_of(Cluster(1, 4), replace(RATES, batch_images=10), resources=one)
    assert basis(same, "train") == basis(same, "reassignment") == basis(same, "records") == "measured"
    assert basis(same, "steps").startswith("exact") and basis(same, "between epochs").startswith("assumed")
    other = plan_of(Cluster(2, 4), replace(RATES, image_px=VOC_IMAGE_PX / 4))
    assert basis(other, "train") == "extrapolated: from 1 to 2"
    assert basis(other, "reassignment") == "extrapolated: from images of 0.05 to 0.19 Mpx, from 1 to 2"
    assert basis(other, "all stages").startswith("extrapolated")


def test_the_number_of_evaluations_is_the_runs():
    cluster = Cluster(1, 8)
    config = replace(mini("", (), None), resources=TWO_CORES)
    once = make_plan(config, WORK, cluster, RATES).value("evaluation")
    for every, times in ((0, 1), (5, 2), (4, 3), (20, 1)):
        found = make_plan(replace(config, evaluate_every=every), WORK, cluster, RATES)
        assert found.value("evaluation") == pytest.approx(times * once)


def test_without_boxes_there_are_no_proposals_and_no_reassignment():
    names = {line.name for line in plan_of(Cluster(1, 8), work=replace(WORK, supervision="mask")).lines}
    assert not names & {"proposals", "proposals table", "labels", "reassignment"} and "train" in names


def test_larger_images_cost_by_their_pixels_where_whole_images_are_seen():
    small, large = (plan_of(Cluster(1, 8), work=replace(WORK, image_px=px)) for px in (VOC_IMAGE_PX, 2 * VOC_IMAGE_PX))
    for name in ("proposals", "reassignment", "evaluation", "records", "proposals table"):
        assert large.value(name) == pytest.approx(2 * small.value(name))
    assert large.value("train") == pytest.approx(small.value("train"))  # crops have one size


def test_more_nodes_take_less_time_but_not_fewer_node_hours():
    plans = [plan_of(Cluster(n, 8, price_per_node_hour=1), resources=ResourceSettings()) for n in (1, 2, 4)]
    hours = [plan.value("all stages") for plan in plans]
    assert hours == sorted(hours, reverse=True)
    assert [plan.value("cost") for plan in plans] == sorted(plan.value("cost") for plan in plans)


@pytest.mark.parametrize(
    "cpus, resources, stream_s",
    [
        (4, ResourceSettings(num_workers=2, num_actors=2, cpus_per_worker=1.0, cpus_per_actor=0.5), 0.5),
        (2, TWO_CORES, 0.2),  # all share two cores
        (16, ResourceSettings(num_workers=2, num_actors=2, stream_tasks_per_worker=1), 0.2),
    ],
)
def test_it_warns_of_starving_data_tasks_and_plans_with_what_they_supply(cpus, resources, stream_s):
    slow = replace(RATES, stream_s_per_image=stream_s)
    plan = plan_of(Cluster(1, cpus), slow, resources=resources)
    assert any(
        "data tasks slow the training down" in text and "--resources.cpus-per-worker" in text for text in plan.warnings
    )
    assert plan.value("train") > plan_of(Cluster(1, cpus), resources=resources).value("train")


def test_two_cores_share_training_and_stream():
    plan = plan_of(Cluster(1, 2), replace(RATES, stream_s_per_image=0.1))
    assert plan.value("train") == pytest.approx(3600 * 10 / (2 / (0.1 + 0.1)) / 3600)


def test_it_warns_of_settings_that_the_run_would_refuse():
    greedy = ResourceSettings(num_workers=4, num_actors=4, cpus_per_worker=1.0, cpus_per_actor=1.0)
    assert any("refused" in text and "data tasks" in text for text in plan_of(Cluster(1, 8), resources=greedy).warnings)
    many = plan_of(Cluster(4, 16, 8), replace(RATES, gpu=True), resources=ResourceSettings(num_workers=32))
    assert any("32 workers for a batch of 10" in text for text in many.warnings)
    assert many.value("workers") == 10


def test_it_says_how_many_gpus_a_batch_feeds():
    few = plan_of(Cluster(4, 16, 8), replace(RATES, gpu=True), resources=ResourceSettings())
    assert few.value("workers") == 10 and any("10 of 32 GPUs" in text for text in few.warnings)


def test_em_needs_a_fifth_byte_for_every_pixel_of_the_blocks():
    config = replace(mini("", (), None), resources=TWO_CORES)
    em = replace(config, assignment=replace(config.assignment, complete_undecided=True))
    stores = [make_plan(each, WORK, Cluster(1, 8), RATES).value("object store, per node") for each in (config, em)]
    weights = 2 * RATES.weights_bytes / 2**30
    assert stores[1] - weights == pytest.approx(5 / 4 * (stores[0] - weights))


def test_it_warns_of_memory():
    tight = plan_of(Cluster(1, 8, memory_gib_per_node=4))
    assert any("processes on a node need" in text for text in tight.warnings)
    many = replace(WORK, num_images=2_000_000)
    assert any("object store" in text for text in plan_of(Cluster(1, 8, memory_gib_per_node=4), work=many).warnings)
    gpu = replace(RATES, gpu=True, train_bytes_per_image=4e9)
    plan = plan_of(Cluster(1, 8, 1, gpu_memory_gib=16), gpu, resources=ResourceSettings())
    assert any("a batch does not fit" in text for text in plan.warnings)
    assert plan.value("memory of a GPU") > 16


def test_rates_of_a_cpu_are_not_taken_for_those_of_a_gpu():
    plan = plan_of(Cluster(1, 16, 2), resources=ResourceSettings())
    assert any("rates were measured on a CPU" in text for text in plan.warnings)
    assert "from a CPU to a GPU" in basis(plan, "train")
    with pytest.raises(SettingError, match="measured on a GPU, and the cluster has none"):
        plan_of(Cluster(1, 16), replace(RATES, gpu=True))


def test_rates_of_several_recipes_live_in_one_file(tmp_path):
    uri = str(tmp_path / "rates.json")
    write_rates(uri, RATES)
    write_rates(uri, replace(RATES, recipe="paper", train_images_per_s=1.0))
    write_rates(uri, replace(RATES, train_images_per_s=11.0))
    assert read_rates(uri, "mini").train_images_per_s == 11.0
    assert read_rates(uri, "paper").train_images_per_s == 1.0
    with pytest.raises(InputError, match=r"no rates of the recipe demo.*jobs\.calibrate demo"):
        read_rates(uri, "demo")


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "fast", None])
def test_what_is_no_rate_is_refused(value):
    with pytest.raises(InputError, match="assign_images_per_s"):
        replace(RATES, assign_images_per_s=value).check()


@pytest.mark.parametrize(
    "cluster, work, name",
    [
        (Cluster(0, 8), WORK, "nodes"),
        (Cluster(1, 0), WORK, "cpus_per_node"),
        (Cluster(1, 8, -1), WORK, "gpus_per_node"),
        (Cluster(1, 8, price_per_node_hour=-1), WORK, "price_per_node_hour"),
        (Cluster(1, 8, memory_gib_per_node=float("nan")), WORK, "memory_gib_per_node"),
        (Cluster(1, 8), replace(WORK, num_images=0), "num_images"),
        (Cluster(1, 8), replace(WORK, boxes_per_image=-1), "boxes_per_image"),
    ],
)
def test_numbers_out_of_range_are_named(cluster, work, name):
    with pytest.raises(SettingError, match=name):
        plan_of(cluster, work=work)


def test_the_papers_run_fits_a_plan_too():
    plan = make_plan(paper("", (), None), replace(WORK, num_images=10582), Cluster(2, 16, 4), replace(RATES, gpu=True))
    assert plan.value("steps") == 530 * 45 and plan.value("workers") == 8
