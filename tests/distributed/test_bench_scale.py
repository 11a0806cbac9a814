"""The whole of jobs.bench scale on a few images: every stage runs, and a second call keeps all of it."""

from __future__ import annotations

from boxsup_dist.data.labels import open_labels
from boxsup_dist.data.tables import open_table
from jobs.bench.scale import costs_of, measure_stages

NUM_IMAGES = 60


def test_every_stage_runs_once(ray_local, tmp_path):
    folder = str(tmp_path)
    stages = measure_stages(folder, NUM_IMAGES, seed=0)
    records = open_table(f"{folder}/records", "records")
    assert records.num_rows == open_table(f"{folder}/proposals", "proposals").num_rows == NUM_IMAGES
    labels = open_labels(f"{folder}/labels")
    assert labels.num_rows == records.counts["boxes"] == stages["reassign"]["facts"]["boxes"]
    assert stages["reassign"]["facts"]["mean_regression_cost"] != 0, "the network has a say"
    assert stages["stream"]["facts"]["steps"] == NUM_IMAGES // 20
    kinds = {name: {row["process"] for row in stage["peaks_mib"]} for name, stage in stages.items()}
    assert "actor" in kinds["reassign"] and "train worker" in kinds["stream"]
    costs = vars(costs_of(stages, NUM_IMAGES, 40.0))
    assert all(value > 0 for value in costs.values()), costs

    assert measure_stages(folder, NUM_IMAGES, seed=0) == stages
