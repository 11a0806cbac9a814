"""Archives: one that is absent, damaged or reaches outside is reported, a whole one is unpacked once."""

import hashlib
import io
import shutil
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from boxsup_dist.errors import InputError
from boxsup_dist.records import archives
from boxsup_dist.records.archives import Archive


def make_tar(file: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(file, "w:gz" if file.suffix in (".gz", ".tgz") else "w") as opened:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))


def make_zip(file: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w") as opened:
        for name, data in members.items():
            opened.writestr(name, data)


def archive(file: Path, folder: str = "") -> Archive:
    return Archive(f"https://example.org/{file.name}", hashlib.md5(file.read_bytes()).hexdigest(), folder)


def files_under(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


@pytest.mark.parametrize("name", ["a.tar", "a.tgz", "a.tar.gz", "a.zip"])
def test_an_archive_is_unpacked_into_its_folder_and_marked(tmp_path, name):
    make = make_zip if name.endswith(".zip") else make_tar
    make(tmp_path / name, {"VOCdevkit/VOC2012/x.txt": b"hello"})
    found = archive(tmp_path / name, "inside")
    assert archives.state(tmp_path, found) == "here"
    archives.unpack(tmp_path, found)
    assert archives.state(tmp_path, found) == "unpacked"
    assert (tmp_path / "inside/VOCdevkit/VOC2012/x.txt").read_bytes() == b"hello"
    (tmp_path / name).unlink()
    assert archives.state(tmp_path, found) == "unpacked", "the archive may be deleted"
    assert archives.state(tmp_path, replace(found, url="https://example.org/b.zip")) == "absent"


def test_another_checksum_is_refused_and_nothing_is_written(tmp_path):
    make_tar(tmp_path / "a.tar", {"x": b"1"})
    with pytest.raises(InputError, match=r"not the published file.*a\.tar; field: md5.*expected: 0123"):
        archives.unpack(tmp_path, replace(archive(tmp_path / "a.tar"), md5="0123"))
    assert files_under(tmp_path) == {"a.tar"}
    archives.unpack(tmp_path, replace(archive(tmp_path / "a.tar"), md5=None))


@pytest.mark.parametrize("name", ["../evil", "/tmp/boxsup-evil", "ok/../../evil"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_no_member_is_written_outside(tmp_path, kind, name):
    root = tmp_path / "root"
    root.mkdir()
    (make_tar if kind == "tar" else make_zip)(root / f"a.{kind}", {"good": b"1", name: b"2"})
    found = archive(root / f"a.{kind}")
    if kind == "tar" and name.startswith("/"):  # tar's filter takes the leading slash away
        archives.unpack(root, found)
    else:
        with pytest.raises(InputError, match=r"outside its folder; file: .*a\.(tar|zip); field: member; found: "):
            archives.unpack(root, found)
        assert archives.state(root, found) == "here"
    assert files_under(tmp_path) <= {f"root/a.{kind}", f"root/a.{kind}.unpacked", "root/good", f"root{name}"}
    assert not Path("/tmp/boxsup-evil").exists()


@pytest.mark.parametrize("name", ["a.tar", "a.tgz", "a.zip"])
def test_a_damaged_archive_is_reported(tmp_path, name):
    (make_zip if name.endswith(".zip") else make_tar)(tmp_path / name, {"x": bytes(range(256)) * 400})
    for data in (b"<html>404</html>", (tmp_path / name).read_bytes()[:-700] if name != "a.tgz" else b"\x1f\x8b12"):
        (tmp_path / name).write_bytes(data)
        found = archive(tmp_path / name)
        if name == "a.tar" and data != b"<html>404</html>":
            continue  # a tar's end is padding
        with pytest.raises(InputError, match=r"can't be unpacked.*a\."):
            archives.unpack(tmp_path, found)
        assert archives.state(tmp_path, found) == "here"


def test_every_data_set_names_archives_that_can_be_unpacked():
    for name, published in archives.DATA_SETS.items():
        assert published.page.startswith("http") and published.archives, name
        for one in published.archives:
            assert one.name.endswith((".tar", ".tgz", ".tar.gz", ".zip")), one
            assert one.md5 is None or len(one.md5) == 32


def zip_with(root: Path, place: int, value: bytes) -> None:
    """An archive whose local and central header of its member have other bytes at `place` of the local header."""
    make_zip(root / "a.zip", {"member": b"content" * 9})
    data = (root / "a.zip").read_bytes()
    central = data.index(b"PK\x01\x02")
    for at in (place, central + place + 2):
        data = data[:at] + value + data[at + len(value) :]
    (root / "a.zip").write_bytes(data)


@pytest.mark.parametrize(
    ("place", "value", "match"),
    [(6, b"\x01\x00", "encrypted"), (8, b"\x63\x00", "compression"), (8, b"\x08\x00", "BadZipFile|Error -3")],
)
def test_an_encrypted_or_exotic_archive_is_one_line(tmp_path, place, value, match):
    zip_with(tmp_path, place, value)
    with pytest.raises(InputError, match=rf"can't be unpacked; file: .*a\.zip; found: .*({match})"):
        archives.unpack(tmp_path, archive(tmp_path / "a.zip"))
    assert not (tmp_path / "a.zip.unpacked").exists()


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz"])
def test_a_damaged_archive_is_one_line_or_whole(tmp_path, name):
    root = tmp_path / "root"
    root.mkdir()
    content = np.random.default_rng(0).bytes(200) + bytes(300)
    (make_zip if name == "a.zip" else make_tar)(root / name, {"folder/member": content, "other": b"x"})
    data, refused = (root / name).read_bytes(), 0
    for place in np.random.default_rng(1).integers(8 * len(data), size=200):
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << (place % 8)
        (root / name).write_bytes(damaged)
        try:
            archives.unpack(root, archive(root / name, "inside"))
        except InputError as error:
            assert len(str(error).splitlines()) == 1
            refused += 1
        assert {path.name for path in tmp_path.iterdir()} == {"root"}
        shutil.rmtree(root / "inside", ignore_errors=True)
    assert refused > 5
