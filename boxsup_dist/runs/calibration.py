"""The rates of this machine under a recipe, measured for plans of a cluster.

The same functions that train workers, actors and data tasks call do their work on a few images, in this one process,
on one core or on its GPU, without Ray. A core is measured in CPU seconds, so that other work on the machine matters
little. A GPU should have no other work.
"""

from __future__ import annotations

import platform
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import psutil
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray

from boxsup_dist.assignment.assign import (
    RECORD_COLUMNS,
    assign_row_group,
    choose_row_group,
    decode_row_group,
    score_row_group,
)
from boxsup_dist.config import AssignmentSettings, TrainConfig
from boxsup_dist.data.images import decode_image
from boxsup_dist.data.labels import LabelsTable, store_labels
from boxsup_dist.data.sources import Mixture, Unit
from boxsup_dist.distributed import session
from boxsup_dist.errors import SettingError
from boxsup_dist.evaluation.units import EVALUATION_COLUMNS, evaluate_unit
from boxsup_dist.model.inference import class_scores, predict_log_probs
from boxsup_dist.model.networks import NetworkSpec, SegmentationNetwork, build_network, parameter_groups
from boxsup_dist.proposals.build import build_proposals, propose_shard
from boxsup_dist.proposals.methods import find_method
from boxsup_dist.proposals.settings import MethodName
from boxsup_dist.records import voc
from boxsup_dist.records.build import build_records
from boxsup_dist.records.synthetic import write_synthetic
from boxsup_dist.runs.inputs import open_inputs
from boxsup_dist.runs.planning import Rates
from boxsup_dist.training.optimizer import make_optimizer
from boxsup_dist.training.order import Slice
from boxsup_dist.training.step import Placer, compute_gradients, training_precision
from boxsup_dist.training.stream import load_slice

MIN_STEPS = 2


@dataclass(frozen=True)
class Options:
    """How to measure."""

    recipe: str
    method: MethodName
    num_images: int  # at most a row group
    batch_images: int  # of a training step
    seconds: float  # how long to train


def make_tables(folder: str, num_images: int, method: str) -> tuple[str, str]:
    """Records and proposals of synthetic images. Ray is shut down at the end: its processes would disturb the clock."""
    session.start()
    try:
        root = write_synthetic(f"{folder}/devkit", num_images, 1)
        records = build_records(f"{folder}/records", voc.open_splits(root, "train"))
        proposals = build_proposals(f"{folder}/proposals", records.uri, method)
    finally:
        ray.shutdown()
    return records.uri, proposals.uri


def measure(config: TrainConfig, options: Options) -> Rates:
    """The rates of a configuration on its first row group.

    Raises:
        SettingError: The images to measure on have no box.
    """
    inputs = open_inputs(config)
    mixture = inputs.mixture
    unit = mixture.units[0]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(config.resources.threads_per_worker)
    count = min(options.num_images, len(unit.rows))
    records = unit.source.records.read(unit.where).slice(0, count)
    assert unit.source.proposals is not None
    proposals = unit.source.proposals.read(unit.where).slice(0, count)
    by_overlap = assign_row_group(None, records.select(RECORD_COLUMNS), proposals, mixture.assignment, seed=0, epoch=0)
    if by_overlap.num_rows == 0:
        raise SettingError("no box among the images to measure on", field="records", value=unit.source.records.uri)
    with tempfile.TemporaryDirectory() as folder:
        labels = store_labels(folder, [by_overlap])
        stream_s, images, label_maps = measure_stream(mixture, labels, count, options.batch_images)
    trained = measure_training(config, inputs.network, images, label_maps, options.seconds, device)
    torch.set_num_threads(config.resources.threads_per_actor)
    assign_s, evaluate_s = measure_actor(trained.network.eval(), mixture.assignment, records, proposals, device)
    return Rates(
        recipe=options.recipe,
        machine=torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.processor() or 'CPU'}, one core",
        gpu=device.type == "cuda",
        image_px=float(np.mean(np.multiply(records.column("height"), records.column("width")))),
        batch_images=len(images),
        train_images_per_s=trained.images_per_s,
        stream_s_per_image=stream_s,
        assign_images_per_s=1 / assign_s,
        evaluate_images_per_s=1 / evaluate_s,
        proposals_method=options.method,
        proposals_s_per_image=measure_proposals(unit, options.method),
        record_bytes=unit.source.records.num_bytes / unit.source.records.num_rows,
        proposals_bytes=unit.source.proposals.num_bytes / unit.source.proposals.num_rows,
        label_stored_bytes=labels.num_bytes / by_overlap.num_rows,
        weights_bytes=trained.weights_bytes,
        checkpoint_bytes=trained.weights_bytes + trained.optimizer_bytes,
        process_bytes=trained.process_bytes,
        train_bytes_per_image=trained.bytes_per_image,
    )


