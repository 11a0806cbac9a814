"""Settings of the measurements by their names, apart from the work so that a help is shown at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from boxsup_dist.data.tables import open_table
from boxsup_dist.errors import SettingError
from boxsup_dist.model.crf import MIN_PROB, SETTLED
from boxsup_dist.runs.command_line import Checkpoint, RunDir
from boxsup_dist.runs.kept_config import read_config

COCO_2014_TRAINVAL_AND_TRAIN_AUG = 133_869


@runtime_checkable
class Checked(Protocol):
    """Settings that are checked before the imports of the measurement, which take seconds."""

    def check(self) -> None:
        """Raise InputError on a value that cannot work."""


@dataclass(frozen=True)
class Measurement:
    """What all measurements share."""

    bench_table: str | None = field(default=None, kw_only=True)
    """JSON table to put the rows into, such as docs/results/bench.json. Not set: none."""


@dataclass(frozen=True)
class All(Measurement):
    """What the measurements run on, and where they write."""

    out: str = "runs/bench"
    """Folder of the measurements' folders and, without a bench_table, of bench.json."""
    voc_root: str | None = None
    """Year folder of a VOC devkit (VOCdevkit/VOC2012), for what measures on images. Not set: synthetic images."""
    run_dir: str | None = None
    """Run directory of a training, for `crf`. Not set: `crf` does not run."""
    records: str | None = None
    """Folder or URI of a records table, for `crf`."""

    def check(self) -> None:
        """Raise SettingError if only one of run_dir and records is set."""
        if (self.run_dir is None) != (self.records is None):
            missing, given = ("run_dir", "records") if self.run_dir is None else ("records", "run_dir")
            raise SettingError(f"{given} needs {missing}: set both or neither", field=missing)


@dataclass(frozen=True)
class Epoch(Measurement):
    """Size of the measurement, and where to write."""

    out: str = "runs/bench_epoch"
    """Folder of summary.json and of synthetic tables, which the next call uses again."""
    num_images: int = 240
    """Images of an epoch. The first batch is not counted: in a short epoch, much is made while it is awaited."""
    crop_px: int = 257
    """Side of the crops to train on."""
    rounds: int = 3
    """How often the two ways take turns; the median counts."""
    num_epochs: int = 4
    """Epochs of the run whose pauses between epochs are measured."""
    network: str = "timm:tf_efficientnet_lite0"
    """Network to train, from random weights."""

    def check(self) -> None:
        """Raise SettingError on a value that cannot work."""
        for name, least in (("num_images", 1), ("rounds", 1), ("num_epochs", 2)):
            value = getattr(self, name)
            if value < least:
                raise SettingError("a setting is out of range", field=name, value=value, expected=f">= {least}")


@dataclass(frozen=True)
class Actors(Measurement):
    """Size of the measurement, and where to write."""

    out: str = "runs/bench_actors"
    """Folder of summary.json and of synthetic tables, which the next call uses again."""
    units: int = 16
    """Row groups to reassign, of 16 images each."""
    rounds: int = 5
    """How often one actor and two take turns; the median counts."""
    seed: int = 0
    """Seed of the images."""


@dataclass(frozen=True)
class Crf(Measurement):
    """Which images and predictions, and what to compare."""

    run_dir: RunDir
    records: str
    """Folder or URI of the records table; no ground truth is needed."""
    out: str = "runs/bench_crf"
    """Folder or URI of summary.json."""
    num_images: int = 20
    """Images to measure: the first of the table."""
    crf: str = "deeplab_v2"
    """Parameters of the CRF: a name, or five numbers."""
    min_probs: tuple[float, ...] = (MIN_PROB,)
    """Values of MIN_PROB to compare: labels that are less likely at every pixel are dropped."""
    settled: tuple[float, ...] = (0.0, SETTLED)
    """Values of SETTLED to compare: stop once at most this share of the pixels changed; 0 never stops early."""
    num_rounds: int = 3
    """How often each image is measured; the median counts."""
    checkpoint: Checkpoint = None

    def check(self) -> None:
        """Raise InputError on a value that cannot work, an absent run or table."""
        for name in ("num_images", "num_rounds"):
            if getattr(self, name) < 1:
                raise SettingError("a setting is out of range", field=name, value=getattr(self, name), expected=">= 1")
        for name in ("min_probs", "settled"):
            values = getattr(self, name)
            if not values or not all(0 <= p <= 1 for p in values):
                raise SettingError(
                    "a setting is out of range", field=name, value=values, expected="one or more, 0 <= value <= 1"
                )
        read_config(self.run_dir)
        open_table(self.records, "records")


