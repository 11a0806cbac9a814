"""The submission: an archive of label maps in the layout of PASCAL VOC's evaluation server.

results/VOC2012/Segmentation/comp6_test_cls/2008_000006.png    class ids 0..20 as a palette PNG
"""

from __future__ import annotations

import gzip
import io
import posixpath
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from boxsup_dist.export.files import output_uri
from boxsup_dist.io import storage

Competition = Literal["comp5", "comp6"]
"""VOC's segmentation competitions: comp5 trains on VOC's images alone, comp6 on any, as ImageNet weights do."""


def member_name(name: str) -> str:
    """Name of an image in the archive: the server expects the bare name, without folder and data set."""
    return posixpath.basename(name) + ".png"


def write_submission(out: str, competition: Competition, names: Iterable[str]) -> str:
    """Pack the label maps of images into OUT/COMPETITION.tar.gz; the same maps give the same bytes.

    Args:
        out: Folder with the label maps.
        competition: Names the folder in the archive, and the archive.
        names: Names of the images; their `member_name`s must differ.

    Returns:
        URI of the archive.
    """
    uri = storage.join(out, f"{competition}.tar.gz")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "submission.tar.gz"
        # Without file name and time, which gzip would store, the same maps give the same bytes.
        with (
            path.open("wb") as file,
            gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w") as archive,
        ):
            for name in names:
                data = storage.read_bytes(output_uri(out, "label_maps", name))
                member = tarfile.TarInfo(f"results/VOC2012/Segmentation/{competition}_test_cls/{member_name(name)}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        storage.write_file(uri, path)
    return uri
