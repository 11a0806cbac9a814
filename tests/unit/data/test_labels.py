"""Labels tables: written in shards by anyone, read by unit, the same for any shards, and never read as other labels."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from boxsup_dist.data.labels import (
    LabelsTable,
    TableName,
    begin,
    check_named,
    labels_table,
    open_labels,
    publish,
    publish_again,
    segments_by_box,
    store_labels,
    write_shard,
)
from boxsup_dist.data.schema import LABELS
from boxsup_dist.errors import InputError, TableError
from boxsup_dist.io.typed_json import write_sealed


def row(image_id: str, box_index: int, proposal_index: int, cost: float = 0.5) -> dict:
    found = proposal_index >= 0
    return {
        "image_id": image_id,
        "box_index": box_index,
        "class_id": 1 + box_index,
        "proposal_index": proposal_index,
        "superpixel_ids": [proposal_index, 1000 + box_index, 65535] if found else [],
        "undecided_ids": [3] * box_index if found else [],
        "undecided_probability": [0.25] * box_index if found else [],
        "overlap_cost": cost if found else float("nan"),
        "regression_cost": 2 * cost if found else float("nan"),
        "rank": 0 if found else -1,
    }


# Row groups with boxes, without any, and with an image (c) that has none and so no row.
GROUPS = [
    [row("a", 0, 4), row("a", 1, -1), row("b", 0, 7)],
    [],
    [row("d", 0, -1)],
    [],
    [row("e", 0, 0), row("e", 1, 9), row("e", 2, 9), row("f", 0, 3)],
]
PARTS = [labels_table(rows) for rows in GROUPS]


@pytest.fixture
def labels(tmp_path) -> LabelsTable:
    return store_labels(str(tmp_path / "epoch-001"), PARTS)


def as_lists(segments: dict) -> dict:
    return {
        name: [None if s is None else [ids.tolist() for ids in s] for s in boxes] for name, boxes in segments.items()
    }


def expected_segments(rows: list[dict]) -> dict:
    found: dict[str, list] = {}
    for entry in rows:  # rows of one image are in the order of its boxes
        segment = (
            [entry["superpixel_ids"], entry["undecided_ids"], entry["undecided_probability"]]
            if entry["proposal_index"] >= 0
            else None
        )
        found.setdefault(entry["image_id"], []).append(segment)
    return found


def content(labels: LabelsTable) -> str:
    """All that readers get, as text: nan is not equal to itself."""
    return str([labels.read(unit).to_pylist() for unit in range(labels.num_units)])


def test_labels_of_earlier_versions_have_no_probabilities(tmp_path):
    old = store_labels(str(tmp_path / "epoch-001"), [part.drop_columns(["undecided_probability"]) for part in PARTS])
    assert old.read(0).schema.equals(LABELS)
    names = [name for name in LABELS.names if name != "undecided_probability"]
    assert str([old.read(n).select(names).to_pylist() for n in range(len(PARTS))]) == str(
        [part.select(names).to_pylist() for part in PARTS]
    )
    assert old.read(0).column("undecided_probability").to_pylist() == [[]] * len(GROUPS[0])
    assert len(old.segments(0)["a"][0].undecided_probability) == 0
    assert old.read(4, ("image_id", "rank")).column_names == ["image_id", "rank"]


# -- what is written is read ------------------------------------------------------------------------------------------


def test_every_unit_finds_its_own_rows_and_segments(labels):
    assert labels.num_rows == sum(map(len, GROUPS)) and labels.num_units == len(GROUPS)
    for index, rows in enumerate(GROUPS):
        assert labels.read(index).schema.equals(LABELS) and str(labels.read(index).to_pylist()) == str(rows)
        assert as_lists(labels.segments(index)) == expected_segments(rows)
    every = [row for rows in GROUPS for row in rows]
    assert as_lists(segments_by_box(labels.read_all())) == expected_segments(every)
    assert labels.read(4, ("rank", "image_id")).column_names == ["rank", "image_id"]
    assert labels == open_labels(labels.uri)
    with pytest.raises(TableError, match=rf"made for other tables.*found: {len(GROUPS)}; expected: {len(GROUPS) + 1}"):
        labels.segments(len(GROUPS))


def test_segments_index_a_superpixel_table_directly(labels):
    segment = labels.segments(0)["a"][0].superpixel_ids
    assert segment.dtype == np.uint16 and np.zeros(65536, bool)[segment].shape == (3,)


@pytest.mark.parametrize("num_groups", [1, 3])
def test_tables_without_any_box(num_groups, tmp_path):
    empty = store_labels(str(tmp_path), [labels_table([])] * num_groups)
    assert empty.segments(num_groups - 1) == {} and empty.read_all().schema.equals(LABELS)
    assert empty.summary() == {"share_without_candidate": 0.0}
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("cuts", [(), (1,), (2, 3), (1, 2, 3, 4)])
def test_the_table_is_the_same_whoever_writes_which_units(labels, tmp_path, cuts: Sequence[int]):
    """Other shards hold the same rows; the fingerprint is theirs. Writers may finish in any order."""
    uri, bounds = str(tmp_path / "other"), [0, *cuts, len(PARTS)]
    chunks = [range(start, stop) for start, stop in itertools.pairwise(bounds)]
    shards = [write_shard(uri, {unit: PARTS[unit] for unit in chunk}) for chunk in reversed(chunks)]
    found = publish(uri, shards, len(PARTS))
    assert (found.fingerprint, content(found), found.summary()) == (
        labels.fingerprint, content(labels), labels.summary()
    )  # fmt: skip
    assert [[each.unit for each in shard.units] for shard in found.shards] == [
        units for chunk in chunks if (units := [unit for unit in chunk if GROUPS[unit]])
    ]


def test_other_rows_have_another_fingerprint(labels, tmp_path):
    changed = {
        "a box": [*PARTS[:4], labels_table([*GROUPS[4][:3], row("f", 0, 4)])],
        "another unit": [PARTS[0], PARTS[2], *PARTS[1:2], *PARTS[3:]],
        "a cost": [labels_table([row("a", 0, 4, 0.25), *GROUPS[0][1:]]), *PARTS[1:]],
        "one unit more": [*PARTS, labels_table([])],
    }
    for name, parts in changed.items():
        assert store_labels(str(tmp_path / name), parts).fingerprint != labels.fingerprint, name


def test_a_killed_attempt_leaves_no_table_and_none_of_its_shards_is_mixed_in(labels, tmp_path):
    """The second attempt cuts the units in other chunks, and one file has the name of another that holds less."""
    uri = str(tmp_path / "killed")
    write_shard(uri, {0: PARTS[2], 1: PARTS[2]})
    write_shard(uri, {4: PARTS[0]})
    with pytest.raises(TableError, match=r"unfinished labels: the command that makes them"):
        open_labels(uri)
    begin(uri)
    shards = [write_shard(uri, {0: PARTS[0]}), write_shard(uri, dict(enumerate(PARTS[1:], 1)))]
    assert content(publish(uri, shards, len(PARTS))) == content(labels)
    begin(uri)
    with pytest.raises(TableError, match="unfinished"):
        open_labels(uri)


# -- the summary ------------------------------------------------------------------------------------------------------


def labels_of(folder: Path, *proposals: int, costs: Sequence[float] = (), previous: LabelsTable | None = None):
    costs = costs or [0.5] * len(proposals)
    pairs = zip(proposals, costs, strict=True)
    parts = [labels_table([row(str(i), 0, p, c)]) for i, (p, c) in enumerate(pairs)]
    return store_labels(str(folder / f"labels-{'-'.join(map(str, proposals))}"), parts, previous)


def test_mean_costs_leave_boxes_without_a_candidate_out(tmp_path):
    summary = labels_of(tmp_path, 1, -1, 2, -1, costs=[0.25, 9, 0.75, 9]).summary()
    assert summary == {"share_without_candidate": 0.5, "mean_overlap_cost": 0.5, "mean_regression_cost": 1.0}


def test_no_box_with_a_candidate(tmp_path):
    before = labels_of(tmp_path, -1, -1)
    assert labels_of(tmp_path, -1, -1, previous=before).summary() == {
        "share_without_candidate": 1.0, "share_changed": 0.0
    }  # fmt: skip


@pytest.mark.parametrize(
    "before, after, share",
    [
        ((1, 2, 3, 4), (1, 2, 3, 4), 0.0),
        ((1, 2, 3, 4), (1, 5, 3, 6), 0.5),
        ((1, -1, -1, 4), (1, -1, 2, -1), 0.5),  # to or from no candidate is a change; none twice is none
        ((1, 2), (2, 1), 1.0),
    ],
)
def test_share_of_boxes_whose_candidate_changed(tmp_path, before, after, share):
    assert "share_changed" not in labels_of(tmp_path, *after).summary()
    previous = labels_of(tmp_path, *before)
    assert labels_of(tmp_path, *after, previous=previous).summary()["share_changed"] == share


def test_the_labels_before_must_be_of_the_same_boxes(labels, tmp_path):
    with pytest.raises(TableError, match=r"other boxes.*epoch-001; field: unit 0, boxes; found: 3; expected: 1"):
        labels_of(tmp_path, 5, previous=labels)


def test_mean_costs_do_not_depend_on_the_order_or_the_shards(tmp_path):
    """With sums of 32 bits they would: float32 rounds these to 16,777,216."""
    costs = [2.0**24, *[1.0] * 64]
    rows = [row(str(i), 0, 1, cost) for i, cost in enumerate(costs)]
    for order in (rows, rows[::-1]):
        for size in (1, 13, 65):
            parts = [labels_table(order[first : first + size]) for first in range(0, 65, size)]
            found = store_labels(str(tmp_path / "labels"), parts).summary()
            assert found["mean_overlap_cost"] == sum(costs) / 65 and found["mean_regression_cost"] == sum(costs) / 32.5


# -- an epoch that repeats the labels of the epoch before --------------------------------------------------------------


def test_an_epoch_that_repeats_its_labels_names_the_same_files(labels, tmp_path):
    second = publish_again(str(tmp_path / "epoch-002"), labels)
    third = publish_again(str(tmp_path / "epoch-003"), second)
    assert [path.name for path in (tmp_path / "epoch-003").iterdir()] == ["manifest.json"]
    expected = content(labels)
    assert content(third) == expected and third.fingerprint == labels.fingerprint
    assert third.summary() == labels.summary() | {"share_changed": 0.0}
    (tmp_path / "run").mkdir()
    for name in ("epoch-001", "epoch-003"):
        (tmp_path / name).rename(tmp_path / "run" / name)  # a run directory may be moved
    assert content(open_labels(str(tmp_path / "run" / "epoch-003"))) == expected


# -- what a checkpoint keeps ------------------------------------------------------------------------------------------


def test_labels_that_were_replaced_are_refused(labels, tmp_path):
    named = labels.named(str(tmp_path))
    assert named == TableName("epoch-001", labels.fingerprint)
    check_named(named, str(tmp_path))
    store_labels(labels.uri, [PARTS[2], *PARTS[1:]])
    message = r"not the labels that the checkpoint was trained on: .*train again; file: .*epoch-001; field: fingerprint"
    with pytest.raises(TableError, match=message):
        check_named(named, str(tmp_path))
    begin(labels.uri)
    with pytest.raises(TableError, match="unfinished"):
        check_named(named, str(tmp_path))


# -- damages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["part-00000-00002.parquet", "manifest.json"])
def test_a_flipped_bit_is_never_read_as_other_labels(tmp_path, name):
    uri = str(tmp_path / "labels")
    shards = [write_shard(uri, dict(enumerate(PARTS[:3]))), write_shard(uri, {4: PARTS[4]})]
    labels = publish(uri, shards, len(PARTS))
    expected, file, rng = content(labels), tmp_path / "labels" / name, np.random.default_rng(0)
    data, num_refused = file.read_bytes(), 0
    positions = range(0, len(data), 3)
    for position in positions:
        bad = bytearray(data)
        bad[position] ^= 1 << int(rng.integers(8))
        file.write_bytes(bad)
        try:
            assert content(open_labels(uri)) == expected, position
        except TableError as error:
            assert error.file == str(file) and "\n" not in str(error)
            num_refused += 1
    assert num_refused > len(positions) - (50 if name == "manifest.json" else 4)  # spaces of the JSON; PAR1


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


@pytest.mark.parametrize(
    "damage, words", [(cut, "the shard is damaged"), (Path.unlink, "a shard of the table is missing")]
)
def test_a_damaged_shard_says_how_to_make_the_labels_again(labels, damage: Callable[[Path], None], words: str):
    damage(Path(labels.shard_uri(2)))
    with pytest.raises(TableError, match=rf"{words}.*: to make the labels again, delete the run's checkpoints.*00004-"):
        labels.segments(4)
    assert as_lists(labels.segments(0)) == expected_segments(GROUPS[0])


@pytest.mark.parametrize(
    "field, value",
    [("folder", "../other"), ("folder", ".."), ("num_units", 4), ("fingerprint", "0" * 16), ("format_version", 2)],
)
def test_a_sealed_manifest_that_does_not_fit_is_refused(labels, field, value):
    change_manifest(labels, lambda values: values.update({field: value}))
    with pytest.raises(TableError, match=r"manifest\.json; field: "):
        open_labels(labels.uri)


@pytest.mark.parametrize(
    "change",
    [
        lambda shards: shards[0].update(file="../part-00000-00000.parquet"),
        lambda shards: shards[0]["units"][0].update(unit=4),
        lambda shards: shards[0]["units"].append(shards[2]["units"][0]),
        lambda shards: shards.reverse(),
        lambda shards: shards[0]["units"][0].update(num_rows=0),
        lambda shards: shards[0].pop("sha256"),
    ],
)
def test_sealed_shards_that_do_not_fit_are_refused(labels, change: Callable[[list], object]):
    change_manifest(labels, lambda values: change(values["shards"]))
    with pytest.raises(TableError, match=r"manifest\.json; field: "):
        open_labels(labels.uri)


def change_manifest(labels: LabelsTable, change: Callable[[dict], object]) -> None:
    """Change the manifest, with a seal that fits."""
    path = Path(labels.uri, "manifest.json")
    values = json.loads(path.read_text())
    del values["seal"]
    change(values)
    write_sealed(str(path), values)


def test_a_shard_of_another_kind_of_table_is_refused(tmp_path):
    other = pa.table({"image_id": ["a"], "label_map": pa.array([b"x"], pa.large_binary())})
    with pytest.raises(InputError, match=r"labels table lacks a column.*part-00000-00000\.parquet; field: box_index"):
        labels = store_labels(str(tmp_path / "labels"), PARTS)
        shard = write_shard(labels.uri, {0: PARTS[0]})
        from boxsup_dist.data import parquet  # writes what `write_shard` never would

        data = parquet.encode_groups([other])
        Path(labels.uri, shard.file).write_bytes(data)
        forged = type(shard)(file=shard.file, units=shard.units, **vars(parquet.prove(data)))
        publish(labels.uri, [forged], 5).read(0)


def test_labels_of_an_earlier_version_are_refused_with_what_to_do(tmp_path):
    (tmp_path / "epoch-001.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        TableError, match=r"an earlier version .* as one file: train the run again in another directory"
    ):
        open_labels(str(tmp_path / "epoch-001"))
