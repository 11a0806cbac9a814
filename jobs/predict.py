"""Predict images with a trained network: python -m jobs.predict --run-dir R --images FOLDER --out DIR.

Exit status 0: all images predicted; 1: some could not be read, they are told; 2: nothing was done, a setting is wrong.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

import ray
import tyro

from boxsup_dist.config import PredictionSettings
from boxsup_dist.data.schema import VOC_CLASSES
from boxsup_dist.data.tables import open_table
from boxsup_dist.distributed import session
from boxsup_dist.distributed.ordered import map_units
from boxsup_dist.distributed.pool import NetworkPool
from boxsup_dist.errors import InputError, SettingError
from boxsup_dist.export.coco import coco_image_id, write_coco
from boxsup_dist.export.files import Kind, finished_names, keep_identity
from boxsup_dist.export.images import Images, Item, check_distinct, find_images
from boxsup_dist.export.prediction import Outcome, PredictionJob, predict_unit, regions_unit
from boxsup_dist.export.submission import Competition, member_name, write_submission
from boxsup_dist.io import storage
from boxsup_dist.model.crf import crf_settings
from boxsup_dist.model.trained import TrainedNetwork, load_trained
from boxsup_dist.progress import ProgressMeter
from boxsup_dist.runs.command_line import run
from boxsup_dist.runs.kept_config import read_config
from boxsup_dist.runs.networks import make_pool, pool_resources
from boxsup_dist.runs.summary import write_result
from boxsup_dist.tracking import models


@dataclass(frozen=True)
class Settings:
    """Write a label map for every image, and what else is asked for; a second call does what is missing."""

    run_dir: str
    """Run directory of a training, whose newest checkpoint predicts, or a checkpoint: a folder or URI; or an MLflow
    model, models:/NAME/1 or runs:/ID/model."""
    images: str
    """What to predict: a folder (with all below it), a pattern (quoted), an image, a text file that lists one path a
    line, or a records table. A path or URI (s3://...)."""
    out: str
    """Folder or URI: label_maps/NAME.png, what else is asked for, summary.json."""
    prediction: Annotated[PredictionSettings, tyro.conf.arg(name="")] = field(default_factory=PredictionSettings)
    overlays: bool = False
    """Also overlays/NAME.jpg: the image half covered by its label map."""
    probabilities: bool = False
    """Also probabilities/NAME.npz: probs, float16 (C, H, W), compressed."""
    submission: Competition | None = None
    """Also COMP.tar.gz, the label maps in the layout of VOC's evaluation server."""
    coco_json: bool = False
    """Also coco.json: a COCO annotation file with the region of every class as run lengths."""
    turn_by_exif: bool = True
    """Turn image files the way up that their EXIF orientation tells; never a table's images, whose annotation lies on
    them as they are stored."""
    max_megapixels: float = 25.0
    """Larger images are told instead of predicted: the scores take 4 bytes a pixel, class and copy."""
    num_actors: int | None = None
    """Members of the pool. Not set: one per GPU, without GPUs one per CPU core."""

    def kinds(self) -> tuple[Kind, ...]:
        """Files that every image gets."""
        kinds: list[Kind] = ["label_maps"]
        if self.overlays:
            kinds.append("overlays")
        if self.probabilities:
            kinds.append("probabilities")
        return tuple(kinds)

    def check(self) -> None:
        """Raise SettingError on a value that can't work."""
        self.prediction.check()
        if self.prediction.crf is not None:
            crf_settings(self.prediction.crf)
        if not self.max_megapixels > 0:
            raise SettingError(
                "no image is so small", field="max_megapixels", value=self.max_megapixels, expected="> 0"
            )


def predict(settings: Settings) -> dict[str, Any]:
    """Predict what is missing; returns the summary that it leaves in OUT/summary.json. Raises InputError."""
    started = time.monotonic()
    settings.check()
    out = storage.absolute(settings.out)
    images = find_images(settings.images, out)
    trained = _find_network(settings.run_dir)
    _check_outputs(settings, images, trained)
    identity = {
        "network": trained.fingerprint,
        "images": images.identity,
        "prediction": {**asdict(settings.prediction), "scales": list(settings.prediction.scales)},
        "turn_by_exif": settings.turn_by_exif,
    }
    keep_identity(out, identity)
    finished = finished_names(out, settings.kinds())
    units = images.units(skipped=lambda item: item.name in finished)
    failed: list[Outcome] = []
    if units:
        pool = _make_pool(settings, trained)
        try:
            failed = _predict(pool, units, settings, images, trained)
        finally:
            pool.close()
    bad = {outcome.item.name for outcome in failed}
    if settings.coco_json:
        session.start()
        parts = map_units(regions_unit, images.units(skipped=lambda item: item.name in bad), out=out)
        write_coco(storage.join(out, "coco.json"), (i for part in parts for i in part), _class_names(trained))
    good = [item.name for item in images.items if item.name not in bad]
    if settings.submission is not None:
        write_submission(out, settings.submission, good)
    summary = {
        "network": trained.uri,
        "images": settings.images,
        "prediction": identity["prediction"],
        "num_images": len(images.items),
        "num_predicted": sum(map(len, units)) - len(failed),
        "num_finished_before": len(images.items) - sum(map(len, units)),
        "num_failed": len(failed),
        "failed": [{"file": _place(outcome.item), "reason": outcome.problem} for outcome in failed],
        "seconds": round(time.monotonic() - started, 2),
        "outputs": [*settings.kinds(), *(["coco.json"] if settings.coco_json else [])]
        + ([f"{settings.submission}.tar.gz"] if settings.submission else []),
    }
    write_result(out, summary)
    return summary


def _find_network(uri: str) -> TrainedNetwork:
    """The network of a run directory, a checkpoint or an MLflow model."""
    if not models.is_model_uri(uri):
        return load_trained(uri)
    with tempfile.TemporaryDirectory() as scratch:
        return replace(load_trained(models.fetch_checkpoint(uri, scratch)), uri=uri)


def _check_outputs(settings: Settings, images: Images, trained: TrainedNetwork) -> None:
    """Refuse outputs that can't be made of these images, before any is predicted."""
    if settings.coco_json:
        check_distinct(images.items, lambda item: coco_image_id(item.name), "would have the same id in coco.json")
    if settings.submission is not None:
        check_distinct(images.items, lambda item: member_name(item.name), "would have the same name in the submission")
        if trained.spec.num_classes != len(VOC_CLASSES):
            raise SettingError(
                "the server knows VOC's classes alone",
                file=trained.uri,
                field="submission",
                value=f"{trained.spec.num_classes} classes",
                expected=str(len(VOC_CLASSES)),
            )


def _make_pool(settings: Settings, trained: TrainedNetwork) -> NetworkPool:
    session.start()
    return make_pool(trained.spec, pool_resources(settings.num_actors))


def _predict(
    pool: NetworkPool, units: list[list[Item]], settings: Settings, images: Images, trained: TrainedNetwork
) -> list[Outcome]:
    """Predict all units, telling as it happens what can't be read; returns that."""
    job = PredictionJob(
        out=storage.absolute(settings.out),
        kinds=settings.kinds(),
        settings=settings.prediction,
        turn_by_exif=settings.turn_by_exif,
        max_pixels=round(settings.max_megapixels * 1e6),
    )
    results = pool.map(
        predict_unit,
        units,
        weights=ray.put(dict(trained.weights)),
        version=trained.fingerprint,
        job=job,
        records=images.records,
    )
    failed: list[Outcome] = []
    with ProgressMeter("predict", len(units)) as meter:
        for outcomes in results:
            meter.advance(len(outcomes))
            for outcome in outcomes:
                if outcome.problem is not None:
                    failed.append(outcome)
                    print(f"failed: {_place(outcome.item)}: {outcome.problem}", file=sys.stderr, flush=True)
    return failed


def _place(item: Item) -> str:
    return item.uri if item.where is None else f"{item.uri}: {item.name}"


def _class_names(trained: TrainedNetwork) -> tuple[str, ...]:
    """Those of the records that the network was trained on, where they are still there, or of VOC."""
    num_classes = trained.spec.num_classes
    run_dir = trained.uri.rsplit("/", 2)[0]  # RUN/checkpoints/NAME
    try:
        config = read_config(run_dir)
        names = open_table(config.sources[0].records, "records").classes
    except InputError:
        names = VOC_CLASSES
    return names if len(names) == num_classes else tuple(f"class {i}" for i in range(num_classes))


def main(settings: Settings) -> None:
    """Predict, print what was done; exit status 1 if an image failed."""
    summary = predict(settings)
    for key in ("num_images", "num_predicted", "num_finished_before", "num_failed", "seconds"):
        print(f"{key:<20} {summary[key]}")
    if summary["failed"]:
        raise SystemExit(1)


if __name__ == "__main__":
    run(main)
