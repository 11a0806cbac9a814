"""Prepare a data set: python -m jobs.prepare DATASET --root DIR. Count data sets: python -m jobs.prepare --check DIR.

The first form tells where the makers of a data set give its archives out, checks and unpacks those that lie in DIR, and
counts. Nothing is downloaded. A second call does what is left to do.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from boxsup_dist.errors import SettingError
from boxsup_dist.io import storage
from boxsup_dist.records import archives
from boxsup_dist.records.inventory import Count, take_inventory
from boxsup_dist.reporting.text_table import format_table
from boxsup_dist.runs.command_line import run

Name = Literal["voc2012", "sbd", "coco2014", "coco2017", "voc2007", "context"]


@dataclass(frozen=True)
class Settings:
    """Unpack a data set's archives, or count images per source, split and supervision."""

    dataset: Annotated[Name | None, tyro.conf.Positional] = None
    """Data set to prepare."""
    root: str = "data"
    """Local folder that holds the archives and takes what is in them."""
    check: str | None = None
    """Only count what this folder or URI holds, of all data sets."""


def main(settings: Settings) -> None:
    """Prepare one data set or count all; prints what there is and what is left to do."""
    if (settings.dataset is None) == (settings.check is None):
        expected = f"one of {', '.join(archives.DATA_SETS)}, or --check DIR"
        raise SettingError("name a data set or a folder to check", field="dataset, check", expected=expected)
    if settings.check is not None:
        print_counts(take_inventory(settings.check))
        return
    assert settings.dataset is not None
    if not storage.is_local(settings.root):
        raise SettingError("archives are unpacked on a local disk", field="root", value=settings.root)
    root = Path(storage.absolute(settings.root))
    if prepare(archives.DATA_SETS[settings.dataset], root):
        print_counts(take_inventory(str(root)))


def prepare(data_set: archives.Published, root: Path) -> bool:
    """Unpack the archives that are there and tell of each what became of it; whether anything is unpacked now."""
    print(f"{data_set.page}\n{root}:")
    for archive in data_set.archives:
        state = archives.state(root, archive)
        if state == "here":
            print(f"  {archive.name}: checking and unpacking ...", flush=True)
            archives.unpack(root, archive)
            state = archives.state(root, archive)
        told = "unpacked" if state == "unpacked" else f"not here. Get {archive.url}"
        print(f"  {archive.name}: {told}" + (f" ({archive.remark})" if archive.remark else ""))
    return any(archives.state(root, archive) == "unpacked" for archive in data_set.archives)


def print_counts(counts: list[Count]) -> None:
    """One table a folder, one row a split; all numbers are images."""
    for folder in dict.fromkeys(count.folder for count in counts):
        rows = [asdict(count) for count in counts if count.folder == folder]
        shown = [{name: value for name, value in row.items() if name != "folder"} for row in rows]
        print(format_table(shown, title=folder))


if __name__ == "__main__":
    run(main)
