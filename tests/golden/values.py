"""Small results of the whole method on six synthetic images, computed again at every run of the tests.

`test_golden.py` compares them with the files beside this one. `make golden` writes those files again: do it after an
intended change of the results, and say in the commit why they changed. Nothing here needs a Ray session or a GPU.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import ray.train
import ray.train.torch
import torch
from numpy.typing import NDArray

from boxsup_dist.assignment.assign import assign_row_group
from boxsup_dist.config import (
    AssignmentSettings,
    AugmentSettings,
    NetworkSettings,
    OptimizerSettings,
    ResourceSettings,
    SourceSettings,
    TrainConfig,
)
from boxsup_dist.data import tables
from boxsup_dist.data.images import decode_image
from boxsup_dist.data.labels import LabelsTable, store_labels
from boxsup_dist.data.schema import VOC_CLASSES, Proposals, Record, proposals_to_table, records_to_table
from boxsup_dist.data.sources import Mixture, Source, make_units
from boxsup_dist.proposals.methods import find_method
from boxsup_dist.records import voc
from boxsup_dist.records.reader import count_records
from boxsup_dist.records.synthetic import image_name, write_synthetic
from boxsup_dist.training.stream import Batch, TrainingPair, load_slice
from boxsup_dist.training.worker import TrainWorker

FOLDER = Path(__file__).parent
SEED, NUM_IMAGES, NUM_STEPS, BATCH = 3, 6, 12, 2
METHODS = ("selective_search", "mcg", "gop")
LABELLED_BY = "selective_search"  # its proposals are the candidates of the labels and of the training
NUM_BOXES, NUM_SCORES, NUM_SEGMENTS = 20, 10, 200  # of the first proposals of an image
# The first epoch is the warm-up, the second one chooses by the network, the third one refines by the CRF as well.
ASSIGNMENT = AssignmentSettings(
    form="centred",
    top_k=3,
    box_margin=0.1,
    ignore_outside=True,
    rank_weight=0.05,
    consensus_temperature=0.1,
    ignore_undecided=0.25,
    refine_from_epoch=3,
)
NUM_EPOCHS = 3


def compute(name: str) -> Any:
    """The values that the file `name`.json keeps, as JSON values."""
    with tempfile.TemporaryDirectory() as folder:
        records = synthetic_records(Path(folder) / "devkit")
        return FILES[name](records, Path(folder))


def read(name: str) -> Any:
    """The committed values."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def write(name: str, values: Any) -> Path:
    """Store values with one line per entry, so that a diff shows which entries changed."""
    entries = values.items() if isinstance(values, dict) else [(None, value) for value in values]
    lines = [(f"{json.dumps(key)}: " if key is not None else "") + json.dumps(value) for key, value in entries]
    left, right = "{}" if isinstance(values, dict) else "[]"
    path = FOLDER / f"{name}.json"
    path.write_text(f"{left}\n" + ",\n".join(lines) + f"\n{right}\n")
    return path


def synthetic_records(root: Path) -> list[Record]:
    """The first training images of the synthetic data set, by the very reader of VOC."""
    devkit = write_synthetic(str(root), NUM_IMAGES, 1, SEED)
    names = [image_name("train", index) for index in range(NUM_IMAGES)]
    return [voc.read_record(devkit, name, "train", source="synthetic") for name in names]


# -- proposals --------------------------------------------------------------------------------------------------------


def propose(record: Record, method: str) -> Proposals:
    """The candidates of one image by a method with its default settings."""
    chosen, settings = find_method(method)
    assert record.image is not None
    found: Proposals = chosen.propose(decode_image(record.image), settings, image_id=record.image_id)
    return found


def proposals_of_each_method(records: list[Record], folder: Path) -> dict[str, Any]:
    """For the first image and each method: the numbers, the first boxes and scores, and a digest of all the rest."""
    return {method: describe(propose(records[0], method)) for method in METHODS}


def describe(proposals: Proposals) -> dict[str, Any]:
    """Proposals as a few JSON values.

    Digests are of superpixels that are numbered in reading order: GOP numbers them by geodesic distances, whose last
    digits differ between CPUs (see test_golden.py).
    """
    _, first, ids = np.unique(proposals.superpixels, return_index=True, return_inverse=True)
    number = np.argsort(np.argsort(first))
    segments = [np.sort(number[proposals.members(j)]) for j in range(len(proposals))]
    return {
        "num_superpixels": proposals.num_superpixels,
        "num_proposals": len(proposals),
        "superpixels": digest(number[ids].reshape(proposals.superpixels.shape)),
        "all_segments": digest(*segments),
        "segments": [digest(segment)[:8] for segment in segments[:NUM_SEGMENTS]],
        "boxes": proposals.boxes[:NUM_BOXES].tolist(),
        "objectness": [round(float(score), 6) for score in proposals.objectness[:NUM_SCORES]],
    }


def digest(*arrays: NDArray[Any]) -> str:
    """A short hash of the shapes and integers of arrays, whatever their integer types."""
    text = hashlib.sha256()
    for array in arrays:
        text.update(str(array.shape).encode() + np.ascontiguousarray(array, np.int64).tobytes())
    return text.hexdigest()[:16]


# -- labels -----------------------------------------------------------------------------------------------------------


def labels_of_each_epoch(records: list[Record], folder: Path) -> list[dict[str, Any]]:
    """The rows of the labels tables of three epochs, with the epoch, counted from 1."""
    table = records_to_table(records)
    proposals = proposals_to_table([propose(record, LABELLED_BY) for record in records])
    rows = []
    for epoch in range(NUM_EPOCHS):
        labels = assign(table, proposals, epoch)
        rows += [{"epoch": epoch + 1, **row} for row in labels.to_pylist()]
    return rows