@dataclass(frozen=True)
class Memory(Measurement):
    """Size of the measurement, and where to write."""

    out: str = "runs/bench_memory"
    """Folder of summary.json and of synthetic tables."""
    num_images: int = 128
    """N. It makes two shards: with one shard, a second process would be idle at N and busy at 4 N."""


@dataclass(frozen=True)
class Scale(Measurement):
    """Size of the measurement, and the cluster to extrapolate to."""

    out: str = "runs/bench_scale"
    """Folder of the tables and of summary.json; about 45 kB per image."""
    num_images: int = COCO_2014_TRAINVAL_AND_TRAIN_AUG
    """N. The default is the number of images of COCO 2014 train + val and VOC 2012 train_aug."""
    seed: int = 0
    """Seed of the images."""
    gpu_images_per_s: float = 40.0
    """Training images per second of one GPU, for the extrapolation; jobs.calibrate measures it."""
    cpus_per_gpu: int = 16
    """CPU cores per GPU, for the extrapolation."""


@dataclass(frozen=True)
class Stream(Measurement):
    """Size of the measurement, what to read, and where to write."""

    out: str = "runs/bench_stream"
    """Folder of summary.json and of tables, which the next call uses again."""
    voc_root: str | None = None
    """VOC: year folder (VOCdevkit/VOC2012) of the images to measure on. Not set: synthetic images."""
    split: str = "train"
    """List of images in ImageSets/Segmentation of voc_root."""
    num_images: int = 240
    """Images of an epoch beside the mock loader, and of the synthetic set."""
    num_cpu_images: int = 960
    """Images of each round that measures CPU time."""
    num_nodes: int = 8
    """Nodes to simulate. Their processes take about 100 MB each, four per node."""
    crop_px: int = 321
    """Side of the crops to train on."""
    rounds: int = 5
    """How often the two ways take turns; the median counts."""


@dataclass(frozen=True)
class Reassign(Measurement):
    """Size of the measurement, what to read, and where to write."""

    out: str = "runs/bench_reassign"
    """Folder of summary.json and of tables, which the next call uses again."""
    voc_root: str | None = None
    """VOC: year folder (VOCdevkit/VOC2012) of the images to measure on. Not set: synthetic images."""
    split: str = "train"
    """List of images in ImageSets/Segmentation of voc_root."""
    num_images: int = 64
    """Images of the synthetic set."""
    forward_ms: float = 30.0
    """How long the sleeping member takes for the forward pass of an image."""
    network: str = "timm:tf_efficientnet_lite0"
    """The real network, with random weights."""
    oracle_images: int = 8
    """Images, the first of the table, whose labels are compared with the oracle's."""
    num_units: int = 8400
    """Units to dispatch; 8,400 of 16 images are COCO and VOC."""
    num_members: int = 512
    """Logical members that they are dispatched to."""
    rounds: int = 5
    """How often the ways take turns; the median counts."""

    def check(self) -> None:
        """Raise SettingError on a value that cannot work."""
        for name in ("num_images", "forward_ms", "oracle_images", "num_units", "num_members", "rounds"):
            value = getattr(self, name)
            if value <= 0:
                raise SettingError("a setting is out of range", field=name, value=value, expected="> 0")


