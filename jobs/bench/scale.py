"""Measure all stages at full scale with a tiny network, and extrapolate to 8, 64 and 512 GPUs.

N small synthetic images, with as many candidates as photographs have, go through ingest, opening, reassignment, the
hand-over of the labels and the stream of one epoch, by the code that real data go through. It prints images/s, the
memory in the first and the last third of each stage (equal if memory does not grow with N), and the seconds of an epoch
on large clusters by the cost model (boxsup_dist/runs/costs.py). Finished stages are kept for the next call.

    OUT/images-N-seed-S/records  proposals  labels  stages/NAME.json  summary.json
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import ray
import ray.train

from boxsup_dist.config import TrainConfig
from boxsup_dist.data.labels import MANIFEST, LabelsTable, open_labels, publish
from boxsup_dist.data.painting import BOX_COLUMNS, painter
from boxsup_dist.data.schema import iter_records
from boxsup_dist.data.sources import Mixture
from boxsup_dist.distributed import session
from boxsup_dist.distributed.pool import NetworkPool
from boxsup_dist.io import storage
from boxsup_dist.reporting.text_table import format_table
from boxsup_dist.runs.costs import FORWARDS_PER_STEP, Costs, on_gpus
from boxsup_dist.runs.inputs import Inputs, open_inputs
from boxsup_dist.runs.networks import make_pool
from boxsup_dist.training.fit import launch
from boxsup_dist.training.worker import TrainWorker
from jobs.bench.rows import finish, row
from jobs.bench.scale_run import (
    check_positive,
    choose_all,
    make_config,
    random_weights,
    store_proposals,
    store_records,
)
from jobs.bench.scale_set import index_of
from jobs.bench.settings import Scale
from jobs.bench.watch import Watch

GPUS = (8, 64, 512)
PAINTED_UNITS = 64


def main(settings: Scale) -> None:
    """Measure, print and write OUT/images-N-seed-S/summary.json."""
    check_positive(settings, "num_images", "gpu_images_per_s", "cpus_per_gpu")
    session.start()
    folder = storage.join(storage.absolute(settings.out), f"images-{settings.num_images}-seed-{settings.seed}")
    stages = measure_stages(folder, settings.num_images, settings.seed)
    costs = costs_of(stages, settings.num_images, settings.gpu_images_per_s)
    scaled = [on_gpus(costs, settings.num_images, gpus, settings.cpus_per_gpu) for gpus in GPUS]
    _print(settings, stages, scaled)
    rows = [
        row(f"{GPUS[-1]} GPUs: share of an epoch that computes", "", [scaled[-1]["GPU busy"]], 0.7),
        *(
            row(f"driver's memory, {name}, last / first third", "times", [growth_of_job(stage)], 1.1, at_most=True)
            for name, stage in stages.items()
            if name in ("reassign", "stream")
        ),
    ]
    facts = {"num_images": settings.num_images, "stages": stages, "costs_s": asdict(costs), "extrapolated": scaled}
    finish(replace(settings, out=folder), "scale", rows, facts)


def growth_of_job(stage: dict[str, Any]) -> float:
    """Peak memory of this process in the last third of a stage, in times of its first third."""
    (peak,) = (peak for peak in stage["peaks_mib"] if peak["process"] == "job")
    return float(peak["last third"] / peak["first third"])


def _print(settings: Scale, stages: dict[str, dict[str, Any]], scaled: list[dict[str, Any]]) -> None:
    rows = [
        {
            "stage": name,
            "minutes": stage["seconds"] / 60,
            "images": stage["images"],
            "images/s": stage["images"] / stage["seconds"],
            "core ms per image": 1000 * sum(stage["cpu_s"].values()) / max(stage["images"], 1),
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
        f"seconds of an epoch of {settings.num_images:,} images if a GPU trains {settings.gpu_images_per_s:g} images/s "
        f"and has {settings.cpus_per_gpu} cores. ingest, data tasks, choosing in tasks: all cores; choosing, feeding: "
        "one core per GPU; open, dispatch, hand-over: one core"
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
    """What every stage took, by its name. What an earlier call measured is kept."""
    records_uri, proposals_uri = storage.join(folder, "records"), storage.join(folder, "proposals")
    stages: dict[str, dict[str, Any]] = {}

    def stage(name: str, work: Callable[[], dict[str, Any]], missing: str | None = None) -> None:
        """`work` returns facts to print and the "bytes" written; an earlier call may have begun the table `missing`."""
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
    labels = storage.join(folder, "labels")
    pool = make_pool(inputs.network, config.resources)
    try:
        pool.wait_ready()
        stage("reassign", lambda: reassign_all(pool, inputs, labels))
    finally:
        pool.close()
    stage("hand-over", lambda: hand_over(mixture, labels))
    stage("stream", lambda: stream_epoch(config, mixture, labels, num_images))
    return stages


def _stored(uri: str) -> int:
    """Images in the finished shards of a table, which are not made again."""
    finished = [name for name in storage.list_names(uri) if name.startswith("part-") and name.endswith(".json")]
    return sum(sum(storage.read_json(storage.join(uri, name))["row_groups"]) for name in finished)


def open_all(config: TrainConfig) -> dict[str, Any]:
    """Open the tables as a run does before it trains: manifests, shared images, class weights."""
    mixture = open_inputs(config).mixture
    pickled: bytes = ray.cloudpickle.dumps(mixture)  # type: ignore[no-untyped-call]
    return {"units": len(mixture.units), "mixture MB": len(pickled) / 1e6}


def reassign_all(pool: NetworkPool, inputs: Inputs, out: str) -> dict[str, Any]:
    """Reassign the labels of every box; the members store them."""
    weights, started = random_weights(inputs.network), time.thread_time()
    shards = choose_all(pool, inputs.mixture, weights, out, in_tasks=True)
    dispatch_s = time.thread_time() - started
    labels = publish(out, shards, len(inputs.mixture.units))
    facts = {"boxes": labels.num_rows, "shards": len(labels.shards), "actors": len(pool.actors)}
    return {"bytes": labels.num_bytes, **facts, "dispatch CPU s": dispatch_s, **labels.summary()}


def hand_over(mixture: Mixture, uri: str) -> dict[str, Any]:
    """Time each step of the coordinator after a reassignment, and what a data task does with the labels."""
    facts: dict[str, Any] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        facts[f"{name} s"] = time.perf_counter() - started
        return result

    previous = timed("open", lambda: open_labels(uri))
    labels = timed("publish", lambda: publish(uri, previous.shards, previous.num_units))
    timed("summarise", labels.summary)
    reference = timed("put", lambda: ray.put(labels))
    manifest_bytes = storage.size(storage.join(uri, MANIFEST))
    units = np.linspace(0, len(mixture.units) - 1, min(PAINTED_UNITS, len(mixture.units))).astype(int).tolist()
    task = ray.remote(_use_labels)
    used: dict[str, Any] = ray.get(task.remote([reference], mixture, units))
    return {"bytes": manifest_bytes, "manifest MB": manifest_bytes / 1e6, **facts, **used}


def _use_labels(labels: list[ray.ObjectRef[LabelsTable]], mixture: Mixture, units: list[int]) -> dict[str, float]:
    """In another process: fetch the opened table, read the segments of some units and paint them."""
    started = time.perf_counter()
    found = ray.get(labels[0])
    fetched = time.perf_counter()
    segments = [found.segments(index) for index in units]
    were_read = time.perf_counter()
    painted = 0
    for index, choices in zip(units, segments, strict=True):
        unit = mixture.units[index]
        paint = painter(unit, choices, mixture.assignment)
        for record in iter_records(unit.source.records.read(unit.where, ("image_id", *BOX_COLUMNS))):
            paint(record)
            painted += 1
    return {
        "fetch s per process": fetched - started,
        "read ms per unit": 1000 * (were_read - fetched) / len(units),
        "paint ms per image": 1000 * (time.perf_counter() - were_read) / painted,
    }


def stream_epoch(config: TrainConfig, mixture: Mixture, labels_uri: str, num_images: int) -> dict[str, Any]:
    """Let the train workers take the batches of one epoch.

    Raises:
        RuntimeError: An image does not come exactly once.
    """
    out = storage.join(config.run_dir, "stream")
    storage.remove(out)
    labels = [ray.put(open_labels(labels_uri))]
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
    """Loop of the train workers: take every batch and count its images; write both to OUT/rank-R.json."""
    worker = TrainWorker(settings["config"], settings["mixture"])
    worker.wrap()  # shares the mixture with the data tasks
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


def costs_of(stages: dict[str, dict[str, Any]], num_images: int, gpu_images_per_s: float) -> Costs:
    """Seconds per image of each part, from the CPU time of each kind of process.

    The network was not measured: a step of a GPU takes 1 / gpu_images_per_s per image.
    """

    def cpu(stage: str, *kinds: str) -> float:
        spent, images = stages[stage]["cpu_s"], stages[stage]["images"]
        return sum(spent.get(kind, 0.0) for kind in kinds) / images if images else 0.0

    facts = stages["hand-over"]["facts"]
    handed = sum(facts[f"{name} s"] for name in ("open", "publish", "summarise", "put"))
    return Costs(
        step=1 / gpu_images_per_s,
        forward=1 / gpu_images_per_s / FORWARDS_PER_STEP,
        ingest=cpu("records", "data task", "idle") + cpu("proposals", "data task", "idle"),
        open=stages["open"]["seconds"] / num_images,
        stream=cpu("stream", "data task", "idle"),
        feed=stages["stream"]["facts"]["workers' CPU s"] / num_images,
        choose=cpu("reassign", "actor"),
        choose_tasks=cpu("reassign", "data task", "idle"),
        dispatch=stages["reassign"]["facts"]["dispatch CPU s"] / num_images,
        handover=handed / num_images,
    )