def assign(records: pa.Table, proposals: pa.Table, epoch: int) -> pa.Table:
    """Labels of all records; by overlap alone in the warm-up, then by colours in the network's place."""
    log_probs_of = None if epoch < ASSIGNMENT.warmup_epochs else log_probs_by_colour
    return assign_row_group(log_probs_of, records, proposals, ASSIGNMENT, seed=SEED, epoch=epoch)


def log_probs_by_colour(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Log-probabilities, float32 (C, H, W), of a pixel's nearness to one colour per class.

    In the network's place, because the sums of a network differ from CPU to CPU in their last digits.
    """
    colours = np.random.default_rng(SEED).uniform(0, 255, (len(VOC_CLASSES), 3))
    logits = -(((image[None] - colours[:, None, None]) / 64) ** 2).sum(-1)
    log_probs: NDArray[np.float32] = (logits - np.log(np.exp(logits).sum(0))).astype(np.float32)
    return log_probs


# -- the loss ---------------------------------------------------------------------------------------------------------


def loss_of_each_step(records: list[Record], folder: Path) -> list[float]:
    """The mean loss of each of the first training steps, by one worker on one thread of the CPU."""
    mixture, labels = training_data(records, folder)
    threads = torch.get_num_threads()
    try:
        return [float(f"{loss:.8g}") for loss in train(config_of(folder), mixture, labels)]
    finally:
        torch.set_num_threads(threads)


def config_of(folder: Path) -> TrainConfig:
    """A run of twelve steps with dropout, EM, a moving average of the weights, and flips, scales and crops."""
    return TrainConfig(
        run_dir=str(folder / "run"),
        sources=(SourceSettings(str(folder / "records"), "box", str(folder / "proposals")),),
        network=NetworkSettings("timm:test_resnet", weights="none", output_stride=16, dropout=0.1),
        assignment=replace(ASSIGNMENT, average_decay=0.8, ignore_outside=False, complete_undecided=True),
        optimizer=OptimizerSettings(
            epochs=NUM_STEPS * BATCH // NUM_IMAGES,
            global_batch_size=BATCH,
            lr=0.02,
            head_lr_multiplier=10.0,
            score_lr_multiplier=10.0,
            bias_lr_multiplier=1.0,
            schedule="poly",
        ),
        augment=AugmentSettings(97, 97, 0.75, 1.25),
        resources=ResourceSettings(num_workers=1, num_actors=1),
        seed=SEED,
        evaluate_every=0,
    )


def training_data(records: list[Record], folder: Path) -> tuple[Mixture, LabelsTable]:
    """The images as tables on the disk, and the labels of their first epoch."""
    rows, config = records_to_table(records), config_of(folder)
    counts = count_records(records)
    table = write_table(folder / "records", "records", {"classes": VOC_CLASSES}, rows, counts)
    found = proposals_to_table([propose(record, LABELLED_BY) for record in records])
    made_from = {"records": table.fingerprint, "method": LABELLED_BY}
    proposals = write_table(folder / "proposals", "proposals", made_from, found, {})
    units = make_units([Source(table, "box", proposals)])
    mixture = Mixture(units, config.assignment, config.augment, config.seed)
    return mixture, store_labels(str(folder / "labels"), [assign(rows, found, 0)])


def write_table(
    folder: Path, kind: str, settings: dict[str, Any], rows: pa.Table, counts: dict[str, int]
) -> tables.Table:
    """A published table of one shard and one row group."""
    settings = {**settings, "row_group_size": NUM_IMAGES}
    tables.begin(str(folder), kind, settings)
    shard = tables.write_shard(str(folder), 0, rows, kind, row_group_size=NUM_IMAGES, counts=counts)
    return tables.publish(str(folder), kind, settings, [shard])


def train(config: TrainConfig, mixture: Mixture, labels: LabelsTable) -> Iterator[float]:
    """The loss of every step of a run, in order."""
    with only_worker():
        worker = TrainWorker(config, mixture)
    worker.model = worker.network
    worker.network.train()
    for epoch in range(config.optimizer.epochs):
        order = worker.order()
        pairs = [pair for piece in order.slices for pair in load_slice(piece, mixture, labels, epoch)]
        for step in range(order.num_steps):
            loss, weights = worker.totals.loss, worker.totals.weights
            batch = batch_of(step, [pair for pair in pairs if pair.step == step])
            worker.train_step(batch, worker.place(batch), order.num_steps)
            yield (worker.totals.loss - loss) / (worker.totals.weights - weights)
        worker.finish_epoch()


def batch_of(step: int, pairs: list[TrainingPair]) -> Batch:
    """The training pairs of one step, in the order of their lanes."""
    pairs = sorted(pairs, key=lambda pair: pair.lane)
    return Batch(
        step,
        [pair.image_id for pair in pairs],
        np.stack([pair.image for pair in pairs]),
        np.stack([pair.label_map for pair in pairs]),
        np.array([pair.is_em for pair in pairs]),
        None if pairs[0].prior is None else np.stack([pair.prior for pair in pairs]),
    )


@contextmanager
def only_worker() -> Iterator[None]:
    """What Ray Train answers to the only worker of a run on the CPU."""
    context = mock.Mock()
    context.get_world_rank.return_value, context.get_world_size.return_value = 0, 1
    with (
        mock.patch.object(ray.train, "get_context", lambda: context),
        mock.patch.object(ray.train.torch, "get_device", lambda: torch.device("cpu")),
    ):
        yield


FILES: dict[str, Callable[[list[Record], Path], Any]] = {
    "proposals": proposals_of_each_method,
    "labels": labels_of_each_epoch,
    "losses": loss_of_each_step,
}
