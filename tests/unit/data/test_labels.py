"""Labels tables: slices by row group, files that come back as they were, and the summary of an epoch."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from boxsup_dist.data.labels import Labels, labels_table, read_labels, segments_by_box, summarise
from boxsup_dist.data.schema import LABELS
from boxsup_dist.errors import InputError, TableError


def row(image_id: str, box_index: int, proposal_index: int, cost: float = 0.5) -> dict:
    found = proposal_index >= 0
    return {
        "image_id": image_id,
        "box_index": box_index,
        "class_id": 1 + box_index,
        "proposal_index": proposal_index,
        "superpixel_ids": [proposal_index, 1000 + box_index, 65535] if found else [],
        "undecided_ids": [3] * box_index if found else [],
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


@pytest.fixture
def labels() -> Labels:
    return Labels.concatenate([labels_table(rows) for rows in GROUPS])


def as_lists(segments: dict) -> dict:
    return {
        name: [None if s is None else [ids.tolist() for ids in s] for s in boxes] for name, boxes in segments.items()
    }


def expected_segments(rows: list[dict]) -> dict:
    found: dict[str, list] = {}
    for entry in rows:  # rows of one image are in the order of its boxes
        segment = [entry["superpixel_ids"], entry["undecided_ids"]] if entry["proposal_index"] >= 0 else None
        found.setdefault(entry["image_id"], []).append(segment)
    return found


def test_every_unit_finds_its_own_segments(labels):
    assert labels.table.schema == LABELS
    assert labels.table.num_rows == sum(map(len, GROUPS))
    for index, rows in enumerate(GROUPS):
        assert as_lists(labels.segments(index)) == expected_segments(rows)
    assert as_lists(segments_by_box(labels.table)) == expected_segments([r for rows in GROUPS for r in rows])


def test_segments_index_a_superpixel_table_directly(labels):
    segment = labels.segments(0)["a"][0].superpixel_ids
    assert segment.dtype == np.uint16 and np.zeros(65536, bool)[segment].shape == (3,)


def test_a_file_comes_back_as_it_was(labels, tmp_path):
    path = tmp_path / "labels.parquet"
    path.write_bytes(labels.to_parquet())
    found = read_labels(str(path))
    assert found.table.schema.equals(labels.table.schema, check_metadata=True)
    assert str(found.table.to_pylist()) == str(labels.table.to_pylist())
    assert found.offsets.tolist() == labels.offsets.tolist()
    for index in range(len(GROUPS)):
        assert as_lists(found.segments(index)) == as_lists(labels.segments(index))
    assert found.to_parquet() == labels.to_parquet()


@pytest.mark.parametrize("num_groups", [1, 3])
def test_tables_without_any_box(num_groups, tmp_path):
    empty = Labels.concatenate([labels_table([])] * num_groups)
    assert empty.segments(num_groups - 1) == {}
    assert summarise(empty, empty) == {"share_without_candidate": 0.0}
    path = tmp_path / "labels.parquet"
    path.write_bytes(empty.to_parquet())
    assert read_labels(str(path)).segments(0) == {}


def unhashed(labels: Labels) -> pa.Table:
    """What a labels file holds, without the mark that it has a hash, as older versions wrote it."""
    table = pq.read_table(pa.BufferReader(labels.to_parquet()))
    return table.replace_schema_metadata({b"unit_offsets": table.schema.metadata[b"unit_offsets"]})


def write(table: pa.Table, path) -> str:
    pq.write_table(table, path)
    return str(path)


def test_files_that_are_no_labels_are_refused(labels, tmp_path):
    good = unhashed(labels)
    rank = good.schema.get_field_index("rank")
    bad = {
        "lacks a column": good.drop_columns(["rank"]),
        "another type": good.set_column(rank, "rank", good["rank"].cast(pa.int64())),
        "unknown columns": good.append_column("extra", good["rank"]),
        "unit offsets": good.replace_schema_metadata(None),
    }
    for message, table in bad.items():
        uri = write(table, tmp_path / "bad.parquet")
        with pytest.raises(TableError, match=message) as caught:
            read_labels(uri)
        assert caught.value.file == uri
    (tmp_path / "cut.parquet").write_bytes(labels.to_parquet()[:-20])
    with pytest.raises(TableError, match=r"not a readable Parquet file.*cut.parquet"):
        read_labels(str(tmp_path / "cut.parquet"))
    with pytest.raises(InputError, match="no such file"):
        read_labels(str(tmp_path / "absent.parquet"))


def test_a_damaged_labels_file_is_never_read_as_other_labels(labels, tmp_path):
    data, rng = labels.to_parquet(), np.random.default_rng(0)
    for position in range(len(data)):
        bad = bytearray(data)
        bad[position] ^= 1 << int(rng.integers(8))
        (tmp_path / "bad.parquet").write_bytes(bad)
        try:  # without its mark "hash" the file counts as one of an older version, and nothing else is damaged
            assert read_labels(str(tmp_path / "bad.parquet")).to_parquet() == data
        except TableError as error:
            assert error.file == str(tmp_path / "bad.parquet")
    middle = bytearray(data)
    middle[len(data) // 8] ^= 1
    (tmp_path / "bad.parquet").write_bytes(middle)
    with pytest.raises(TableError, match=r"the labels file is damaged: copy it from its checkpoint.*bad.parquet"):
        read_labels(str(tmp_path / "bad.parquet"))


def test_a_labels_file_of_an_older_version_is_read(labels, tmp_path):
    found = read_labels(write(unhashed(labels), tmp_path / "older.parquet"))
    assert found.to_parquet() == labels.to_parquet()


@pytest.mark.parametrize("offsets", ["{", "[]", "[0]", "7", '[0, "1"]', "[0, 3, 2, ROWS]", "[1, ROWS]", "[-1, ROWS]"])
def test_unit_offsets_that_do_not_fit_are_named(labels, tmp_path, offsets):
    offsets = offsets.replace("ROWS", str(labels.table.num_rows))
    table = labels.table.replace_schema_metadata({b"unit_offsets": offsets.encode()})
    with pytest.raises(InputError, match=r"odd.parquet"):
        read_labels(write(table, tmp_path / "odd.parquet"))


def test_labels_of_fewer_units_are_refused(labels):
    with pytest.raises(TableError, match=rf"made for other tables.*found: {len(GROUPS)}; expected: {len(GROUPS) + 1}"):
        labels.segments(len(GROUPS))


def labels_of(*proposals: int, costs: list[float] | None = None) -> Labels:
    costs = costs or [0.5] * len(proposals)
    pairs = zip(proposals, costs, strict=True)
    return Labels.concatenate([labels_table([row(str(i), 0, p, c) for i, (p, c) in enumerate(pairs)])])


def test_mean_costs_leave_boxes_without_a_candidate_out():
    summary = summarise(labels_of(1, -1, 2, -1, costs=[0.25, 9, 0.75, 9]), None)
    assert summary == {"share_without_candidate": 0.5, "mean_overlap_cost": 0.5, "mean_regression_cost": 1.0}


def test_no_box_with_a_candidate():
    assert summarise(labels_of(-1, -1), labels_of(-1, -1)) == {"share_without_candidate": 1.0, "share_changed": 0.0}


@pytest.mark.parametrize(
    "before, after, share",
    [
        ((1, 2, 3, 4), (1, 2, 3, 4), 0.0),
        ((1, 2, 3, 4), (1, 5, 3, 6), 0.5),
        ((1, -1, -1, 4), (1, -1, 2, -1), 0.5),  # to or from no candidate is a change; none twice is none
        ((1, 2), (2, 1), 1.0),
    ],
)
def test_share_of_boxes_whose_candidate_changed(before, after, share):
    assert summarise(labels_of(*after), labels_of(*before))["share_changed"] == share
    assert "share_changed" not in summarise(labels_of(*after), None)
