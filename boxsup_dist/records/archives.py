"""The archives of the data sets: where they are published, and how one is checked and unpacked.

    ROOT/NAME             an archive that the user downloaded; this program downloads nothing
    ROOT/NAME.unpacked    written last: the archive is unpacked completely; delete it to unpack again
    ROOT/VOCdevkit, ROOT/benchmark_RELEASE, ROOT/coco, ROOT/context    the unpacked files, as the readers expect them

An archive writes nothing outside the root, and no more bytes than MAX_RATIO and the free disk space allow.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import shutil
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from boxsup_dist.errors import DISK_ERRORS, InputError, system_error
from boxsup_dist.io import storage

State = Literal["absent", "here", "unpacked"]

# An archive may unpack to MAX_RATIO times its size and SPARE_BYTES. Photographs do not compress, and COCO's annotations
# compress to a third. Label maps compress more, but those of a whole data set stay below SPARE_BYTES.
MAX_RATIO, SPARE_BYTES = 10, 8 * 2**30
_MEMBER_BYTES = 4096  # counted for every member at least: millions of empty files fill a disk too
_MAX_READ_BYTES = 2**20  # of a tar at once; tarfile reads members in smaller pieces, so only an absurd header asks more


@dataclass(frozen=True)
class Archive:
    """One published archive file of a data set."""

    url: str
    md5: str | None  # None: not published
    folder: str = ""  # folder under the root to unpack into
    remark: str = ""  # shown to the user

    @property
    def name(self) -> str:
        """Name of the archive file: the last part of its URL."""
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Published:
    """A data set as its authors publish it."""

    page: str  # web page with the conditions of use
    archives: tuple[Archive, ...]


_VOC = "http://host.robots.ox.ac.uk/pascal/VOC"
_SBD = "http://home.bharathh.info/pubs/codes/SBD"
_BERKELEY = "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours"
_COCO = "http://images.cocodataset.org"
_CONTEXT = "https://cs.stanford.edu/~roozbeh/pascal-context"
DATA_SETS = {
    "voc2007": Published(
        f"{_VOC}/voc2007",
        (
            Archive(f"{_VOC}/voc2007/VOCtrainval_06-Nov-2007.tar", "c52e279531787c972589f7e41ab4ae64"),
            Archive(f"{_VOC}/voc2007/VOCtest_06-Nov-2007.tar", "b6e924de25625d8de591ea690078ad9f"),
        ),
    ),
    "voc2012": Published(
        f"{_VOC}/voc2012",
        (
            Archive(f"{_VOC}/voc2012/VOCtrainval_11-May-2012.tar", "6cd6e144f989b92b3379bac3b3de84fd"),
            Archive(
                "http://host.robots.ox.ac.uk:8080/eval/downloads/VOC2012test.tar",
                "9065beb292b6c291fad82b2725749fda",
                remark="only for predictions; the evaluation server asks for a registration",
            ),
        ),
    ),
    "sbd": Published(_SBD, (Archive(f"{_BERKELEY}/benchmark.tgz", "82b4d87ceb2ed10f6038a1cba92111cb"),)),
    "coco2014": Published(
        "https://cocodataset.org",
        (
            Archive(f"{_COCO}/zips/train2014.zip", "0da8c0bd3d6becc4dcb32757491aca88", "coco"),
            Archive(f"{_COCO}/zips/val2014.zip", "a3d79f5ed8d289b7a7554ce06a5782b3", "coco"),
            Archive(f"{_COCO}/annotations/annotations_trainval2014.zip", "0a379cfc70b0e71301e0f377548639bd", "coco"),
        ),
    ),
    "coco2017": Published(
        "https://cocodataset.org",
        (
            Archive(f"{_COCO}/zips/train2017.zip", "cced6f7f71b7629ddf16f17bbcfab6b2", "coco"),
            Archive(f"{_COCO}/zips/val2017.zip", "442b8da7639aecaf257c1dceb8ba8c80", "coco"),
            Archive(f"{_COCO}/annotations/annotations_trainval2017.zip", "f4bbac642086de4f52a3fdda2de5fa2c", "coco"),
        ),
    ),
    "context": Published(
        _CONTEXT,
        (
            Archive(f"{_VOC}/voc2010/VOCtrainval_03-May-2010.tar", "da459979d0c395079b5c75ee67908abb"),
            Archive(
                f"{_CONTEXT}/trainval.tar.gz",
                None,
                "context",
                remark="labels.txt, the 459 names, lies beside trainval in context; the page has it too",
            ),
        ),
    ),
}


def state(root: Path, archive: Archive) -> State:
    """Return whether an archive is unpacked in the root, lies there still packed ("here"), or is absent."""
    if storage.exists(str(_marker(root, archive))):
        return "unpacked"
    return "here" if storage.exists(str(root / archive.name)) else "absent"


def _marker(root: Path, archive: Archive) -> Path:
    return root / f"{archive.name}.unpacked"


def unpack(root: Path, archive: Archive) -> None:
    """Check an archive that lies in the root and unpack it there. After a killed call, call it again.

    Raises:
        InputError: If the checksum is not the published one, the archive is damaged, a member would be written outside
            the archive's folder, or the archive unpacks to more bytes than allowed; the member that is too large is
            not written.
    """
    if not hasattr(tarfile, "data_filter"):
        problem = "this version of Python can't unpack archives safely: use a newer one"
        raise InputError(problem, value=sys.version.split()[0], expected="3.11.4 or newer")
    file, folder = root / archive.name, root / archive.folder
    found = _md5(file)
    if archive.md5 is not None and found != archive.md5:
        problem = "not the published file: download it again"
        raise InputError(problem, file=file, field="md5", value=found, expected=archive.md5)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        (_unzip if file.suffix == ".zip" else _untar)(file, folder)
    except tarfile.FilterError as error:
        problem = "the archive would write outside its folder"
        raise InputError(problem, file=file, field="member", value=str(error)) from None
    except InputError:
        raise
    except OSError as error:
        if error.errno in DISK_ERRORS:
            raise system_error(error, file=folder, writing=True) from None
        raise _unusable(file, error) from None
    except Exception as error:  # also of encrypted members, of unknown methods of compression, of damaged content
        raise _unusable(file, error) from None
    storage.write_bytes(str(_marker(root, archive)), f"{found}\n".encode())


def _unusable(file: Path, error: Exception) -> InputError:
    return InputError("the archive can't be unpacked", file=file, value=f"{type(error).__name__}: {error}")


def _md5(file: Path) -> str:
    with storage.system_errors(str(file)), file.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


class _Room:
    """The bytes that an archive may still write into a folder."""

    def __init__(self, file: Path, folder: Path) -> None:
        self.file, self.free = file, shutil.disk_usage(folder).free
        self.limit = MAX_RATIO * file.stat().st_size + SPARE_BYTES
        self.used = 0

    def take(self, num_bytes: int) -> None:
        """Count one more member of `num_bytes`; raise InputError if the total exceeds the limit or the free disk."""
        self.used += max(num_bytes, _MEMBER_BYTES)
        if self.used > self.limit:
            problem = "the archive unpacks to too much: download it again"
            expected = f"<= {self.limit}, {MAX_RATIO} times the archive and {SPARE_BYTES}"
            raise InputError(problem, file=self.file, field="bytes", value=self.used, expected=expected)
        if self.used > self.free:
            problem = "the disk has no room for the archive: delete files, or unpack it elsewhere"
            expected = f"<= {self.free}, free on the disk"
            raise InputError(problem, file=self.file, field="bytes", value=self.used, expected=expected)


def _unzip(file: Path, folder: Path) -> None:
    """Unpack a ZIP. A member with `..` or an absolute path is refused; extractall would write it elsewhere in `folder`.

    extractall writes at most the declared size of a member, which is what `_Room` counts.
    """
    room = _Room(file, folder)
    with zipfile.ZipFile(file) as opened:
        for member in opened.infolist():
            room.take(member.file_size)
            name = member.filename
            if not (folder / name).resolve().is_relative_to(folder.resolve()):
                raise InputError("the archive would write outside its folder", file=file, field="member", value=name)
        opened.extractall(folder)


class _Reader(io.BufferedReader):
    """The bytes of a tar. tarfile reads them in small pieces, except for a header, however long it claims to be."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MAX_READ_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _untar(file: Path, folder: Path) -> None:
    """Unpack a tar, plain or compressed with gzip; every member's size is counted before the member is written."""
    room = _Room(file, folder)

    def checked(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        if member.issparse():  # its pieces may add up to more than its size
            raise tarfile.SpecialFileError(member)
        room.take(member.size)
        return tarfile.data_filter(member, path)  # refuses absolute paths, .., devices, links to the outside

    with file.open("rb") as packed:
        is_gzip = packed.read(2) == b"\x1f\x8b"
    raw = gzip.GzipFile(file) if is_gzip else io.FileIO(file)
    with _Reader(raw, _MAX_READ_BYTES) as reader, tarfile.open(fileobj=reader, mode="r:") as opened:
        opened.extractall(folder, filter=checked)
