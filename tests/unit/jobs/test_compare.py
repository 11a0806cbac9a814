"""`jobs.compare`: the right numbers and verdicts, arms of several runs, and one line for what cannot be compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from boxsup_dist.config import SourceSettings, TrainConfig
from boxsup_dist.errors import InputError, SettingError
from boxsup_dist.evaluation.by_image import sparse_rows
from boxsup_dist.evaluation.confusion import mean_iou
from boxsup_dist.evaluation.units import UnitResult
from boxsup_dist.runs.evaluated import keep_matrices
from boxsup_dist.runs.kept_config import write_config
from boxsup_dist.runs.layout import RunFiles
from jobs import compare

NAMES = ("background", "cat", "dog")


def evaluated(folder: Path, hits: float, *, seed: int, num_images: int = 40) -> np.ndarray:
    """Keep the matrices of a network that gets this share of the pixels of objects right; the sum."""
    rng, found = np.random.default_rng(seed), []
    sizes = np.random.default_rng(0).integers(200, 400, (num_images, 3))  # the ground truth is that of every network
    for i, (background, cat, dog) in enumerate(sizes):
        right = rng.binomial((cat, dog), hits)
        taken = rng.binomial((cat, dog) - right, 0.2)  # of the others, for the other class
        matrix = np.diag([background, *right])
        matrix[1, 2], matrix[2, 1] = taken
        matrix[1:, 0] = (cat, dog) - right - taken
        found.append((f"image_{i}", matrix))
    total = sum(matrix for _, matrix in found)
    folder.mkdir(parents=True)
    keep_matrices(str(folder), UnitResult(total, num_images, 0, sparse_rows(found)), NAMES)
    return total


def test_a_better_network_is_told_from_a_worse_one(tmp_path, capsys):
    worse, better = (
        evaluated(tmp_path / name, hits, seed=seed) for seed, (name, hits) in enumerate([("box", 0.6), ("mask", 0.7)])
    )
    out = tmp_path / "out"
    compare.main(compare.Settings((str(tmp_path / "box"), str(tmp_path / "mask")), str(out)))
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert lines[0] == f"box: {tmp_path / 'box'}" and "40 images, 2,000 draws" in printed
    assert "mask is better" in lines[-2] and lines[-2].startswith("mean IoU, mask - box: +")
    assert "other seeds may say otherwise" in lines[-1]
    assert "cat taken for background" in printed and "cat taken for dog" in printed

    result = json.loads((out / "summary.json").read_text())
    values = {(row["metric"], row["class"]): row for row in result["differences"]["mask"]}
    found = values["mean_iou", ""]
    assert found["value"] == pytest.approx(100 * (mean_iou(better) - mean_iou(worse)), abs=1e-9)
    assert found["low"] < found["value"] < found["high"] and found["low"] > 0
    assert values["recall", ""]["value"] == pytest.approx(8, abs=1)  # of the 10 points, a fifth is another class
    assert values["precision", ""]["value"] == 0  # no background is taken for an object
    assert values["class_recall", "cat"]["low"] > 0
    first = {(row["metric"], row["class"]): row["value"] for row in result["metrics"]["box"]}
    assert first["mean_iou", ""] == 100 * mean_iou(worse)

    compare.main(compare.Settings((str(tmp_path / "box"), str(tmp_path / "mask"))))
    assert capsys.readouterr().out == printed


def test_arms_of_several_runs_are_compared_by_their_means(tmp_path, capsys):
    sums = {}
    for arm, hits in (("box", 0.65), ("same", 0.65)):
        for seed in (0, 1):
            sums[arm, seed] = evaluated(tmp_path / f"{arm}_{seed}", hits, seed=10 * seed + len(arm))
    arms = tuple(",".join(str(tmp_path / f"{arm}_{seed}") for seed in (0, 1)) for arm in ("box", "same"))
    compare.main(compare.Settings(arms, str(tmp_path / "out")))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("mean IoU, same - box: ") and "these images do not tell" in last and "; by run " in last
    result = json.loads((tmp_path / "out" / "summary.json").read_text())
    by_run = [100 * (mean_iou(sums["same", seed]) - mean_iou(sums["box", seed])) for seed in (0, 1)]
    assert result["mean_iou_by_run"]["same"] == pytest.approx(by_run)
    assert result["differences"]["same"][0]["value"] == pytest.approx(np.mean(by_run))


def test_runs_of_an_arm_that_differ_in_more_than_their_seed_are_named(tmp_path, capsys):
    for seed, epochs in ((0, 4), (1, 4), (2, 5)):
        evaluated(tmp_path / str(seed), 0.6, seed=seed)
        source = SourceSettings("records", "mask")
        config = TrainConfig(str(tmp_path / str(seed)), (source,), "val", seed=seed)
        write_config(replace(config, optimizer=replace(config.optimizer, epochs=epochs)))
    evaluated(tmp_path / "other", 0.6, seed=3)
    runs = [str(tmp_path / name) for name in ("0", "1", "2")]
    compare.main(compare.Settings((",".join(runs), str(tmp_path / "other"))))
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert warning == f"warning: {runs[2]} differs from {runs[0]} in more than its seed: optimizer.epochs"


def test_what_cannot_be_compared_is_one_line(tmp_path):
    evaluated(tmp_path / "a", 0.5, seed=0)
    evaluated(tmp_path / "short", 0.5, seed=0, num_images=39)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "confusion.json").write_bytes((tmp_path / "a" / "confusion.json").read_bytes())
    a, short, old = (str(tmp_path / name) for name in ("a", "short", "old"))
    for given in ((a,), (a, a), (a, ","), ()):
        with pytest.raises(SettingError, match="two run directories or more"):
            compare.main(compare.Settings(given))
    with pytest.raises(InputError, match=r"kept none.*python -m jobs.evaluate --run-dir .*old --records RECORDS --out"):
        compare.main(compare.Settings((a, old)))
    with pytest.raises(InputError, match=r"neither a run nor an output of jobs.evaluate.*nothing"):
        compare.main(compare.Settings((a, str(tmp_path / "nothing"))))
    with pytest.raises(InputError, match=r"images differ.*image_39"):
        compare.main(compare.Settings((a, short)))
    files = RunFiles(a)
    Path(files.confusion).write_bytes(Path(RunFiles(short).confusion).read_bytes())
    with pytest.raises(InputError, match=r"not of the evaluation of the confusion\.json"):
        compare.main(compare.Settings((a, short)))
