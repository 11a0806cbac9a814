"""Measure the reassignment: what it costs beside the forward passes, who gets which labels, and what dispatch costs.

    sleeping forward    time of a reassignment by a member whose forward pass sleeps 30 ms an image, as a GPU would
                        compute, over the time of the passes alone; in turns. The choice runs in tasks on another core.
    network on a CPU    CPU time of a member that runs a real network, with its thread that reads ahead, over the CPU
                        time of the forward passes alone. Wall time would also count the cores that the tasks and other
                        work take from the member.
    labels              boxes whose labels differ between 1, 2 and 4 actors, or from the oracle's although the oracle's
                        costs of both choices differ by more than a near tie (1e-6); the near ties are printed
    dispatch            CPU seconds of the dispatching process, all of its threads, for 8,400 units (133k images) and
                        512 members. They are logical: one process answers for all of them, after the time that a GPU
                        would take. It shows what messages cost, not what hundreds of nodes cost Ray's own servers.

A table says where the core milliseconds of an image go.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import ray
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from boxsup_dist.assignment.assign import choose_row_group, decode_row_group, score_row_group
from boxsup_dist.assignment.oracle import oracle_costs
from boxsup_dist.assignment.reassign import Pass, Read, Scored, choose_unit, read_unit, reassign, score_unit
from boxsup_dist.assignment.select import by_cost
from boxsup_dist.config import AssignmentSettings, AugmentSettings, NetworkSettings
from boxsup_dist.data.images import decode_image
from boxsup_dist.data.labels import LabelledUnit, LabelsShard, publish
from boxsup_dist.data.schema import VOC_CLASSES, iter_records, proposals_from_row
from boxsup_dist.data.sources import Mixture, Source, make_units
from boxsup_dist.distributed import session
from boxsup_dist.distributed.ordered import run_in_order
from boxsup_dist.distributed.pool import NetworkPool, _Members
from boxsup_dist.io import storage
from boxsup_dist.model.inference import class_scores, image_to_batch, predict_log_probs
from boxsup_dist.model.networks import SegmentationNetwork, build_network, network_spec
from boxsup_dist.proposals.build import build_proposals
from boxsup_dist.records import voc
from boxsup_dist.records.build import build_records
from boxsup_dist.records.synthetic import write_synthetic
from boxsup_dist.reporting.text_table import format_table
from boxsup_dist.runs.recipes import mini
from jobs.bench.rows import finish, row
from jobs.bench.settings import Reassign

EPOCH = 1  # the first after the warm-up
ACTORS = (1, 2, 4)
STRIDE = 8
NEAR_TIE = 1e-6


def main(settings: Reassign) -> None:
    """Measure all rows, write OUT/summary.json and print each with its goal."""
    session.start()
    mixture = prepare(settings, storage.absolute(settings.out))
    sleeping = measure_sleeping(mixture, settings)
    network = measure_network(mixture, settings)
    differing = [count_differing(mixture, settings)]
    oracle = compare_with_oracle(mixture, settings)
    dispatch = measure_dispatch(settings)
    rows = [
        row("sleeping forward", "times the passes alone", sleeping["ratios"], 1.15, at_most=True),
        row("network on a CPU", "times the passes alone", network["ratios"], 1.1, at_most=True),
        row("labels, 1, 2 and 4 actors", "boxes differ", differing, 0, at_most=True),
        row("labels, oracle", "boxes differ", [oracle["different"]], 0, at_most=True),
        row(f"dispatch, {settings.num_members} members", "CPU s", dispatch["cpu_s"], 2.0, at_most=True),
    ]
    parts = [{"process": name, "core ms per image": value} for name, value in network["core_ms"].items()]
    print(format_table(parts))
    print(f"{oracle['near_ties']} of {oracle['boxes']} boxes are near ties whose choice differs from the oracle's")
    facts = {"sleeping": sleeping, "network": network, "oracle": oracle, "dispatch": dispatch}
    finish(settings, "reassign", rows, facts)


def prepare(settings: Reassign, out: str) -> Mixture:
    """Tables of the given VOC images, else of synthetic ones."""
    folder = storage.join(out, "voc" if settings.voc_root else f"synthetic-{settings.num_images}")
    root, split = settings.voc_root, settings.split
    if root is None:
        root, split = write_synthetic(storage.join(folder, "devkit"), settings.num_images, 1), "train"
    records = build_records(storage.join(folder, "records"), voc.open_splits(root, split))
    proposals = build_proposals(storage.join(folder, "proposals"), records.uri, "selective_search")
    units = make_units([Source(records, "box", proposals)])
    return Mixture(units, recipe(), AugmentSettings(321, 321, 0.75, 1.35), seed=0)


def recipe() -> AssignmentSettings:
    """How the recipe mini chooses, from the second epoch on."""
    return replace(mini("", (), None).assignment, warmup_epochs=EPOCH)


# -- what the choice costs beside the forward passes -------------------------------------------------------------------


class SleepingNetwork(torch.nn.Module):
    """In a network's place: a few mixtures of the colours of each cell, after a sleep per image."""

    def __init__(self, sleep_s: float) -> None:
        super().__init__()
        self.sleep_s = sleep_s
        self.mixtures = torch.nn.Conv2d(3, len(VOC_CLASSES), 1, bias=False).requires_grad_(False)
        values = np.random.default_rng(0).normal(0, 0.02, self.mixtures.weight.shape)
        self.mixtures.weight.copy_(torch.from_numpy(values))

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return self.mixtures.weight.device

    def score_map(self, images: Tensor) -> Tensor:
        """As that of a SegmentationNetwork."""
        time.sleep(self.sleep_s * len(images))
        scores: Tensor = self.mixtures(F.avg_pool2d(images.float(), STRIDE, ceil_mode=True))
        return scores

    def upsample(self, score_map: Tensor, height: int, width: int) -> Tensor:
        """As that of a SegmentationNetwork."""
        return F.interpolate(score_map, (height, width), mode="bilinear")


