"""What rank 0 does around the epochs of a run: reassign, measure, evaluate, and keep the history.

It joins the stages, which never import each other. Everything that it decides is a function of weights, tables and
settings, so a run that resumes decides the same again.

    RUN/labels/epoch-003.parquet   the labels that epoch 3 was trained on
    RUN/history.jsonl              one line an epoch
    RUN/confusion.json             confusion matrix of the last evaluation
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
import torch

from boxsup_dist.assignment.assign import repeats
from boxsup_dist.assignment.reassign import reassign
from boxsup_dist.config import TrainConfig
from boxsup_dist.data.labels import Labels, labels_uri, read_labels, summarise
from boxsup_dist.distributed.events import EventPost
from boxsup_dist.distributed.rates import StageRates
from boxsup_dist.evaluation.confusion import write_confusion
from boxsup_dist.evaluation.evaluate import evaluate, measure_labels, to_summary
from boxsup_dist.io import storage
from boxsup_dist.runs.examples import draw_examples, store_figures
from boxsup_dist.runs.history import read_history
from boxsup_dist.runs.inputs import Inputs
from boxsup_dist.runs.networks import make_pool
from boxsup_dist.runs.run_events import Begun, EpochDone, Failed, Progress, Warned

NUM_EXAMPLE_GROUPS = 2
COLLAPSE_RATIO = 0.25  # predicted foreground below this share of the labels' is told as a warning


class Coordinator:
    """See the module; implements training.loop.Coordinator."""

    def __init__(self, config: TrainConfig, inputs: Inputs, post: EventPost) -> None:
        self.config, self.inputs, self.post = config, inputs, post
        self.history = read_history(config.run_dir)
        self.stages_s = 0.0  # spent in stages since the start, so that what is left of a gap can be told
        self.rates = StageRates()
        self.pool = make_pool(inputs.network, config.resources, warn=lambda text: self.post(Warned(text)))

    def begin(self, epoch: int, step: int, num_workers: int) -> None:
        """Tell where the workers begin."""
        self.post(Begun(epoch, step, num_workers))

    # -- labels ------------------------------------------------------------------------------------------------------

    def labels(self, epoch: int, weights: dict[str, torch.Tensor]) -> ray.ObjectRef | None:
        """Reassign with these weights, store and measure the labels; a reference to them, None for static labels."""
        self.history = {e: entry for e, entry in self.history.items() if e < epoch}
        if not self._assigns():
            if epoch == 0 and self.inputs.can_measure_labels:
                self._measure(epoch, None)
            return None
        mixture = self.inputs.mixture
        num_images = sum(len(mixture.units[index].rows) for index in mixture.with_supervision("box"))
        with self._stage(epoch, "reassign", num_images) as on_progress:
            previous = read_labels(labels_uri(self.config.run_dir, epoch - 1)) if epoch else None
            if previous is not None and repeats(mixture.assignment, epoch):
                labels = previous
            else:
                labels = reassign(self.pool, mixture, weights=ray.put(weights), epoch=epoch, on_progress=on_progress)
            storage.write_bytes(labels_uri(self.config.run_dir, epoch), labels.to_parquet())
            self._note(epoch, summarise(labels, previous))
        if labels is not previous:
            self.rates.set_boxes(labels.table.num_rows / self.history[epoch]["seconds"]["reassign"])
        if self.inputs.can_measure_labels:
            self._measure(epoch, labels)
        return ray.put(labels)

    def _assigns(self) -> bool:
        return bool(self.inputs.mixture.with_supervision("box"))

    def stored_labels(self, epoch: int) -> ray.ObjectRef | None:
        """The labels that an interrupted epoch began with."""
        if not self._assigns():
            return None
        return ray.put(read_labels(labels_uri(self.config.run_dir, epoch)))

    def _measure(self, epoch: int, labels: Labels | None) -> None:
        num_images = sum(len(unit.rows) for unit in self.inputs.mixture.units)
        with self._stage(epoch, "measure_labels", num_images) as on_progress:
            result = measure_labels(
                self.pool,
                self.inputs.mixture,
                labels,
                num_classes=len(self.inputs.class_names),
                on_progress=on_progress,
            )
        confusion = result.confusion
        self._note(
            epoch,
            {
                "label_mean_iou": to_summary(result, self.inputs.class_names)["mean_iou"],
                "label_foreground_share": float(confusion[:, 1:].sum() / confusion.sum()),
            },
        )

    # -- after an epoch ----------------------------------------------------------------------------------------------

    def record(self, epoch: int, metrics: dict[str, float], bad_records: dict[str, str]) -> None:
        """Keep an epoch's metrics; warn of records that were left out, and of a collapse of the foreground."""
        self._note(epoch, metrics)
        entry = self.history[epoch]
        told = self.history.get(epoch - 1, {}).get("bad_records", {})
        if bad_records:
            self._note(epoch, {"bad_records": bad_records})
        for image_id, problem in bad_records.items():
            if image_id not in told:
                self._warn(epoch, f"left out: {problem}")
        expected = entry.get("label_foreground_share")
        if expected and metrics["foreground_share"] < COLLAPSE_RATIO * expected:
            text = (
                f"epoch {epoch + 1}: the network predicts {metrics['foreground_share']:.1%} foreground, its labels "
                f"have {expected:.1%}; labels that follow it may collapse (see assignment.form and warmup_epochs)"
            )
            self._warn(epoch, text)
        self._tell(epoch)

    def _warn(self, epoch: int, text: str) -> None:
        self._note(epoch, {"warnings": [*self.history[epoch].get("warnings", []), text]})
        self.post(Warned(text))

    def evaluate(self, epoch: int, weights: dict[str, torch.Tensor]) -> None:
        """Mean IoU on the validation records if this epoch is due and has none yet."""
        every, last = self.config.evaluate_every, epoch == self.config.optimizer.epochs - 1
        if last:
            self._draw(epoch, weights)
        due = last or (every > 0 and (epoch + 1) % every == 0)
        if self.inputs.val_records is None or not due or "mean_iou" in self.history.get(epoch, {}):
            return
        with self._stage(epoch, "evaluate", self.inputs.val_records.num_rows) as on_progress:
            result = evaluate(
                self.pool,
                self.inputs.val_records,
                weights=ray.put(weights),
                version=f"after-epoch-{epoch}",
                num_classes=len(self.inputs.class_names),
                on_progress=on_progress,
            )
        write_confusion(self.config.run_dir, result.confusion, self.inputs.class_names)
        self._note(epoch, to_summary(result, self.inputs.class_names))
        self._tell(epoch)

    def _draw(self, epoch: int, weights: dict[str, torch.Tensor]) -> None:
        """Example figures of the first units."""
        units = range(min(NUM_EXAMPLE_GROUPS, len(self.inputs.mixture.units)))
        with self._stage(epoch, "figures") as on_progress:
            drawn = self.pool.map(
                draw_examples,
                units,
                weights=ray.put(weights),
                version=f"after-epoch-{epoch}",
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
        """Tell how far the epoch is."""
        self.rates.set("train", images_per_s)
        self.post(Progress(epoch, "train", step, num_steps, images_per_s))

    def fail(self, error: Exception) -> None:
        """Tell the driver why the run ends."""
        self.post.wait(Failed(error))

    def close(self) -> None:
        """End the pool."""
        self.pool.close()

    # -- history -----------------------------------------------------------------------------------------------------

    def _note(self, epoch: int, values: dict[str, Any]) -> None:
        entry = self.history.setdefault(epoch, {"epoch": epoch, "seconds": {}})
        entry.update(values)
        lines = [json.dumps(self.history[e]) for e in sorted(self.history)]
        storage.write_bytes(storage.join(self.config.run_dir, "history.jsonl"), ("\n".join(lines) + "\n").encode())

    def _tell(self, epoch: int) -> None:
        self.post(EpochDone(self.history[epoch]))

    @contextmanager
    def _stage(self, epoch: int, name: str, num_images: int = 0) -> Iterator[Callable[[int, int], None]]:
        """Time a stage into the history, and give a callback that tells its progress."""
        started = time.perf_counter()

        def on_progress(done: int, total: int) -> None:
            if num_images:
                self.rates.set(name, num_images * done / total / max(time.perf_counter() - started, 1e-9))
            self.post(Progress(epoch, name, done, total))

        yield on_progress
        seconds = time.perf_counter() - started
        self.stages_s += seconds
        entry = self.history.setdefault(epoch, {"epoch": epoch, "seconds": {}})
        self._note(epoch, {"seconds": {**entry["seconds"], name: seconds}})
