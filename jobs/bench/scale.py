"""Full scale without the network: python -m jobs.bench.scale [--num-images N] [--out DIR].

N small synthetic images with candidates as many as of photographs go through ingest, opening, reassignment, the
hand-over of the labels and the stream of one epoch, each by the code that real data go through, with a tiny network.
Told are images/s, memory in the first and the last third of each stage (flat if it does not grow with N), and what the
measured costs mean on 8, 64 and 512 GPUs. The next call keeps what is done.

    OUT/images-N-seed-S/records  proposals  labels.parquet  stages/NAME.json   summary.json
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import ray
import ray.train

from boxsup_dist.config import TrainConfig
from boxsup_dist.data.labels import Labels, read_labels, summarise
from boxsup_dist.data.painting import BOX_COLUMNS, painter
from boxsup_dist.data.schema import iter_records
from boxsup_dist.data.sources import Mixture
from boxsup_dist.distributed import session
from boxsup_dist.distributed.pool import NetworkPool
from boxsup_dist.io import storage
from boxsup_dist.reporting.text_table import format_table
from boxsup_dist.runs.command_line import run
from boxsup_dist.runs.inputs import Inputs, open_inputs
from boxsup_dist.runs.networks import make_pool
from boxsup_dist.runs.summary import write_result
from boxsup_dist.training.fit import launch
from boxsup_dist.training.worker import TrainWorker
from jobs.bench.scale_cost import Cluster, Costs, extrapolate
from jobs.bench.scale_run import (
    check_positive,
    choose_all,
    make_config,
    random_weights,
    store_proposals,
    store_records,
)
from jobs.bench.scale_set import index_of
from jobs.bench.watch import Watch

COCO_2014_TRAINVAL_AND_TRAIN_AUG = 133_869
GPUS = (8, 64, 512)
PAINTED_UNITS = 64


@dataclass(frozen=True)
class Settings:
    """Run the stages that are not done yet, print a table and write OUT/images-N-seed-S/summary.json."""

    out: str = "runs/bench_scale"
    """Folder; about 45 kB an image."""
    num_images: int = COCO_2014_TRAINVAL_AND_TRAIN_AUG
    """N; by default as many as COCO 2014 train + val and VOC 2012 train_aug have."""
    seed: int = 0
    """Of the images."""
    gpu_images_per_s: float = 40.0
    """Training images/s of one GPU, for the extrapolation; jobs.calibrate measures them."""
    cpus_per_gpu: int = 16
    """CPU cores beside each GPU, for the extrapolation."""


def main(settings: Settings) -> None:
    """Measure, print and write OUT/images-N-seed-S/summary.json."""
    check_positive(settings, "num_images", "gpu_images_per_s", "cpus_per_gpu")
    session.start()
    folder = storage.join(storage.absolute(settings.out), f"images-{settings.num_images}-seed-{settings.seed}")
    stages = measure_stages(folder, settings.num_images, settings.seed)
    costs = costs_of(stages, settings.num_images)
    clusters = [Cluster(gpus, settings.cpus_per_gpu, settings.gpu_images_per_s) for gpus in GPUS]
    scaled = [extrapolate(costs, settings.num_images, cluster) for cluster in clusters]
    summary = {"num_images": settings.num_images, "stages": stages, "costs_s": asdict(costs), "extrapolated": scaled}
    write_result(folder, summary)
    _print(settings, stages, scaled)


def _print(settings: Settings, stages: dict[str, dict[str, Any]], scaled: list[dict[str, Any]]) -> None:
    rows = [
        {
            "stage": name,
            "minutes": stage["seconds"] / 60,
            "images": stage["images"],
            "images/s": stage["images"] / stage["seconds"],
            "core ms an image": 1000 * sum(stage["cpu_s"].values()) / max(stage["images"], 1),
            "MB written": stage["bytes"] / 1e6,
        }
        for name, stage in stages.items()
    ]
    minutes = sum(stage["seconds"] for stage in stages.values()) / 60
    print(format_table(rows, f"{settings.num_images:,} images, {minutes:.1f} minutes"))
    peaks = [{"stage": name, **peak} for name, stage in stages.items() for peak in stage["peaks_mib"]]
    print(format_table(peaks, "peak private MiB of the largest process of a kind, and what the object store held"))
    facts = [
        {"stage": name, "fact": fact, "value": value}
        for name, stage in stages.items()
        for fact, value in stage["facts"].items()
    ]
    print(format_table(facts))
    print(
        f"seconds of an epoch of {settings.num_images:,} images if a GPU trains {settings.gpu_images_per_s:g} a second "
        f"and has {settings.cpus_per_gpu} cores. ingest, data tasks: all cores; choosing, feeding: one core a GPU; "
        "open, dispatch, hand-over: one core"
    )
    columns = {f"{each['gpus']} GPUs": each for each in scaled}
    names = [name for name in scaled[0] if name not in ("gpus", "bottleneck")]
    print(format_table([{"part": n, **{c: each[n] for c, each in columns.items()}} for n in names]))
    for each in scaled:
        print(
            f"{each['gpus']} GPUs: {each['bottleneck']} takes longest; "
            f"a GPU computes {each['GPU busy']:.0%} of an epoch"
        )


# -- stages -----------------------------------------------------------------------------------------------------------


def measure_stages(folder: str, num_images: int, seed: int) -> dict[str, dict[str, Any]]:
    """What every stage took, by its name; what an earlier call measured is kept."""
    records_uri, proposals_uri = storage.join(folder, "records"), storage.join(folder, "proposals")
    stages: dict[str, dict[str, Any]] = {}

    def stage(name: str, work: Callable[[], dict[str, Any]], missing: str | None = None) -> None:
        """`work` gives facts to tell, and "bytes" written; `missing` is a table that an earlier call may have begun."""
        uri = storage.join(folder, "stages", f"{name}.json")
        if not storage.exists(uri):
            images = num_images if missing is None else num_images - _stored(missing)
            print(f"{name}: {images:,} images", flush=True)
            with Watch() as watch:
                facts = work()
            written = {"images": images, "bytes": facts.pop("bytes", 0), "facts": facts, **watch.report()}
            storage.write_json(uri, written)
        stages[name] = storage.read_json(uri)

    stage("records", lambda: store_records(records_uri, num_images, seed), records_uri)
    stage("proposals", lambda: store_proposals(proposals_uri, records_uri, seed), proposals_uri)
    config = make_config(folder, records_uri, proposals_uri)
    stage("open", lambda: open_all(config))
    inputs = open_inputs(config)
    mixture = inputs.mixture
    labels_file = storage.join(folder, "labels.parquet")
    pool = make_pool(inputs.network, config.resources)
    try:
        pool.wait_ready()
        stage("reassign", lambda: reassign_all(pool, inputs, labels_file))
    finally:
        pool.close()
    stage("hand-over", lambda: hand_over(mixture, labels_file, storage.join(folder, "handed-over.parquet")))
    stage("stream", lambda: stream_epoch(config, mixture, labels_file, num_images))
    return stages


def _stored(uri: str) -> int:
    """Images in the finished shards of a table: they are not made again."""
    finished = [name for name in storage.list_names(uri) if name.startswith("part-") and name.endswith(".json")]
    return sum(sum(storage.read_json(storage.join(uri, name))["row_groups"]) for name in finished)


def open_all(config: TrainConfig) -> dict[str, Any]:
    """What a run does before it trains: manifests, shared images, class weights."""
    mixture = open_inputs(config).mixture
    return {"units": len(mixture.units), "mixture MB": len(ray.cloudpickle.dumps(mixture)) / 1e6}


def reassign_all(pool: NetworkPool, inputs: Inputs, out: str) -> dict[str, Any]:
    """Labels of every box."""
    weights, started = random_weights(inputs.network), time.thread_time()
    labels = choose_all(pool, inputs.mixture, weights)
    dispatch_s = time.thread_time() - started
    data = labels.to_parquet()
    storage.write_bytes(out, data)
    facts = {"boxes": labels.table.num_rows, "actors": len(pool.actors), "dispatch CPU s": dispatch_s}
    return {"bytes": len(data), **facts, **summarise(labels, None)}


def hand_over(mixture: Mixture, labels_file: str, out: str) -> dict[str, Any]:
    """The coordinator's steps after a reassignment, each timed, and what a data task does with the labels."""
    facts: dict[str, Any] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        facts[f"{name} s"] = time.perf_counter() - started
        return result

    previous = timed("read", lambda: read_labels(labels_file))
    offsets = previous.offsets
    parts = [previous.table.slice(start, stop - start) for start, stop in itertools.pairwise(offsets)]
    labels = timed("concatenate", lambda: Labels.concatenate(parts))
    data = timed("to_parquet", labels.to_parquet)
    timed("write", lambda: storage.write_bytes(out, data))
    timed("summarise", lambda: summarise(labels, previous))
    reference = timed("put", lambda: ray.put(labels))
    facts["labels MB in memory"] = labels.table.nbytes / 1e6
    units = np.linspace(0, len(mixture.units) - 1, min(PAINTED_UNITS, len(mixture.units))).astype(int).tolist()
    task = ray.remote(_use_labels)
    used: dict[str, Any] = ray.get(task.remote([reference], mixture, units))
    return {"bytes": len(data), **facts, **used}


