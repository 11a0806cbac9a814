"""A stored table is whole or refused; its row groups are fixed slices."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from boxsup_dist.data import tables
from boxsup_dist.data.schema import RECORDS, SCHEMAS, Record, check_schema, iter_records, records_to_table
from boxsup_dist.errors import TableError
from boxsup_dist.io.typed_json import write_sealed


def make_record(index: int, num_boxes: int = 2) -> Record:
    rng = np.random.default_rng(index)
    return Record(
        image_id=f"test/{index}",
        source="test",
        split="train",
        image=rng.bytes(50),
        height=10,
        width=20,
        boxes_xyxy=rng.uniform(0, 10, (num_boxes, 4)).astype(np.float32),
        class_ids=rng.integers(1, 21, num_boxes).astype(np.int32),
        difficult=rng.random(num_boxes) < 0.5,
        crowd=np.zeros(num_boxes, bool),
        gt_label_map=None if index % 2 else b"png",
        instance_masks=None if index % 3 else [rng.bytes(7)] * num_boxes,
    )


def build(uri: str, sizes: tuple[int, ...] = (5, 3), settings: dict | None = None) -> tables.Table:
    settings = settings or {"x": 1}
    assert tables.begin(uri, "records", settings) is None
    first = np.cumsum([0, *sizes])
    shards = [
        tables.write_shard(
            uri,
            index,
            records_to_table([make_record(i) for i in range(first[index], first[index + 1])]),
            "records",
            row_group_size=2,
            counts={"images": size},
        )
        for index, size in enumerate(sizes)
    ]
    return tables.publish(uri, "records", settings, shards)


@pytest.mark.parametrize("num_boxes", [0, 1, 3])
def test_records_survive_the_round_trip(num_boxes):
    records = [make_record(i, num_boxes) for i in range(4)]
    for before, after in zip(records, iter_records(records_to_table(records)), strict=True):
        for name in ("boxes_xyxy", "class_ids", "difficult", "crowd"):
            old, new = getattr(before, name), getattr(after, name)
            assert new.dtype == old.dtype and new.shape == old.shape and (new == old).all()
        for name in ("image", "image_id", "gt_label_map", "instance_masks"):
            assert getattr(before, name) == getattr(after, name)


def test_image_columns_have_64_bit_offsets():
    # Plain binary columns overflow at 2 GiB a chunk; so would plain lists of the many superpixel ids.
    for kind, columns in {"records": ["image", "gt_label_map"], "proposals": ["superpixels"]}.items():
        for column in columns:
            assert SCHEMAS[kind].field(column).type == pa.large_binary()
    assert SCHEMAS["records"].field("instance_masks").type.value_type == pa.large_binary()
    membership = SCHEMAS["proposals"].field("membership").type
    assert pa.types.is_large_list(membership) and pa.types.is_large_list(membership.value_type)


@pytest.mark.parametrize("sizes", [(1,), (5, 3), (2, 0, 4), (0, 7)])
def test_row_groups_cover_every_row_once_in_order(tmp_path, sizes):
    table = build(str(tmp_path / "t"), sizes)
    groups = table.row_groups()
    rows = [i for where in groups for i in table.read(where, ["image_id"])["image_id"].to_pylist()]
    assert rows == [f"test/{i}" for i in range(sum(sizes))]
    assert sum(where.num_rows for where in groups) == table.num_rows == table.counts["images"] == sum(sizes)
    assert all(1 <= where.num_rows <= 2 for where in groups)


def test_unfinished_absent_and_foreign_tables_are_refused(tmp_path):
    uri = str(tmp_path / "t")
    with pytest.raises(TableError, match="no table here"):
        tables.open_table(uri, "records")
    tables.begin(uri, "records", {})
    with pytest.raises(TableError, match="unfinished"):
        tables.open_table(uri, "records")
    build(str(tmp_path / "whole"))
    with pytest.raises(TableError, match=r"another kind.*proposals"):
        tables.open_table(str(tmp_path / "whole"), "proposals")


def test_schema_of_another_version_is_refused(tmp_path):
    uri = tmp_path / "t"
    build(str(uri))
    manifest = json.loads((uri / "manifest.json").read_text())
    (uri / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 99}))
    with pytest.raises(TableError, match=r"schema of another version.*found: 99"):
        tables.open_table(str(uri), "records")


@pytest.mark.parametrize(
    ("schema", "match"),
    [
        (RECORDS.remove(0), "lacks a column.*image_id"),
        (RECORDS.set(3, pa.field("image", pa.binary())), "another type.*image.*large_binary"),
        (RECORDS.append(pa.field("extra", pa.int8())), "unknown columns.*extra"),
    ],
)
def test_schema_differences_are_named(schema, match):
    with pytest.raises(TableError, match=match):
        check_schema(schema, "records", file="x.parquet")


def test_begin_refuses_other_settings_and_knows_a_whole_table(tmp_path):
    uri = str(tmp_path / "t")
    table = build(uri, settings={"x": 1, "y": 2})
    again = tables.begin(uri, "records", {"x": 1, "y": 2})
    assert again == table
    with pytest.raises(TableError, match=r"other settings.*field: x;.*'x': 1.*'x': 3"):
        tables.begin(uri, "records", {"x": 3, "y": 2})
    with pytest.raises(TableError, match="other settings"):
        tables.begin(uri, "proposals", {"x": 1, "y": 2})


def test_fingerprint_depends_on_content_and_settings(tmp_path):
    first = build(str(tmp_path / "a"))
    assert build(str(tmp_path / "b")).fingerprint == first.fingerprint
    assert build(str(tmp_path / "c"), sizes=(5, 4)).fingerprint != first.fingerprint
    assert build(str(tmp_path / "d"), settings={"x": 2}).fingerprint != first.fingerprint


def test_times_stand_beside_the_table_and_never_in_it(tmp_path):
    rows = records_to_table([make_record(i) for i in range(3)])
    found = []
    for name, row_ms in (("a", [7, 8, 9]), ("b", None)):
        uri = str(tmp_path / name)
        shard = tables.write_shard(uri, 0, rows, "records", row_group_size=2, row_ms=row_ms)
        found.append(tables.publish(uri, "records", {}, [shard]))
    assert [table.shards[0].row_ms for table in found] == [[7, 8, 9], []]
    assert found[0].fingerprint == found[1].fingerprint


def test_stored_size_and_classes(tmp_path):
    table = build(str(tmp_path / "t"), settings={"classes": ("background", "cat")})
    assert table.classes == ("background", "cat")
    sizes = [table.row_group_bytes(where) for where in table.row_groups()]
    assert all(size.keys() == set(SCHEMAS["records"].names) for size in sizes)
    assert 100 < sum(sum(size.values()) for size in sizes) < table.num_bytes


def test_a_table_without_rows_is_refused_with_the_reasons(tmp_path):
    uri = str(tmp_path / "t")
    tables.begin(uri, "records", {})
    info = tables.write_shard(uri, 0, records_to_table([]), "records", row_group_size=2)
    info = replace(info, problems=[{"image_id": "a", "problem": "truncated"}])
    with pytest.raises(TableError, match=r"no row is usable.*truncated"):
        tables.publish(uri, "records", {}, [info])


# -- damaged JSON files ------------------------------------------------------------------------------------------------


def read_file(folder, name: str) -> None:
    """Read one JSON file of a table as the product does."""
    if name == "manifest.json":
        tables.open_table(str(folder), "records")
    elif name == "build.json":
        tables.begin(str(folder), "records", {"x": 1})
    else:
        tables.finished_shard(str(folder), 0)


JSON_FILES = ("manifest.json", "build.json", "part-00000.json")


@pytest.mark.parametrize("name", JSON_FILES)
@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", "7", '"x"', "{}", '{"kind": []}', "[" * 10**5, "\xff", "9" * 5000]
)
def test_a_file_of_another_shape_is_named(tmp_path, name, text):
    build(str(tmp_path))
    (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(TableError, match="delete this file and run the command that built the table again") as caught:
        read_file(tmp_path, name)
    assert caught.value.file == str(tmp_path / name) and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("name", "change", "field", "value"),
    [
        ("manifest.json", lambda m: m.pop("shards"), "shards", None),
        ("manifest.json", lambda m: m.update(shards={}), "shards", {}),
        ("manifest.json", lambda m: m.update(num_rows=-8), "num_rows", -8),
        ("manifest.json", lambda m: m["counts"].update(images="8"), "counts.images", "8"),
        ("manifest.json", lambda m: m["shards"][1].update(num_bytes=-1), "shards.1.num_bytes", -1),
        ("manifest.json", lambda m: m["shards"][0].update(row_groups=[2, 0]), "shards.0.row_groups.1", 0),
        ("manifest.json", lambda m: m["shards"][0].update(file=None), "shards.0.file", None),
        ("build.json", lambda m: m.update(settings=None), "settings", None),
        ("part-00000.json", lambda m: m.update(row_ms=[1.5]), "row_ms.0", 1.5),
        ("part-00000.json", lambda m: m.pop("sha256"), "sha256", None),
    ],
)
def test_a_field_that_is_absent_or_of_another_type_is_named(tmp_path, name, change, field, value):
    build(str(tmp_path))
    values = json.loads((tmp_path / name).read_text())
    change(values)
    (tmp_path / name).write_text(json.dumps(values))
    with pytest.raises(TableError, match="delete this file and run the command that built the table again") as caught:
        read_file(tmp_path, name)
    assert (caught.value.file, caught.value.field, caught.value.value) == (str(tmp_path / name), field, value)


@pytest.mark.parametrize("name", JSON_FILES)
def test_a_changed_byte_is_refused_or_harmless(tmp_path, name):
    table = build(str(tmp_path))
    whole, rng = (tmp_path / name).read_bytes(), np.random.default_rng(0)
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1 << int(rng.integers(8))
        (tmp_path / name).write_bytes(changed)
        try:
            read_file(tmp_path, name)
            assert json.loads(changed) == json.loads(whole), (position, changed[position])  # white space
        except TableError as error:
            assert error.file == str(tmp_path / name)
    (tmp_path / name).write_bytes(whole)
    assert tables.open_table(str(tmp_path), "records") == table


def test_row_groups_that_do_not_add_up_are_named(tmp_path):
    table = build(str(tmp_path))
    values = json.loads((tmp_path / "manifest.json").read_text())
    del values["seal"]
    for row_groups, match in (([2, 2], r"num_rows; found: 8; expected: 7"), ([2, 1, 2], r"found: \[2, 2, 1\]")):
        values["shards"][0]["row_groups"] = row_groups
        write_sealed(str(tmp_path / "manifest.json"), values)
        with pytest.raises(TableError, match=match):
            tables.open_table(str(tmp_path), "records").read(table.row_groups()[0])


def test_an_older_table_is_refused_with_the_command_that_builds_it(tmp_path):
    build(str(tmp_path))
    for name in ("build.json", "manifest.json"):
        values = json.loads((tmp_path / name).read_text())
        del values["seal"]
        (tmp_path / name).write_text(json.dumps(values | {"schema_version": 3}))
        with pytest.raises(
            TableError, match=r"another version.*run python -m jobs.build_records again.*found: 3"
        ) as caught:
            read_file(tmp_path, name)
        assert caught.value.file == str(tmp_path / name)
