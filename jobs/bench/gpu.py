r"""Measure training steps on this machine's GPU, without Ray and MLflow: one command for a machine with PyTorch.

Without a GPU it measures the CPU, for which the defaults are too large:

    python -m jobs.bench gpu --networks timm:test_resnet --crop-px 65 --batch-images 2 --seconds 0.2 --most-images 4 \
        --no-compiled

For each network:

    fp32, bf16 ...       images/s of whole steps
    of the matrix rate   their operations per second, as a share of those of a large matrix product in that precision
    against no reads     the step against one that reads nothing from the device and whose batch lies there
    waits in a step      operations that let the host wait for all that the device has to do
    same bits twice      whether a few steps from the same state give the same weights twice
    class as on the CPU  pixels with the same likeliest class, of a forward pass in float32
    forward and sums     images/s of what an actor computes of images of one size: forward passes, sums of their boxes
    sums as on the CPU   whether the sums of one score map are those of the CPU, bit by bit
    largest batch        images, found by trying
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from boxsup_dist.assignment.assign import Decoded, score_row_group
from boxsup_dist.assignment.sums import reduce_scores, scored_classes
from boxsup_dist.config import AssignmentSettings, NetworkSettings, OptimizerSettings
from boxsup_dist.data.schema import VOC_CLASSES
from boxsup_dist.io import storage
from boxsup_dist.model.inference import class_scores, predict_log_probs
from boxsup_dist.model.networks import SegmentationNetwork, build_network, network_spec, parameter_groups
from boxsup_dist.reporting.text_table import format_table
from boxsup_dist.training.optimizer import make_optimizer
from boxsup_dist.training.step import DeviceBatch, Placer, compute_gradients, make_repeatable, placed_ahead
from jobs.bench.rows import finish, row
from jobs.bench.settings import Gpu

MATRIX_SIDE = {"cuda": 8192, "cpu": 512}
FORWARD_PX = (375, 500)  # height and width of a VOC photograph
UNIT_IMAGES, NUM_BOXES, SUPERPIXEL_PX = 16, 3, 12  # an actor's unit of work; boxes of an image, side of a superpixel
PROFILED_STEPS, REPEATED_STEPS = 3, 3
HostBatch = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # images (n, h, w, 3), label maps (n, h, w)
GOAL_SHARE, GOAL_READS, GOAL_LABELS = 0.45, 0.98, 0.999


@dataclass(frozen=True)
class Way:
    """How a step computes."""

    name: str
    precision: torch.dtype | None = None  # of autocast; None: float32
    tf32: bool = False
    compiled: bool = False

    def prepare(self) -> None:
        """Set torch's switches for products of float32 matrices."""
        torch.backends.cuda.matmul.fp32_precision = "tf32" if self.tf32 else "ieee"
        torch.backends.cudnn.conv.fp32_precision = "tf32" if self.tf32 else "ieee"  # type: ignore[attr-defined]


FP32, TF32, BF16 = Way("fp32"), Way("tf32", tf32=True), Way("bf16", torch.bfloat16)
COMPILED = Way("bf16 compiled", torch.bfloat16, compiled=True)
WAYS = (FP32, TF32, BF16, COMPILED)


def main(settings: Gpu) -> None:
    """Measure all networks; write OUT/summary.json and OUT/profile-NETWORK.txt, and print them."""
    started = time.perf_counter()
    out, device = storage.absolute(settings.out), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    make_repeatable(device)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{machine}, torch {torch.__version__}", flush=True)
    rows: list[dict[str, Any]] = []
    for name in settings.networks:
        bench = Bench(settings, name, device)
        rows += bench.measure()
        print(format_table(rows), flush=True)
        table = bench.profile()
        storage.write_bytes(storage.join(out, f"profile-{name.replace(':', '-')}.txt"), table.encode())
        print(table, flush=True)
    print(f"{time.perf_counter() - started:.0f} s", flush=True)
    finish(settings, "gpu", rows, {"machine": machine, "torch": torch.__version__, "settings": asdict(settings)})