def _use_labels(labels: list[ray.ObjectRef], mixture: Mixture, units: list[int]) -> dict[str, float]:
    """In another process: fetch the labels, look the segments of some units up and paint them."""
    started = time.perf_counter()
    found = ray.get(labels[0])
    fetched = time.perf_counter()
    segments = [found.segments(index) for index in units]
    looked_up = time.perf_counter()
    painted = 0
    for index, choices in zip(units, segments, strict=True):
        unit = mixture.units[index]
        paint = painter(unit, choices, mixture.assignment)
        for record in iter_records(unit.source.records.read(unit.where, ("image_id", *BOX_COLUMNS))):
            paint(record)
            painted += 1
    return {
        "fetch s, a worker": fetched - started,
        "look-up ms, a unit": 1000 * (looked_up - fetched) / len(units),
        "paint ms, an image": 1000 * (time.perf_counter() - looked_up) / painted,
    }


def stream_epoch(config: TrainConfig, mixture: Mixture, labels_file: str, num_images: int) -> dict[str, Any]:
    """One epoch of batches taken by the train workers; RuntimeError unless every image comes exactly once."""
    out = storage.join(config.run_dir, "stream")
    storage.remove(out)
    labels = [ray.put(read_labels(labels_file))]
    settings = {"config": config, "mixture": mixture, "labels": labels, "out": out, "num_images": num_images}
    launch(config, consume_epoch, settings)
    ranks = [storage.read_json(storage.join(out, name)) for name in storage.list_names(out)]
    times = np.sum([rank["times"] for rank in ranks], axis=0)
    if not (times == 1).all():
        raise RuntimeError(f"{int((times != 1).sum())} of {num_images} images did not come exactly once")
    storage.remove(out)
    return {
        "workers": len(ranks),
        "steps": ranks[0]["steps"],
        "plan s": max(rank["plan_s"] for rank in ranks),
        "first batch s": max(rank["first_batch_s"] for rank in ranks),
        "stream s": max(rank["stream_s"] for rank in ranks),
        "workers' CPU s": sum(rank["cpu_s"] for rank in ranks),
        "ignored share of the pixels": statistics.mean(rank["ignored"] for rank in ranks),
    }


