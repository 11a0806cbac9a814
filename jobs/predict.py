"""Predict label maps of images with a trained network.

    python -m jobs.predict --run-dir R --images FOLDER --out DIR
    python -m jobs.predict --checkpoint models:/NAME/1 --images "photos/*.jpg" --out DIR --overlays

Run the command again to predict only what is missing. Unreadable images are reported and skipped: the exit status is
then 1. It is 2 where a setting is wrong and nothing was done.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from boxsup_dist.config import PredictionSettings
from boxsup_dist.config.checks import check_needs
from boxsup_dist.data.input_names import InputImage, InputNames, names_of_files, read_input_names
from boxsup_dist.data.schema import VOC_CLASSES
from boxsup_dist.errors import SettingError
from boxsup_dist.export.coco import CocoNames
from boxsup_dist.export.files import Kind, finished_names, keep_identity
from boxsup_dist.export.formats import OUTPUT_OF, Format, check_file_names, check_formats, write_formats
from boxsup_dist.export.images import Images, Item, check_distinct, find_images
from boxsup_dist.export.legend import write_legend
from boxsup_dist.export.submission import Competition, member_name, write_submission
from boxsup_dist.io import storage
from boxsup_dist.model.crf import crf_settings
from boxsup_dist.progress import ProgressMeter
from boxsup_dist.runs.command_line import NumActors, Prediction, check_network, run
from boxsup_dist.runs.summary import write_result

if TYPE_CHECKING:
    from boxsup_dist.distributed.pool import NetworkPool
    from boxsup_dist.export.prediction import Outcome
    from boxsup_dist.model.trained import TrainedNetwork
    from boxsup_dist.runs.trained import NamedNetwork


@dataclass(frozen=True)
class Settings:
    """Which network, on which images, and what to write."""

    images: str
    """Path or URI of a folder, a quoted pattern, an image, a text file with one path per line, or a records table."""
    out: str
    """Folder or URI of label_maps/NAME.png, legend.png, summary.json and the other outputs."""
    run_dir: str | None = None
    """Run directory of a training: a folder or URI. Or set --checkpoint."""
    checkpoint: Annotated[
        str | None,
        tyro.conf.arg(
            help="Folder or URI of the checkpoint to use, best (the run's best on its validation records), or an "
            "MLflow model (models:/NAME/1, runs:/ID/model). Default: the run's newest."
        ),
    ] = None
    prediction: Prediction = field(default_factory=PredictionSettings)
    overlays: bool = False
    """Also write overlays/NAME.jpg: the image under its label map, in the colours of legend.png."""
    probabilities: bool = False
    """Also write probabilities/NAME.npz: probs, float16 (C, H, W), compressed."""
    submission: Competition | None = None
    """Also write comp5.tar.gz or comp6.tar.gz: the label maps in the layout of VOC's evaluation server."""
    coco_json: bool = False
    """Also write coco.json: as --formats coco."""
    formats: tuple[Format, ...] = ()
    """Also write the connected regions of every class as annotations. coco: coco.json with run lengths. coco_polygons:
    coco_polygons.json. yolo: a folder yolo. labelme: a folder labelme. cvat: cvat.xml, CVAT for images 1.1."""
    coco_annotations: tuple[str, ...] = ()
    """COCO annotation files of the same images: the outputs take their image ids, file names and category ids. Not
    set: those of the annotations that the network was trained on, for its classes and for the images that it was
    trained on, or those of the records table. Other images have the next ids, or the number in COCO's file names."""
    turn_by_exif: bool = True
    """Rotate image files by their EXIF tag. Images of a records table stay as their annotations refer to them."""
    max_megapixels: float = 25.0
    """Report and skip larger images: the scores take 4 bytes per pixel, class and copy."""
    num_actors: NumActors = None

    def kinds(self) -> tuple[Kind, ...]:
        """Files that every image gets."""
        kinds: list[Kind] = ["label_maps"]
        if self.overlays:
            kinds.append("overlays")
        if self.probabilities:
            kinds.append("probabilities")
        return tuple(kinds)

    def all_formats(self) -> tuple[Format, ...]:
        """The formats, with that of `coco_json`."""
        return tuple(dict.fromkeys((*(("coco",) if self.coco_json else ()), *self.formats)))

    def check(self) -> None:
        """Raise SettingError on a value that cannot work."""
        self.prediction.check()
        check_formats(self.formats)
        check_needs(self.coco_annotations or None, "coco_annotations", "formats", bool(self.all_formats()))
        check_network(self.run_dir, self.checkpoint)
        if self.prediction.crf is not None:
            crf_settings(self.prediction.crf)
        if not self.max_megapixels > 0:
            raise SettingError(
                "a setting is out of range", field="max_megapixels", value=self.max_megapixels, expected="> 0"
            )


