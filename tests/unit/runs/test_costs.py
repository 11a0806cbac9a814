"""The cost model: by hand, on few GPUs and on many, and from finished runs."""

from __future__ import annotations

import pytest

from boxsup_dist.runs.costs import FORWARDS_PER_STEP, Capacity, Costs, RunCosts, epoch_of, on_gpus
from boxsup_dist.runs.summary import Summary, write_summary

SUMMARY: Summary = {
    "supervision": "box", "mean_iou": None, "iou": None, "label_mean_iou": None, "epochs": 2, "train_loss": 1.0,
    "seconds": {}, "gap_s_median": None, "checkpoint": None, "resumed_from": None, "bad_records": {}, "data": {},
    "num_images": 10, "num_left_out": 0, "mlflow": {"tracking_uri": "", "run_id": None},
}  # fmt: skip


def costs(images_per_s: float) -> Costs:
    """As jobs.bench scale measures them, for a GPU that trains so many images a second."""
    step = 1 / images_per_s
    return Costs(step=step, forward=step / FORWARDS_PER_STEP, ingest=0.04, open=1e-4, stream=0.01, feed=1e-3,
                 choose=0.01, dispatch=1e-4, handover=5e-5)  # fmt: skip


def test_a_single_core_job_becomes_the_bottleneck_of_many_gpus():
    few, many = (on_gpus(costs(40.0), 100_000, gpus, 16) for gpus in (8, 512))
    assert few["bottleneck"] == "steps" and many["bottleneck"] == "dispatch"
    assert few["dispatch"] == many["dispatch"] == pytest.approx(10)
    assert many["hand-over"] == pytest.approx(5) and many["open"] == pytest.approx(10)
    assert few["steps"] == pytest.approx(100_000 / 8 / 40) == 64 * many["steps"]
    assert few["data tasks"] == pytest.approx(100_000 * 0.01 / (8 * 14))
    assert many["epoch"] == pytest.approx(many["steps"] + 10 + 5), "dispatch hides forward passes and choices"
    assert few["epoch"] == pytest.approx(few["steps"] + few["forward"] + few["choosing"] + 5)


def test_tasks_that_choose_run_beside_the_forward_passes():
    capacity = Capacity(2, 2, data_cores=4, cores=8)
    fast, slow = (
        epoch_of(Costs(step=0.1, stream=0.0, choose=0.01, forward=0.03, choose_tasks=each), capacity, 100)
        for each in (0.04, 0.4)
    )
    assert fast.reassign == pytest.approx(2) and slow.reassign == pytest.approx(10)


def test_slow_data_tasks_slow_the_training_down():
    scaled = on_gpus(costs(1000.0), 100_000, 8, 3)
    assert scaled["bottleneck"] == "data tasks" and scaled["data tasks"] == pytest.approx(125)
    assert scaled["GPU busy"] == pytest.approx((100 / 8 + 100 / 24) / scaled["epoch"])


def test_cores_that_workers_and_data_tasks_share_slow_the_training_down():
    epoch = epoch_of(Costs(step=0.1, stream=0.1, choose=0.2), Capacity(2, 2, 4, cores=2, threads_per_worker=1), 100)
    assert epoch.parts["steps"] == pytest.approx(5) and epoch.parts["data tasks"] == pytest.approx(2.5)
    assert epoch.train == epoch.parts["shared cores"] == pytest.approx(10)
    assert epoch.seconds == pytest.approx(10 + 10) and epoch.reassign == epoch.parts["choosing"]


def test_finished_runs_give_hours_and_storage(tmp_path):
    for name, seconds in (("a", 100.0), ("b", 300.0), ("c", 200.0)):
        write_summary(str(tmp_path / name), SUMMARY | {"seconds": {"all": seconds}})
    found = RunCosts.of([str(tmp_path / name) for name in ("a", "b", "c")])
    assert found.seconds_per_image == 10 and found.hours(720) == pytest.approx(2)
    assert found.gigabytes(2) == pytest.approx(2 * found.bytes_per_run / 1e9) and found.bytes_per_run > 0
    # "all" of a run that was continued counts from there; its stages count from the beginning.
    write_summary(str(tmp_path / "d"), SUMMARY | {"seconds": {"all": 20.0, "train": 300.0, "evaluate": 100.0}})
    assert RunCosts.of([str(tmp_path / "d")]).seconds_per_image == 20
    assert RunCosts.of([]).hours(5) is RunCosts.of([]).gigabytes(5) is None
