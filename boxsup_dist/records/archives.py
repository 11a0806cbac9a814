"""The archives of the data sets: where their makers give them out, how they are checked and unpacked.

    ROOT/NAME             an archive that the user put there
    ROOT/NAME.unpacked    written last: the archive is unpacked whole; delete it to unpack again
    ROOT/VOCdevkit, ROOT/benchmark_RELEASE, ROOT/coco, ROOT/context    what comes out, as the readers want it

Nothing is downloaded: some pages ask who you are. Nothing of an archive is written outside the root.
"""

from __future__ import annotations

import hashlib
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from boxsup_dist.errors import InputError

State = Literal["absent", "here", "unpacked"]


@dataclass(frozen=True)
class Archive:
    """One file that a data set is given out as."""

    url: str
    md5: str | None  # None: not known
    folder: str = ""  # where it is unpacked, in the root
    remark: str = ""

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Published:
    """A data set as its makers give it out."""

    page: str
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
    """Whether an archive of the root is unpacked, waits to be, or is not there."""
    if _marker(root, archive).exists():
        return "unpacked"
    return "here" if (root / archive.name).is_file() else "absent"


def _marker(root: Path, archive: Archive) -> Path:
    return root / f"{archive.name}.unpacked"


def unpack(root: Path, archive: Archive) -> None:
    """Check an archive that lies in the root and unpack it there; a killed call is simply made again.

    Raises InputError: another checksum than published, damaged, or a member that would be written outside the root.
    """
    if not hasattr(tarfile, "data_filter"):
        raise InputError("this Python can't unpack safely", value=sys.version.split()[0], expected="3.11.4 or newer")
    file, folder = root / archive.name, root / archive.folder
    found = _md5(file)
    if archive.md5 is not None and found != archive.md5:
        problem = "not the published file: load it down again"
        raise InputError(problem, file=file, field="md5", value=found, expected=archive.md5)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if file.suffix == ".zip":
            _unzip(file, folder)
        else:
            with tarfile.open(file) as opened:
                opened.extractall(folder, filter="data")  # refuses absolute paths, .., links and devices outside
    except tarfile.FilterError as error:
        problem = "the archive would write outside its folder"
        raise InputError(problem, file=file, field="member", value=str(error)) from None
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise InputError("the archive can't be unpacked", file=file, value=f"{type(error).__name__}: {error}") from None
    _marker(root, archive).write_text(found + "\n")


def _md5(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _unzip(file: Path, folder: Path) -> None:
    """extractall would write members with .. or absolute paths elsewhere in the folder: here they are refused."""
    with zipfile.ZipFile(file) as opened:
        for name in opened.namelist():
            if not (folder / name).resolve().is_relative_to(folder.resolve()):
                raise InputError("the archive would write outside its folder", file=file, field="member", value=name)
        opened.extractall(folder)
