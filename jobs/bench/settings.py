"""Settings of the measurements by their names, apart from the work so that a help is shown at once."""

from __future__ import annotations

from dataclasses import dataclass

from boxsup_dist.errors import SettingError
from boxsup_dist.model.crf import MIN_PROB, SETTLED
from boxsup_dist.runs.command_line import Checkpoint, RunDir

COCO_2014_TRAINVAL_AND_TRAIN_AUG = 133_869


@dataclass(frozen=True)
class Epoch:
    """Size of the measurement, and where to write."""

    out: str = "runs/bench"
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


@dataclass(frozen=True)
class Actors:
    """Size of the measurement, and where to write."""

    out: str = "runs/bench_actors"
    """Folder of actors.json and of synthetic tables, which the next call uses again."""
    units: int = 16
    """Row groups to reassign, of 16 images each."""
    rounds: int = 5
    """How often one actor and two take turns; the median counts."""
    seed: int = 0
    """Seed of the images."""


@dataclass(frozen=True)
class Crf:
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
        """Raise SettingError on a value that cannot work."""
        for name in ("num_images", "num_rounds"):
            if getattr(self, name) < 1:
                raise SettingError("a setting is out of range", field=name, value=getattr(self, name), expected=">= 1")
        for name in ("min_probs", "settled"):
            values = getattr(self, name)
            if not values or not all(0 <= p <= 1 for p in values):
                raise SettingError(
                    "a setting is out of range", field=name, value=values, expected="one or more, 0 <= value <= 1"
                )


@dataclass(frozen=True)
class Memory:
    """Size of the measurement, and where to write."""

    out: str = "runs/bench_memory"
    """Folder of summary.json and of synthetic tables."""
    num_images: int = 128
    """N. It makes two shards: with one shard, a second process would be idle at N and busy at 4 N."""


@dataclass(frozen=True)
class Scale:
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
class Stream:
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
    bench_table: str | None = None
    """JSON table to put the rows into, docs/results/bench.json. Not set: none."""


@dataclass(frozen=True)
class Step:
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
    bench_table: str | None = None
    """JSON table to put the rows into, docs/results/bench.json. Not set: none."""

    def check(self) -> None:
        """Raise SettingError on a value that cannot work."""
        _check_positive(self, "crop_px", "batch_images", "num_steps", "rounds")


@dataclass(frozen=True)
class Gpu:
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
    bench_table: str | None = None
    """JSON table to put the rows into, docs/results/bench.json. Not set: none."""

    def check(self) -> None:
        """Raise SettingError on a value that cannot work."""
        _check_positive(self, "crop_px", "batch_images", "seconds", "rounds", "most_images")


def _check_positive(settings: Step | Gpu, *names: str) -> None:
    for name in names:
        if getattr(settings, name) <= 0:
            raise SettingError("a setting is out of range", field=name, value=getattr(settings, name), expected="> 0")


MEASUREMENTS: dict[str, type] = {
    "epoch": Epoch,
    "stream": Stream,
    "step": Step,
    "gpu": Gpu,
    "actors": Actors,
    "crf": Crf,
    "memory": Memory,
    "scale": Scale,
}
