"""Write a gallery of a run: its images with boxes, label maps over the epochs and prediction, as static HTML.

    python -m jobs.gallery --run-dir R --out G

Open G/index.html: no server is needed. The first page shows the boxes that are probably wrong, which
G/suspicious_boxes.csv lists too. --other-run-dir shows a second run beside the first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from boxsup_dist.errors import InputError, SettingError
from boxsup_dist.io import storage
from boxsup_dist.progress import ProgressMeter
from boxsup_dist.runs.command_line import Checkpoint, NumActors, RunDir, run
from boxsup_dist.runs.kept_config import read_config
from boxsup_dist.runs.summary import key_lines, write_result

if TYPE_CHECKING:
    from boxsup_dist.runs.gallery import Drawn, Job, Suspect


@dataclass(frozen=True)
class Settings:
    """Which run, and where to write."""

    run_dir: RunDir
    out: str
    """Folder or URI of the gallery."""
    other_run_dir: str | None = None
    """A second run of the same classes, shown beside the first."""
    checkpoint: Checkpoint = None
    num_images: int = 5000
    """At most so many training images, and as many validation images, evenly spread."""
    log: bool = False
    """Also store the gallery in the MLflow run of the training, under gallery/."""
    num_actors: NumActors = None

    def check(self) -> None:
        """Raise SettingError on a value that cannot work."""
        if self.num_images < 1:
            raise SettingError("a setting is out of range", field="num_images", value=self.num_images, expected=">= 1")


def main(settings: Settings) -> None:
    """Draw, rank the boxes, write the page last, and print where it is."""
    settings.check()
    for run_dir in (settings.run_dir, settings.other_run_dir):
        if run_dir is not None:
            read_config(run_dir)
    from boxsup_dist.distributed import session
    from boxsup_dist.records.own.doubts import find_doubts
    from boxsup_dist.reporting.gallery import render_gallery
    from boxsup_dist.runs import gallery_page

    session.start()
    out = storage.absolute(settings.out)
    page = storage.join(out, gallery_page.PAGE)
    storage.remove(page)  # there is a page only when its pictures are whole
    runs = [_drawn(settings.run_dir, settings.checkpoint, settings, 1)]
    if settings.other_run_dir is not None:
        runs.append(_drawn(settings.other_run_dir, None, settings, 2))
        first, other = runs[0][0], runs[1][0]
        gallery_page.check_same_classes(other.run_dir, other.class_names, first.class_names, first.run_dir)
    job, images, ranked = runs[0]
    names = gallery_page.file_names(job.mixture)
    storage.write_bytes(storage.join(out, gallery_page.BOXES), gallery_page.boxes_csv(ranked, job.class_names, names))
    titles = _titles([each.run_dir for each, _, _ in runs])
    data = gallery_page.page_data(
        titles,
        images,
        runs[1][1] if len(runs) > 1 else None,
        ranked,
        class_names=job.class_names,
        names=names,
        mlflow_run_id=_mlflow_run_id(job.run_dir),
    )
    doubts = [each.text for source in job.mixture.sources for each in find_doubts(source.records)]
    facts = [f"{len(images)} images", f"{len(job.class_names) - 1} classes", *(each.run_dir for each, _, _ in runs)]
    storage.write_bytes(page, render_gallery(" and ".join(titles), facts, doubts, data).encode())
    summary = {
        "gallery": page,
        "suspicious_boxes": storage.join(out, gallery_page.BOXES),
        "num_images": len(images),
        "num_boxes": sum(len(image.boxes) for image in images if image.part == "training"),
    }
    write_result(out, summary, key_lines(summary))
    if settings.log:
        _log(job.run_dir, out)


def _drawn(
    run_dir: str, checkpoint_uri: str | None, settings: Settings, number: int
) -> tuple[Job, list[Drawn], list[Suspect]]:
    """Draw the images of a run on an actor pool, and the suspicious boxes of the first run."""
    import ray

    from boxsup_dist.model import checkpoint
    from boxsup_dist.runs import gallery, gallery_page
    from boxsup_dist.runs.examples import epochs_to_show
    from boxsup_dist.runs.inputs import open_inputs
    from boxsup_dist.runs.layout import RunFiles
    from boxsup_dist.runs.networks import load_run, make_pool

    config, uri = load_run(run_dir, checkpoint_uri, settings.num_actors)
    inputs = open_inputs(config)
    labelled = RunFiles(run_dir).epochs_with_labels()
    job = gallery.Job(
        storage.absolute(settings.out),
        number,
        storage.absolute(run_dir),
        inputs.mixture,
        inputs.val_records,
        tuple(labelled[n - 1] for n in epochs_to_show(len(labelled), gallery.MAX_EPOCHS)) if labelled else (),
        inputs.class_names,
        config.measure_labels,
    )
    spec, weights = checkpoint.load_weights(uri)
    pieces = gallery.choose_pieces(job.mixture, job.val_records, settings.num_images)
    sizes = [len(piece.rows) for piece in pieces]
    pool = make_pool(spec, config.resources)
    try:
        with ProgressMeter(f"drawing {job.run_dir}", len(sizes)) as meter:
            parts = pool.map(
                gallery.draw_piece,
                pieces,
                weights=ray.put(weights),
                version=uri,
                on_progress=meter.advance_to(sizes),
                job=job,
            )
            images = [image for part in parts for image in part]
        ranked = gallery_page.rank(images) if number == 1 else []
        by_unit: dict[int, dict[int, Suspect]] = defaultdict(dict)
        for place, suspect in enumerate(ranked[: gallery_page.NUM_SUSPECTS]):
            by_unit[suspect.drawn.unit][place] = suspect
        doubtful = [piece for piece in pieces if piece.part == "training" and piece.unit in by_unit]
        for _ in pool.map(gallery.draw_crops, doubtful, job=job, crops=dict(by_unit)):
            pass
    finally:
        pool.close()
    return job, images, ranked


def _titles(run_dirs: Sequence[str]) -> list[str]:
    """Names of the runs: the ends of their paths, or the whole paths where these are the same."""
    names = ["/".join(uri.rstrip("/").split("/")[-2:]) for uri in run_dirs]
    return names if len(set(names)) == len(names) else list(run_dirs)


def _mlflow_run_id(run_dir: str) -> str | None:
    from boxsup_dist.runs.summary import mlflow_run

    try:
        return mlflow_run(run_dir)[1]
    except InputError:  # not finished, or not in MLflow: the page works from its folder
        return None


def _log(run_dir: str, out: str) -> None:
    from boxsup_dist.runs.summary import mlflow_run
    from boxsup_dist.tracking.client import add_artifacts

    tracking_uri, run_id = mlflow_run(run_dir)
    for path in storage.find_files(out):
        add_artifacts(tracking_uri, run_id, {f"gallery/{path}": storage.read_bytes(storage.join(out, path))})
    print(f"{'MLflow':<24} artifacts of the run {run_id}, gallery/index.html", flush=True)


if __name__ == "__main__":
    run(main)