_kept: dict[int, list[NDArray[np.uint8]]] = {}  # images of a unit that a member has decoded for `pass_images`


def pass_images(network: SegmentationNetwork, index: int, *, job: Pass) -> float:
    """CPU seconds of the forward passes of a unit alone, its images being in memory."""
    if index not in _kept:
        unit = job.mixture.units[index]
        records = iter_records(unit.source.records.read(unit.where, ("image_id", "image", "boxes_xyxy")))
        _kept[index] = [decode_image(r.image) for r in records if r.image is not None and len(r.boxes_xyxy)]
    started = time.thread_time()
    with torch.inference_mode():
        for image in _kept[index]:
            network.score_map(image_to_batch(image))
    return time.thread_time() - started


def read_timed(index: int, *, job: Pass) -> tuple[Read, float]:
    """What `read_unit` reads of a unit, and the CPU seconds of its thread."""
    started = time.thread_time()
    return read_unit(index, job=job), time.thread_time() - started


def score_timed(network: SegmentationNetwork, timed: tuple[Read, float], *, job: Pass) -> tuple[Scored, float, float]:
    """What `score_unit` makes of a unit, and the CPU seconds of reading it and of this."""
    read, read_s = timed
    started = time.thread_time()
    return score_unit(network, read, job=job), read_s, time.thread_time() - started


def choose_timed(
    indices: Sequence[int], made: Sequence[tuple[Scored, float, float]], *, job: Pass
) -> list[tuple[float, float, float]]:
    """CPU seconds of each unit for reading, for scoring, and in this task."""
    started = time.thread_time()
    for index, (scored, *_) in zip(indices, made, strict=True):
        choose_unit(index, scored, job=job)
    spent = (time.thread_time() - started) / len(indices)
    return [(read_s, score_s, spent) for _, read_s, score_s in made]


