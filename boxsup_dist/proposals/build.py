"""Builds the proposals table of a records table with Ray, one task per shard.

Reads the columns image_id, image, height and width of the records, and for a method that is prompted with boxes
boxes_xyxy, one row group at a time; writes the proposals table.
Guarantees: the rows, order, shards and row groups of the records, even if images fail; the same bytes on any number of
CPUs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from boxsup_dist.data.images import decode_image
from boxsup_dist.data.schema import Proposals, Record, iter_records, proposals_to_table
from boxsup_dist.data.tables import MAX_FAILED_SHARE, RowGroup, Table, open_table
from boxsup_dist.distributed.build import ShardContent, build_partner
from boxsup_dist.errors import InputError, LostWorkError, RecordError
from boxsup_dist.proposals import quality
from boxsup_dist.proposals.methods import Method, find_method, identity, propose

_COLUMNS = ("image_id", "image", "height", "width")


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
    """Make the proposals of every record; a second call continues an interrupted one.

    An image that fails gets no proposals and is listed among the table's problems.

    Args:
        out: Folder or URI of the table.
        records_uri: The records table.
        method: A name in proposals.methods.METHODS.
        settings: Settings of the method; None: its defaults.
        max_failed_share: The table is refused if a larger share of the images fails.
        num_cpus: CPUs of a local Ray session, as in `session.start`.
        gpus_per_task: Share of a GPU for a learned boundary detector or a prompted segmenter.

    Raises:
        SettingError: Unknown method, or settings out of range.
        RecordError: Too many images failed; lists the first ones with the reasons.
        WeightsError: The weights of a boundary detector or the files of a segmenter are unusable.
    """
    chosen, settings = find_method(method, settings)
    records = open_table(records_uri, "records")
    return build_partner(
        out,
        "proposals",
        {"method": method, "method_settings": identity(chosen, settings)},
        records,
        lambda groups, crashed: propose_shard(records, groups, chosen, settings, crashed),
        max_failed_share=max_failed_share,
        description=f"proposals by {method}",
        num_cpus=num_cpus,
        gpus_per_task=gpus_per_task,
    )


def propose_shard(
    records: Table,
    row_groups: Sequence[RowGroup],
    method: Method,
    settings: Any,
    crashed: Mapping[str, str] = {},
) -> ShardContent:
    """Proposals of the records of one shard; an image that fails keeps its row, without proposals.

    Images in `crashed` (id -> problem) fail without being tried. `counts` has images, failed images, candidates and
    milliseconds of computing. `row_ms` are the times of the images without the boundary detector.
    """
    parts, problems, row_ms = [proposals_to_table([])], [], []
    shard_started = time.process_time()
    for where in row_groups:
        columns = (*_COLUMNS, "boxes_xyxy") if method.needs_boxes else _COLUMNS
        group = list(iter_records(records.read(where, columns)))
        images = [_attempt(_decode, record, crashed) for record in group]
        given = iter(_detect([image for image in images if not isinstance(image, Exception)], method, settings))
        rows = []
        for record, image in zip(group, images, strict=True):
            started = time.process_time()
            found = image
            boxes = {"boxes_xyxy": record.boxes_xyxy} if method.needs_boxes else {}
            if not isinstance(image, Exception):
                found = _attempt(propose, method, image, settings, image_id=record.image_id, **boxes, **next(given))
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


def _attempt(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    try:
        return function(*arguments, **options)
    except Exception as error:
        return error


def _detect(images: list[NDArray[np.uint8]], method: Method, settings: Any) -> list[dict[str, Any]]:
    """Further arguments of `method.propose` for each image: its boundaries, computed for all images together."""
    if method.detect is None:
        return [{} for _ in images]
    try:
        return [{"boundaries": boundaries} for boundaries in method.detect(images, settings)]
    except InputError:  # unreadable weights are not the fault of an image
        raise
    except Exception:  # then each image is tried alone, and the one at fault is reported
        return [{} for _ in images]


def _decode(record: Record, crashed: Mapping[str, str]) -> NDArray[np.uint8]:
    if record.image_id in crashed:
        raise LostWorkError(crashed[record.image_id])
    assert record.image is not None
    image = decode_image(record.image)
    if image.shape[:2] != (record.height, record.width):
        raise RecordError(
            "the image has another size than its record states",
            field="height, width",
            value=image.shape[:2],
            expected=str((record.height, record.width)),
        )
    return image


def no_proposals(record: Record) -> Proposals:
    """The row of an image that failed: one superpixel, no candidate."""
    return Proposals(
        image_id=record.image_id,
        superpixels=np.zeros((record.height, record.width), np.uint16),
        num_superpixels=1,
        indptr=np.zeros(1, np.int64),
        indices=np.empty(0, np.uint16),
        objectness=np.empty(0, np.float32),
        boxes=np.empty((0, 4), np.uint16),
    )


def summarize(table: Table) -> dict[str, Any]:
    """Facts about a finished proposals table as JSON values.

    `seconds_per_image` is CPU time without reading and without the boundary detector; `seconds_per_image_with_detector`
    is the mean with both.
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
