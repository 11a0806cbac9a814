"""Parquet files whose bytes are proved before they are decoded.

The checksums of Parquet's pages do not cover the pages' headers: with them verified, and an intact footer, 8 of 29,000
single flipped bits of a shard were read as other rows. So a `Proof` is kept beside each file. It has the hash of the
footer and a CRC of every column chunk with its headers: reading one column of one row group proves exactly the bytes
that are read. Page checksums are written too, for other programs.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from annotated_types import Ge

from boxsup_dist.errors import MissingFileError, TableError
from boxsup_dist.io import storage

_END_BYTES = 8  # of a file: the length of the footer's metadata, and the letters PAR1
_MAX_GAP_BYTES = 2**16  # columns that lie closer are read by one request


@dataclass(frozen=True)
class Proof:
    """What identifies a Parquet file, and each part of it that is read by itself."""

    num_bytes: Annotated[int, Ge(0)]
    sha256: str  # of the whole file
    footer_bytes: Annotated[int, Ge(_END_BYTES)]
    footer_sha256: str
    chunk_crcs: list[str]  # of each row group: CRC-32 of its column chunks, 8 hex digits each, in the schema's order

    def repair(self, uri: str) -> str:
        """What a user does about a damaged or missing file; the end of an error's problem."""
        info = uri.rpartition("/")[2].removesuffix(".parquet") + ".json"
        return (
            f"delete {info} and manifest.json in its folder and run the command that built the table again; it makes "
            "only this shard"
        )


def encode(
    table: pa.Table, row_group_size: int, *, split_bytes: Sequence[str] = (), level: int | None = None
) -> memoryview:
    """The table as the bytes of a Parquet file with zstd compression.

    Args:
        table: The rows.
        row_group_size: Rows of one row group.
        split_bytes: Parquet paths of integer columns whose high and low bytes are compressed apart.
        level: Level of the compression; None is the default of zstd.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=row_group_size,
        compression="zstd",
        compression_level=level,
        use_dictionary=not split_bytes,
        column_encoding=dict.fromkeys(split_bytes, "BYTE_STREAM_SPLIT") or None,
        write_page_checksum=True,
    )
    return memoryview(sink.getvalue())


def encode_groups(groups: Iterable[pa.Table]) -> memoryview:
    """Tables of one schema as the bytes of a Parquet file with zstd compression, one row group each.

    The bytes of a row group depend on its rows alone, not on the groups before it. Page and footer hold no statistics,
    which would be as large as the rows of a small group.

    Args:
        groups: At least one table, each of at least one row.
    """
    sink = pa.BufferOutputStream()
    writer: pq.ParquetWriter | None = None
    for group in groups:
        writer = writer or pq.ParquetWriter(
            sink, group.schema, compression="zstd", write_statistics=False, write_page_checksum=True
        )
        writer.write_table(group.combine_chunks(), row_group_size=group.num_rows)
    assert writer is not None
    writer.close()
    return memoryview(sink.getvalue())


def prove(data: bytes | memoryview) -> Proof:
    """The proof of a Parquet file's bytes."""
    footer = data[_footer_start(data) :]
    metadata = pq.read_metadata(pa.BufferReader(footer))
    crcs = [
        "".join(_crc(data[chunk.start : chunk.stop]) for chunk in _chunks(metadata, group))
        for group in range(metadata.num_row_groups)
    ]
    return Proof(len(data), _sha256(data), len(footer), _sha256(footer), crcs)