@dataclass(frozen=True)
class Step(Measurement):
    """Size of the measurement, and where to write."""

    out: str = "runs/bench_step"
    """Folder of summary.json and of a small table, which the next call uses again."""
    network: str = "timm:tf_efficientnet_lite0"
    """Network to train, from random weights."""
    crop_px: int = 161
    """Side of the crops to train on."""
    batch_images: int = 4
    """Images of a step, per worker."""
    num_steps: int = 8
    """Steps of each turn."""
    rounds: int = 7
    """How often the two ways take turns; the median counts."""

    def check(self) -> None:
        """Raise SettingError on a value that cannot work."""
        _check_positive(self, "crop_px", "batch_images", "num_steps", "rounds")


@dataclass(frozen=True)
class Gpu(Measurement):
    """What to measure, and where to write. The defaults take under 8 minutes on a GPU; a CPU needs far smaller ones."""

    out: str = "runs/bench_gpu"
    """Folder of summary.json and profile-NETWORK.txt."""
    networks: tuple[str, ...] = ("deeplab_largefov_vgg16", "timm:tf_efficientnet_lite0")
    """Networks to train, from random weights."""
    crop_px: int = 321
    """Side of the crops to train on."""
    batch_images: int = 20
    """Images of a step."""
    seconds: float = 4.0
    """How long each way trains in each of its turns."""
    rounds: int = 3
    """How often ways that are compared take turns; the median counts."""
    most_images: int = 1024
    """Largest batch to try."""
    compiled: bool = True
    """Measure the compiled network too. Compiling takes a minute or two per network."""

    def check(self) -> None:
        """Raise SettingError on a value that cannot work."""
        _check_positive(self, "crop_px", "batch_images", "seconds", "rounds", "most_images")


@dataclass(frozen=True)
class Networks:
    """Which networks, and where to write."""

    out: str = "runs/bench_networks"
    """Folder of summary.json."""
    networks: tuple[str, ...] = (
        "timm:tf_efficientnet_lite0",
        "timm:tf_efficientnet_lite1",
        "timm:tf_efficientnet_lite2",
        "timm:resnet50",
        "timm:convnext_tiny",
        "timm:vit_small_patch14_dinov2",
        "deeplab_largefov_vgg16",
    )
    """Networks to compare with the first of them."""
    crop_px: int = 320
    """Side of the crops to predict and to train on."""
    rounds: int = 5
    """How often the networks take turns; the median counts."""

    def check(self) -> None:
        """Raise SettingError on a value that cannot work."""
        _check_positive(self, "crop_px", "rounds")
        if not self.networks:
            raise SettingError("a setting is empty", field="networks", expected="one network or more")


@dataclass(frozen=True)
class Checkpoints(Measurement):
    """Size of the measurement, and where to write."""

    out: str = "runs/bench_checkpoint"
    """Folder of checkpoint.json; 350 MB while it runs."""
    rounds: int = 5
    """How often the ways take turns; the median counts."""
    steps: int = 50
    """Small training steps beside a save; they must take longer than the save."""


@dataclass(frozen=True)
class Segments(Measurement):
    """Which images and candidates, and where to write."""

    records: str
    """Folder or URI of a records table with instance masks, such as COCO's."""
    proposals: str
    """Folder or URI of the proposals table of these records, by any method."""
    out: str = "runs/bench_segments"
    """Folder or URI of summary.json."""
    rounds: int = 3
    """How often the noise is drawn."""

    def check(self) -> None:
        """Raise InputError on a value that cannot work, or an absent table."""
        _check_positive(self, "rounds")
        open_table(self.records, "records")
        open_table(self.proposals, "proposals")


def _check_positive(settings: Step | Gpu | Segments | Networks, *names: str) -> None:
    for name in names:
        if getattr(settings, name) <= 0:
            raise SettingError("a setting is out of range", field=name, value=getattr(settings, name), expected="> 0")


MEASUREMENTS: dict[str, type] = {
    "all": All,
    "epoch": Epoch,
    "stream": Stream,
    "reassign": Reassign,
    "step": Step,
    "gpu": Gpu,
    "actors": Actors,
    "checkpoint": Checkpoints,
    "crf": Crf,
    "memory": Memory,
    "networks": Networks,
    "scale": Scale,
    "segments": Segments,
}
