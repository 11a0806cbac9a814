"""What is read is what was written: damaged, exchanged and rewritten shards are refused, and the error names them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from boxsup_dist.data import parquet, tables
from boxsup_dist.data.schema import RECORDS, records_to_table
from boxsup_dist.data.tables import Table
from boxsup_dist.errors import TableError
from tests.unit.data.test_tables import build, make_record

Rng = np.random.Generator


def rows_of(table: Table) -> pa.Table:
    return pa.concat_tables([table.read(where) for where in table.row_groups()])


def shard(table: Table, index: int = 0) -> Path:
    return Path(table.shard_uri(index))


def flip(data: bytes, positions: np.ndarray | list[int], rng: Rng) -> bytes:
    found = bytearray(data)
    for position in positions:
        found[position] ^= 1 << int(rng.integers(8))
    return bytes(found)


# -- 100 seeded damages of a records shard -----------------------------------------------------------------------------


def flips_a_bit(table: Table, other: Table, rng: Rng) -> None:
    data = shard(table).read_bytes()
    shard(table).write_bytes(flip(data, rng.integers(len(data), size=1), rng))


def flips_many_bits(table: Table, other: Table, rng: Rng) -> None:
    data = shard(table).read_bytes()
    shard(table).write_bytes(flip(data, rng.integers(len(data), size=20), rng))


def cuts(table: Table, other: Table, rng: Rng) -> None:
    data = shard(table).read_bytes()
    shard(table).write_bytes(data[: rng.integers(len(data))])


def appends(table: Table, other: Table, rng: Rng) -> None:
    data = shard(table).read_bytes()
    shard(table).write_bytes(data + data[-rng.integers(1, 2000) :])


def swaps(table: Table, other: Table, rng: Rng) -> None:
    first, second = shard(table, 0).read_bytes(), shard(table, 1).read_bytes()
    shard(table, 0).write_bytes(second)
    shard(table, 1).write_bytes(first)


def takes_from_another_table(table: Table, other: Table, rng: Rng) -> None:
    shutil.copy(shard(other, 1), shard(table))


def reverses(table: Table, other: Table, rng: Rng) -> None:
    rows = pq.read_table(shard(table))
    shard(table).write_bytes(tables.encode_shard(rows.take(list(range(rows.num_rows))[::-1]), "records", 2))


def reorders_row_groups(table: Table, other: Table, rng: Rng) -> None:
    rows = pq.read_table(shard(table))
    order = [2, 3, 0, 1, *range(4, rows.num_rows)]
    shard(table).write_bytes(tables.encode_shard(rows.take(order), "records", 2))


def changes_a_box(table: Table, other: Table, rng: Rng) -> None:
    records = [make_record(i) for i in range(5)]
    records[1] = replace(records[1], boxes_xyxy=records[1].boxes_xyxy + 1)
    shard(table).write_bytes(tables.encode_shard(records_to_table(records), "records", 2))


def removes(table: Table, other: Table, rng: Rng) -> None:
    shard(table).unlink()


DAMAGES: list[Callable[[Table, Table, Rng], None]] = [
    flips_a_bit, flips_many_bits, cuts, appends, swaps, takes_from_another_table, reverses, reorders_row_groups,
    changes_a_box, removes,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_shard_is_never_read_as_other_rows(tmp_path, damage):
    table, other = build(str(tmp_path / "t"), (5, 5)), build(str(tmp_path / "other"), (5, 4), {"x": 2})
    expected, files = rows_of(table), {shard(table, i): shard(table, i).read_bytes() for i in (0, 1)}
    for seed in range(10):
        damage(table, other, np.random.default_rng(seed))
        with pytest.raises(TableError, match=r"delete part-0000[01].json and manifest.json") as caught:
            assert not rows_of(table).equals(expected), "then nothing was damaged"
        assert caught.value.file in map(str, files)
        for path, data in files.items():
            path.write_bytes(data)
    assert rows_of(table).equals(expected)


def check_flips(folder: Path, start: int, step: int) -> None:
    """Flip a random bit at each position, read all rows, and find them the same or refused; in the footer refused."""
    table = build(str(folder / "t"), (4,))
    expected, data, rng = rows_of(table), shard(table).read_bytes(), np.random.default_rng(0)
    for position in range(start, len(data), step):
        shard(table).write_bytes(flip(data, [position], rng))
        try:
            assert rows_of(table).equals(expected), position
            assert position < len(b"PAR1"), "only the first letters are not read"
        except TableError as error:
            assert error.file == str(shard(table))


def test_flipped_bits_of_a_shard_are_refused_or_harmless(tmp_path):
    check_flips(tmp_path, 0, 7)


@pytest.mark.long
@pytest.mark.parametrize("start", range(8))
def test_a_flipped_bit_in_each_byte(tmp_path, start):
    check_flips(tmp_path, start, 8)


def test_only_the_columns_that_are_read_need_to_be_whole(tmp_path):
    table = build(str(tmp_path / "t"))
    where, expected = table.row_groups()[0], table.read(table.row_groups()[0], ["image_id", "width"])
    metadata = pq.read_metadata(shard(table))
    assert metadata.row_group(0).column(3).path_in_schema == "image"
    data = bytearray(shard(table).read_bytes())
    data[metadata.row_group(0).column(3).data_page_offset + 1] ^= 1  # in the header of its page
    shard(table).write_bytes(data)
    assert table.read(where, ["image_id", "width"]).equals(expected)
    with pytest.raises(TableError, match=r"damaged.*part-00000.*field: chunk_crcs: column image, row group 0; found"):
        table.read(where, ["image_id", "image"])


def test_a_row_group_of_a_store_takes_three_requests(tmp_path, monkeypatch):
    """The size, the footer, and all columns; more only where a large column that is not read lies between two."""
    store = fsspec.get_filesystem_class("memory")
    table, requests = build("memory://proved/t"), []
    for name in ("info", "cat_file"):
        whole = getattr(store, name)
        counted = lambda self, *args, _whole=whole, _name=name, **kwargs: (  # noqa: E731
            requests.append(_name),
            _whole(self, *args, **kwargs),
        )[1]
        monkeypatch.setattr(store, name, counted)
    for columns in (None, ("image_id", "image", "boxes_xyxy")):
        requests.clear()
        assert table.read(table.row_groups()[1], columns).num_rows == 2
        assert requests == ["info", "cat_file", "cat_file"]


def test_the_proof_of_a_file_without_rows(tmp_path):
    info = tables.write_shard(str(tmp_path), 0, records_to_table([]), "records", row_group_size=2)
    file = parquet.ProvedFile(str(tmp_path / info.file), info)
    assert info.row_groups == file.row_groups == [] and file.read([]).schema == RECORDS
