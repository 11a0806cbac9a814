"""Compare trained networks on the same images: differences of mean IoU and of each class, with 95 % intervals.

    python -m jobs.compare --run-dir BOX MASK                 two runs with the same validation records
    python -m jobs.compare --run-dir BOX0,BOX1 MASK0,MASK1    two arms of two runs each, that differ in their seeds
    python -m jobs.compare --run-dir A B C --out OUT          B and C against A

The interval is that of a paired bootstrap over the images (boxsup_dist/evaluation/bootstrap.py). One that contains 0 is
marked `=`: these images do not tell which network is better. It holds nothing of the chance of a training: compare
several seeds.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from boxsup_dist.config import differences
from boxsup_dist.errors import SettingError
from boxsup_dist.io import storage
from boxsup_dist.reporting.text_table import format_table
from boxsup_dist.runs.command_line import run
from boxsup_dist.runs.kept_config import read_config
from boxsup_dist.runs.layout import RunFiles

if TYPE_CHECKING:
    from boxsup_dist.evaluation.bootstrap import Estimate
    from boxsup_dist.evaluation.comparison import Compared

FOREGROUND = {
    "mean IoU": "mean_iou",
    "recall of objects": "recall",
    "precision of objects": "precision",
    "wrong class": "wrong_class",
}


@dataclass(frozen=True)
class Settings:
    """Which runs."""

    run_dir: tuple[str, ...]
    """Run directories, or output folders of jobs.evaluate. Commas join runs that differ in their seeds alone. All are
    compared with the first."""
    out: str | None = None
    """Folder or URI of summary.json. Default: print only."""


def main(settings: Settings) -> None:
    """Compare, print the tables and write OUT/summary.json."""
    arms = _arms(settings.run_dir)
    from boxsup_dist.evaluation.bootstrap import NUM_DRAWS
    from boxsup_dist.evaluation.by_image import paired
    from boxsup_dist.evaluation.comparison import compare
    from boxsup_dist.runs.evaluated import read_matrices

    found = [(folder, read_matrices(folder)) for folders in arms.values() for folder in folders]
    class_names, num_images = found[0][1].class_names, len(found[0][1].image_ids)
    matrices = iter(paired(found))
    compared = compare({name: [next(matrices) for _ in folders] for name, folders in arms.items()}, class_names)
    for name, folders in arms.items():
        print(f"{name}: {', '.join(folders)}")
        _warn_of_settings(folders)
    print(f"{num_images} images, {NUM_DRAWS:,} draws; in brackets the 95 % interval\n")
    first, *others = arms
    for name in others:
        for text in _tables(first, name, compared):
            print(text + "\n")
    for name in others:
        print(_verdict(first, name, compared))
    if any(len(folders) == 1 for folders in arms.values()):
        print("Of different trainings, other seeds may say otherwise: join several runs by commas.")
    if settings.out is not None:
        command = f"python -m jobs.compare --run-dir {shlex.join(settings.run_dir)}"
        values = {"command": command, "arms": arms, "num_images": num_images, "num_draws": NUM_DRAWS}
        storage.write_json(storage.join(storage.absolute(settings.out), "summary.json"), values | compared.to_dict())


def _arms(given: Sequence[str]) -> dict[str, list[str]]:
    """The folders of each arm by a name: what the names of its folders begin with, or all that was given.

    Raises:
        SettingError: There are fewer than two arms, or one is given twice.
    """
    if len(given) < 2 or len(set(given)) < len(given) or not all(map(_folders, given)):
        expected = "two run directories or more; join runs of several seeds by commas: A0,A1 B0,B1"
        raise SettingError("nothing to compare", field="run_dir", value=list(given), expected=expected)
    folders = [_folders(each) for each in given]
    names = [_common_start([uri.rpartition("/")[2] for uri in each]) for each in folders]
    usable = all(names) and len(set(names)) == len(names)
    return dict(zip(names if usable else given, folders, strict=True))


def _common_start(names: Sequence[str]) -> str:
    pairs = zip(min(names), max(names), strict=False)  # the first and the last in order differ first
    return "".join(a for a, b in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)).rstrip("-_")


def _folders(arm: str) -> list[str]:
    return [storage.absolute(part) for part in arm.split(",") if part]


def _warn_of_settings(folders: Sequence[str]) -> None:
    """Name the settings, besides the seed, in which the runs of an arm differ."""
    runs = [folder for folder in folders if storage.exists(RunFiles(folder).config)]
    for other in runs[1:]:
        found = differences(read_config(runs[0]), read_config(other))
        names = [name for name in found if name not in ("run_dir", "seed") and not name.startswith("resources.")]
        if names:
            print(f"warning: {other} differs from {runs[0]} in more than its seed: {', '.join(names)}")


def _tables(first: str, name: str, compared: Compared) -> Iterator[str]:
    """All metrics; those of each class; what the two take for what most differently."""
    left, right, minus = compared.arms[first], compared.arms[name], compared.differences[name]
    versus = f"{name} - {first}"
    yield format_table(
        [
            {"%": words, first: _one(left[key, ""]), name: _one(right[key, ""]), versus: _interval(minus[key, ""])}
            for words, key in FOREGROUND.items()
        ]
    )
    yield format_table(
        [
            {
                "IoU by class (%)": cls,
                first: _one(left["iou", cls]),
                name: _one(right["iou", cls]),
                versus: _interval(minus["iou", cls]),
                "recall": _interval(minus["class_recall", cls]),
                "precision": _interval(minus["class_precision", cls]),
            }
            for kind, cls in minus
            if kind == "iou"
        ]
    )
    yield format_table(
        [
            {
                "share of a class (%)": what,
                first: _one(left[kind, what]),
                name: _one(right[kind, what]),
                versus: _interval(minus[kind, what]),
            }
            for kind, what in sorted(minus, key=lambda key: -abs(minus[key].value))
            if kind == "taken"
        ]
    )


def _verdict(first: str, name: str, compared: Compared) -> str:
    found, by_run = compared.differences[name]["mean_iou", ""], compared.by_run.get(name, [])
    better = name if found.value > 0 else first
    text = f"{better} is better on such images" if found.excludes_zero else "these images do not tell which is better"
    runs = f"; by run {', '.join(f'{100 * each:+.1f}' for each in by_run)}" if len(by_run) > 1 else ""
    return f"mean IoU, {name} - {first}: {_interval(found, mark='')}: {text}{runs}"


def _one(found: Estimate) -> str:
    return "-" if found.value != found.value else f"{100 * found.value:.1f}"


def _interval(found: Estimate, mark: str = "  =") -> str:
    """A difference with its interval, and the mark if that contains 0."""
    if found.value != found.value:
        return "-"
    text = f"{100 * found.value:+.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"
    return text if found.excludes_zero else text + mark


if __name__ == "__main__":
    run(main)
