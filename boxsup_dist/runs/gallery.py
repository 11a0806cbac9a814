"""The gallery of a run: a folder of static HTML to look at, without a server.

    index.html             the page
    suspicious_boxes.csv   every box, most suspicious first, and objects without a box
    photos/ layers-1/ layers-2/ boxes/   pictures: photos, label maps of the runs, suspicious boxes

`draw_piece` draws the images of a row group and judges their boxes; it runs on the actor pool. gallery_page.py joins
what it returns. Epochs count from 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.data.images import decode_image, decode_png
from boxsup_dist.data.labels import open_labels, segments_by_box
from boxsup_dist.data.painting import Painter, painter
from boxsup_dist.data.palette import class_palette
from boxsup_dist.data.schema import Record, iter_records
from boxsup_dist.data.sources import Mixture
from boxsup_dist.data.tables import RowGroup, Table
from boxsup_dist.errors import RecordError, decoding
from boxsup_dist.evaluation.confusion import confusion_matrix, mean_iou
from boxsup_dist.evaluation.suspicion import Suspicion, find_missing, suspect_boxes
from boxsup_dist.io import storage
from boxsup_dist.model.inference import predict_log_probs
from boxsup_dist.model.networks import SegmentationNetwork
from boxsup_dist.reporting import gallery as pictures
from boxsup_dist.runs.layout import RunFiles

MAX_EPOCHS = 8  # label maps of one image

Part = Literal["training", "validation"]


class Piece(NamedTuple):
    """Some rows of one row group, which one task draws."""

    part: Part
    unit: int  # index in the mixture; of validation records, the number of the row group
    where: RowGroup
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Job:
    """What the pieces of one run have in common."""

    out: str
    number: int  # 1, or 2 for the run beside it
    run_dir: str
    mixture: Mixture
    val_records: Table | None
    epochs: tuple[int, ...]  # whose label maps are shown
    class_names: tuple[str, ...]
    show_ground_truth: bool


@dataclass(frozen=True)
class RunView:
    """What one run says of one image."""

    layers: list[str]  # of its strip, from the top: epoch-N or labels, prediction, truth
    classes: list[int]  # in its newest label map and prediction
    cost: float | None  # mean overlap cost of the newest segments
    change: float | None  # share of the boxes' pixels whose label differs between the first and the newest epoch
    iou: float | None  # mean IoU of prediction and ground truth


@dataclass(frozen=True)
class Drawn:
    """One image of a piece."""

    image_id: str
    part: Part
    unit: int
    height: int
    width: int
    boxes: list[list[float]]  # x0, y0, x1, y1, class
    view: RunView
    suspicions: list[Suspicion]

    @property
    def file(self) -> str:
        """Name of its pictures, below the folders of photos and layers."""
        return picture_name(self.image_id, self.part)


def picture_name(image_id: str, part: str) -> str:
    """File name of an image's pictures: ids may hold folders, and characters that an address must not."""
    digest = hashlib.sha256(f"{part}/{image_id}".encode()).hexdigest()
    return f"{digest[:2]}/{digest[2:14]}.webp"


# -- which images -----------------------------------------------------------------------------------------------------


def choose_pieces(mixture: Mixture, val_records: Table | None, most: int) -> list[Piece]:
    """The images to show: all, or about `most` of the training and of the validation images, evenly spread."""
    training = [
        Piece("training", index, unit.where, unit.rows) for index, unit in enumerate(mixture.units) if unit.rows
    ]
    groups = [] if val_records is None else val_records.row_groups()
    validation = [Piece("validation", n, where, tuple(range(where.num_rows))) for n, where in enumerate(groups)]
    return [piece for pieces in (training, validation) for piece in _spread(pieces, most)]


def _spread(pieces: Sequence[Piece], most: int) -> Iterator[Piece]:
    total = sum(len(piece.rows) for piece in pieces)
    chosen = set(range(total))
    if total > most:
        chosen = {int(place) for place in np.linspace(0, total - 1, most).round()}
    first = 0
    for piece in pieces:
        rows = tuple(row for place, row in enumerate(piece.rows, first) if place in chosen)
        first += len(piece.rows)
        if rows:
            yield piece._replace(rows=rows)


# -- on the actor pool ------------------------------------------------------------------------------------------------


def draw_piece(network: SegmentationNetwork, piece: Piece, *, job: Job) -> list[Drawn]:
    """Draw the images of a piece, and judge their boxes; damaged images are left out, as the training left them out.

    Args:
        network: The run's trained network.
        piece: Rows to draw.
        job: The run.
    """
    labels = _labels(piece, job)
    drawn = []
    for record in _read(piece, job):
        try:
            with decoding(record.image_id):
                drawn.append(_draw(network, record, piece, job, labels))
        except RecordError:
            continue
    return drawn


class _Labels(NamedTuple):
    """Labels of a unit: key and painter of each shown map, and the overlap costs of each image, (epochs, K)."""

    painters: list[tuple[str, Painter]]
    costs: Mapping[str, NDArray[np.float64]]


