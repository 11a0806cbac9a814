"""Measure the design's claims: fast scoring, a stream that keeps up with training, short pauses between epochs.

Each row is a ratio of two ways to do one thing. They take turns in one process or on one set of workers, so that a busy
machine slows both. The last row has nothing to compare with: it is in seconds.

    scoring          all candidates of an image for all its boxes: superpixel sums against drawing every mask
    epoch streamed   images/s of an epoch through data tasks and Ray Train, against the same batches kept in the memory
                     of the workers, without the first batch. It shows what the data tasks take from the training, but
                     not what a slower disk or network would take.
    between epochs   last step of an epoch to the first of the next in a whole run, without reassignment
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import ray
import ray.train.collective
from numpy.typing import NDArray
from PIL import Image

from boxsup_dist.assignment.assign import RECORD_COLUMNS, assign_row_group
from boxsup_dist.assignment.cost import BoxCosts, candidate_costs
from boxsup_dist.assignment.oracle import oracle_costs
from boxsup_dist.assignment.sums import reduce_scores, select_scores
from boxsup_dist.config import (
    AssignmentSettings,
    AugmentSettings,
    NetworkSettings,
    OptimizerSettings,
    SourceSettings,
    TrainConfig,
)
from boxsup_dist.data.labels import store_labels
from boxsup_dist.data.schema import VOC_CLASSES, Proposals
from boxsup_dist.distributed import session
from boxsup_dist.io import storage
from boxsup_dist.proposals.build import build_proposals
from boxsup_dist.proposals.selective_search import selective_search
from boxsup_dist.records import voc
from boxsup_dist.records.build import build_records
from boxsup_dist.records.synthetic import scene_of, write_synthetic
from boxsup_dist.records.synthetic_scene import tight_box
from boxsup_dist.runs.history import read_history
from boxsup_dist.runs.inputs import open_inputs
from boxsup_dist.runs.recipes import mini, with_epochs
from boxsup_dist.runs.train import train
from boxsup_dist.training.fit import launch
from boxsup_dist.training.stream import Batch
from boxsup_dist.training.worker import TrainWorker
from jobs.bench.rows import finish, row
from jobs.bench.settings import Epoch

SIZE_PX = (500, 375)  # width and height of a VOC photograph
NUM_BOXES = 3
GLOBAL_BATCH_SIZE = 10
FORMS: tuple[Literal["image", "centred"], ...] = ("image", "centred")
_Scored = tuple[float, list[BoxCosts]]


def main(settings: Epoch) -> None:
    """Measure all rows, write OUT/summary.json and print each with its goal."""
    out = storage.absolute(settings.out)
    scoring = measure_scoring(settings.rounds)
    session.start()
    config = prepare_run(settings, out)
    epochs = measure_epochs(config, settings.rounds)
    gap = measure_gap(config, settings.num_epochs)
    rows = [
        *(
            row(
                f"costs of all candidates, form {form}",
                "times as fast as drawing every mask",
                scoring[form]["ratios"],
                100,
            )
            for form in FORMS
        ),
        row("epoch streamed", "times the images/s from memory", epochs["ratios"], 0.9),
        row("between epochs", "s", gap["gaps_s"], 2.0, at_most=True),
    ]
    finish(settings, "epoch", rows, {"scoring": scoring, "epoch": epochs, "gap": gap})


# -- scoring ----------------------------------------------------------------------------------------------------------


def measure_scoring(rounds: int) -> dict[str, Any]:
    """Seconds of both ways for each form of the cost, and the ratio of each round."""
    proposals, boxes, class_ids = scoring_problem()
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(len(VOC_CLASSES), *proposals.superpixels.shape)).astype(np.float32)
    log_probs = logits - np.log(np.exp(logits).sum(0))
    result: dict[str, Any] = {"num_candidates": len(proposals), "num_boxes": len(boxes), "size_px": SIZE_PX}
    for form in FORMS:
        settings = AssignmentSettings(form=form, box_margin=0.0 if form == "centred" else None)

        def score(way: Callable[..., list[BoxCosts]], settings: AssignmentSettings = settings) -> _Scored:
            started = time.perf_counter()
            costs = way(proposals, boxes, class_ids, log_probs, settings)
            return time.perf_counter() - started, costs

        score(_by_sums)
        fast_s, slow_s = [], []
        for _ in range(rounds):
            runs = [score(_by_sums) for _ in range(5)]
            fast_s.append(statistics.median(seconds for seconds, _ in runs))
            seconds, slow = score(_by_masks)
            slow_s.append(seconds)
            _check_same(runs[0][1], slow)
        result[form] = {
            "ratios": [slow / fast for fast, slow in zip(fast_s, slow_s, strict=True)],
            "seconds": fast_s,
            "oracle_seconds": slow_s,
        }
    return result


def _by_sums(
    proposals: Proposals,
    boxes: NDArray[np.float32],
    class_ids: NDArray[np.int32],
    log_probs: NDArray[np.float32],
    settings: AssignmentSettings,
) -> list[BoxCosts]:
    maps = proposals.superpixels, proposals.num_superpixels
    sums = reduce_scores(select_scores(log_probs, class_ids), *maps, boxes, class_ids, settings)
    return candidate_costs(proposals, boxes, sums)


def _by_masks(
    proposals: Proposals,
    boxes: NDArray[np.float32],
    class_ids: NDArray[np.int32],
    log_probs: NDArray[np.float32],
    settings: AssignmentSettings,
) -> list[BoxCosts]:
    form, margin = settings.form, settings.box_margin
    return oracle_costs(proposals, boxes, class_ids, log_probs, form=form, box_margin=margin)


def _check_same(fast: list[BoxCosts], slow: list[BoxCosts]) -> None:
    for ours, theirs in zip(fast, slow, strict=True):
        assert (ours.candidates == theirs.candidates).all(), "both ways find the same candidates"
        assert np.allclose(ours.total(1.0), theirs.total(1.0), atol=1e-5), "both ways give the same costs"


def scoring_problem() -> tuple[Proposals, NDArray[np.float32], NDArray[np.int32]]:
    """Selective Search's candidates on a synthetic image at VOC's size; its boxes (K, 4) and class ids (K,)."""
    scenes = (scene_of(0, "bench", index) for index in range(1000))
    scene = next(scene for scene in scenes if len(scene.names) == NUM_BOXES)
    height, width = scene.instances.shape
    scale = np.array([SIZE_PX[0] / width, SIZE_PX[1] / height] * 2)
    image = np.asarray(Image.fromarray(scene.image).resize(SIZE_PX, Image.Resampling.BICUBIC))
    boxes = np.array([tight_box(scene.instances == k + 1) for k in range(NUM_BOXES)]) * scale
    class_ids = np.array([VOC_CLASSES.index(name) for name in scene.names], np.int32)
    return selective_search(image), boxes.astype(np.float32), class_ids


# -- an epoch ---------------------------------------------------------------------------------------------------------


def prepare_run(settings: Epoch, out: str) -> TrainConfig:
    """Tables of synthetic images, and a configuration of two workers that trains on them from boxes."""
    folder = storage.join(out, f"tables-{settings.num_images}")
    root = write_synthetic(storage.join(folder, "devkit"), settings.num_images, 1)
    records = build_records(storage.join(folder, "records"), voc.open_splits(root, "train"))
    proposals = build_proposals(storage.join(folder, "proposals"), records.uri, "selective_search")
    recipe = mini(storage.join(out, "run"), (SourceSettings(records.uri, "box", proposals.uri),), None)
    config = with_epochs(recipe, settings.num_epochs)
    resources = replace(config.resources, num_workers=2).resolve(session.nodes())
    return replace(
        config,
        network=NetworkSettings(settings.network, weights="none", output_stride=16, dropout=0.1),
        optimizer=OptimizerSettings(epochs=settings.num_epochs, global_batch_size=GLOBAL_BATCH_SIZE, lr=1e-3),
        augment=AugmentSettings(settings.crop_px, settings.crop_px, 0.75, 1.35),
        resources=resources,
        measure_labels=False,
    )


def measure_epochs(config: TrainConfig, rounds: int) -> dict[str, Any]:
    """Images/s of one epoch streamed and from memory, alternated on the same workers, and the ratio of each round."""
    mixture = open_inputs(config).mixture
    parts = []
    for unit in mixture.units:
        assert unit.source.proposals is not None
        tables = unit.source.records.read(unit.where, RECORD_COLUMNS), unit.source.proposals.read(unit.where)
        parts.append(assign_row_group(None, *tables, mixture.assignment, seed=mixture.seed, epoch=0))
    labels = [ray.put(store_labels(storage.join(config.run_dir, "labels"), parts))]
    out = storage.join(config.run_dir, "epochs.json")
    settings = {"config": config, "mixture": mixture, "labels": labels, "rounds": rounds, "out": out}
    launch(config, alternate_epochs, settings)
    found = storage.read_json(out)
    streamed, memory = found["streamed"], found["memory"]
    pairs = list(zip(streamed, memory, strict=True))
    return {
        "ratios": [s["images_per_s"] / m["images_per_s"] for s, m in pairs],
        "ratios_with_first_batch": [m["train_s"] / (s["train_s"] + s["first_batch_s"]) for s, m in pairs],
        "images_per_s": {
            "streamed": [s["images_per_s"] for s in streamed],
            "memory": [m["images_per_s"] for m in memory],
        },
        "first_batch_s": [s["first_batch_s"] for s in streamed],
        "wait_share": [s["wait_share"] for s in streamed],
        "num_images": sum(len(unit.rows) for unit in mixture.units),
        "num_workers": config.resources.num_workers,
    }


def alternate_epochs(settings: dict[str, Any]) -> None:
    """Loop of the train workers: one warm-up, then `rounds` pairs of the same epoch, streamed and from memory.

    Rank 0 writes what it measured to `out`, because Ray Train returns metrics only with checkpoints.
    """
    worker = TrainWorker(settings["config"], settings["mixture"])
    worker.wrap()
    order = worker.order()
    labels = settings["labels"][0]
    kept = list(worker.batches(order, labels))

    def one_epoch(batches: Iterable[Batch]) -> dict[str, float]:
        ray.train.collective.barrier()
        metrics = worker.train_epoch(iter(batches), order.num_steps, lambda *_: None)
        worker.finish_epoch()
        worker.epoch = 0  # the same records and pixels every time
        return metrics

    one_epoch(kept)
    found: dict[str, list[dict[str, float]]] = {"streamed": [], "memory": []}
    for turn in range(settings["rounds"]):
        ways = [("streamed", worker.batches(order, labels)), ("memory", kept)]
        for name, batches in ways if turn % 2 == 0 else reversed(ways):
            found[name].append(one_epoch(batches))
    if worker.rank == 0:
        storage.write_json(settings["out"], found)


# -- between epochs ---------------------------------------------------------------------------------------------------


def measure_gap(config: TrainConfig, epochs: int) -> dict[str, Any]:
    """Seconds of each pause between the epochs of a whole run, and the seconds that its stages took."""
    storage.remove(config.run_dir)
    summary = train(replace(config, optimizer=replace(config.optimizer, epochs=epochs)))
    gaps = [entry.gap_s for entry in read_history(config.run_dir).values() if entry.gap_s is not None]
    return {"gaps_s": gaps, "seconds": summary["seconds"]}