class ProvedFile:
    """A Parquet file, opened by its proof: what does not fit the proof is never decoded."""

    def __init__(self, uri: str, proof: Proof) -> None:
        """Read the footer.

        Raises:
            TableError: There is no such file, or its size or footer is not that of the proof.
        """
        self._uri, self._proof = uri, proof
        with needing_shard(uri, proof):
            size = storage.file_size(uri)
        if size != proof.num_bytes:
            raise damaged(uri, proof, "num_bytes", size, proof.num_bytes)
        (footer,) = storage.read_ranges(uri, [(size - proof.footer_bytes, size)])
        if _sha256(footer) != proof.footer_sha256:
            raise damaged(uri, proof, "footer_sha256", _sha256(footer), proof.footer_sha256)
        with decoding_parquet(uri):
            self._metadata = pq.read_metadata(pa.BufferReader(footer))
            self.schema: pa.Schema = self._metadata.schema.to_arrow_schema()

    @property
    def row_groups(self) -> list[int]:
        """Number of rows of each row group; [] for a file without rows."""
        return row_groups(self._metadata)

    def column_bytes(self, row_group: int) -> dict[str, int]:
        """Stored bytes of each column of one row group."""
        group = self._metadata.row_group(row_group)
        columns = [group.column(c) for c in range(group.num_columns)]
        return {column.path_in_schema.split(".")[0]: column.total_compressed_size for column in columns}

    def read(self, row_groups: Sequence[int], columns: Sequence[str] | None = None) -> pa.Table:
        """Read row groups.

        Args:
            row_groups: Numbers of the row groups.
            columns: Names of the columns to read; None reads all.

        Raises:
            TableError: Stored bytes are not those of the proof; names the column.
        """
        wanted = [
            (group, index, chunk)
            for group in row_groups
            for index, chunk in enumerate(_chunks(self._metadata, group))
            if columns is None or self._column(index) in columns
        ]
        # Zeros take no memory until they are written: the file with only the parts that are read.
        partial = np.zeros(self._proof.num_bytes, np.uint8)
        spans = _joined([chunk for _, _, chunk in wanted])
        for (start, stop), data in zip(spans, storage.read_ranges(self._uri, spans), strict=True):
            partial[start:stop] = np.frombuffer(data, np.uint8)
        for group, index, chunk in wanted:
            found = _crc(partial.data[chunk.start : chunk.stop])
            expected = self._proof.chunk_crcs[group][8 * index :][:8]
            if found != expected:
                field = f"chunk_crcs: column {self._column(index)}, row group {group}"
                raise damaged(self._uri, self._proof, field, found, expected)
        with decoding_parquet(self._uri):
            file = pq.ParquetFile(pa.BufferReader(pa.py_buffer(partial)), metadata=self._metadata, pre_buffer=False)
            return file.read_row_groups(list(row_groups), columns=None if columns is None else list(columns))

    def _column(self, index: int) -> str:
        return str(self._metadata.schema.column(index).path).split(".")[0]


def row_groups(metadata: pq.FileMetaData) -> list[int]:
    """Number of rows of each row group; [] for a file without rows, though it has an empty row group."""
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return [size for size in sizes if size]


@contextmanager
def needing_shard(uri: str, proof: Proof) -> Iterator[None]:
    """Turn the error that a shard is not there into a TableError that says what to do."""
    try:
        yield
    except MissingFileError as error:
        raise error.at(problem=f"a shard of the table is missing: {proof.repair(uri)}", kind=TableError) from None


def damaged(uri: str, proof: Proof, field: str, value: object, expected: object) -> TableError:
    """The error of a shard that does not fit its proof: `field` is `value`, the manifest says `expected`."""
    problem = f"the shard is damaged, or another file: {proof.repair(uri)}"
    return TableError(problem, file=uri, field=field, value=value, expected=f"{expected}, from the manifest")


@contextmanager
def decoding_parquet(uri: str) -> Iterator[None]:
    """Turn what a damaged or foreign Parquet file raises inside the block into a TableError that names it."""
    try:
        yield
    except TableError:
        raise
    # The last two come from Ray's types in a foreign file.
    except (OSError, pa.ArrowException, ValueError, TypeError, AttributeError) as error:
        raise TableError("not a readable Parquet file", file=uri, value=str(error)) from None


def _footer_start(data: bytes | memoryview) -> int:
    """Where the footer begins; below 0 in a damaged file."""
    return len(data) - _END_BYTES - int.from_bytes(data[-_END_BYTES:-4], "little")


def _chunks(metadata: pq.FileMetaData, row_group: int) -> Iterator[slice]:
    """Where each column of a row group lies in the file, with its dictionary and all headers."""
    group = metadata.row_group(row_group)
    for index in range(group.num_columns):
        column = group.column(index)
        pages = (column.dictionary_page_offset, column.data_page_offset)
        start = min(offset for offset in pages if offset is not None)
        yield slice(start, start + column.total_compressed_size)


def _joined(chunks: Sequence[slice]) -> list[tuple[int, int]]:
    """Ranges (start, stop) that cover all chunks, with the small gaps between them."""
    ranges: list[tuple[int, int]] = []
    for chunk in sorted(chunks, key=lambda chunk: int(chunk.start)):
        if ranges and chunk.start - ranges[-1][1] <= _MAX_GAP_BYTES:
            ranges[-1] = (ranges[-1][0], chunk.stop)
        else:
            ranges.append((chunk.start, chunk.stop))
    return ranges


def _sha256(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def _crc(data: bytes | memoryview) -> str:
    return f"{zlib.crc32(data):08x}"
