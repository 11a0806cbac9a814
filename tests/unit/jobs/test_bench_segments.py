"""The measurement of noisy masks: each kind of noise is what it says, and exact masks give exact labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from boxsup_dist.data import rle, tables
from boxsup_dist.data.images import encode_png
from boxsup_dist.data.schema import Record, proposals_to_table, records_to_table
from boxsup_dist.errors import SettingError, TableError
from boxsup_dist.proposals.gop import gop
from boxsup_dist.proposals.settings import GopSettings
from jobs.bench import segments
from jobs.bench.settings import Segments
from tests.unit.proposals.pictures import blobs

HEIGHT, WIDTH = 80, 100
BOX = (20, 10, 70, 60)


def l_shape() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10:60, 20:45] = mask[40:60, 20:70] = True
    return mask


def record(number: int, **changes) -> Record:
    mask = np.roll(l_shape(), number, 1)
    fields = {
        "image_id": f"r{number}", "source": "test", "split": "train", "image": encode_png(blobs(HEIGHT, WIDTH)),
        "height": HEIGHT, "width": WIDTH, "boxes_xyxy": np.array([[20 + number, 10, 70 + number, 60], [0, 0, 9, 9]]),
        "class_ids": np.array([1, 2]), "difficult": np.zeros(2, bool), "crowd": np.array([False, True]),
        "instance_masks": [rle.encode(mask), rle.encode(mask)], "gt_label_map": encode_png(mask.astype(np.uint8)),
    }  # fmt: skip
    return Record(**fields | changes)


@pytest.fixture
def settings(tmp_path: Path) -> Segments:
    """Records of three images, and their proposals by GOP, in two row groups."""
    rows = [record(number) for number in range(3)]
    shard = tables.write_shard(str(tmp_path / "r"), 0, records_to_table(rows), "records", row_group_size=2,
                               counts={"with_instances": 3})  # fmt: skip
    made = {"classes": ["background", "a", "b"], "row_group_size": 2}
    records = tables.publish(str(tmp_path / "r"), "records", made, [shard])
    found = [gop(blobs(HEIGHT, WIDTH), GopSettings(), image_id=row.image_id) for row in rows]
    shard = tables.write_shard(str(tmp_path / "p"), 0, proposals_to_table(found), "proposals", row_group_size=2)
    made = {"records": records.fingerprint, "method": "gop", "row_group_size": 2}
    tables.publish(str(tmp_path / "p"), "proposals", made, [shard])
    return Segments(records.uri, str(tmp_path / "p"), out=str(tmp_path / "out"), rounds=2)


def test_exact_masks_give_the_labels_of_the_ground_truth(settings, capsys):
    segments.main(settings)
    summary = json.loads((Path(settings.out) / "summary.json").read_text())
    by_kind = {line["noise"]: line for line in summary["label_mean_iou"]}
    assert set(by_kind) == set(segments.KINDS) and summary["num_images"] == 3
    assert by_kind["exact"]["masks alone"] == by_kind["exact"]["both"] == 100
    assert all(line["gop alone"] == by_kind["exact"]["gop alone"] < 90 for line in by_kind.values())
    for kind in ("eroded", "dilated", "shifted", "half", "rectangle"):
        assert by_kind[kind]["masks alone"] < 97, kind
    (line,) = summary["rows"]
    assert line["measured"] == pytest.approx(by_kind["mixed"]["both"] - by_kind["mixed"]["gop alone"])
    assert "gop with noisy masks against without" in capsys.readouterr().out


def test_each_kind_of_noise_is_what_it_says():
    mask, rng = l_shape(), np.random.default_rng(0)
    made = {kind: segments.noisy(mask, BOX, kind, rng) for kind in segments.KINDS if kind != "mixed"}
    assert (made["exact"] == mask).all()
    assert (made["eroded"] <= mask).all() and 0 < made["eroded"].sum() < mask.sum()
    assert (made["dilated"] >= mask).all() and made["dilated"].sum() > mask.sum()
    assert made["shifted"].sum() == mask.sum() and np.argwhere(made["shifted"]).min(0).tolist() in (
        [5, 15], [5, 25], [15, 15], [15, 25],
    )  # fmt: skip
    assert (made["half"] <= mask).all() and 0 < made["half"].sum() < mask.sum()
    assert made["rectangle"].sum() == 50 * 50 and made["rectangle"][10:60, 20:70].all()


def test_mixed_noise_is_three_masks_a_box_and_follows_the_seed():
    rows = records_to_table([record(0)])
    first, again, other = (segments.noisy_proposals(rows, "mixed", seed)[0] for seed in (0, 0, 1))
    assert len(first) == 3, "the box of a crowd has none"
    assert (first.superpixels == again.superpixels).all() and (first.objectness == again.objectness).all()
    assert not np.array_equal(first.objectness, other.objectness)


def test_what_is_refused(settings, tmp_path):
    with pytest.raises(SettingError, match="rounds"):
        Segments(settings.records, settings.proposals, rounds=0).check()
    with pytest.raises(TableError, match="no table here"):
        Segments(settings.records, str(tmp_path / "absent")).check()
    shard = tables.write_shard(str(tmp_path / "b"), 0, records_to_table([record(0)]), "records", row_group_size=2)
    bare = tables.publish(str(tmp_path / "b"), "records", {"classes": ["background", "a", "b"]}, [shard])
    with pytest.raises(TableError, match="made from other records"):
        segments.main(Segments(bare.uri, settings.proposals))