def consume_epoch(settings: dict[str, Any]) -> None:
    """Loop of the train workers: take every batch and count its images; OUT/rank-R.json has what came."""
    worker = TrainWorker(settings["config"], settings["mixture"])
    times = np.zeros(settings["num_images"], int)
    started, cpu_started = time.perf_counter(), time.process_time()
    order = worker.order()
    planned = time.perf_counter()
    first: float | None = None
    ignored, pixels = 0, 0
    for batch in worker.batches(order, settings["labels"][0]):
        if batch.error is not None:
            raise batch.error
        first = time.perf_counter() if first is None else first
        np.add.at(times, [index_of(image_id) for image_id in batch.image_ids], 1)
        if batch.label_maps is not None and batch.images is not None:
            assert batch.images.shape == (*batch.label_maps.shape, 3)
            ignored += int(np.count_nonzero(batch.label_maps == 255))
            pixels += batch.label_maps.size
    ended = time.perf_counter()
    storage.write_json(
        storage.join(settings["out"], f"rank-{worker.rank}.json"),
        {
            "times": times.tolist(),
            "steps": order.num_steps,
            "plan_s": planned - started,
            "first_batch_s": (first or ended) - planned,
            "stream_s": ended - planned,
            "cpu_s": time.process_time() - cpu_started,
            "ignored": ignored / max(pixels, 1),
        },
    )


def costs_of(stages: dict[str, dict[str, Any]], num_images: int) -> Costs:
    """Seconds an image of each part, from the CPU time of the kinds of processes."""

    def cpu(stage: str, *kinds: str) -> float:
        spent, images = stages[stage]["cpu_s"], stages[stage]["images"]
        return sum(spent.get(kind, 0.0) for kind in kinds) / images if images else 0.0

    facts = stages["hand-over"]["facts"]
    handed = sum(facts[f"{name} s"] for name in ("read", "concatenate", "to_parquet", "write", "summarise", "put"))
    return Costs(
        ingest=cpu("records", "data task", "idle") + cpu("proposals", "data task", "idle"),
        open=stages["open"]["seconds"] / num_images,
        stream=cpu("stream", "data task", "idle"),
        feed=stages["stream"]["facts"]["workers' CPU s"] / num_images,
        choose=cpu("reassign", "actor"),
        dispatch=stages["reassign"]["facts"]["dispatch CPU s"] / num_images,
        handover=handed / num_images,
    )


if __name__ == "__main__":
    run(main)
