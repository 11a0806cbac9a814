"""What rank 0 does around the epochs of a run: reassign, measure, evaluate, and keep the history.

The training waits for the reassignment. What it does not need, evaluation, measurement and figures, runs beside the
next epoch (`Beside`) and comes into the history when it is over. So the epoch whose evaluation still runs is at most
one behind, its checkpoint is kept until then, and a run that is killed before starts that evaluation again from there.

It joins the stages, which never import each other. Everything that it decides is a function of weights, tables and
settings, so a run that resumes decides the same again.

The training loop counts finished epochs, from 0: `epoch` in the methods of Coordinator. Files, history, events and
messages count from 1: `number`, which is `epoch + 1`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import ray
import torch

from boxsup_dist.assignment.assign import repeats
from boxsup_dist.assignment.reassign import reassign
from boxsup_dist.config import Resources, TrainConfig
from boxsup_dist.data.labels import LabelsTable, open_labels, publish, publish_again
from boxsup_dist.distributed.events import EventPost
from boxsup_dist.distributed.rates import StageRates
from boxsup_dist.errors import InputError
from boxsup_dist.evaluation.boxes import BoxResult, box_summary
from boxsup_dist.evaluation.evaluate import evaluate, evaluate_boxes, measure_labels, to_summary
from boxsup_dist.evaluation.units import UnitResult
from boxsup_dist.io import storage
from boxsup_dist.io.lease import Claim
from boxsup_dist.model import checkpoint
from boxsup_dist.runs.beside import Beside
from boxsup_dist.runs.evaluated import keep_matrices
from boxsup_dist.runs.events import Begun, Failed, Measured, Progress, Spent, Starting, Warned
from boxsup_dist.runs.examples import (
    choose_examples,
    draw_examples,
    score_examples,
    store_figures,
    units_to_score,
)
from boxsup_dist.runs.history import HistoryEntry, best_epoch, read_history, write_history
from boxsup_dist.runs.inputs import Inputs, evaluates_boxes
from boxsup_dist.runs.layout import RunFiles
from boxsup_dist.runs.networks import make_pool
from boxsup_dist.runs.timeline import REST, STEPS, Clock

POST_EVERY_S = 0.2  # between two posts of the account of time: what a failure leaves unknown of the newest steps
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

NOT_EVALUATED = "not evaluated: the run was interrupted before, and the checkpoint of this epoch is gone"


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
        self.rates, self.clock = StageRates(), Clock()
        self.position, self._posted = (0, 0), 0.0  # epoch and step; when the account of time was posted last
        assert isinstance(config.resources, Resources), "ResourceSettings.resolve comes first"
        self.beside = Beside(at_once=not config.resources.evaluate_beside)
        self._lock = threading.RLock()  # of the history: the stages beside the training write it too
        self.pool = make_pool(inputs.network, config.resources, warn=lambda text: post(Warned(text)))
        post(Starting("building the network; the actors start"))

    def begin(self, epoch: int, step: int, num_workers: int) -> None:
        """Report where the workers start."""
        self.clock, self.position = Clock(), (epoch, step)
        self.post(Begun(epoch + 1, step, num_workers))

    # -- labels ------------------------------------------------------------------------------------------------------

    def labels(self, epoch: int, weights: dict[str, torch.Tensor]) -> ray.ObjectRef[LabelsTable] | None:
        """Reassign with these weights; store the labels, and measure them beside the training.

        Returns:
            A reference to the labels of the coming epoch, None for a supervision whose labels never change.
        """
        number = epoch + 1
        with self._lock:
            self.history = {n: entry for n, entry in self.history.items() if n < number}
        if not self._assigns():
            return None
        with self.spending("reassign"):
            return ray.put(self._reassign(epoch, weights))

    def _reassign(self, epoch: int, weights: dict[str, torch.Tensor]) -> LabelsTable:
        number, mixture = epoch + 1, self.inputs.mixture
        num_images = sum(len(mixture.units[index].rows) for index in mixture.with_supervision("box"))
        with self._stage(number, "reassign", num_images) as on_progress:
            uri = self.files.labels(number)
            previous = open_labels(self.files.labels(number - 1)) if number > 1 else None
            repeated = previous if repeats(mixture.assignment, epoch) else None
            if repeated is not None:
                self.check_writer()
                labels = publish_again(uri, repeated)
            else:
                shards = reassign(
                    self.pool,
                    mixture,
                    weights=ray.put(weights),
                    epoch=epoch,
                    uri=uri,
                    previous=previous,
                    on_progress=on_progress,
                )
                self.check_writer()
                labels = publish(uri, shards, len(mixture.units))
            self._note(number, **labels.summary())
        if repeated is None:
            self.rates.set_boxes(labels.num_rows / self.history[number].seconds["reassign"])
        return labels

    def _assigns(self) -> bool:
        return bool(self.inputs.mixture.with_supervision("box"))

    def stored_labels(self, epoch: int) -> ray.ObjectRef[LabelsTable] | None:
        """The labels that an interrupted epoch began with."""
        return ray.put(open_labels(self.files.labels(epoch + 1))) if self._assigns() else None

    def _measures(self, number: int) -> bool:
        """True if the labels of the epoch are measured: of every epoch, or of the first if they never change."""
        return self.inputs.can_measure_labels and (number == 1 or self._assigns())

    def _measure(self, number: int) -> None:
        mixture = self.inputs.mixture
        labels = open_labels(self.files.labels(number)) if self._assigns() else None
        num_images = sum(len(mixture.units[index].rows) for index in mixture.with_measurable_labels())
        with self._stage(number, "measure_labels", num_images) as on_progress:
            result = measure_labels(
                self.pool,
                mixture,
                labels,
                num_classes=len(self.inputs.class_names),
                on_progress=on_progress,
            )
        self._note(number, **result.metrics())
        self._report(number)

    # -- after an epoch ----------------------------------------------------------------------------------------------

    def record(self, epoch: int, metrics: dict[str, float], bad_records: dict[str, str]) -> None:
        """Keep an epoch's metrics; warn of records that were left out, and of too little foreground."""
        self.clock.switch(REST)
        number = epoch + 1
        self._note(number, **metrics, bad_records=bad_records)
        before = self.history.get(number - 1)
        for image_id, problem in bad_records.items():
            if before is None or image_id not in before.bad_records:
                self._warn(number, f"left out: {problem}")
        warning = foreground_warning(metrics["foreground_share"], metrics["label_foreground_share"])
        if warning is not None:
            self._warn(number, warning)
        self._report(number)
        self._post_spent()

    def _warn(self, number: int, text: str) -> None:
        with self._lock:
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

    def _lacks_evaluation(self, number: int) -> bool:
        entry = self.history.get(number)
        return self._is_due(number) and (
            entry is None or (entry.quality is None and NOT_EVALUATED not in entry.warnings)
        )

    def epochs_to_keep(self) -> set[int]:
        """The best epoch so far, and those that are not evaluated yet."""
        with self._lock:
            best = best_epoch(self.history)
            return {n for n in self.history if self._lacks_evaluation(n)} | (set() if best is None else {best})

    def start_stages(self, num_epochs: int, weights: dict[str, torch.Tensor] | None) -> None:
        """Start what is due and not done: evaluations up to this epoch, the measurement of the coming epoch's labels.

        Args:
            num_epochs: Number of the epoch that ended last.
            weights: The network after it; None inside the next epoch: then its checkpoint has them.
        """
        with self.spending("stages"):
            for number in [n for n in self.history if n < num_epochs and self._lacks_evaluation(n)]:
                self.beside.start(partial(self._evaluate_stored, number))
            if weights is None and num_epochs and self._lacks_evaluation(num_epochs):
                self.beside.start(partial(self._evaluate_stored, num_epochs))
            elif weights is not None and num_epochs:
                self._start_evaluation(num_epochs, weights)
            coming = num_epochs + 1
            entry = self.history.get(coming, HistoryEntry(coming))
            is_measured = entry.label_mean_iou is not None or not self._measures(coming)
            if coming <= self.config.optimizer.epochs and not is_measured:
                self.beside.start(partial(self._measure, coming))
        self.clock.switch(STEPS)

    def _start_evaluation(self, number: int, weights: dict[str, torch.Tensor]) -> None:
        """Evaluate the epoch if it is due; draw the examples of the last one."""
        draws, evaluates = number == self.config.optimizer.epochs, self._lacks_evaluation(number)
        if draws or evaluates:
            copy = ray.put(weights)  # before the training goes on
            if draws:
                self.beside.start(partial(self._draw, number, copy))
            if evaluates:
                self.beside.start(partial(self._evaluate, number, copy))

    def _evaluate_stored(self, number: int) -> None:
        """Evaluate an epoch of before with the weights of its checkpoint."""
        uri = storage.join(self.files.checkpoints, checkpoint.checkpoint_name(number, 0))
        if uri not in checkpoint.list_checkpoints(self.config.run_dir):
            self._warn(number, NOT_EVALUATED)
            return
        self._evaluate(number, ray.put(checkpoint.load_weights(uri)[1]))

    def finish_stages(self) -> None:
        """Wait for the stages beside the training."""
        self.clock.switch(REST)
        with self.spending("stages"):
            self.beside.wait()
        self._post_spent()

    def _evaluate(self, number: int, weights: ray.ObjectRef[dict[str, torch.Tensor]]) -> None:
        """Mean IoU on the validation records; their box score if none has a mask."""
        records, names = self.inputs.val_records, self.inputs.class_names
        assert records is not None
        common: dict[str, Any] = {"weights": weights, "version": f"after-epoch-{number}", "num_classes": len(names)}
        result: BoxResult | UnitResult
        with self._stage(number, "evaluate", self.inputs.num_val_images) as on_progress:
            if evaluates_boxes(records):
                result = evaluate_boxes(self.pool, records, on_progress=on_progress, **common)
                found = box_summary(result, names)
            else:
                result = evaluate(self.pool, records, on_progress=on_progress, **common)
                found = to_summary(result, names)
                keep_matrices(self.config.run_dir, result, names)
        self._note(number, **found)
        if result.is_all_background:
            self._warn(number, ALL_BACKGROUND_EVALUATION)
        self._report(number)

    def _draw(self, number: int, weights: ray.ObjectRef[dict[str, torch.Tensor]]) -> None:
        """Figures of the worst and the best of some training images."""
        options: dict[str, Any] = {
            "weights": weights,
            "version": f"after-epoch-{number}",
            "mixture": self.inputs.mixture,
            "run_dir": self.config.run_dir,
            "num_epochs": self.config.optimizer.epochs,
            "class_names": self.inputs.class_names,
            "show_ground_truth": self.config.measure_labels,
        }
        with self._stage(number, "figures") as on_progress:
            units = units_to_score(len(self.inputs.mixture.units))
            scored = [example for part in self.pool.map(score_examples, units, **options) for example in part]
            chosen = choose_examples(scored)
            for figures in self.pool.map(draw_examples, chosen, on_progress=on_progress, **options):
                store_figures(self.config.run_dir, figures)

    # -- time --------------------------------------------------------------------------------------------------------

    @property
    def stages_s(self) -> float:
        """Total seconds that the training has waited for stages."""
        seconds = self.clock.seconds()
        return seconds.get("reassign", 0.0) + seconds.get("stages", 0.0)

    @contextmanager
    def spending(self, activity: str) -> Iterator[None]:
        """Account for the time of the block, in which the training waits, as time of this activity."""
        with self.clock.during(activity):
            yield
        self._post_spent()

    def on_step(self, epoch: int, step: int, waited_s: float) -> None:
        """Account for a step, and for its wait for the stream."""
        self.position = (epoch, step)
        self.clock.move(waited_s, STEPS, "data")
        if time.perf_counter() - self._posted > POST_EVERY_S:
            self._post_spent()

    def _post_spent(self) -> None:
        self._posted = time.perf_counter()
        epoch, step = self.position
        self.post(Spent(epoch + 1, step, self.clock.seconds()))

    def on_progress(self, epoch: int, step: int, num_steps: int, images_per_s: float) -> None:
        """Report how far the epoch is; raise what a stage beside the training has raised."""
        self.beside.check()
        self.rates.set("train", images_per_s)
        self.post(Progress(epoch + 1, "train", step, num_steps, images_per_s))

    def check_writer(self) -> None:
        """Raise LeaseError if another command has taken the run directory over."""
        self.claim.check()

    def fail(self, error: InputError) -> None:
        """Report to the driver why the run ends."""
        self.post.wait(Failed(error))

    def close(self) -> None:
        """End the pool, and with it the stages beside the training; say how far the training came."""
        self._post_spent()
        self.beside.close()
        self.pool.close()

    # -- history -----------------------------------------------------------------------------------------------------

    def _note(self, number: int, **values: Any) -> None:
        """Keep fields of an epoch's HistoryEntry."""
        self.check_writer()
        with self._lock:
            entry = self.history.get(number, HistoryEntry(number))
            self.history[number] = replace(entry, **values)
            write_history(self.config.run_dir, self.history)

    def _report(self, number: int) -> None:
        """Report the metrics of an epoch that is trained; they are complete once all its stages are over."""
        entry = self.history[number]
        if entry.train_loss is not None:
            lacks_labels = self._measures(number) and entry.label_mean_iou is None
            self.post(Measured(entry, complete=not (lacks_labels or self._lacks_evaluation(number))))

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
        with self._lock:
            entry = self.history.get(number, HistoryEntry(number))
            self._note(number, seconds={**entry.seconds, name: seconds})
