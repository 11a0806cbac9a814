"""What a person reads while a run trains: prints what rank 0 tells, and passes it on to the tracker."""

from __future__ import annotations

import time
from typing import Any

from boxsup_dist.config import TrainConfig
from boxsup_dist.distributed import session
from boxsup_dist.distributed.events import Event, Stalled
from boxsup_dist.progress import format_duration
from boxsup_dist.runs.history import entry_metrics
from boxsup_dist.runs.run_events import Begun, EpochDone, Failed, Progress, Warned
from boxsup_dist.tracking.tracker import RunTracker


class Console:
    """Prints what rank 0 tells, and passes it on to the tracker."""

    PROGRESS_EVERY_S = 10.0

    def __init__(self, config: TrainConfig, tracker: RunTracker) -> None:
        self.config, self.tracker = config, tracker
        self.failure: Exception | None = None
        self._stage: tuple[int, str] | None = None
        self._since = self._printed = 0.0

    def handle(self, event: Event) -> None:
        """Dispatch one event of the coordinator."""
        match event:
            case Begun():
                self._on_begin(event.epoch, event.step, event.num_workers)
            case Progress():
                self._on_progress(event.epoch, event.stage, event.done, event.total, event.images_per_s)
            case EpochDone():
                self._on_epoch(event.entry)
            case Warned():
                self._on_warning(event.text)
            case Stalled():
                self._on_stalled(event.seconds)
            case Failed():
                self.failure = event.error
            case _:
                raise AssertionError(f"an event without a handler: {event}")

    def _on_progress(self, epoch: int, stage: str, done: int, total: int, images_per_s: float | None = None) -> None:
        now = time.monotonic()
        if self._stage != (epoch, stage):
            self._stage, self._since, self._printed = (epoch, stage), now, now
            return
        if now - self._printed < self.PROGRESS_EVERY_S or done == 0:
            return
        self._printed = now
        left = (now - self._since) / done * (total - done)
        rate = f"  {images_per_s:.1f} images/s" if images_per_s else ""
        print(f"  epoch {epoch}  {stage} {done}/{total}{rate}  left {format_duration(left)}", flush=True)

    def _on_begin(self, epoch: int, step: int, num_workers: int) -> None:
        where = "the start" if epoch == step == 0 else f"epoch {epoch}, step {step}"
        print(f"training begins at {where}, workers: {num_workers}", flush=True)

    def _on_epoch(self, entry: dict[str, Any]) -> None:
        keys = ("train_loss", "images_per_s", "foreground_share", "share_changed", "label_mean_iou", "mean_iou")
        shown = "  ".join(f"{key} {entry[key]:.3g}" for key in keys if key in entry)
        print(f"epoch {entry['epoch'] + 1}/{self.config.optimizer.epochs}  {shown}", flush=True)
        self.tracker.log_metrics(entry_metrics(entry), step=entry["epoch"])

    def _on_stalled(self, seconds: float) -> None:
        where = "the start of the workers" if self._stage is None else f"epoch {self._stage[0]}, {self._stage[1]}"
        print(f"warning: nothing heard for {seconds:.0f} s from {where}; {session.describe()}", flush=True)

    def _on_warning(self, text: str) -> None:
        print(f"warning: {text}", flush=True)
