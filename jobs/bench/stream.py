"""Measure the training stream: what it costs the training, its first batch, many nodes, and CPU time per image.

Each row is measured in rounds; `measured` is their median, `spread` their least and largest value. Processes are warm.

    epoch / mock loader    time of an epoch whose steps sleep (40 images/s, as a GPU would), with the batches in memory
                           over with the stream. The first batch is not counted: it is the next rows.
    first batch            seconds from the order of an epoch to its first batch, for two numbers of slices (pieces of
                           work). It includes sending the list of all units and unpacking it; not starting processes.
    tasks at once          one worker on each of 8 simulated nodes whose tasks sleep, over bare Ray tasks there
    images per core-second read, decode, paint and augment: CPU time of all processes, Ray's own included, beside
                           PyTorch's DataLoader with torchvision on the same images and label maps as raw files
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import ray
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from boxsup_dist.assignment.assign import RECORD_COLUMNS, assign_row_group
from boxsup_dist.config import AssignmentSettings, AugmentSettings
from boxsup_dist.data.images import encode_png
from boxsup_dist.data.labels import LabelsTable, store_labels
from boxsup_dist.data.painting import BOX_COLUMNS, painter
from boxsup_dist.data.schema import IGNORE_INDEX, iter_records
from boxsup_dist.data.sources import Mixture, Source, make_units
from boxsup_dist.distributed import session
from boxsup_dist.distributed.shared import Reference
from boxsup_dist.io import storage
from boxsup_dist.proposals.build import build_proposals
from boxsup_dist.records import voc
from boxsup_dist.records.build import build_records
from boxsup_dist.records.synthetic import write_synthetic
from boxsup_dist.training.order import EpochOrder, order_epoch
from boxsup_dist.training.stream import Batch, max_slices, worker_batches
from jobs.bench.rows import finish, row
from jobs.bench.settings import Stream
from jobs.bench.stream_nodes import measure_nodes

BATCH_SIZE = 10
IMAGES_PER_S = 40.0  # of a GPU, as in jobs.bench scale
MAX_TASKS = 2
SLICES = {20: 1.0, 4200: 2.0}  # number of slices -> goal for the first batch, in seconds; 4,200: 67k images


def main(settings: Stream) -> None:
    """Measure all rows, write OUT/summary.json and print each with its goal."""
    out = storage.absolute(settings.out)
    session.start()
    mixture, labels = prepare(settings, out)
    feed = Feed(mixture, labels)
    feed.warm()
    epochs = measure_epochs(feed, settings.num_images, settings.rounds)
    first = {count: measure_first_batch(feed, count, settings.rounds) for count in SLICES}
    headroom = measure_headroom(feed, mixture, labels, storage.join(out, "files"), settings)
    ray.shutdown()
    nodes = measure_nodes(mixture, settings.num_nodes, settings.rounds)
    rows = [
        row("epoch / mock loader", "times the speed from memory", epochs["ratios"], 0.98),
        *(
            row(f"first batch, {count:,} slices", "s", seconds, SLICES[count], at_most=True)
            for count, seconds in first.items()
        ),
        row(f"tasks at once, {settings.num_nodes} nodes", "times bare Ray tasks", nodes["ratios"], 0.9),
        row("images per core-second", "times DataLoader", headroom["ratios"], 1.5),
    ]
    crop_bytes = 4 * settings.crop_px**2
    facts = {
        "epochs": epochs,
        "first_batch_s": first,
        "nodes": nodes,
        "headroom": headroom,
        "object_store_mib_at_most": max_slices(BATCH_SIZE, MAX_TASKS) * max(map(len, feed.rows)) * crop_bytes / 2**20,
    }
    finish(settings, "stream", rows, facts)


# -- the data ----------------------------------------------------------------------------------------------------------


def prepare(settings: Stream, out: str) -> tuple[Mixture, LabelsTable]:
    """Tables of the given VOC images, else of synthetic ones, and labels of their boxes chosen by overlap alone."""
    folder = storage.join(out, "voc" if settings.voc_root else f"synthetic-{settings.num_images}")
    root, split = settings.voc_root, settings.split
    if root is None:
        root, split = write_synthetic(storage.join(folder, "devkit"), settings.num_images, 1), "train"
    records = build_records(storage.join(folder, "records"), voc.open_splits(root, split))
    proposals = build_proposals(storage.join(folder, "proposals"), records.uri, "selective_search")
    assignment = AssignmentSettings(form="centred", top_k=3, box_margin=0.0, ignore_outside=True)
    augment = AugmentSettings(settings.crop_px, settings.crop_px, 0.75, 1.35)
    mixture = Mixture(make_units([Source(records, "box", proposals)]), assignment, augment, seed=0)
    tables = [(records.read(unit.where, RECORD_COLUMNS), proposals.read(unit.where)) for unit in mixture.units]
    parts = [assign_row_group(None, *pair, assignment, seed=0, epoch=0) for pair in tables]
    return mixture, store_labels(storage.join(folder, "labels"), parts)


class Feed:
    """The stream over the units of a mixture, repeated as often as an epoch needs."""

    def __init__(self, mixture: Mixture, labels: LabelsTable) -> None:
        self.mixture, self.labels = mixture, labels
        self.rows = [unit.rows for unit in mixture.units]
        self._shared: dict[int, tuple[list[Reference], Reference]] = {}

    def order(self, num_units: int) -> EpochOrder:
        """The order of an epoch of this many units."""
        rows = [self.rows[i % len(self.rows)] for i in range(num_units)]
        return order_epoch(rows, seed=0, epoch=0, global_batch_size=BATCH_SIZE)

    def share(self, num_units: int) -> tuple[list[Reference], Reference]:
        """New references to the mixture of so many units and to its labels: no process has unpacked them yet."""
        chosen = [i % len(self.rows) for i in range(num_units)]
        mixture = replace(self.mixture, units=tuple(self.mixture.units[i] for i in chosen))
        return [ray.put(mixture)], ray.put(repeated(self.labels, chosen))

    def batches(self, shared: tuple[list[Reference], Reference], order: EpochOrder) -> Iterable[Batch]:
        """All batches of an epoch for a single worker."""
        return worker_batches(*shared[:1], order, shared[1], epoch=0, rank=0, num_workers=1, max_tasks=MAX_TASKS)

    def warm(self) -> None:
        """Start the processes of the data tasks."""
        for _ in self.batches(self.share(len(self.rows)), self.order(len(self.rows))):
            pass


# -- the training ------------------------------------------------------------------------------------------------------


def measure_epochs(feed: Feed, num_images: int, rounds: int) -> dict[str, Any]:
    """Seconds of an epoch whose steps sleep, streamed and from memory in turns, and the ratios of the rounds."""
    num_units = -(-num_images // len(feed.rows[0]))
    shared, order = feed.share(num_units), feed.order(num_units)
    kept = list(feed.batches(shared, order))
    found: dict[str, list[float]] = {"streamed_s": [], "memory_s": []}
    for turn in range(rounds):
        ways: list[tuple[str, Iterable[Batch]]] = [("streamed_s", feed.batches(shared, order)), ("memory_s", kept)]
        for name, batches in ways if turn % 2 == 0 else reversed(ways):
            found[name].append(_seconds_after_first(batches))
    pairs = zip(found["memory_s"], found["streamed_s"], strict=True)
    return {"ratios": [memory / streamed for memory, streamed in pairs], **found, "steps": order.num_steps}


def _seconds_after_first(batches: Iterable[Batch]) -> float:
    """Seconds from the first batch to the end of the last step."""
    started: float | None = None
    for batch in batches:
        started = time.perf_counter() if started is None else started
        time.sleep(len(batch.image_ids) / IMAGES_PER_S)
    assert started is not None
    return time.perf_counter() - started


def measure_first_batch(feed: Feed, num_slices: int, rounds: int) -> list[float]:
    """Seconds to the first batch, each time with references that no process has unpacked."""
    order, found = feed.order(num_slices), []
    for _ in range(rounds):
        shared = feed.share(num_slices)
        started = time.perf_counter()
        batches = iter(feed.batches(shared, order))
        next(batches)
        found.append(time.perf_counter() - started)
        del batches
        time.sleep(1)  # what runs ahead ends
    return found


# -- CPU time ----------------------------------------------------------------------------------------------------------


class RawFiles(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The same images and label maps as files, scaled, mirrored and cropped as torchvision's references do it."""

    def __init__(self, files: Sequence[tuple[str, str]], settings: AugmentSettings) -> None:
        self.files, self.settings = files, settings

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Image (3, h, w) and label map (h, w), uint8."""
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as transforms

        image: Image.Image = Image.open(self.files[index][0]).convert("RGB")
        label_map: Image.Image = Image.open(self.files[index][1])
        scale = float(torch.empty(()).uniform_(self.settings.scale_min, self.settings.scale_max))
        size = [round(image.height * scale), round(image.width * scale)]
        image = transforms.resize(image, size, InterpolationMode.BILINEAR)
        label_map = transforms.resize(label_map, size, InterpolationMode.NEAREST)
        if torch.rand(()) < 0.5:
            image, label_map = transforms.hflip(image), transforms.hflip(label_map)
        crop = (self.settings.crop_height_px, self.settings.crop_width_px)
        beyond = [0, 0, max(crop[1] - size[1], 0), max(crop[0] - size[0], 0)]
        if any(beyond):
            image, label_map = transforms.pad(image, beyond), transforms.pad(label_map, beyond, fill=IGNORE_INDEX)
        top, left = (int(torch.randint(max(side - length, 0) + 1, ())) for side, length in zip(size, crop, strict=True))
        image, label_map = (transforms.crop(each, top, left, *crop) for each in (image, label_map))
        return transforms.pil_to_tensor(image), transforms.pil_to_tensor(label_map)[0]


def repeated(labels: LabelsTable, units: list[int]) -> LabelsTable:
    """The labels of these units of a table, in this order; a unit may come again. The files stay as they are."""
    shards = {each.unit: replace(shard, units=[each]) for shard in labels.shards for each in shard.units}
    chosen = [
        replace(shards[unit], units=[replace(shards[unit].units[0], unit=index)])
        for index, unit in enumerate(units)
        if unit in shards
    ]
    return replace(labels, num_units=len(units), shards=chosen)


def write_files(mixture: Mixture, labels: LabelsTable, folder: str) -> list[tuple[str, str]]:
    """Write the image and the painted label map of every record of a mixture; returns the pairs of paths."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    files: list[tuple[str, str]] = []
    for index, unit in enumerate(mixture.units):
        paint = painter(unit, labels.segments(index), mixture.assignment)
        for record in iter_records(unit.source.records.read(unit.where, ("image_id", "image", *BOX_COLUMNS))):
            assert record.image is not None
            paths = (f"{folder}/{len(files)}.jpg", f"{folder}/{len(files)}.png")
            for path, data in zip(paths, (record.image, encode_png(paint(record))), strict=True):
                Path(path).write_bytes(data)
            files.append(paths)
    return files


