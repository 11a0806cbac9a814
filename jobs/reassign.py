"""Reassign the labels of all boxes once, from a checkpoint, without training.

    python -m jobs.reassign --run-dir R --out DIR
    python -m jobs.reassign --run-dir R --out DIR --refine --votes GRABCUT

The labels are those of the epoch that follows the checkpoint, as the run itself would make them; with --refine the
best label maps that the boxes of the run can give: a CRF refines the segments, with votes of the candidates, of the
network and of the label maps.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from boxsup_dist.config import TrainConfig
from boxsup_dist.errors import SettingError
from boxsup_dist.io import storage
from boxsup_dist.progress import ProgressMeter
from boxsup_dist.runs.command_line import Checkpoint, NumActors, RunDir, run
from boxsup_dist.runs.kept_config import read_config
from boxsup_dist.runs.layout import RunFiles
from boxsup_dist.runs.summary import key_lines, write_result


@dataclass(frozen=True)
class Settings:
    """Which network, and where to write."""

    run_dir: RunDir
    out: str
    """Folder or URI of the labels table (labels/) and of summary.json."""
    refine: bool = False
    """Refine the segments (assignment/refine.py), whatever the run does."""
    votes: tuple[str, ...] = ()
    """With --refine: label maps that vote, one table for each data set of boxes, in the order of the run; see
    jobs.build_label_maps. Default: none."""
    checkpoint: Checkpoint = None
    num_actors: NumActors = None


def main(settings: Settings) -> None:
    """Reassign, write the table OUT/labels and OUT/summary.json, and print the summary."""
    config = read_config(settings.run_dir)
    if "box" not in (source.supervision for source in config.sources):
        expected = "a run with a source of box supervision"
        raise SettingError(
            "the run has no labels to reassign", field="supervision", value=config.supervision, expected=expected
        )
    if settings.refine:
        config = refining(config, settings.votes)
    elif settings.votes:
        raise SettingError("only the refinement asks label maps", field="votes", value=settings.votes,
                           expected="not set, or --refine")  # fmt: skip
    import ray

    from boxsup_dist.assignment.reassign import reassign
    from boxsup_dist.data.labels import MANIFEST, open_labels, publish
    from boxsup_dist.distributed import session
    from boxsup_dist.evaluation.evaluate import measure_labels
    from boxsup_dist.model import checkpoint
    from boxsup_dist.runs.inputs import open_inputs
    from boxsup_dist.runs.networks import load_run, make_pool

    session.start()
    kept, uri = load_run(settings.run_dir, settings.checkpoint, settings.num_actors)
    inputs = open_inputs(config)
    mixture = inputs.mixture
    sizes = [len(mixture.units[i].rows) for i in mixture.with_supervision("box")]
    state = checkpoint.load(uri)
    pool = make_pool(state.network, kept.resources)
    out, before = storage.absolute(settings.out), RunFiles(config.run_dir).labels(state.epoch)  # the newest epoch's
    previous = open_labels(before) if storage.exists(storage.join(before, MANIFEST)) else None
    table = storage.join(out, "labels")
    started = time.monotonic()
    with ProgressMeter("reassign", len(sizes)) as meter:
        shards = reassign(
            pool,
            mixture,
            weights=ray.put(dict(state.assigning_model)),
            epoch=state.epoch,
            uri=table,
            previous=previous,
            on_progress=meter.advance_to(sizes),
        )
    seconds = time.monotonic() - started
    labels = publish(table, shards, len(mixture.units))
    summary = {
        "epoch": state.epoch + 1,
        "checkpoint": uri,
        "num_boxes": labels.num_rows,
        "images_per_s": sum(sizes) / seconds,
        **labels.summary(),
    }
    if inputs.can_measure_labels:
        result = measure_labels(pool, mixture, labels, num_classes=len(inputs.class_names))
        summary |= result.metrics()
    pool.close()
    write_result(out, summary, key_lines(summary))


def refining(config: TrainConfig, votes: Sequence[str]) -> TrainConfig:
    """The configuration of a run, made to refine in every epoch.

    Raises:
        SettingError: The number of tables is not that of the data sets of boxes, or the run has no consensus.
    """
    boxes = [n for n, source in enumerate(config.sources) if source.supervision == "box"]
    if len(votes) not in (0, len(boxes)):
        expected = f"none, or {len(boxes)}: one for each data set of boxes"
        raise SettingError("label maps do not fit the run", field="votes", value=votes, expected=expected)
    sources = list(config.sources)
    for n, uri in zip(boxes, votes, strict=False):
        sources[n] = replace(sources[n], label_maps=uri)
    return replace(config, sources=tuple(sources), assignment=replace(config.assignment, refine_from_epoch=1)).check()


if __name__ == "__main__":
    run(main)
