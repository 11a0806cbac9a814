"""Progress of a long stage with rate and time left: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
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


class ProgressMeter:
    """Counts finished steps of `total`, and finished units (images), of which the rate is told.

    Use as a context manager; writes to stderr. `done` steps were finished by an earlier call: they count for the bar
    but not for rate and time left.
    """

    def __init__(self, description: str, total: int, *, done: int = 0, unit: str = "images") -> None:
        self.description, self.total, self.unit = description, total, unit
        self.steps = self._steps_before = done
        self.units = 0
        self._start = self._last_line = time.monotonic()
        console = Console(stderr=True)
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[status]}"))
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task(description, total=total, completed=done, status="")

    @property
    def elapsed_s(self) -> float:
        """Seconds since this call began."""
        return time.monotonic() - self._start

    def status(self) -> str:
        """One line such as `12/40  96 images  31.2 images/s  left 4s`."""
        parts = [f"{self.steps}/{self.total}", f"{self.units} {self.unit}"]
        steps_now = self.steps - self._steps_before
        if steps_now and self.elapsed_s > 0:
            parts.append(f"{self.units / self.elapsed_s:.1f} {self.unit}/s")
            parts.append(f"left {format_duration(self.elapsed_s / steps_now * (self.total - self.steps))}")
        return "  ".join(parts)

    def advance(self, units: int) -> None:
        """One more step of `units` units is done."""
        self.steps += 1
        self.units += units
        if self._bar is not None:
            self._bar.update(self._task, completed=self.steps, status=self.status())
        elif time.monotonic() - self._last_line >= _LINE_EVERY_S:
            self._print()

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
        elif kind is None and self.units:
            self._print()
