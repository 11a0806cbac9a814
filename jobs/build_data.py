"""Build all tables that jobs.reproduce trains on, from the data sets as published.

    python -m jobs.build_data --out DATA --voc2012 VOCdevkit/VOC2012 --sbd-root SBD --coco-annotations F --coco-images D

It writes DATA/NAME/records, DATA/NAME/proposals-METHOD and DATA/NAME/label-maps-METHOD: records of every data set that
is given, proposals where boxes may be used, and static label maps of VOC 2012. jobs.reproduce reads them. For a small
VOC in devkit layout with a list `aug`, leave out --sbd-root. Run the command again to continue an interrupted build.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from boxsup_dist.assignment.static import StaticMethod
from boxsup_dist.errors import SettingError
from boxsup_dist.io import storage
from boxsup_dist.progress import counted
from boxsup_dist.proposals.settings import McgSettings, NativeMethod
from boxsup_dist.runs.command_line import NumCpus, run
from boxsup_dist.runs.paper import AUG, COCO, COCO80, CONTEXT_TRAIN, CONTEXT_VAL, TRAIN, VAL, VOC07
from boxsup_dist.runs.summary import write_result

if TYPE_CHECKING:
    from boxsup_dist.records.reader import Reader

BOXES = (TRAIN, AUG, COCO, COCO80, VOC07)  # data sets that may give boxes


@dataclass(frozen=True)
class Settings:
    """Which data sets to read, and where to write."""

    out: str
    """Folder or URI of the data root to write."""
    voc2012: str
    """Year folder of VOC 2012 (VOCdevkit/VOC2012). It and all other roots may be paths or URIs."""
    voc2012_splits: tuple[str, str, str] = ("train", "aug", "val")
    """Lists of the devkit to use as train, aug and val. Runs drop the images of aug that train has too."""
    sbd_root: str | None = None
    """SBD, for the images that train_aug adds. Default: the devkit's own list aug."""
    coco_annotations: tuple[str, ...] = ()
    """COCO's files instances_*.json, one or several."""
    coco_images: tuple[str, ...] = ()
    """Folder of the images of each of these files."""
    context_root: str | None = None
    """PASCAL-Context; needs --voc2010. COCO is then also built with all its classes."""
    voc2010: str | None = None
    """Year folder of VOC 2010, whose images PASCAL-Context labels."""
    voc2007: str | None = None
    """Year folder of VOC 2007."""
    voc2007_split: str = "Main/trainval+Main/test"
    """Lists of VOC 2007, joined by +."""
    methods: tuple[NativeMethod, ...] = ("mcg",)
    """Proposal methods to build."""
    hed_weights: str | None = None
    """File of jobs.get_hed_weights for the boundaries of mcg. Default: mcg uses local gradients."""
    label_map_methods: tuple[StaticMethod, ...] = ()
    """Static label maps to build."""
    num_cpus: NumCpus = None


def open_readers(settings: Settings) -> dict[str, Reader]:
    """The data sets by their names in the data root.

    Raises:
        InputError: A root, list or file is absent or not what it should be.
    """
    from boxsup_dist.records import coco, context, sbd, voc

    train, aug, val = settings.voc2012_splits
    readers = {
        TRAIN: voc.open_splits(settings.voc2012, train),
        AUG: voc.open_splits(settings.voc2012, aug)
        if settings.sbd_root is None
        else sbd.open_splits(settings.sbd_root, aug, voc_root=settings.voc2012),
        VAL: voc.open_splits(settings.voc2012, val),
    }
    if settings.coco_annotations or settings.coco_images:
        names = [
            file.rsplit("/", 1)[-1].removesuffix(".json").removeprefix("instances_")
            for file in settings.coco_annotations
        ]
        readers[COCO] = coco.open_splits(settings.coco_annotations, settings.coco_images, "+".join(names))
        if settings.context_root is not None:
            readers[COCO80] = coco.open_splits(
                settings.coco_annotations, settings.coco_images, "+".join(names), classes="all"
            )
    if (settings.context_root is None) != (settings.voc2010 is None):
        field, other = ("voc2010", "context_root") if settings.voc2010 is None else ("context_root", "voc2010")
        raise SettingError(
            "PASCAL-Context labels images of VOC 2010", field=field, expected=f"a path, because {other} is set"
        )
    if settings.context_root is not None and settings.voc2010 is not None:
        readers[CONTEXT_TRAIN] = context.open_splits(settings.context_root, settings.voc2010, "train")
        readers[CONTEXT_VAL] = context.open_splits(settings.context_root, settings.voc2010, "val")
    if settings.voc2007 is not None:
        readers[VOC07] = voc.open_splits(settings.voc2007, settings.voc2007_split)
    return readers


def main(settings: Settings) -> None:
    """Build what is missing and write OUT/summary.json."""
    out = storage.absolute(settings.out)
    summary: dict[str, Any] = {}
    readers = open_readers(settings)
    from boxsup_dist.records.build import build_records

    for name, reader in readers.items():
        started = time.monotonic()
        folder = storage.join(out, name)
        records = build_records(storage.join(folder, "records"), reader, num_cpus=settings.num_cpus, description=name)
        summary[name] = {"num_images": records.num_rows, "published_images": reader.published, **records.counts}
        if name in BOXES:
            _build_partners(folder, records.uri, name in (TRAIN, AUG), settings)
        summary[name]["seconds"] = round(time.monotonic() - started, 1)
        print(f"{name}: {counted(records.num_rows, 'image')}", flush=True)
    write_result(out, summary)


def _build_partners(folder: str, records: str, with_label_maps: bool, settings: Settings) -> None:
    from boxsup_dist.assignment.build import build_label_maps
    from boxsup_dist.proposals.build import build_proposals

    mcg = McgSettings(edges="hed", hed_weights=settings.hed_weights) if settings.hed_weights else None
    for method in settings.methods:
        options = mcg if method == "mcg" else None
        uri = storage.join(folder, f"proposals-{method}")
        build_proposals(uri, records, method, options, num_cpus=settings.num_cpus)
    for static in settings.label_map_methods if with_label_maps else ():
        build_label_maps(storage.join(folder, f"label-maps-{static}"), records, static, num_cpus=settings.num_cpus)


if __name__ == "__main__":
    run(main)
