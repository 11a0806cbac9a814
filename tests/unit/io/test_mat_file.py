"""MATLAB files: all kinds give the same values, and no damage of a file ends the process or writes outside a buffer."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse

from boxsup_dist.errors import RecordError
from boxsup_dist.io.mat_file import read_mat
from tests.mat73 import savemat73


@pytest.mark.parametrize("kind", ["5", "7.3"])
def test_structs_cells_and_sparse_matrices_become_plain_values(tmp_path, kind):
    sparse = scipy.sparse.csc_matrix(([1.0, 2.0], ([0, 2], [1, 3])), (3, 4))
    map_ = np.arange(12, dtype=np.uint8).reshape(3, 4)
    file = tmp_path / "a.mat"
    if kind == "5":
        cells = np.empty((2, 1), object)
        cells[:, 0] = [sparse, np.eye(2)]
        scipy.io.savemat(file, {"GTcls": {"Boundaries": cells, "Segmentation": map_}})
    else:
        savemat73(file, {"GTcls": {"Boundaries": [sparse, np.eye(2)], "Segmentation": map_}})
    found = read_mat(file.read_bytes())["GTcls"]
    assert set(found) == {"Boundaries", "Segmentation"}
    assert (found["Segmentation"] == map_).all() and found["Segmentation"].dtype == np.uint8
    assert (found["Boundaries"][0] == sparse.toarray()).all() and (found["Boundaries"][1] == np.eye(2)).all()


def mat5(values: dict[str, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, values, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", "?"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 3, 4), (0, 3), (1, 9)])
def test_numbers_of_every_type_and_shape_as_scipy_reads_them(dtype, shape):
    values = (np.random.default_rng(0).random(shape) * 100).astype(dtype)
    data = mat5({"a": values})
    found, expected = read_mat(data)["a"], scipy.io.loadmat(io.BytesIO(data))["a"]
    assert found.shape == shape and found.dtype == expected.dtype and (found == values).all()


def test_what_is_empty_and_what_is_text():
    cells = np.empty((1, 2), object)
    cells[0, :] = ["", np.zeros((0, 0))]
    found = read_mat(mat5({"text": "caf\u00e9", "cells": cells, "none": np.empty((0, 0), object)}))
    assert found["text"] == "caf\u00e9" and found["none"] == []
    assert found["cells"][0] == "" and found["cells"][1].size == 0


def test_of_several_structs_the_first():
    structs = np.array([(1.0, 2.0), (3.0, 4.0)], [("x", object), ("y", object)]).reshape(1, 2)
    found = read_mat(mat5({"s": structs}))["s"]
    assert list(found) == ["x", "y"] and (found["x"].item(), found["y"].item()) == (1, 2)
    assert len(read_mat(mat5({"s": structs[:, :0]}))["s"]) == 0


def test_a_file_of_another_byte_order():
    numbers = struct.pack(">IIIIIIiiIIIIHHHHHH", 6, 8, 11, 0, 5, 8, 2, 3, 0x00010061, 0x61000000, 4, 12, *range(6))
    numbers = numbers.replace(struct.pack(">II", 0x00010061, 0x61000000), struct.pack(">HHI", 1, 1, 0x61000000))
    numbers += bytes(-len(numbers) % 8)
    data = b"MATLAB 5.0".ljust(124) + b"\x01\x00MI" + struct.pack(">II", 14, len(numbers)) + numbers
    found = read_mat(data)["a"]
    assert found.dtype == np.uint16 and found.tolist() == [[0, 2, 4], [1, 3, 5]]
    assert (scipy.io.loadmat(io.BytesIO(data))["a"] == found).all()


def test_files_of_version_4():
    sparse = scipy.sparse.csc_matrix(([1.0, 2.0], ([0, 2], [1, 3])), (3, 4))
    found = read_mat(mat5({"LabelMap": np.arange(6.0).reshape(2, 3), "s": sparse}, format="4"))
    assert found["LabelMap"].tolist() == [[0, 1, 2], [3, 4, 5]] and (found["s"] == sparse.toarray()).all()


def test_damaged_files_are_told():
    data = mat5({"LabelMap": np.zeros((50, 50), np.uint16)}, do_compression=True)
    for bad in (b"", b"MATLAB 7.3", data[:150], b"\x89HDF\r\n\x1a\nno"):
        with pytest.raises(RecordError, match="not a readable MATLAB file"):
            read_mat(bad)


# -- sparse matrices --------------------------------------------------------------------------------------------------

ENTRIES = {"rows": [0, 2, 1], "starts": [0, 1, 1, 3], "values": [1.0, 2.0, 3.0], "num_rows": 3}
WRONG = {
    "row above the matrix": {"rows": [0, 2**31 - 1, 1]},
    "row below the matrix": {"rows": [0, -1, 1]},
    "one row too far": {"rows": [0, 2, 3]},
    "rows that fall": {"rows": [0, 2, 1], "starts": [0, 1, 1, 3]},
    "row twice": {"rows": [0, 1, 1]},
    "starts that fall": {"rows": [0, 1, 2], "starts": [0, 2, 1, 3]},
    "first start": {"rows": [0, 1, 2], "starts": [1, 1, 1, 3]},
    "more entries than stored": {"rows": [0, 1, 2], "starts": [0, 1, 1, 2**31 - 1]},
    "fewer values than rows": {"rows": [0, 1, 2], "values": [1.0]},
    "no columns": {"rows": [], "starts": [], "values": []},
}


def sparse5(rows: list[int], starts: list[int], values: list[float], num_rows: int) -> bytes:
    """A file of version 5 whose sparse matrix has these parts, whether or not they are possible."""

    def element(kind: int, content: bytes) -> bytes:
        return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)

    parts = element(6, struct.pack("<II", 5, len(rows))) + element(5, struct.pack("<ii", num_rows, len(starts) - 1))
    parts += (
        element(1, b"a") + element(5, np.array(rows, "<i4").tobytes()) + element(5, np.array(starts, "<i4").tobytes())
    )
    return b"MATLAB 5.0".ljust(124) + b"\x00\x01IM" + element(14, parts + element(9, np.array(values, "<f8").tobytes()))


def sparse73(rows: list[int], starts: list[int], values: list[float], num_rows: int) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as opened:
        group = opened.create_group("a")
        group.attrs["MATLAB_sparse"] = np.uint64(num_rows)
        group["ir"], group["jc"], group["data"] = np.array(rows, np.int64), np.array(starts, np.int64), values
    return buffer.getvalue()


@pytest.mark.parametrize("write", [sparse5, sparse73])
@pytest.mark.parametrize("wrong", WRONG)
def test_every_index_of_a_sparse_matrix_is_checked(write, wrong):
    good = ENTRIES | {"rows": [0, 1, 2]}
    assert read_mat(write(**good))["a"].tolist() == [[1, 0, 0], [0, 0, 2], [0, 0, 3]]
    with pytest.raises(RecordError, match=r"not a readable MATLAB file; found: 'ValueError: .*(sparse|of shape)"):
        read_mat(write(**(ENTRIES | WRONG[wrong])))["a"]


@pytest.mark.parametrize("write", [sparse5, sparse73])
def test_what_nobody_reads_is_not_unpacked(tmp_path, write):
    """The damage of one value is no harm to the others."""
    data = write(**(ENTRIES | WRONG["row above the matrix"]))
    if write is sparse5:
        data += mat5({"b": np.eye(2)})[128:]
    else:
        (tmp_path / "a.mat").write_bytes(data)
        with h5py.File(tmp_path / "a.mat", "r+") as opened:
            opened["b"] = np.eye(2)
        data = (tmp_path / "a.mat").read_bytes()
    found = read_mat(data)
    assert list(found) == ["a", "b"] and (found["b"] == np.eye(2)).all()


def test_a_file_reads_no_other_file(tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(bytes(8))
    with h5py.File(tmp_path / "o.h5", "w") as opened:
        opened["x"] = np.eye(2)
    with h5py.File(tmp_path / "a.mat", "w") as opened:
        opened["link"] = h5py.ExternalLink(str(tmp_path / "o.h5"), "/x")
        opened.create_dataset("content", (8,), np.uint8, external=[(str(outside), 0, 8)])
        layout = h5py.VirtualLayout((2, 2), np.float64)
        layout[:] = h5py.VirtualSource(str(tmp_path / "o.h5"), "x", (2, 2))
        opened.create_virtual_dataset("virtual", layout)
    found = read_mat((tmp_path / "a.mat").read_bytes())
    for name in ("link", "content", "virtual"):
        with pytest.raises(RecordError, match=f"{name} lies in another file"):
            found[name]


# -- flipped bits -----------------------------------------------------------------------------------------------------


def as_sbd(folder: Path, kind: str) -> bytes:
    """A file as SBD's: a cell of sparse outlines, a map of objects and their classes."""
    rng = np.random.default_rng(0)
    outlines = [scipy.sparse.csc_matrix(rng.random((40, 60)) < 0.1) for _ in range(4)]
    fields = {"Segmentation": np.repeat(np.arange(60, dtype=np.uint8), 40).reshape(60, 40).T, "Categories": np.eye(1)}
    if kind == "7.3":
        savemat73(folder / "a.mat", {"GTinst": {"Boundaries": outlines, **fields}})
        return (folder / "a.mat").read_bytes()
    cells = np.empty((4, 1), object)
    cells[:, 0] = outlines
    return mat5({"GTinst": {"Boundaries": cells, **fields}}, do_compression=kind == "5 compressed")


def plain(value: Any) -> Any:
    """The value with everything in it unpacked."""
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list) else np.asarray(value).tolist()


KINDS = ["5", "5 compressed", "7.3"]


def flip_bits(folder: Path, kind: str, count: int, seed: int) -> int:
    """Read `count` files of one wrong bit; return how many were refused. Other errors are the caller's to see."""
    data, refused = as_sbd(folder, kind), 0
    whole = plain(read_mat(data))
    for place in np.random.default_rng(seed).integers(8 * len(data), size=count):
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << (place % 8)
        try:
            found = plain(read_mat(bytes(damaged)))
        except RecordError:
            refused += 1
        else:
            assert kind != "5 compressed" or found == whole, f"bit {place}: the checksum does not fit"
    return refused


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_ends_no_process(tmp_path, kind):
    """SciPy and h5py's sparse matrices ended it for one bit in five."""
    assert flip_bits(tmp_path, kind, 200, seed=0) > 10


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_flipped_bits_end_no_process(tmp_path, kind):
    assert flip_bits(tmp_path, kind, 10_000, seed=1) > 500