class Trainee:
    """A network with its optimizer, and the two ways to feed its step."""

    def __init__(self, network: SegmentationNetwork, way: Way, device: torch.device) -> None:
        self.way, self.device, self.placer = way, device, Placer(device)
        self.network = deepcopy(network).to(device).to(memory_format=torch.channels_last).train()
        if way.compiled:
            self.network.compile()
        options = OptimizerSettings()
        self.optimizer = make_optimizer(parameter_groups(self.network, options), options)

    def step(self, batch: DeviceBatch, *, reads: bool = True) -> None:
        """A worker's step on one GPU; `reads` the sums, or waits for nothing."""
        self.optimizer.zero_grad(set_to_none=True)
        gradients = compute_gradients(self.network, batch, precision=self.way.precision)
        if reads:
            gradients.sums()
        self.optimizer.step()

    def train(self, batch: HostBatch, seconds: float) -> float:
        """Seconds per step of the worker's way: each batch comes from the host, and each step's sums are read."""
        endless = iter(lambda: batch, None)
        placed = placed_ahead(endless, lambda arrays: self.placer.place(*arrays), ahead=self.device.type != "cpu")
        found = seconds_per_call(lambda: self.step(next(placed)[1]), seconds, self.device)
        placed.close()
        return found

    def train_blindly(self, batch: HostBatch, seconds: float) -> float:
        """Seconds per step on a batch that lies on the device, when nothing is read from there."""
        placed = self.placer.place(*batch)
        return seconds_per_call(lambda: self.step(placed, reads=False), seconds, self.device)


