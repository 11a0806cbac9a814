"""Finds the image files that annotations mean: their paths may be of another machine, or lack folder or ending."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

from boxsup_dist.data.images import IMAGE_ENDINGS
from boxsup_dist.errors import InputError
from boxsup_dist.io import storage


class ImageFiles:
    """The image files below a folder."""

    def __init__(self, folder: str) -> None:
        """List the folder.

        Raises:
            InputError: It is no folder, or has no image.
        """
        self.folder = storage.absolute(folder)
        if not storage.is_folder(self.folder):
            raise InputError("no such folder", file=self.folder, field="images", expected="the folder of the images")
        every = storage.find_files(self.folder)
        self.names = [name for name in every if name.lower().endswith(IMAGE_ENDINGS)]
        if not self.names:
            expected = f"images: {', '.join(suffix[1:] for suffix in IMAGE_ENDINGS)}"
            raise InputError(
                "no image below this folder", file=self.folder, field="images", value=every[:3], expected=expected
            )
        self._by_name: dict[str, list[str]] = defaultdict(list)  # by the last part of the path, with and without ending
        for name in self.names:
            path = PurePosixPath(name)
            for last in {path.name, path.stem}:
                self._by_name[last.lower()].append(name)

    def find(self, named: str) -> list[str]:
        """The files that a path of an annotation may mean: those that share most of its last parts; [] for none.

        The ending may be another one, or absent. Upper and lower case are the same.
        """
        wanted = [part.lower() for part in named.replace("\\", "/").split("/") if part not in ("", ".")]
        if not wanted:
            return []
        found = self._by_name.get(wanted[-1]) or self._by_name.get(PurePosixPath(wanted[-1]).stem, [])
        shared = {name: _shared_parts(name, wanted) for name in found}
        most = max(shared.values(), default=0)
        return [name for name, count in shared.items() if count == most]


def _shared_parts(name: str, wanted: Sequence[str]) -> int:
    """How many folders, from the last, a file shares with the path that is looked for; most if all of them."""
    folders = [part.lower() for part in PurePosixPath(name).parts[:-1]]
    count = 0
    for ours, theirs in zip(reversed(folders), reversed(wanted[:-1]), strict=False):
        if ours != theirs:
            break
        count += 1
    is_same = len(folders) == len(wanted) - 1 == count
    return 1000 if is_same else count


def image_names(files: Sequence[str]) -> dict[str, str]:
    """A name for each file: its path without the ending, with it where two files differ in nothing else."""
    stems = {file: str(PurePosixPath(file).with_suffix("")) for file in files}
    counts = Counter(stems.values())
    return {file: stem if counts[stem] == 1 else file for file, stem in stems.items()}