def measure_headroom(
    feed: Feed, mixture: Mixture, labels: LabelsTable, folder: str, settings: Stream
) -> dict[str, Any]:
    """CPU milliseconds per image of both ways, in turns; all processes count, Ray's own and this one included."""
    files = write_files(mixture, labels, folder)
    num_units = -(-settings.num_cpu_images // len(feed.rows[0]))
    shared, order = feed.share(num_units), feed.order(num_units)
    num_images = sum(order.lane_lengths)
    of_ray = {process.pid for process in psutil.Process().children(recursive=True)}
    loader = DataLoader(
        RawFiles([files[i % len(files)] for i in range(num_images)], mixture.augment),
        batch_size=BATCH_SIZE,
        shuffle=True,
        num_workers=MAX_TASKS,
        persistent_workers=True,
        multiprocessing_context="spawn",  # a process that has connected to Ray must not be forked
    )
    next(iter(loader))
    of_loader = {process.pid for process in psutil.Process().children(recursive=True)} - of_ray
    found: dict[str, list[float]] = {"stream": [], "loader": []}
    for turn in range(-1, settings.rounds):  # the first turn is not counted
        for name in found if turn % 2 == 0 else reversed(found):
            gc.collect()
            before = _cpu_s(of_loader, name == "loader")
            if name == "stream":
                num_taken = sum(len(batch.image_ids) for batch in feed.batches(shared, order))
            else:
                num_taken = sum(len(images) for images, _ in loader)
            assert num_taken == num_images, f"{num_taken} of {num_images} images"
            if turn >= 0:
                found[name].append(1000 * (_cpu_s(of_loader, name == "loader") - before) / num_images)
    ratios = [theirs / ours for theirs, ours in zip(found["loader"], found["stream"], strict=True)]
    return {"ratios": ratios, "cpu_ms_per_image": found, "num_images": num_images}


def _cpu_s(of_loader: set[int], with_loader: bool) -> float:
    """CPU seconds of this process and either the loader's processes or all others that it started."""
    seconds = time.process_time()
    for process in psutil.Process().children(recursive=True):
        if (process.pid in of_loader) == with_loader:
            times = process.cpu_times()
            seconds += times.user + times.system
    return seconds
