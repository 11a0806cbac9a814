"""Small files that stand for more than the disk or the memory holds are refused before they take it."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse

from boxsup_dist.errors import InputError, RecordError
from boxsup_dist.io import mat_values
from boxsup_dist.io.mat_file import read_mat
from boxsup_dist.proposals.imported import import_proposals
from boxsup_dist.proposals.settings import ImportedSettings
from boxsup_dist.records import archives
from boxsup_dist.records.archives import Archive
from boxsup_dist.records.files import read_mat_field

MIB = 2**20


@pytest.fixture(autouse=True)
def limits(monkeypatch) -> Iterator[None]:
    """A MiB beyond ten times an archive, 8 MiB for a MATLAB file; no test may take more than 32 MiB of memory."""
    monkeypatch.setattr(archives, "SPARE_BYTES", MIB)
    monkeypatch.setattr(mat_values, "MAX_BYTES", 8 * MIB)
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 * MIB


class Zeros(io.RawIOBase):
    """A stream of zeros."""

    def read(self, size: int = -1) -> bytes:
        return bytes(size)


def write_tar(file: Path, *members: tuple[str, int, dict]) -> None:
    """Names, sizes and further fields of members full of zeros, packed by gzip."""
    with tarfile.open(file, "w:gz", format=tarfile.PAX_FORMAT) as opened:
        for name, size, fields in members:
            info = tarfile.TarInfo(name)
            info.size = size
            for key, value in fields.items():
                setattr(info, key, value)
            opened.addfile(info, Zeros())


def write_zip(file: Path, *members: tuple[str, int]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, size in members:
            with opened.open(name, "w") as target:
                for _ in range(0, size, MIB):
                    target.write(bytes(min(size, MIB)))


def refused(root: Path, name: str, match: str) -> set[str]:
    """What lies in the root, besides the archive, after it was refused."""
    assert (root / name).stat().st_size < MIB
    with pytest.raises(InputError, match=match):
        archives.unpack(root, Archive(f"https://example.org/{name}", None))
    return {path.name for path in root.rglob("*")} - {name}


TOO_MUCH = (
    r"unpacks to too much: download it again; file: .*; field: bytes; found: \d+; "
    r"expected: <= \d+, 10 times the archive and 1048576"
)


def test_a_zip_writes_nothing_if_its_sizes_are_too_large(tmp_path):
    write_zip(tmp_path / "a.zip", ("small", 9), ("large", 64 * MIB))
    assert refused(tmp_path, "a.zip", TOO_MUCH) == set()


def test_a_zip_that_lies_writes_no_more_than_it_says(tmp_path):
    write_zip(tmp_path / "a.zip", ("large", 64 * MIB))
    size = (64 * MIB).to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes((tmp_path / "a.zip").read_bytes().replace(size, (9).to_bytes(4, "little")))
    assert refused(tmp_path, "a.zip", "the archive can't be unpacked; .*Bad CRC") <= {"large"}
    assert sum(path.stat().st_size for path in tmp_path.glob("large")) <= 9


def test_a_tar_writes_no_member_that_is_too_large(tmp_path):
    write_tar(tmp_path / "a.tgz", ("small", 9, {}), ("large", 64 * MIB, {}))
    assert refused(tmp_path, "a.tgz", TOO_MUCH) == {"small"}


def test_empty_members_count(tmp_path):
    write_tar(tmp_path / "a.tgz", *((f"{k}", 0, {}) for k in range(2000)))
    assert len(refused(tmp_path, "a.tgz", TOO_MUCH)) < 1000


def test_a_sparse_member_of_a_tar_is_refused(tmp_path):
    """The pieces of a sparse member may add up to more than its size."""
    fields = {"pax_headers": {"GNU.sparse.size": "9", "GNU.sparse.map": f"0,{32 * MIB}"}}
    write_tar(tmp_path / "a.tgz", ("large", 32 * MIB, fields))
    assert refused(tmp_path, "a.tgz", "field: member; found: .*large") == set()


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_tars_header_is_no_bomb(tmp_path, kind):
    write_tar(tmp_path / "a.tgz", ("header", 64 * MIB, {"type": kind}))
    assert refused(tmp_path, "a.tgz", "a header of 67108864 bytes") == set()


@pytest.mark.parametrize("name", ["a.zip", "a.tgz"])
def test_too_little_disk_is_reported_before_it_is_full(tmp_path, monkeypatch, name):
    if name == "a.zip":
        write_zip(tmp_path / name, ("b", 9000))
    else:
        write_tar(tmp_path / name, ("b", 9000, {}))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=8000))
    assert refused(tmp_path, name, "no room for the archive: .*found: 9000; expected: <= 8000, free") == set()


def test_images_are_far_below_the_limit(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as opened:
        info = tarfile.TarInfo("image")
        info.size = 3 * MIB
        opened.addfile(info, io.BytesIO(os.urandom(3 * MIB)))
    archives.unpack(tmp_path, Archive("https://example.org/a.tar", None))
    assert (tmp_path / "image").stat().st_size == 3 * MIB


# -- MATLAB files -----------------------------------------------------------------------------------------------------


def hdf5(write: Callable[[h5py.File], None]) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as opened:
        write(opened)
    return buffer.getvalue()


def mat5(name: str, value: object) -> bytes:
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {name: value}, do_compression=True)
    return buffer.getvalue()


def without_content(opened: h5py.File, name: str) -> None:
    opened.create_dataset(name, (10**6, 10**6), np.float64)


def compressed(opened: h5py.File, name: str) -> None:
    opened.create_dataset(name, (64, MIB), np.uint8, chunks=(1, MIB), compression="gzip")[0] = 1


def chunk_that_lies(opened: h5py.File) -> None:
    item = opened.create_dataset("LabelMap", (1024,), np.uint8, chunks=(1024,), compression="gzip")
    item.id.write_direct_chunk((0,), zlib.compress(bytes(16 * MIB)))


def empty(opened: h5py.File, name: str) -> None:
    opened[name] = np.array([10**6, 10**6], np.uint64)
    opened[name].attrs["MATLAB_empty"] = 1


def sparse(opened: h5py.File, name: str) -> None:
    group = opened.create_group(name)
    group.attrs["MATLAB_sparse"] = np.uint64(10**12)
    group["jc"] = np.zeros(9, np.uint64)


def cells_of_cells(opened: h5py.File, name: str) -> None:
    """Ten to the eighth values in 80 references."""
    opened["#refs#/0"] = np.zeros((1, 1))
    for depth in range(1, 9):
        opened[f"#refs#/{depth}"] = np.array([opened[f"#refs#/{depth - 1}"].ref] * 10, h5py.ref_dtype)
    opened[name] = np.array([opened["#refs#/8"].ref], h5py.ref_dtype)


BOMBS: dict[str, Callable[[str], bytes]] = {
    "compressed": lambda name: mat5(name, np.zeros((16, MIB), np.uint8)),
    "sparse": lambda name: mat5(name, scipy.sparse.csc_matrix((10**6, 10**4))),
    "sparse in a cell": lambda name: mat5(name, np.array([scipy.sparse.csc_matrix((10**6, 10**4)), 1], object)),
    "7.3 without content": lambda name: hdf5(lambda opened: without_content(opened, name)),
    "7.3 compressed": lambda name: hdf5(lambda opened: compressed(opened, name)),
    "7.3 empty": lambda name: hdf5(lambda opened: empty(opened, name)),
    "7.3 sparse": lambda name: hdf5(lambda opened: sparse(opened, name)),
    "7.3 cells of cells": lambda name: hdf5(lambda opened: cells_of_cells(opened, name)),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_matlab_file_takes_no_absurd_memory(tmp_path, kind):
    data, proposals = (BOMBS[kind](name) for name in ("LabelMap", "superpixels"))
    assert len(data) < MIB / 4
    match = r"takes too much memory; (file: .*a.mat; )?field: .*expected: <= 8388608 bytes"
    tracemalloc.reset_peak()
    with pytest.raises(RecordError, match=match):
        read_mat(data)["LabelMap"]
    assert tracemalloc.get_traced_memory()[1] < 24 * MIB
    (tmp_path / "a.mat").write_bytes(data)
    with pytest.raises(RecordError, match=match):
        read_mat_field(str(tmp_path / "a.mat"), "LabelMap")
    (tmp_path / "a.mat").write_bytes(proposals)
    with pytest.raises(RecordError, match=match):
        import_proposals(np.zeros((4, 4, 3), np.uint8), ImportedSettings(str(tmp_path)), image_id="a")


def test_a_chunk_inflates_to_no_more_than_it_says():
    """Without the check HDF5 would fill the memory."""
    with pytest.raises(RecordError, match=r"not a readable MATLAB file.*a chunk has another size"):
        read_mat(hdf5(chunk_that_lies))["LabelMap"]


def test_the_same_values_with_and_without_compression():
    values = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([[1, 2]], np.uint8), "c": "text"}
    found = []
    for compress in (False, True):
        buffer = io.BytesIO()
        scipy.io.savemat(buffer, values, do_compression=compress)
        found.append(read_mat(buffer.getvalue()))
    assert list(found[0]) == list(found[1]) == ["a", "b", "c"]
    assert all(np.array_equal(found[0][name], found[1][name]) for name in values)
    assert np.array_equal(found[1]["a"], values["a"])
