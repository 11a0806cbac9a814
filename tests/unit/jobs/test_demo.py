"""The end of the demo: figures in words, and the command that compares with the same settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from boxsup_dist.io import storage
from jobs import demo

BOX: Any = {"mean_iou": 64.2, "label_mean_iou": {"first": 85.6, "last": 86.14}, "seconds": {"all": 200.0}}
MASK: Any = {"mean_iou": 64.7, "label_mean_iou": None, "seconds": {"all": 170.0}}
FILLED: Any = {"mean_iou": 55.9, "label_mean_iou": {"first": 61.4, "last": 61.4}, "seconds": {"all": 170.0}}


def test_it_ends_with_a_picture_figures_and_the_next_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage.write_bytes(str(tmp_path / "box/figures/example-a.png"), b"")
    demo._print_result(BOX, str(tmp_path), "NEXT", 246.0)
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line)
    assert lines["network"].startswith("64.2 % mean IoU") and lines["labels"].startswith("86.1 % mean IoU")
    assert lines["time"].startswith("4.1 minutes") and lines["next"] == "NEXT"
    assert lines["picture"] == str(tmp_path / "box/figures/example-a.png")


def test_the_next_command_has_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "program", lambda: "python -m jobs.demo")
    assert demo._command_to_compare(demo.Settings()) == "python -m jobs.demo --compare"
    settings = demo.Settings(voc_root="my kit/VOC2012", seed=3)
    expected = "python -m jobs.demo --compare --voc-root 'my kit/VOC2012' --seed 3"
    assert demo._command_to_compare(settings) == expected


def test_the_comparison_has_a_row_for_each_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs: Any = {"box": BOX, "mask": MASK, "rectangles": FILLED}
    demo._print_comparison(runs, str(tmp_path))
    shown = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in shown.splitlines() if "│" in line]
    assert rows == [
        ["mask", "64.7", "ground truth"],
        ["rectangles", "55.9", "61.4 -> 61.4"],
        ["box", "64.2", "85.6 -> 86.1"],
    ]
    assert "box reaches 99.2% of mask" in shown
    summary = demo._summary(runs, {})
    assert summary["mean_iou"] == {"box": 64.2, "mask": 64.7, "rectangles": 55.9}
    assert summary["label_mean_iou"]["box_last"] == 86.14 and "mask_last" not in summary["label_mean_iou"]
    assert "box_share_of_mask" not in demo._summary({"box": BOX}, {})
