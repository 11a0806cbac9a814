"""What `jobs.start` decides: which images to show, which recipe suits data and machine, and how long the work takes."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch

from boxsup_dist.config import SourceSettings
from boxsup_dist.data.images import decode_image
from boxsup_dist.data.schema import iter_records
from boxsup_dist.data.tables import Table
from boxsup_dist.model.networks import network_spec
from boxsup_dist.proposals.methods import find_method
from boxsup_dist.reporting.contact_sheet import Boxed
from boxsup_dist.runs.calibration import measure_training
from boxsup_dist.runs.costs import FORWARDS_PER_STEP
from boxsup_dist.runs.recipes import RECIPES, RecipeName

TARGET_IMAGES = 6700  # that the recipe `mini` trains on, all epochs together, on 663 images
MIN_EPOCHS, MAX_EPOCHS = 4, 40  # labels need some epochs to settle; more than 40 repeat the same images
SMALL_SET, SMALL_BATCH = 100, 5  # with fewer images, smaller batches give more steps from the same images
CROPS = ((240, 161), (400, 257), (math.inf, 321))  # a crop for images whose longer side is up to so many pixels
FEW_IMAGES, MIN_HELD_OUT = 40, 10  # fewer images are all trained on; fewer held-out images say little
NUM_SHOWN, NUM_TIMED = 12, 2
MEASURED_S = 3.0  # of training steps
STARTING_S = 20.0  # of Ray and its workers, on two cores
BUSY_SHARE = 0.7  # of the time that a training takes its steps: the goodput that jobs.demo prints on two cores


def num_held_out(num_images: int, share: float) -> int:
    """How many images to evaluate on instead of training on them: `share` of them, at least MIN_HELD_OUT.

    Below FEW_IMAGES there are none: training needs all of them.
    """
    return 0 if share == 0 or num_images < FEW_IMAGES else max(MIN_HELD_OUT, round(share * num_images))


@dataclass(frozen=True)
class Choice:
    """The recipe and the options in which a run differs from it, as they are typed."""

    recipe: RecipeName
    epochs: int
    batch: int
    crop_px: int

    def arguments(self) -> list[str]:
        """The arguments of jobs.train."""
        return [
            self.recipe,
            *("--optimizer.epochs", str(self.epochs)),
            *("--optimizer.global-batch-size", str(self.batch)),
            *("--augment.crop-height-px", str(self.crop_px)),
            *("--augment.crop-width-px", str(self.crop_px)),
        ]

    def steps(self, num_images: int) -> int:
        """Steps of the whole training."""
        return self.epochs * math.ceil(num_images / self.batch)


def choose(num_images: int, long_side_px: float, epochs: int | None = None) -> Choice:
    """The recipe for a number of images and the median of their longer sides.

    It is `mini`, measured on some hundred images. The number of epochs keeps its number of images trained on, within
    MIN_EPOCHS and MAX_EPOCHS.

    Args:
        num_images: Images with boxes.
        long_side_px: Median of the images' longer sides.
        epochs: What the user wants; None: as many as suit the number of images.
    """
    crop_px = next(crop for side, crop in CROPS if long_side_px <= side)
    suited = min(max(round(TARGET_IMAGES / num_images), MIN_EPOCHS), MAX_EPOCHS)
    batch = min(SMALL_BATCH if num_images < SMALL_SET else 10, num_images)
    return Choice("mini", epochs or suited, batch, crop_px)


def long_side_px(table: Table) -> float:
    """Median of the images' longer sides."""
    shards = list(table.read_shards(("height", "width")))
    height, width = (pa.concat_tables(shards).column(name).to_numpy() for name in ("height", "width"))
    return float(np.median(np.maximum(height, width)))


def images_to_show(table: Table) -> list[Boxed]:
    """Up to NUM_SHOWN images, spread over the table, those with boxes first."""
    groups = table.row_groups()
    step = max(1, len(groups) // NUM_SHOWN)
    found: list[Boxed] = []
    for where in groups[::step]:
        names = ("image_id", "image", "height", "width", "boxes_xyxy", "class_ids")
        records = [record for record in iter_records(table.read(where, names)) if record.image is not None]
        records.sort(key=lambda record: len(record.class_ids) == 0)
        share = max(1, math.ceil(NUM_SHOWN * step / len(groups)))
        for record in records[:share]:
            assert record.image is not None
            image = decode_image(record.image)
            found.append(Boxed(record.image_id, image, record.boxes_xyxy, record.class_ids))
    return found[:NUM_SHOWN]


def proposal_seconds(table: Table, method: str) -> float:
    """Core seconds that the proposals of an image take, measured on the first images of the table."""
    chosen, settings = find_method(method)
    records = list(iter_records(table.read(table.row_groups()[0], ("image_id", "image"))))[:NUM_TIMED]
    images = [decode_image(record.image) for record in records if record.image is not None]
    chosen.propose(images[0], settings, image_id=records[0].image_id)  # the first call compiles
    started = time.process_time()
    for record, image in zip(records, images, strict=True):
        chosen.propose(image, settings, image_id=record.image_id)
    return (time.process_time() - started) / len(images)


@dataclass(frozen=True)
class Estimate:
    """How long the two long steps will take on this machine, in seconds; a guess to plan a coffee by."""

    proposals: float
    training: float


def estimate(table: Table, choice: Choice, method: str) -> Estimate:
    """Measure a few proposals and training steps, and extrapolate to all images and epochs."""
    cores = os.cpu_count() or 1
    config = RECIPES[choice.recipe]("unused", (SourceSettings(table.uri),), None)
    config = replace(config, network=replace(config.network, weights="none"))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (choice.batch, choice.crop_px, choice.crop_px, 3), np.uint8)
    label_maps = np.zeros(images.shape[:3], np.uint8)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    spec = network_spec(config.network, len(table.classes))
    per_core = measure_training(config, spec, images, label_maps, MEASURED_S, device).images_per_s
    rate = per_core if device.type == "cuda" else per_core * cores
    trained = choice.epochs * table.num_rows * (1 + 1 / FORWARDS_PER_STEP)  # each epoch also labels every image anew
    proposals = table.num_rows * proposal_seconds(table, method) / cores
    return Estimate(STARTING_S + proposals / BUSY_SHARE, STARTING_S + trained / rate / BUSY_SHARE)
