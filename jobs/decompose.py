"""Say why boxes reach less than masks: train the networks that lie between the two.

    python -m jobs.decompose --box BOX --mask MASK --out OUT

A network from boxes has two handicaps. Some of its labels are wrong, and the pixels that the assignment left undecided
are not trained on. Each arm has one of them alone, or both with labels that never change:

    masks, undecided ignored     the masks, ignored where the last labels of BOX are undecided
    boxes, undecided from masks  the last labels of BOX, and the masks where they are undecided
    boxes, last labels           the last labels of BOX from the first epoch on

All arms have the settings, images and seed of BOX. The records need masks: this is an analysis, no way to train.
Several runs of one kind differ in their seeds: --box BOX0 BOX1 --mask MASK0 MASK1. Run it again to continue where it
stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from boxsup_dist.config import TrainConfig
from boxsup_dist.errors import RecordError, SettingError
from boxsup_dist.io import storage
from boxsup_dist.reporting.text_table import format_table, interval_cells
from boxsup_dist.runs.command_line import run
from boxsup_dist.runs.kept_config import read_config
from boxsup_dist.runs.layout import RunFiles
from boxsup_dist.runs.summary import is_finished

if TYPE_CHECKING:
    from boxsup_dist.data.labels import LabelsTable
    from boxsup_dist.data.sources import Mixture
    from boxsup_dist.data.tables import RowGroup
    from boxsup_dist.distributed.build import ShardContent

LabelMap = NDArray[np.uint8]
ARMS = ("masks, undecided ignored", "boxes, undecided from masks", "boxes, last labels")
COLUMNS = ("image_id", "height", "width", "boxes_xyxy", "class_ids", "crowd", "gt_label_map")


@dataclass(frozen=True)
class Settings:
    """Finished runs, and where to write."""

    box: tuple[str, ...]
    """Run directories trained from boxes; several differ in their seeds."""
    mask: tuple[str, ...]
    """Run directories trained from masks on the same images."""
    out: str
    """Folder or URI to write: label-maps-*, runs, summary.json."""


def mixed(trained: LabelMap, truth: LabelMap) -> dict[str, LabelMap]:
    """The label maps of each arm.

    Args:
        trained: What BOX trained on (H, W), undecided pixels IGNORE_INDEX.
        truth: The mask (H, W).
    """
    from boxsup_dist.data.schema import IGNORE_INDEX

    is_open = trained == IGNORE_INDEX
    maps = np.where(is_open, np.uint8(IGNORE_INDEX), truth), np.where(is_open, truth, trained), trained
    return dict(zip(ARMS, maps, strict=True))


def main(settings: Settings) -> None:
    """Paint, train, compare, print the table and write OUT/summary.json."""
    out = storage.absolute(settings.out)
    for run_dir in (*settings.box, *settings.mask):
        read_config(run_dir)  # says what is missing where there is no run
        if not is_finished(run_dir):
            expected = "a finished run: the same command of jobs.train finishes it"
            raise SettingError("the run is not finished", field="box, mask", value=run_dir, expected=expected)
    seeds = [read_config(run_dir).seed for run_dir in settings.box]
    if len(set(seeds)) < len(seeds):
        expected = "runs that differ in their seeds"
        raise SettingError("two runs have one seed", field="box", value=seeds, expected=expected)
    from boxsup_dist.runs.evaluated import read_matrices
    from boxsup_dist.runs.intervals import mean_iou_intervals
    from boxsup_dist.runs.train import train

    for run_dir in (*settings.box, *settings.mask):
        read_matrices(run_dir)  # says now, not after hours, that a run cannot be compared
    rows: dict[str, list[str]] = {"mask": list(settings.mask), **{arm: [] for arm in ARMS}, "box": list(settings.box)}
    for run_dir in settings.box:
        for arm, config in arms_of(run_dir, out).items():
            train(config)
            rows[arm].append(config.run_dir)
    ordered = {name: rows[name] for name in ("box", *ARMS, "mask")}
    found = mean_iou_intervals(ordered)
    shown = [
        {"trained on": name, "mean IoU": f"{found[name]['interval']['value']:.1f}", **interval_cells(found[name])}
        for name in ordered
    ]
    print(
        format_table(shown, f"Between boxes and masks, seeds {', '.join(map(str, seeds))}; in brackets 95 % intervals")
    )
    storage.write_json(storage.join(out, "summary.json"), {"rows": found, "runs": ordered})


def arms_of(run_dir: str, out: str) -> dict[str, TrainConfig]:
    """The runs between a run from boxes and masks; their label maps are made where they are missing."""
    from boxsup_dist.data.labels import open_labels
    from boxsup_dist.runs.inputs import open_inputs

    config = read_config(run_dir)
    inputs, files = open_inputs(config), RunFiles(run_dir)
    labels = open_labels(files.labels(files.epochs_with_labels()[-1]))
    tables = _paint(inputs.mixture, labels, storage.join(out, f"seed{config.seed}"))
    return {
        arm: replace(
            config,
            run_dir=storage.join(out, "runs", f"{_slug(arm)}-seed{config.seed}"),
            sources=tuple(
                replace(source, supervision="label_maps", proposals=None, label_maps=uri)
                for source, uri in zip(config.sources, uris, strict=True)
            ),
        )
        for arm, uris in tables.items()
    }


def _paint(mixture: Mixture, labels: LabelsTable, out: str) -> dict[str, list[str]]:
    """Build a table of label maps for every arm and source; returns their URIs by arm, in the order of the sources."""
    from boxsup_dist.distributed.build import build_partner

    uris: dict[str, list[str]] = {arm: [] for arm in ARMS}
    for number, source in enumerate(mixture.sources):
        for arm, made in uris.items():
            uri = storage.join(out, f"label-maps-{_slug(arm)}-{number}")
            build_partner(
                uri,
                "label_maps",
                {"method": arm, "labels": labels.fingerprint},
                source.records,
                partial(_shard, mixture=mixture, labels=labels, source=number, arm=arm),
                max_failed_share=0.0,
                description=f"label maps: {arm}",
            )
            made.append(uri)
    return uris


def _shard(
    groups: Sequence[RowGroup],
    crashed: Mapping[str, str],
    *,
    mixture: Mixture,
    labels: LabelsTable,
    source: int,
    arm: str,
) -> ShardContent:
    """The label maps of one shard; images that the run did not train on are ignored."""
    from boxsup_dist.data.images import decode_png, encode_png
    from boxsup_dist.data.painting import painter
    from boxsup_dist.data.schema import IGNORE_INDEX, LABEL_MAPS, iter_records
    from boxsup_dist.distributed.build import ShardContent

    records = mixture.sources[source].records
    index_of = {(unit.source.records.uri, unit.where): n for n, unit in enumerate(mixture.units)}
    rows = []
    for where in groups:
        index = index_of[records.uri, where]
        unit = mixture.units[index]
        paint = painter(unit, labels.segments(index), mixture.assignment)
        for row, record in enumerate(iter_records(records.read(where, COLUMNS))):
            label_map = np.full((record.height, record.width), IGNORE_INDEX, np.uint8)
            if row in unit.rows:
                if record.gt_label_map is None:
                    problem = "an image has no mask, which this analysis needs"
                    raise RecordError(problem, file=records.uri, field="gt_label_map", value=record.image_id)
                label_map = mixed(paint(record), decode_png(record.gt_label_map))[arm]
            rows.append({"image_id": record.image_id, "label_map": encode_png(label_map)})
    return ShardContent(pa.Table.from_pylist(rows, schema=LABEL_MAPS))


def _slug(arm: str) -> str:
    return arm.replace(", ", "-").replace(" ", "-")


if __name__ == "__main__":
    run(main)