def _labels(piece: Piece, job: Job) -> _Labels:
    if piece.part == "validation":
        return _Labels([], {})
    unit, assignment = job.mixture.units[piece.unit], job.mixture.assignment
    if unit.source.supervision != "box":
        return _Labels([("labels", painter(unit, {}, assignment))], {})
    painters: list[tuple[str, Painter]] = []
    costs: dict[str, list[list[float]]] = {}
    for epoch in job.epochs:
        table = open_labels(RunFiles(job.run_dir).labels(epoch)).read(piece.unit)
        painters.append((f"epoch-{epoch}", painter(unit, segments_by_box(table), assignment)))
        by_image: dict[str, list[float]] = {}
        for row in table.select(["image_id", "overlap_cost"]).to_pylist():  # in the order of the boxes
            by_image.setdefault(row["image_id"], []).append(row["overlap_cost"])
        for image_id, values in by_image.items():
            costs.setdefault(image_id, []).append(values)
    return _Labels(painters, {image_id: np.array(values, np.float64) for image_id, values in costs.items()})


def _read(piece: Piece, job: Job) -> list[Record]:
    records = job.val_records
    if piece.part == "training":
        records = job.mixture.units[piece.unit].source.records
    assert records is not None
    return list(iter_records(records.read(piece.where).take(list(piece.rows))))


def _draw(network: SegmentationNetwork, record: Record, piece: Piece, job: Job, labels: _Labels) -> Drawn:
    assert record.image is not None
    image = decode_image(record.image)
    probs = predict_log_probs(network, image, network.device)
    np.exp(probs, out=probs)
    maps = {key: paint(record) for key, paint in labels.painters}
    newest = list(maps.values())[-1] if maps else None
    first = next(iter(maps.values())) if len(maps) > 1 else None
    maps["prediction"] = probs.argmax(0).astype(np.uint8)
    if record.gt_label_map and job.show_ground_truth:
        maps["truth"] = decode_png(record.gt_label_map)
    num_boxes = len(record.class_ids)
    costs = labels.costs.get(record.image_id, np.empty((0, num_boxes)))
    costs = np.where(np.isfinite(costs), costs, np.nan)
    suspicions: list[Suspicion] = []
    if piece.part == "training":
        suspicions = [*suspect_boxes(record, probs, newest, costs), *find_missing(record, probs)]
    found = np.unique(np.concatenate([maps["prediction"].ravel(), *([newest.ravel()] if newest is not None else [])]))
    view = RunView(
        list(maps),
        [int(c) for c in found if 0 < c < len(job.class_names)],
        None if not len(costs) or np.isnan(costs[-1]).all() else float(np.nanmean(costs[-1])),
        None if first is None or newest is None else _change(first, newest, record),
        _iou(maps, len(job.class_names)),
    )
    drawn = Drawn(
        record.image_id,
        piece.part,
        piece.unit,
        record.height,
        record.width,
        [[*map(float, b), int(c)] for b, c in zip(record.boxes_xyxy, record.class_ids, strict=True)],
        view,
        suspicions,
    )
    size = pictures.shown_size(record.height, record.width)
    layers = pictures.encode_layers(list(maps.values()), class_palette(job.class_names), size)
    storage.write_bytes(storage.join(job.out, f"layers-{job.number}", drawn.file), layers)
    if job.number == 1:
        storage.write_bytes(storage.join(job.out, "photos", drawn.file), pictures.encode_photo(image, size))
    return drawn


def _change(first: NDArray[np.uint8], last: NDArray[np.uint8], record: Record) -> float | None:
    """Share of the pixels inside the boxes that two label maps (H, W) label differently; ignored is a label too."""
    inside = np.zeros(first.shape, bool)
    for x0, y0, x1, y1 in np.clip(np.round(record.boxes_xyxy), 0, None).astype(int):
        inside[y0:y1, x0:x1] = True
    return float((first != last)[inside].mean()) if inside.any() else None


def _iou(maps: Mapping[str, NDArray[np.uint8]], num_classes: int) -> float | None:
    if "truth" not in maps:
        return None
    iou = mean_iou(confusion_matrix(maps["truth"], maps["prediction"], num_classes))
    return float(iou) if np.isfinite(iou) else None


class Suspect(NamedTuple):
    """A box of an image, or an object without a box, and how doubtful it is."""

    drawn: Drawn
    entry: Suspicion
    doubt: float

    @property
    def window(self) -> tuple[int, int, int, int]:
        """What its picture shows of the image, x0, y0, x1, y1."""
        return pictures.crop_window(self.entry.box, self.drawn.height, self.drawn.width)


def draw_crops(
    network: SegmentationNetwork, piece: Piece, *, job: Job, crops: Mapping[int, Mapping[int, Suspect]]
) -> None:
    """Write the pictures of suspicious boxes; the network is not used.

    Args:
        network: Not used.
        piece: Rows that hold their images.
        job: The run.
        crops: By unit, the suspects by their place in the list.
    """
    for record in _read(piece, job):
        wanted = {n: each for n, each in crops[piece.unit].items() if each.drawn.image_id == record.image_id}
        if wanted:
            assert record.image is not None
            image = decode_image(record.image)
            for place, each in wanted.items():
                data = pictures.encode_crop(image, each.window)
                storage.write_bytes(storage.join(job.out, "boxes", crop_name(place)), data)


def crop_name(place: int) -> str:
    """File name of the picture of a suspicious box, by its place in the list."""
    return f"{place:04d}.webp"
