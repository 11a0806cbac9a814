"""The files of a run directory. This module alone names them.

    RUN/config.json                          every setting of the run, and the format of the directory
    RUN/tables.json                          fingerprint of every table that the run reads
    RUN/history.jsonl                        one line per epoch: loss, label and evaluation metrics, seconds, warnings
    RUN/timeline.jsonl                       where the time went: one line per start of the workers (runs/timeline)
    RUN/labels/epoch-001/                    the segment of every box that epoch 1 was trained on (data/labels)
    RUN/checkpoints/epoch-003-step-00000/    the state after 3 whole epochs and 0 steps of the next (model/checkpoint)
    RUN/confusion.json                       confusion matrix of the last evaluation
    RUN/confusion-by-image.parquet           the same of every image; jobs.compare reads it (evaluation/by_image)
    RUN/figures/worst-1-IMAGE.png, best-1-... training images with their labels over the epochs and the prediction
    RUN/report.html                          all of it on one page
    RUN/summary.json                         the result; it exists once the run is finished
    RUN/mlflow_run_id                        id of the run in MLflow
    RUN/mlflow_pending                       exists while MLflow may lack a part of the run
    RUN/writer.json                          which process trains here, or did last (io/lease)
    RUN/start/                               weights that the run begins with, if they came from an MLflow model

Epochs count from 1 in names and in files. Only a checkpoint counts what is finished: `epoch-003` means that epoch 3 is
over.
"""

from __future__ import annotations

import re

from boxsup_dist.io import storage

FORMAT = 2  # of a run directory; 1 counted epochs from 0
REPORT = "report.html"
SUMMARY = "summary.json"  # also what every command leaves in its output folder

_LABELS = re.compile(r"epoch-(\d{3,})(\.parquet)?")  # earlier versions wrote one file per epoch


class RunFiles:
    """URIs of a run's files; the module says what each holds."""

    def __init__(self, run_dir: str) -> None:
        self.run_dir = storage.absolute(run_dir)
        self.config = self._uri("config.json")
        self.tables = self._uri("tables.json")
        self.history = self._uri("history.jsonl")
        self.timeline = self._uri("timeline.jsonl")
        self.checkpoints = self._uri("checkpoints")
        self.confusion = self._uri("confusion.json")
        self.by_image = self._uri("confusion-by-image.parquet")
        self.figures = self._uri("figures")
        self.report = self._uri(REPORT)
        self.summary = self._uri(SUMMARY)
        self.mlflow_run_id = self._uri("mlflow_run_id")
        self.mlflow_pending = self._uri("mlflow_pending")
        self.writer = self._uri("writer.json")
        self.start = self._uri("start")

    def _uri(self, *names: str) -> str:
        return storage.join(self.run_dir, *names)

    def labels(self, epoch: int) -> str:
        """The labels table that an epoch was trained on; epochs count from 1."""
        return self._uri("labels", f"epoch-{epoch:03d}")

    def reports_of_parts(self) -> list[str]:
        """Reports of the runs below this folder, as paths relative to it: "box/report.html"; [] for a run."""
        paths = [f"{name}/{REPORT}" for name in storage.list_names(self.run_dir)]
        return [path for path in paths if storage.exists(self._uri(path))]

    def epochs_with_labels(self) -> list[int]:
        """Epochs, counted from 1, that have a whole labels table; [] for a supervision that needs none."""
        matches = [found for name in storage.list_names(self._uri("labels")) if (found := _LABELS.fullmatch(name))]
        return sorted(int(m[1]) for m in matches if m[2] or storage.exists(self._uri("labels", m[0], "manifest.json")))
