"""Builds the proposals table of a records table with Ray, one task a shard.

Reads the columns image_id, image, height and width of the records, one row group at a time; writes the proposals table.
Guarantees: the same rows, order, shards and row groups as the records, whatever fails; the same bytes on any number of
CPUs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from boxsup_dist.data.images import decode_image
from boxsup_dist.data.schema import Proposals, Record, iter_records, proposals_to_table
from boxsup_dist.data.tables import RowGroup, ShardInfo, Table, open_table
from boxsup_dist.distributed.build import ShardContent, build_table
from boxsup_dist.errors import InputError, RecordError
from boxsup_dist.proposals import quality
from boxsup_dist.proposals.methods import Method, find_method

_COLUMNS = ("image_id", "image", "height", "width")
MAX_FAILED_SHARE = 0.05


def build_proposals(
    out: str,
    records_uri: str,
    method: str,
    settings: Any = None,
    *,
    max_failed_share: float = MAX_FAILED_SHARE,
    num_cpus: int | None = None,
    gpus_per_task: float = 0,
) -> Table:
    """Make the candidates of every record by a method of METHODS; a second call continues.

    `settings` are the method's own, its defaults if None. An image that fails gets no candidate and is reported among
    the table's problems; RecordError if their share exceeds `max_failed_share`. `gpus_per_task` is the share of a GPU
    that a learned boundary detector computes on.
    """
    chosen, settings = find_method(method, settings)
    records = open_table(records_uri, "records")
    groups: list[list[RowGroup]] = [[] for _ in records.shards]
    for where in records.row_groups():
        groups[where.shard].append(where)

    def make_shard(index: int) -> ShardContent:
        return propose_shard(records, groups[index], chosen, settings)

    return build_table(
        out,
        "proposals",
        {"records": records.fingerprint, "method": method, "method_settings": chosen.identity(settings)},
        len(records.shards),
        make_shard,
        row_group_size=records.settings["row_group_size"],
        description=f"proposals by {method}",
        num_cpus=num_cpus,
        gpus_per_task=gpus_per_task,
        check=lambda shards: check_failed(shards, max_failed_share),
    )


def propose_shard(records: Table, row_groups: Sequence[RowGroup], method: Method, settings: Any) -> ShardContent:
    """Candidates of one shard's records; counts of images, failed ones, candidates and milliseconds of computing.

    Whatever fails on an image, the table stays aligned. `row_ms` are the images' times, a detector of boundaries apart.
    """
    parts, problems, row_ms = [proposals_to_table([])], [], []
    shard_started = time.process_time()
    for where in row_groups:
        group = list(iter_records(records.read(where, _COLUMNS)))
        images = [_attempt(_decode, record) for record in group]
        given = iter(_detect([image for image in images if not isinstance(image, Exception)], method, settings))
        rows = []
        for record, image in zip(group, images, strict=True):
            started = time.process_time()
            found = image
            if not isinstance(image, Exception):
                found = _attempt(method.propose, image, settings, image_id=record.image_id, **next(given))
            if isinstance(found, Exception):
                problems.append({"image_id": record.image_id, "problem": f"{type(found).__name__}: {found}"})
                found = no_proposals(record)
            rows.append(found)
            row_ms.append(round(1000 * (time.process_time() - started)))
        parts.append(proposals_to_table(rows))
    table = pa.concat_tables(parts)
    num_candidates = pc.sum(pc.list_value_length(table.column("membership"))).as_py() or 0
    counts = {
        "images": table.num_rows,
        "failed": len(problems),
        "candidates": num_candidates,
        "compute_ms": round(1000 * (time.process_time() - shard_started)),
    }
    return ShardContent(table, counts, problems, row_ms)


def _attempt(function: Callable, *arguments: Any, **options: Any) -> Any:
    try:
        return function(*arguments, **options)
    except Exception as error:
        return error


def _detect(images: list[np.ndarray], method: Method, settings: Any) -> list[dict[str, Any]]:
    """What `method.propose` is given besides image and settings: boundaries that are computed together."""
    if method.detect is None:
        return [{} for _ in images]
    try:
        return [{"boundaries": boundaries} for boundaries in method.detect(images, settings)]
    except InputError:  # weights that can't be had are no property of an image
        raise
    except Exception:  # each image is tried alone then, and the one at fault is reported
        return [{} for _ in images]


def _decode(record: Record) -> np.ndarray:
    assert record.image is not None
    image = decode_image(record.image)
    if image.shape[:2] != (record.height, record.width):
        raise RecordError(
            "the image has another size than its record says",
            field="height, width",
            value=image.shape[:2],
            expected=str((record.height, record.width)),
        )
    return image


def no_proposals(record: Record) -> Proposals:
    """One superpixel and no candidate: what an image that failed gets."""
    return Proposals(
        image_id=record.image_id,
        superpixels=np.zeros((record.height, record.width), np.uint16),
        num_superpixels=1,
        indptr=np.zeros(1, np.int64),
        indices=np.empty(0, np.uint16),
        objectness=np.empty(0, np.float32),
        boxes=np.empty((0, 4), np.uint16),
    )


def check_failed(shards: Sequence[ShardInfo], max_share: float) -> None:
    """Raise RecordError, naming the first images and reasons, if more than `max_share` of them failed."""
    problems = [problem for shard in shards for problem in shard.problems]
    total = sum(shard.num_rows for shard in shards)
    if len(problems) > max_share * total:
        shown = "\n".join(f"  {p['image_id']}: {p['problem']}" for p in problems[:10])
        raise RecordError(f"{len(problems)} of {total} images failed, allowed are {max_share:.1%}:\n{shown}")


def summarize(table: Table) -> dict[str, Any]:
    """What a person wants to know of a finished proposals table, as JSON values.

    `seconds_per_image` is CPU time, a detector of boundaries and reading apart; with them only the mean is known.
    """
    images = table.counts["images"]
    row_seconds = [ms / 1000 for shard in table.shards for ms in shard.row_ms]
    return {
        "out": table.uri,
        "method": table.settings["method"],
        "num_images": images,
        "num_failed": table.counts["failed"],
        "mean_candidates": round(table.counts["candidates"] / images, 1),
        "bytes_per_image": round(table.num_bytes / images),
        "seconds_per_image": quality.distribution(row_seconds),
        "seconds_per_image_with_detector": round(table.counts["compute_ms"] / 1000 / images, 4),
        "fingerprint": table.fingerprint,
        "settings": table.settings,
        "problems": [problem for shard in table.shards for problem in shard.problems],
    }