def measure_sleeping(mixture: Mixture, settings: Reassign) -> dict[str, Any]:
    """Seconds of a reassignment and of the forward passes alone by one member, in turns."""
    pool = _pool(partial(SleepingNetwork, settings.forward_ms / 1000), 1)
    uri = storage.join(storage.absolute(settings.out), "labels")
    options: dict[str, Any] = {"weights": None, "epoch": EPOCH, "uri": uri, "choose_in_tasks": True}
    job = Pass(mixture, EPOCH, uri)
    ways: dict[str, Callable[[], object]] = {
        "passes_s": lambda: list(pool.map(pass_images, range(len(mixture.units)), job=job)),
        "reassign_s": lambda: reassign(pool, mixture, **options),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(settings.rounds + 1):
        for name in ways if turn % 2 == 0 else reversed(ways):
            started = time.perf_counter()
            ways[name]()
            found[name].append(time.perf_counter() - started)
    pool.close()
    counted = {name: seconds[1:] for name, seconds in found.items()}  # the first round started the processes
    return {"ratios": [b / a for a, b in zip(*counted.values(), strict=True)], **counted}


def measure_network(mixture: Mixture, settings: Reassign) -> dict[str, Any]:
    """CPU seconds of a member that reassigns with a real network, of its forward passes alone, and of the tasks."""
    spec = network_spec(NetworkSettings(settings.network, weights="none"), len(VOC_CLASSES))
    pool = _pool(partial(build_network, spec, "none"), 1)
    indices, job = range(len(mixture.units)), Pass(mixture, EPOCH, "not written")
    num_images = sum(len(unit.rows) for unit in mixture.units)
    passes: list[float] = []
    parts: list[list[float]] = []  # reading, scoring and choosing
    for _ in range(settings.rounds + 1):
        passes.append(sum(pool.map(pass_images, indices, job=job)))
        timed = pool.map(score_timed, indices, read=read_timed, then=choose_timed, then_in_tasks=True, job=job)
        parts.append([sum(seconds) for seconds in zip(*timed, strict=True)])
    pool.close()
    reading, scoring, choosing = zip(*parts[1:], strict=True)
    named = {
        "forward passes alone": passes[1:],
        "member: forward passes, and their reduction": list(scoring),
        "member, thread that reads ahead": list(reading),
        "task: choice": list(choosing),
    }
    return {
        "ratios": [(b + c) / a for a, b, c in zip(passes[1:], scoring, reading, strict=True)],
        "core_ms": {name: 1000 * statistics.median(seconds) / num_images for name, seconds in named.items()},
        **named,
    }


def _pool(build: Callable[[], torch.nn.Module], num_actors: int) -> NetworkPool:
    pool = NetworkPool(build, num_actors=num_actors, num_cpus=0.25, threads=1)
    pool.wait_ready()
    return pool


# -- the labels --------------------------------------------------------------------------------------------------------


def count_differing(mixture: Mixture, settings: Reassign) -> int:
    """Boxes whose labels are not the same for every number of actors, in tasks and in the members."""
    first, differing = None, 0
    for num_actors in ACTORS:
        pool = _pool(partial(SleepingNetwork, 0.0), num_actors)
        for in_tasks in (False, True):
            uri = storage.join(storage.absolute(settings.out), f"labels-{num_actors}-{in_tasks}")
            shards = reassign(pool, mixture, weights=None, epoch=EPOCH, uri=uri, choose_in_tasks=in_tasks)
            labels = publish(uri, shards, len(mixture.units)).read_all().to_pylist()
            first = labels if first is None else first
            pairs = zip(first, labels, strict=True)
            differing += sum(str(a) != str(b) for a, b in pairs)
        pool.close()
    return differing


def compare_with_oracle(mixture: Mixture, settings: Reassign) -> dict[str, int]:
    """Compare the cheapest candidates with the oracle's, which takes the log-probabilities; in this process.

    Returns:
        `boxes` that were compared, and of them `near_ties`, where the choice differs and the oracle's costs of both
        choices differ by less than NEAR_TIE, and `different`, where they differ by more.
    """
    counts = {"boxes": 0, "near_ties": 0, "different": 0}
    network: Any = SleepingNetwork(0.0).eval()
    unit = mixture.units[0]
    assert unit.source.proposals is not None
    records = unit.source.records.read(unit.where).slice(0, settings.oracle_images)
    proposals = unit.source.proposals.read(unit.where).slice(0, settings.oracle_images)
    paper = AssignmentSettings(top_k=1)
    for options in (paper, replace(paper, form="centred", logit_limit=3.0, rank_weight=0.03)):
        scores_of = partial(class_scores, network, normalise=options.form == "image")
        sums = score_row_group(scores_of, decode_row_group(records, proposals), options)
        labels = choose_row_group(sums, records, proposals, options, seed=0, epoch=EPOCH)
        chosen = iter(labels.column("proposal_index").to_pylist())
        for i, record in enumerate(iter_records(records)):
            assert record.image is not None
            costs = oracle_costs(
                proposals_from_row(proposals, i),
                record.boxes_xyxy,
                record.class_ids,
                predict_log_probs(network, decode_image(record.image)),
                form=options.form,
                box_margin=options.box_margin,
                logit_limit=options.logit_limit,
                rank_weight=options.rank_weight,
            )
            for k, of_box in enumerate(costs):
                ours = next(chosen)
                if record.crowd[k] or len(of_box.candidates) == 0:
                    continue
                total = of_box.total(options.regression_weight)
                best = by_cost(of_box, options.regression_weight)[0]
                counts["boxes"] += 1
                if ours != of_box.candidates[best]:
                    difference = abs(float(total[of_box.candidates == ours][0] - total[best]))
                    counts["near_ties" if difference < NEAR_TIE else "different"] += 1
    return counts


# -- the dispatch ------------------------------------------------------------------------------------------------------


@ray.remote(num_cpus=0, max_concurrency=10_000)  # type: ignore[call-overload]  # an option of actors
class _Crowd:
    """Answers for all logical members."""

    async def run(self, function: object, read: object, then: object, units: list[int], *rest: object) -> list[bytes]:
        """Take as long as a GPU for the units; one answer per unit, as large as the sums of its images."""
        await asyncio.sleep(len(units) * UNIT_S)
        return [bytes(SUMS_BYTES) for _ in units]


UNIT_S = 16 * 0.003  # 16 images of 3 ms
SUMS_BYTES = 16 * 3_300  # measured: 3.3 kB an image


class _LogicalMember:
    """One of the members, as _Members uses them."""

    def __init__(self, run: Any) -> None:
        self.run = run


class _LogicalPool:
    """Looks like a NetworkPool of ready members."""

    threads = 1

    def __init__(self, num_members: int) -> None:
        self.crowd = _Crowd.remote()  # type: ignore[attr-defined]
        self.actors = [_LogicalMember(self.crowd.run) for _ in range(num_members)]
        self.ready = dict.fromkeys(self.actors)
        self.starting: dict[Any, Any] = {}


def choose_nothing(units: Sequence[int], made: Sequence[bytes]) -> list[LabelsShard | None]:
    """What comes back for a chunk of units: the manifest's entry of its shard."""
    labelled = [LabelledUnit(unit, 40, 40, 0.5, 0.5, 3) for unit in units]
    shard = LabelsShard(10_000, "0" * 64, 1000, "0" * 64, ["0" * 72] * len(units), f"part-{units[0]:05d}", labelled)
    return [shard, *[None] * (len(units) - 1)]


def measure_dispatch(settings: Reassign) -> dict[str, Any]:
    """CPU seconds of this process while it dispatches the units, in chunks and, once, one at a time."""
    pool: Any = _LogicalPool(settings.num_members)
    found: dict[str, list[float]] = {"cpu_s": [], "wall_s": []}

    def dispatch(in_chunks: bool) -> tuple[float, float]:
        members = _Members(pool, pass_images, None, choose_nothing, [], "", True, {})
        if not in_chunks:
            members.num_sharing = settings.num_units
        cpu, wall = time.process_time(), time.perf_counter()
        count = sum(1 for _ in run_in_order(members, range(settings.num_units)))
        assert count == settings.num_units
        return time.process_time() - cpu, time.perf_counter() - wall

    dispatch(True)
    for _ in range(settings.rounds):
        for name, value in zip(found, dispatch(True), strict=True):
            found[name].append(value)
    return {**found, "one_at_a_time_cpu_s": dispatch(False)[0]}