def predict(settings: Settings) -> dict[str, Any]:
    """Predict what is missing and write OUT/summary.json.

    Returns:
        The summary.

    Raises:
        InputError: A setting cannot work, or there is no such network or image. Nothing was predicted.
    """
    settings.check()
    started = time.monotonic()
    out = storage.absolute(settings.out)
    images = find_images(settings.images, out)
    from boxsup_dist.runs.trained import find_network

    network = find_network(settings.run_dir, settings.checkpoint)
    trained = network.trained
    names = _check_outputs(settings, images, network)
    identity = {
        "network": trained.fingerprint,
        "images": images.identity,
        "prediction": {**asdict(settings.prediction), "scales": list(settings.prediction.scales)},
        "turn_by_exif": settings.turn_by_exif,
    }
    keep_identity(out, identity)
    write_legend(out, network.class_names)
    finished = finished_names(out, settings.kinds())
    units = images.units(skipped=lambda item: item.name in finished)
    outcomes: list[Outcome] = []
    if units:
        pool = _make_pool(settings, trained)
        try:
            outcomes = _predict(pool, units, settings, images, network)
        finally:
            pool.close()
    failed = [outcome for outcome in outcomes if outcome.problem is not None]
    bad = {outcome.item.name for outcome in failed}
    if names is not None:
        _write_formats(settings.all_formats(), images, bad, names, out)
    good = [item.name for item in images.items if item.name not in bad]
    if settings.submission is not None:
        write_submission(out, settings.submission, good)
    summary = _summary(settings, trained, images, identity["prediction"], outcomes, failed)
    summary["seconds"] = round(time.monotonic() - started, 2)
    write_result(out, summary)
    return summary


def _write_formats(formats: Sequence[Format], images: Images, bad: set[str], names: CocoNames, out: str) -> None:
    """Write annotations from the label maps of the images that are not bad."""
    from boxsup_dist.distributed import session
    from boxsup_dist.distributed.ordered import map_units
    from boxsup_dist.export.prediction import regions_unit

    session.start()
    units = images.units(skipped=lambda item: item.name in bad)
    parts = map_units(regions_unit, units, out=out, records=images.records)
    write_formats(out, formats, (image for part in parts for image in part), names)


def _summary(
    settings: Settings,
    trained: TrainedNetwork,
    images: Images,
    prediction: Any,
    outcomes: list[Outcome],
    failed: list[Outcome],
) -> dict[str, Any]:
    outputs: list[str] = [*settings.kinds(), *(OUTPUT_OF[name] for name in settings.all_formats())]
    if settings.submission is not None:
        outputs.append(f"{settings.submission}.tar.gz")
    return {
        "network": trained.uri,
        "images": settings.images,
        "prediction": prediction,
        "num_images": len(images.items),
        "num_predicted": len(outcomes) - len(failed),
        "num_all_background": sum(outcome.is_background for outcome in outcomes),
        "num_finished_before": len(images.items) - len(outcomes),
        "num_failed": len(failed),
        "failed": [{"file": _place(outcome.item), "reason": outcome.problem} for outcome in failed],
        "outputs": outputs,
    }


