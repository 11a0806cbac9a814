"""The commands and the Python that README and pages mark to run: all of them, in reading order, on small data.

Trainings end after EPOCHS. One has the network of its recipe; the others a tiny one, which takes a third of the time.
"""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from boxsup_dist import api
from boxsup_dist.records.synthetic import write_synthetic
from tests.distributed import tiny
from tests.docs_blocks import all_blocks

NUM_TRAIN, NUM_VAL = 10, 2
EPOCHS = 2
WITH_OWN_NETWORK = "mini"  # a recipe
TINY_NETWORK = ("--network.name", tiny.NETWORK.name, "--network.weights", "none")


def run_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m jobs.NAME ...` in this process, in the Ray session of the tests; `python -c` in another."""
    assert words[0] == "python", words
    if words[1] == "-c":
        subprocess.run([sys.executable, *words[1:]], check=True)
        return
    assert words[1] == "-m" and words[2].startswith("jobs."), words
    if words[2] == "jobs.train":
        network = () if words[3] == WITH_OWN_NETWORK else TINY_NETWORK
        words = [*words, *network, "--optimizer.epochs", str(EPOCHS)]  # of an option given twice, the last one counts
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", words[2:])
        try:
            runpy.run_module(words[2], run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            assert not ended.code, f"exit status {ended.code}"


def test_marked_commands_run_in_order(ray_local, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_synthetic("VOCdevkit", NUM_TRAIN, NUM_VAL)
    blocks = [block for block in all_blocks() if block.before == "<!-- run -->"]
    pages = ("README.md", "docs/getting-started.md", "docs/using-a-network.md", "docs/api.md")
    assert {block.page for block in blocks} >= set(pages)
    started = time.monotonic()
    shutil.copy(next(Path("VOCdevkit/VOC2012/JPEGImages").iterdir()), "photo.jpg")
    names: dict[str, object] = {}
    for block in blocks:
        if block.language == "python":  # a later block of a page has the names of an earlier one
            exec(compile(block.text, block.where, "exec"), names)
            continue
        for words in block.commands:
            print(f"{time.monotonic() - started:.1f} s: {' '.join(words)}", flush=True)
            try:
                run_command(words, monkeypatch)
            except Exception as error:
                raise AssertionError(f"{block.where}: {' '.join(words)}") from error
    label_maps = {path.stem for path in (tmp_path / "runs/box-predictions/label_maps").rglob("*.png")}
    assert len(label_maps) == NUM_TRAIN + NUM_VAL
    assert api.read_image("overlay.jpg").shape[:2] == api.read_label_map("photo.png").shape
    assert (tmp_path / "runs/tour-figures/labels-and-prediction-box.png").is_file()
