"""What rank 0 does around the epochs of a run: reassign, measure, evaluate, and keep the history.

It joins the stages, which never import each other. Everything that it decides is a function of weights, tables and
settings, so a run that resumes decides the same again.

The training loop counts finished epochs, from 0: `epoch` in the methods of Coordinator. Files, history, events and
messages count from 1: `number`, which is `epoch + 1`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ray
import torch

from boxsup_dist.assignment.assign import repeats
from boxsup_dist.assignment.reassign import reassign
from boxsup_dist.config import TrainConfig
from boxsup_dist.data.labels import Labels, read_labels, summarise
from boxsup_dist.distributed.events import EventPost
from boxsup_dist.distributed.rates import StageRates
from boxsup_dist.errors import InputError
from boxsup_dist.evaluation.confusion import write_confusion
from boxsup_dist.evaluation.evaluate import evaluate, measure_labels, to_summary
from boxsup_dist.io import storage
from boxsup_dist.io.lease import Claim
from boxsup_dist.runs.events import Begun, Failed, Measured, Progress, Starting, Warned
from boxsup_dist.runs.examples import draw_examples, store_figures
from boxsup_dist.runs.history import HistoryEntry, read_history, write_history
from boxsup_dist.runs.inputs import Inputs
from boxsup_dist.runs.layout import RunFiles
from boxsup_dist.runs.networks import make_pool

NUM_EXAMPLE_GROUPS = 2
COLLAPSE_RATIO = 0.25  # predicted foreground below this share of the labels' gives a warning
_MORE = "train for more epochs, or with a larger optimizer.lr"
COLLAPSE_WARNING = (
    "the network predicts less than a quarter of the foreground that its label maps have; labels that follow such a "
    f"network may collapse: {_MORE}; for boxes see also assignment.form and assignment.warmup_epochs"
)
ALL_BACKGROUND_WARNING = f"the network predicts background everywhere, its label maps have objects: {_MORE}"
NO_OBJECT_WARNING = (
    "the label maps have no object, so the network learns background alone: do the records have boxes, and do the "
    "proposals have segments for them?"
)
ALL_BACKGROUND_EVALUATION = f"every pixel of the validation images is predicted as background: {_MORE}"


def foreground_warning(predicted: float, labelled: float) -> str | None:
    """What to warn of after an epoch; None: nothing.

    Args:
        predicted: Share of the labelled pixels that the network predicted to be an object, during training.
        labelled: Share of the same pixels that are an object in the label maps.
    """
    if labelled == 0:
        return NO_OBJECT_WARNING
    if predicted == 0:
        return ALL_BACKGROUND_WARNING
    return COLLAPSE_WARNING if predicted < COLLAPSE_RATIO * labelled else None


class Coordinator:
    """See the module; implements training.loop.Coordinator."""

    def __init__(self, config: TrainConfig, inputs: Inputs, post: EventPost, claim: Claim) -> None:
        self.config, self.inputs, self.post, self.claim = config, inputs, post, claim
        self.files = RunFiles(config.run_dir)
        self.history = read_history(config.run_dir)
        self.stages_s = 0.0  # total seconds in stages; subtracted from the pause between epochs to get the overhead
        self.rates = StageRates()
        self.pool = make_pool(inputs.network, config.resources, warn=lambda text: post(Warned(text)))
        post(Starting("building the network; the actors start"))

    def begin(self, epoch: int, step: int, num_workers: int) -> None:
        """Report where the workers start."""
        self.post(Begun(epoch + 1, step, num_workers))

    # -- labels ------------------------------------------------------------------------------------------------------

    def labels(self, epoch: int, weights: dict[str, torch.Tensor]) -> ray.ObjectRef[Labels] | None:
        """Reassign with these weights; store and measure the labels.

        Returns:
            A reference to the labels of the coming epoch, None for a supervision whose labels never change.
        """
        number = epoch + 1
        self.history = {n: entry for n, entry in self.history.items() if n < number}
        if not self._assigns():
            if number == 1 and self.inputs.can_measure_labels:
                self._measure(number, None)
            return None
        labels = self._reassign(epoch, weights)
        if self.inputs.can_measure_labels:
            self._measure(number, labels)
        return ray.put(labels)

    def _reassign(self, epoch: int, weights: dict[str, torch.Tensor]) -> Labels:
        number, mixture = epoch + 1, self.inputs.mixture
        num_images = sum(len(mixture.units[index].rows) for index in mixture.with_supervision("box"))
        with self._stage(number, "reassign", num_images) as on_progress:
            previous = read_labels(self.files.labels(number - 1)) if number > 1 else None
            if previous is not None and repeats(mixture.assignment, epoch):
                labels = previous
            else:
                labels = reassign(self.pool, mixture, weights=ray.put(weights), epoch=epoch, on_progress=on_progress)
            self.check_writer()
            storage.write_bytes(self.files.labels(number), labels.to_parquet())
            self._note(number, **summarise(labels, previous))
        if labels is not previous:
            self.rates.set_boxes(labels.table.num_rows / self.history[number].seconds["reassign"])
        return labels

    def _assigns(self) -> bool:
        return bool(self.inputs.mixture.with_supervision("box"))

    def stored_labels(self, epoch: int) -> ray.ObjectRef[Labels] | None:
        """The labels that an interrupted epoch began with."""
        return ray.put(read_labels(self.files.labels(epoch + 1))) if self._assigns() else None

    def _measure(self, number: int, labels: Labels | None) -> None:
        mixture = self.inputs.mixture
        num_images = sum(len(mixture.units[index].rows) for index in mixture.with_measurable_labels())
        with self._stage(number, "measure_labels", num_images) as on_progress:
            result = measure_labels(
                self.pool,
                mixture,
                labels,
                num_classes=len(self.inputs.class_names),
                on_progress=on_progress,
            )
        self._note(number, label_mean_iou=to_summary(result, self.inputs.class_names)["mean_iou"])

    # -- after an epoch ----------------------------------------------------------------------------------------------

    def record(self, epoch: int, metrics: dict[str, float], bad_records: dict[str, str]) -> None:
        """Keep an epoch's metrics; warn of records that were left out, and of too little foreground."""
        number = epoch + 1
        self._note(number, **metrics, bad_records=bad_records)
        before = self.history.get(number - 1)
        for image_id, problem in bad_records.items():
            if before is None or image_id not in before.bad_records:
                self._warn(number, f"left out: {problem}")
        warning = foreground_warning(metrics["foreground_share"], metrics["label_foreground_share"])
        if warning is not None:
            self._warn(number, warning)
        self._report(number, complete=not self._is_due(number))

    def _warn(self, number: int, text: str) -> None:
        self._note(number, warnings=(*self.history[number].warnings, text))
        before = self.history.get(number - 1)
        if before is None or text not in before.warnings:  # said once, not in every epoch; the history has them all
            self.post(Warned(f"epoch {number}: {text}"))

    def _is_due(self, number: int) -> bool:
        """True if the epoch ends with an evaluation."""
        every = self.config.evaluate_every
        return self.inputs.val_records is not None and (
            number == self.config.optimizer.epochs or (every > 0 and number % every == 0)
        )

    def evaluate(self, epoch: int, weights: dict[str, torch.Tensor]) -> None:
        """Mean IoU on the validation records if this epoch is due and has none yet; example figures after the last."""
        number = epoch + 1
        if number == self.config.optimizer.epochs:
            self._draw(number, weights)
        known = self.history.get(number)
        if not self._is_due(number) or (known is not None and known.mean_iou is not None):
            return
        assert self.inputs.val_records is not None
        with self._stage(number, "evaluate", self.inputs.num_val_images) as on_progress:
            result = evaluate(
                self.pool,
                self.inputs.val_records,
                weights=ray.put(weights),
                version=f"after-epoch-{number}",
                num_classes=len(self.inputs.class_names),
                on_progress=on_progress,
            )
        write_confusion(self.files.confusion, result.confusion, self.inputs.class_names)
        self._note(number, **to_summary(result, self.inputs.class_names))
        if result.is_all_background:
            self._warn(number, ALL_BACKGROUND_EVALUATION)
        self._report(number, complete=True)

    def _draw(self, number: int, weights: dict[str, torch.Tensor]) -> None:
        """Example figures of the first units."""
        units = range(min(NUM_EXAMPLE_GROUPS, len(self.inputs.mixture.units)))
        with self._stage(number, "figures") as on_progress:
            drawn = self.pool.map(
                draw_examples,
                units,
                weights=ray.put(weights),
                version=f"after-epoch-{number}",
                on_progress=on_progress,
                mixture=self.inputs.mixture,
                run_dir=self.config.run_dir,
                num_epochs=self.config.optimizer.epochs,
                class_names=self.inputs.class_names,
                show_ground_truth=self.config.measure_labels,
            )
            for figures in drawn:
                store_figures(self.config.run_dir, figures)

    def on_progress(self, epoch: int, step: int, num_steps: int, images_per_s: float) -> None:
        """Report how far the epoch is."""
        self.rates.set("train", images_per_s)
        self.post(Progress(epoch + 1, "train", step, num_steps, images_per_s))

    def check_writer(self) -> None:
        """Raise LeaseError if another command has taken the run directory over."""
        self.claim.check()

    def fail(self, error: InputError) -> None:
        """Report to the driver why the run ends."""
        self.post.wait(Failed(error))

    def close(self) -> None:
        """End the pool."""
        self.pool.close()

    # -- history -----------------------------------------------------------------------------------------------------

    def _note(self, number: int, **values: Any) -> None:
        """Keep fields of an epoch's HistoryEntry."""
        self.check_writer()
        entry = self.history.get(number, HistoryEntry(number))
        self.history[number] = replace(entry, **values)
        write_history(self.config.run_dir, self.history)

    def _report(self, number: int, *, complete: bool) -> None:
        self.post(Measured(self.history[number], complete))

    @contextmanager
    def _stage(self, number: int, name: str, num_images: int = 0) -> Iterator[Callable[[int, int], None]]:
        """Time a stage into the history, and give a callback that reports its progress."""
        started = time.perf_counter()

        def on_progress(done: int, total: int) -> None:
            if num_images:
                self.rates.set(name, num_images * done / total / max(time.perf_counter() - started, 1e-9))
            self.post(Progress(number, name, done, total))

        yield on_progress
        seconds = time.perf_counter() - started
        self.stages_s += seconds
        entry = self.history.get(number, HistoryEntry(number))
        self._note(number, seconds={**entry.seconds, name: seconds})