def _check_outputs(settings: Settings, images: Images, network: NamedNetwork) -> CocoNames | None:
    """What images and classes are called in annotations; None if none are wanted.

    Raises:
        InputError: Some output cannot be made of these images; nothing is predicted yet.
    """
    names = None
    if settings.all_formats():
        from boxsup_dist.runs.coco_names import coco_names

        items, is_table = [item.name for item in images.items], images.records is not None
        kept = InputNames(_known_images(images, network), network.inputs[0].category_ids if network.inputs else {})
        names = coco_names(items, network.class_names, settings.coco_annotations, have_source=is_table, kept=kept)
        check_file_names(settings.all_formats(), names)
    if settings.submission is not None:
        check_distinct(images.items, lambda item: member_name(item.name), "would have the same name in the submission")
        if network.trained.spec.num_classes != len(VOC_CLASSES):
            raise SettingError(
                "the evaluation server knows only VOC's classes",
                file=network.trained.uri,
                field="submission",
                value=f"{network.trained.spec.num_classes} classes",
                expected=str(len(VOC_CLASSES)),
            )
    return names


def _known_images(images: Images, network: NamedNetwork) -> Mapping[str, InputImage]:
    """How the annotations name the images, by the names of their outputs: those of a table, or of the training."""
    if images.records is not None:
        return read_input_names(images.records.uri).images
    known = names_of_files((item.uri for item in images.items), network.inputs)
    return {item.name: known[item.uri] for item in images.items if item.uri in known}


def _make_pool(settings: Settings, trained: TrainedNetwork) -> NetworkPool:
    from boxsup_dist.distributed import session
    from boxsup_dist.runs.networks import make_pool, pool_resources

    session.start()
    return make_pool(trained.spec, pool_resources(settings.num_actors))


def _predict(
    pool: NetworkPool, units: list[list[Item]], settings: Settings, images: Images, network: NamedNetwork
) -> list[Outcome]:
    """Predict all units; report each image that cannot be read, or that ends its process. Returns every outcome."""
    import ray

    from boxsup_dist.distributed.faults import describe_loss
    from boxsup_dist.distributed.ordered import MAX_RETRIES
    from boxsup_dist.export.prediction import Outcome, PredictionJob, predict_unit

    job = PredictionJob(
        out=storage.absolute(settings.out),
        kinds=settings.kinds(),
        settings=settings.prediction,
        turn_by_exif=settings.turn_by_exif,
        max_pixels=round(settings.max_megapixels * 1e6),
        class_names=network.class_names,
    )
    alone: list[list[Item]] = []  # the images of units that ended their process, each a unit now

    def later(unit: list[Item], error: Exception) -> list[Outcome]:
        alone.extend([item] for item in unit)
        return []

    def skip(unit: list[Item], error: Exception) -> list[Outcome]:
        return [Outcome(unit[0], f"ended its process {MAX_RETRIES + 1} times: {describe_loss(error)}")]

    options: dict[str, Any] = {
        "weights": ray.put(dict(network.trained.weights)),
        "version": network.trained.fingerprint,
    }
    options |= {"job": job, "records": images.records}
    found: list[Outcome] = []
    with ProgressMeter("predict", len(units)) as meter:
        for passed, on_lost, max_retries in ((units, later, 0), (alone, skip, MAX_RETRIES)):
            for outcomes in pool.map(predict_unit, passed, on_lost=on_lost, max_retries=max_retries, **options):
                meter.advance(len(outcomes))
                found += outcomes
                for outcome in outcomes:
                    if outcome.problem is not None:
                        print(f"failed: {_place(outcome.item)}: {outcome.problem}", file=sys.stderr, flush=True)
    return found


def _place(item: Item) -> str:
    return item.uri if item.where is None else f"{item.uri}: {item.name}"


def main(settings: Settings) -> None:
    """Predict and print what was done; the exit status is 1 if an image failed."""
    summary = predict(settings)
    for key in ("num_images", "num_predicted", "num_all_background", "num_finished_before", "num_failed", "seconds"):
        print(f"{key:<20} {summary[key]}")
    if 0 < summary["num_predicted"] == summary["num_all_background"]:
        text = f"every pixel of all {summary['num_predicted']} images is predicted as background"
        print(f"warning: {text}: is {summary['network']} trained to its end, on such images?", flush=True)
    if summary["failed"]:
        raise SystemExit(1)


if __name__ == "__main__":
    run(main)
