"""The confusion matrices that an evaluation leaves in a run directory, and jobs.evaluate in its output folder."""

from __future__ import annotations

from collections.abc import Sequence

from boxsup_dist.errors import InputError
from boxsup_dist.evaluation.by_image import ByImage, read_by_image, write_by_image
from boxsup_dist.evaluation.confusion import read_confusion, write_confusion
from boxsup_dist.evaluation.units import UnitResult
from boxsup_dist.io import storage
from boxsup_dist.runs.kept_config import read_config
from boxsup_dist.runs.layout import RunFiles


def keep_matrices(folder: str, result: UnitResult, class_names: Sequence[str]) -> None:
    """Keep the matrix of all images, and those of single images, in place of those of an earlier evaluation."""
    files = RunFiles(folder)
    proof = write_by_image(files.by_image, result.by_image, class_names)
    write_confusion(files.confusion, result.confusion, class_names, proof)


def has_matrices(folder: str) -> bool:
    """True if the folder has the matrices of single images."""
    return storage.exists(RunFiles(folder).by_image)


def read_matrices(folder: str) -> ByImage:
    """The matrices of single images; they add up to confusion.json.

    Raises:
        InputError: The folder has none, or a file is damaged or of another evaluation.
    """
    files = RunFiles(folder)
    if not any(map(storage.exists, (files.config, files.confusion, files.by_image))):
        problem, expected = "neither a run nor an output of jobs.evaluate is here", "a folder or URI of one"
        raise InputError(problem, file=files.run_dir, expected=expected)
    if not has_matrices(folder):
        raise InputError(
            "the folder has no confusion matrices of single images; earlier versions kept none",
            file=files.by_image,
            expected=f"an evaluated run; or evaluate it: {_command(folder)}, then compare that folder",
        )
    kept = read_confusion(files.confusion)
    return read_by_image(files.by_image, None if kept is None else kept.by_image)


def _command(folder: str) -> str:
    """How to evaluate a run into a folder of its own."""
    records = None
    if storage.exists(RunFiles(folder).config):
        records = read_config(folder).val_records
    run_dir = folder.rstrip("/")
    return f"python -m jobs.evaluate --run-dir {run_dir} --records {records or 'RECORDS'} --out {run_dir}-evaluated"
