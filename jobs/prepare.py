"""Prepare a published data set, or count the images of those that are there.

    python -m jobs.prepare voc2012 --root DIR      # name the archives, check and unpack those in DIR, and count
    python -m jobs.prepare --check DIR             # only count: images per source, split and supervision

Nothing is downloaded: the first form names the page of each archive. Download them to DIR and run it again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from boxsup_dist.errors import SettingError
from boxsup_dist.io import storage
from boxsup_dist.records import archives
from boxsup_dist.reporting.text_table import format_table
from boxsup_dist.runs.command_line import run

if TYPE_CHECKING:
    from boxsup_dist.records.inventory import Count

Name = Literal["voc2012", "sbd", "coco2014", "coco2017", "voc2007", "context"]


@dataclass(frozen=True)
class Settings:
    """Which data set, and where."""

    dataset: Annotated[Name | None, tyro.conf.Positional] = None
    """Data set to prepare."""
    root: str = "data"
    """Local folder with the archives; they are unpacked in it."""
    check: str | None = None
    """Folder or URI whose data sets to count, without preparing any."""


def main(settings: Settings) -> None:
    """Prepare one data set or count all, and print what there is and what is left to do."""
    if (settings.dataset is None) == (settings.check is None):
        expected = f"one of {', '.join(archives.DATA_SETS)}, or --check DIR"
        raise SettingError("name a data set or a folder to check", field="dataset, check", expected=expected)
    from boxsup_dist.records.inventory import take_inventory

    if settings.check is not None:
        print_counts(take_inventory(settings.check))
        return
    assert settings.dataset is not None
    if not storage.is_local(settings.root):
        raise SettingError(
            "archives are unpacked on a local disk", field="root", value=settings.root, expected="a local folder"
        )
    root = Path(storage.absolute(settings.root))
    if storage.exists(str(root)) and not storage.is_folder(str(root)):
        raise SettingError("not a folder", field="root", value=settings.root, expected="a folder with the archives")
    if prepare(archives.DATA_SETS[settings.dataset], root):
        print_counts(take_inventory(str(root)))


def prepare(data_set: archives.Published, root: Path) -> bool:
    """Unpack the archives that are there and print the state of each; returns whether any is unpacked now."""
    print(f"{data_set.page}\n{root}:")
    for archive in data_set.archives:
        state = archives.state(root, archive)
        if state == "here":
            print(f"  {archive.name}: checking and unpacking ...", flush=True)
            archives.unpack(root, archive)
            state = archives.state(root, archive)
        status = "unpacked" if state == "unpacked" else f"not here. Get {archive.url}"
        print(f"  {archive.name}: {status}" + (f" ({archive.remark})" if archive.remark else ""))
    return any(archives.state(root, archive) == "unpacked" for archive in data_set.archives)


def print_counts(counts: list[Count]) -> None:
    """Print one table per folder, one row per split; all numbers are images."""
    for folder in dict.fromkeys(count.folder for count in counts):
        rows = [asdict(count) for count in counts if count.folder == folder]
        shown = [{name: value for name, value in row.items() if name != "folder"} for row in rows]
        print(format_table(shown, title=folder))


if __name__ == "__main__":
    run(main)
