"""Real Ray: the quality job on class masks and on instance masks, as the slow way measures them."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from boxsup_dist.data import rle
from boxsup_dist.data.images import decode_png
from boxsup_dist.data.schema import iter_records, proposals_from_table
from boxsup_dist.errors import TableError
from boxsup_dist.proposals import quality
from boxsup_dist.proposals.measure import mask_bytes, measure, measure_row_group
from boxsup_dist.runs.command_line import run
from jobs import proposal_quality
from tests.distributed import tiny


def with_instances(record):
    label_map = decode_png(record.gt_label_map)
    return replace(record, instance_masks=[rle.encode(label_map == c) for c in record.class_ids])


@pytest.fixture(scope="module", params=[True, False], ids=["instances", "classes"])
def pair(request, tmp_path_factory):
    """Records with instance masks or without, and their proposals, of which the manifest knows times."""
    folder = tmp_path_factory.mktemp("quality")
    rows = [tiny.make_record(i, "train") for i in range(tiny.NUM_TRAIN)]
    rows = [with_instances(r) if request.param else replace(r, instance_masks=None) for r in rows]
    records = tiny.write_records(folder / "records", rows)
    return records, tiny.write_proposals(folder / "proposals", records, rows)


def slow_metrics(records, proposals, cut, half=None):
    """Mean best Jaccard over objects and mean number of candidates."""
    best, counts = [], []
    groups = [
        (r, p)
        for w in records.row_groups()
        for r, p in zip(iter_records(records.read(w)), proposals_from_table(proposals.read(w)), strict=True)
    ]
    for record, found in groups[half::2] if half is not None else groups:
        objects = quality.objects_of(record)
        best += quality.best_overlaps(found, objects.masks, [cut], objects.valid).jaccard[:, 0].tolist()
        counts.append(min(len(found), cut))
    return pytest.approx(np.mean(best), abs=1e-6), np.mean(counts)


def test_the_report_adds_up_row_groups(ray_local, pair):
    records, proposals = pair
    report = measure(records, proposals, num_storage_images=3)
    assert list(report["cuts"]) == ["100", "500", "1000", "2000", "all"]
    assert (report["cuts"]["100"]["mean_jaccard_instance"], report["cuts"]["100"]["num_candidates"]) == slow_metrics(
        records, proposals, 100
    )
    for half, name in enumerate(("even", "odd")):
        found = report["halves"][name]["all"]
        expected = slow_metrics(records, proposals, quality.ALL, half)
        assert (found["mean_jaccard_instance"], found["num_candidates"]) == expected
    assert report["num_images"] == tiny.NUM_TRAIN and report["storage"]["num_images"] == 3
    shares = report["bytes_per_image"]["mean"] * tiny.NUM_TRAIN
    columns = [proposals.row_group_bytes(w) for w in proposals.row_groups()]
    assert shares == pytest.approx(sum(sum(c.values()) for c in columns), rel=1e-4)
    of_membership = sum(c["membership"] for c in columns) / tiny.NUM_TRAIN
    assert report["bytes_by_column"]["membership"] == pytest.approx(of_membership, abs=0.05)
    assert report["seconds_per_image"] is None


def test_halves_alternate_across_row_groups_of_odd_length(pair):
    records, proposals = pair
    where = records.row_groups()[0]
    first, second = (measure_row_group(records, proposals, where, n) for n in (0, 1))
    assert (first.tallies == second.tallies[::-1]).all() and first.num_candidates == second.num_candidates[::-1]


def test_masks_stored_one_by_one_take_more(pair, monkeypatch):
    found = proposals_from_table(pair[1].read(pair[1].row_groups()[0]))[0]
    alone = [len(rle.encode(np.isin(found.superpixels, found.members(j)))) for j in range(len(found))]
    sizes = mask_bytes(found)
    assert sizes["coco_rle"] == sum(alone) and sizes["png"] > sizes["coco_rle"]
    monkeypatch.setattr("boxsup_dist.proposals.measure.MASKS_SAMPLED", 20)
    assert mask_bytes(found)["coco_rle"] == pytest.approx(sum(alone[::3]) * 60 / 20)


def test_tables_that_have_no_masks_or_do_not_belong_together_are_refused(pair, tmp_path):
    records, proposals = pair
    with pytest.raises(TableError, match="no record has a mask"):
        measure(replace(records, counts={}), proposals)
    with pytest.raises(TableError, match="made from other records"):
        measure(replace(records, fingerprint="other"), proposals)


@pytest.mark.parametrize("pair", [True], indirect=True)
def test_the_job_writes_summary_and_curves(ray_local, pair, tmp_path, capsys):
    out = tmp_path / "q"
    proposal_quality.main(proposal_quality.Settings(pair[0].uri, pair[1].uri, str(out), num_storage_images=0))
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["cuts"]["all"]) == {
        "num_candidates", "mean_jaccard_instance", "mean_jaccard_class",
        "recall_at_0.5", "recall_at_0.7", "recall_at_0.85",
    }  # fmt: skip
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG") and summary["storage"] is None
    assert "instance masks" in capsys.readouterr().out


def test_the_command_line_reports_an_error_in_one_line(monkeypatch, capsys):
    command = ["proposal_quality", "--records", "r", "--proposals", "p", "--out", "o"]
    monkeypatch.setattr(sys, "argv", [*command, "--published-set", "COCO_val2014"])
    with pytest.raises(SystemExit) as exit_:
        run(proposal_quality.main)
    assert exit_.value.code == 2 and capsys.readouterr().err.startswith(
        "error: published_set has no effect without published"
    )