def measure_actor(
    network: SegmentationNetwork,
    assignment: AssignmentSettings,
    records: pa.Table,
    proposals: pa.Table,
    device: torch.device,
) -> tuple[float, float]:
    """Seconds per image of an actor that reassigns, and of one that evaluates. On a GPU, tasks choose the segments.

    Without ground truth the reassignment, with its forward pass, stands for the evaluation.
    """

    def log_probs(image: NDArray[np.uint8]) -> NDArray[np.float32]:
        return predict_log_probs(network, image, device)

    def assign() -> None:
        rows = records.select(RECORD_COLUMNS), proposals
        scores_of = partial(class_scores, network, normalise=assignment.form == "image")
        sums = score_row_group(scores_of, decode_row_group(*rows), assignment)
        if device.type != "cuda":
            choose_row_group(sums, *rows, assignment, seed=0, epoch=assignment.warmup_epochs)

    def evaluate() -> None:
        evaluate_unit(lambda image: log_probs(image).argmax(0), with_mask, network.spec.num_classes)

    log_probs(decode_image(records.column("image")[0].as_py()))  # the first call sets things up and is not measured
    assign_s = clock(assign, device) / records.num_rows
    with_mask = records.select(EVALUATION_COLUMNS)
    with_mask = with_mask.filter(pa.compute.is_valid(with_mask.column("gt_label_map")))
    return assign_s, clock(evaluate, device) / with_mask.num_rows if with_mask.num_rows else assign_s


def clock(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call on a core, on as many cores as torch has threads, or on the GPU."""
    if device.type == "cuda":
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return time.perf_counter() - started
    started = time.process_time()
    work()
    return (time.process_time() - started) / torch.get_num_threads()


def measure_stream(
    mixture: Mixture, labels: LabelsTable, count: int, batch_images: int
) -> tuple[float, NDArray[np.uint8], NDArray[np.uint8]]:
    """Core seconds per image of a data task, and a batch: images (n, h, w, 3) and label maps (n, h, w), uint8."""
    rows = mixture.units[0].rows[:count]
    load_slice(Slice(0, 0, 0, rows[:1]), mixture, labels, 0)
    started = time.process_time()
    pairs = load_slice(Slice(0, 0, 0, rows), mixture, labels, 0)
    seconds = (time.process_time() - started) / len(rows)
    chosen = [pairs[i] for i in np.resize(np.arange(len(rows)), batch_images)]
    return seconds, np.stack([pair.image for pair in chosen]), np.stack([pair.label_map for pair in chosen])


@dataclass(frozen=True)
class Trained:
    """Measurements of the training steps."""

    network: SegmentationNetwork
    images_per_s: float
    weights_bytes: float
    optimizer_bytes: float
    process_bytes: float
    bytes_per_image: float


def measure_training(
    config: TrainConfig,
    spec: NetworkSpec,
    images: NDArray[np.uint8],
    label_maps: NDArray[np.uint8],
    seconds: float,
    device: torch.device,
) -> Trained:
    """Train on one batch for `seconds`, by training.step as workers do. Random weights: their steps take as long."""
    options = config.optimizer
    network = build_network(spec, "none").to(device).to(memory_format=torch.channels_last)
    groups = parameter_groups(network, options)
    optimizer = make_optimizer(groups, options)
    process_bytes = float(psutil.Process().memory_info().rss)

    placer, precision = Placer(device), training_precision(device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        compute_gradients(network, placer.place(images, label_maps), precision=precision).sums()
        optimizer.step()

    network.train()
    step()  # sets up the optimizer's state and everything else that a first step needs
    steps, spent, end = 0, 0.0, time.monotonic() + seconds
    while steps < MIN_STEPS or time.monotonic() < end:
        spent += clock(step, device)
        steps += 1
    weights = float(sum(value.nbytes for value in network.state_dict().values()))
    states = [value for state in optimizer.state.values() for value in state.values()]
    state = float(sum(value.nbytes for value in states if isinstance(value, torch.Tensor)))
    if device.type == "cuda":
        peak, before = float(torch.cuda.max_memory_allocated()), weights  # of which the network is a part
    else:
        peak, before = 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, process_bytes
    # Gradients are as large as the weights. The batch and its logits need at least this much.
    least = 4.0 * spec.num_classes * label_maps[0].size
    grown = max((peak - before - weights - state) / len(images), least)  # weights: the gradients are as large
    return Trained(network, steps * len(images) / spent, weights, state, process_bytes, grown)


def measure_proposals(unit: Unit, method: str) -> float:
    """Core seconds per image of the whole row group, with decoding and the boundary detector."""
    chosen, options = find_method(method)
    counts = propose_shard(unit.source.records, [unit.where], chosen, options).counts
    return max(counts["compute_ms"], 1) / 1000 / counts["images"]