class Bench:
    """The measurements of one network."""

    def __init__(self, settings: Gpu, name: str, device: torch.device) -> None:
        self.settings, self.name, self.device = settings, name, device
        torch.manual_seed(0)
        self.network = build_network(network_spec(NetworkSettings(name), len(VOC_CLASSES)), "none")
        with torch.no_grad():  # an untrained score layer is zero, and no class is likelier than another
            for parameter in self.network.score.parameters():
                parameter.normal_(0, 0.1)
        self.batch = random_batch(settings.batch_images, settings.crop_px)
        with FlopCounterMode(display=False) as counter:
            self.trainee(FP32).step(Placer(device).place(*self.batch))
        self.flops = counter.get_total_flops()

    def trainee(self, way: Way = BF16) -> Trainee:
        """A fresh copy of the network, and torch's switches for this way."""
        way.prepare()
        return Trainee(self.network, way, self.device)

    def measure(self) -> list[dict[str, Any]]:
        """All rows."""
        ways = WAYS if self.settings.compiled else WAYS[:-1]
        rows = [line for way in ways for line in self.speed(way)]
        torch.compiler.reset()  # frees what the compiled network holds on the device
        return [
            *rows,
            self.against_no_reads(),
            self.waits(),
            self.same_bits(),
            *self.labels(),
            *self.actor(),
            self.largest_batch(),
        ]

    def speed(self, way: Way) -> list[dict[str, Any]]:
        """Images/s, and the share of the matrix rate."""
        trainee, rate = self.trainee(way), matrix_rate(way.precision or torch.float32, self.device)
        seconds = [trainee.train(self.batch, self.settings.seconds) for _ in range(self.settings.rounds)]
        shares = [self.flops / each / rate for each in seconds]
        name = f"{self.name}, {way.name}, of the matrix rate"
        share = row(name, "share", shares, GOAL_SHARE) if way is BF16 else reading(name, "share", shares)
        images = [self.settings.batch_images / each for each in seconds]
        return [reading(f"{self.name}, {way.name}", "images/s", images), share]

    def against_no_reads(self) -> dict[str, Any]:
        """The worker's step against one that waits for nothing; both ways take turns."""
        trainee, ratios = self.trainee(), []
        for turn in range(self.settings.rounds):
            order = (trainee.train, trainee.train_blindly) if turn % 2 else (trainee.train_blindly, trainee.train)
            found = {train.__name__: train(self.batch, self.settings.seconds) for train in order}
            ratios.append(found["train_blindly"] / found["train"])
        return row(f"{self.name}, against no reads", "times", ratios, GOAL_READS)

    def waits(self) -> dict[str, Any]:
        """Operations of one step, after the first, of which torch knows that the host waits for the device."""
        trainee = self.trainee()
        trainee.step(trainee.placer.place(*self.batch))
        on_cuda = self.device.type == "cuda"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if on_cuda:
                torch.cuda.set_sync_debug_mode("warn")
            trainee.step(trainee.placer.place(*self.batch))
            if on_cuda:
                torch.cuda.set_sync_debug_mode("default")
        found = [warning for warning in caught if "synchroniz" in str(warning.message)]
        return row(f"{self.name}, waits in a step", "operations", [float(len(found))], 0.0, at_most=True)

    def same_bits(self) -> dict[str, Any]:
        """1 if a few steps from the same state give the same weights twice."""
        states = []
        for _ in range(2):
            trainee = self.trainee()
            for index in range(REPEATED_STEPS):
                torch.manual_seed(index)  # of dropout, as in a worker
                trainee.step(trainee.placer.place(*self.batch))
            states.append([value.cpu() for value in trainee.network.state_dict().values()])
        same = all(torch.equal(first, second) for first, second in zip(*states, strict=True))
        return row(f"{self.name}, same bits twice", "(1: yes)", [float(same)], 1.0)

    def labels(self) -> list[dict[str, Any]]:
        """Share of pixels whose likeliest class is the CPU's: in float32, and in TF32, in which actors convolve."""
        image, network = self.batch[0][0], deepcopy(self.network).eval()
        expected = predict_log_probs(network, image).argmax(0)
        network.to(self.device)
        shares = {}
        for way in (FP32, TF32):
            way.prepare()
            shares[way] = float((predict_log_probs(network, image, self.device).argmax(0) == expected).mean())
        name, unit = f"{self.name}, class as on the CPU", "of the pixels"
        return [row(name, unit, [shares[FP32]], GOAL_LABELS), reading(f"{name}, tf32", unit, [shares[TF32]])]

    def actor(self) -> list[dict[str, Any]]:
        """Images/s of an actor: forward passes of images that share one, and the sums of their boxes on the device.

        The second row is 1 if the sums of one score map are those of the CPU, bit by bit.
        """
        network = deepcopy(self.network).eval().to(self.device)
        height, width = (min(side, 2 * self.settings.crop_px) for side in FORWARD_PX)
        centred = AssignmentSettings(form="centred", logit_limit=3.0)  # as in the recipe mini
        decoded = [random_boxed(height, width, seed) for seed in range(UNIT_IMAGES)]
        scores_of = partial(class_scores, network, normalise=False)

        def score() -> None:
            score_row_group(scores_of, decoded, centred)

        rates = [UNIT_IMAGES / seconds_per_call(score, self.settings.seconds, self.device)
                 for _ in range(self.settings.rounds)]  # fmt: skip
        one = decoded[0]
        (_, scores), *_ = scores_of([one.image], [scored_classes(one.class_ids)])
        maps = one.superpixels, one.num_superpixels, one.boxes_xyxy, one.class_ids, centred
        pairs = zip(reduce_scores(scores, *maps), reduce_scores(scores.cpu(), *maps), strict=True)
        same = all(np.array_equal(ours.regression, theirs.regression) for ours, theirs in pairs)
        return [
            reading(f"{self.name}, forward and sums of {height} x {width} px", "images/s", rates),
            row(f"{self.name}, sums as on the CPU", "(1: yes)", [float(same)], 1.0),
        ]

    def largest_batch(self) -> dict[str, Any]:
        """Largest batch that fits, at most `most_images`: doubled until one fails, then halved to within a tenth."""
        most = self.settings.most_images
        fits, fails = 0, most + 1
        count = min(self.settings.batch_images, most)
        while fits < most and fails - fits > max(fits // 10, 1):
            if self.trains_with(count):
                fits = count
            else:
                fails = count
            count = min(2 * fits, most) if fails > most else (fits + fails) // 2
        return reading(f"{self.name}, largest batch", "images", [float(fits)])

    def trains_with(self, num_images: int) -> bool:
        """Whether two steps of so many images fit into the memory of the device."""
        batch = random_batch(num_images, self.settings.crop_px)
        try:
            trainee = self.trainee()
            for _ in range(2):  # the optimizer's state comes with the first update
                trainee.step(trainee.placer.place(*batch))
        except torch.OutOfMemoryError:
            return False
        finally:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return True

    def profile(self) -> str:
        """Table of the operations of a few steps, those with the most time of the device first."""
        trainee = self.trainee()
        trainee.step(trainee.placer.place(*self.batch))
        on_cuda = self.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
        with profile(activities=activities) as found:
            for _ in range(PROFILED_STEPS):
                trainee.step(trainee.placer.place(*self.batch))
            wait(self.device)
        order = "self_device_time_total" if on_cuda else "self_cpu_time_total"
        table: str = found.key_averages().table(sort_by=order, row_limit=15, max_name_column_width=60)
        return f"{self.name}, bf16, {PROFILED_STEPS} steps\n{table}"


def reading(name: str, unit: str, rounds: Sequence[float]) -> dict[str, Any]:
    """A line without a goal."""
    return row(name, unit, rounds, 0.0) | {"goal": "-", "reached": "-"}


def random_batch(num_images: int, crop_px: int) -> HostBatch:
    """Noise, and label maps of 32-pixel squares."""
    rng = np.random.default_rng(0)
    squares = rng.integers(0, len(VOC_CLASSES), (num_images, crop_px // 32 + 1, crop_px // 32 + 1), np.uint8)
    label_maps = squares.repeat(32, 1).repeat(32, 2)[:, :crop_px, :crop_px]
    return rng.integers(0, 256, (num_images, crop_px, crop_px, 3), np.uint8), np.ascontiguousarray(label_maps)


def random_boxed(height: int, width: int, seed: int) -> Decoded:
    """Noise with NUM_BOXES boxes, and superpixels of SUPERPIXEL_PX a side."""
    rng = np.random.default_rng(seed)
    rows, columns = np.arange(height) // SUPERPIXEL_PX, np.arange(width) // SUPERPIXEL_PX
    superpixels = (rows[:, None] * (columns[-1] + 1) + columns).astype(np.uint16)
    half = np.array([width, height]) / 2
    low = rng.uniform(0, 1, (NUM_BOXES, 2)) * half
    boxes = np.concatenate([low, low + half], axis=1).astype(np.float32)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    class_ids = rng.integers(1, len(VOC_CLASSES), NUM_BOXES).astype(np.int32)
    return Decoded(boxes, class_ids, image, superpixels, int(superpixels.max()) + 1)


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations per second of a product of two large square matrices, the best of five times twenty."""
    side = MATRIX_SIDE[device.type]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def products() -> None:
        for _ in range(20):
            left @ right

    return 20 * 2.0 * side**3 / min(seconds_per_call(products, 0.0, device) for _ in range(5))


def seconds_per_call(call: Callable[[], object], seconds: float, device: torch.device) -> float:
    """Mean seconds of a call, over about `seconds` after a first call that sets things up."""
    call()
    wait(device)
    count, started = 0, time.perf_counter()
    while count == 0 or time.perf_counter() - started < seconds:
        call()
        count += 1
    wait(device)
    return (time.perf_counter() - started) / count


def wait(device: torch.device) -> None:
    """Wait for what is queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
