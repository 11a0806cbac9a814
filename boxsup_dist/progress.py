"""The progress of a long stage, with rate and time left: a live bar on a terminal, a line every 10 s elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

_LINE_EVERY_S = 10.0


def format_duration(seconds: float) -> str:
    """Seconds as 42s, 3m07s or 2h05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 table", "1,234 tables"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class ProgressMeter:
    """Counts the finished steps of a stage and the images in them, and shows them on stderr; a context manager."""

    def __init__(self, description: str, total: int, *, done: int = 0) -> None:
        """Make a meter; it starts when its block is entered.

        Args:
            description: Name of the stage.
            total: Number of steps.
            done: Steps that an earlier call finished: part of the bar, but not of the rate and the time left.
        """
        self.description, self.total = description, total
        self.steps = self._steps_before = done
        self.num_images = 0
        self._start = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        if sys.stderr.isatty():  # rich itself also believes FORCE_COLOR, which notebooks set
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[status]}"))
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(description, total=total, completed=done, status="")

    @property
    def elapsed_s(self) -> float:
        """Seconds since the meter was made."""
        return time.monotonic() - self._start

    def status(self) -> str:
        """One line such as `12/40  96 images  31.2 images/s  left 4s`."""
        parts = [f"{self.steps}/{self.total}", f"{self.num_images} images"]
        steps_now = self.steps - self._steps_before
        if steps_now and self.elapsed_s > 0:
            parts.append(f"{self.num_images / self.elapsed_s:.1f} images/s")
            parts.append(f"left {format_duration(self.elapsed_s / steps_now * (self.total - self.steps))}")
        return "  ".join(parts)

    def advance(self, num_images: int) -> None:
        """Count one more finished step of `num_images` images, and show the progress if it is due."""
        self.steps += 1
        self.num_images += num_images
        if self._bar is not None:
            self._bar.update(self._task, completed=self.steps, status=self.status())
        elif time.monotonic() - self._last_line >= _LINE_EVERY_S:
            self._print()

    def advance_to(self, sizes: Sequence[int]) -> Callable[[int, int], None]:
        """A function of (finished steps, all steps) that counts new ones; step i has sizes[i] images."""

        def on_progress(done: int, _: int) -> None:
            for size in sizes[self.steps : done]:
                self.advance(size)

        return on_progress

    def _print(self) -> None:
        self._last_line = time.monotonic()
        print(f"{self.description}: {self.status()}", file=sys.stderr, flush=True)

    def __enter__(self) -> ProgressMeter:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and self.num_images:
            self._print()
