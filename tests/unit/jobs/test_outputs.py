"""An output that cannot be written ends every command before its work, in one line with the path."""

from __future__ import annotations

import errno
import importlib
import os
import subprocess
import sys
import typing
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from boxsup_dist.io import storage
from boxsup_dist.runs import command_line
from jobs.__main__ import COMMANDS

FILES = {"calibrate", "get_hed_weights", "results_page"}  # whose output is a file
VALUES = {"recipe": ["mini"], "table": ["--table", "1"], "method": ["--method", "grabcut"]}


def settings_of(name: str) -> type[Any]:
    return typing.cast(type, importlib.import_module(f"jobs.{name}").Settings)


NAMES = sorted(
    name
    for group in COMMANDS.values()
    for name in group
    if name not in ("bench", "drill", "train", "submit") and "out" in {f.name for f in fields(settings_of(name))}
)


def needed(name: str) -> Iterator[str]:
    """The other settings without a default; nothing reads them before the output is checked."""
    for field in fields(settings_of(name)):
        if field.name != "out" and field.default is MISSING and field.default_factory is MISSING:
            option = "run-dir" if field.name == "run_dirs" else field.name.replace("_", "-")
            yield from VALUES.get(field.name, [f"--{option}", "absent"])


def run_line(name: str, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints that ends with status 2; it loads nothing that takes seconds."""
    module = importlib.import_module(f"jobs.{name}")
    monkeypatch.setattr(sys, "argv", [name, *needed(name), "--out", str(out)])
    choose = getattr(module, "with_method_settings", None)
    with pytest.raises(SystemExit) as exit_:
        command_line.run(module.main, choose, out_is_file=name in FILES)
    assert exit_.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1, text
    return text


def test_the_commands_with_an_output_are_known() -> None:
    assert len(NAMES) >= 17 and set(NAMES) > FILES
    for name in NAMES:
        source = Path(str(importlib.import_module(f"jobs.{name}").__file__)).read_text()
        assert ("out_is_file=True" in source) == (name in FILES), name


@pytest.mark.parametrize("name", NAMES)
def test_a_file_in_place_of_the_output_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    out = tmp_path / "file" / "x" if name in FILES else tmp_path / "file"
    text = run_line(name, out, monkeypatch, capsys)
    assert f"the file cannot be written; file: {tmp_path}/file" in text and "one of them is a file" in text
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("name", NAMES)
def test_an_output_folder_that_takes_no_file(
    name: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = Path.touch

    def touch(path: Path, *args: Any, **options: Any) -> None:
        if str(path).startswith(str(tmp_path)):
            raise OSError(code, os.strerror(code), str(path))
        real(path, *args, **options)

    monkeypatch.setattr(Path, "touch", touch)
    text = run_line(name, tmp_path / "new" / "x", monkeypatch, capsys)
    assert f"file: {tmp_path}/new" in text and os.strerror(code) in text
    assert list(tmp_path.iterdir()) == []


def test_a_measurement_checks_its_output_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(sys, "argv", ["bench", "memory", "--out", str(tmp_path / "file")])
    with pytest.raises(SystemExit):
        importlib.import_module("jobs.bench.__main__").main()
    assert f"error: the file cannot be written; file: {tmp_path}/file" in capsys.readouterr().err


def test_a_store_is_not_asked_and_nothing_is_left_behind(tmp_path: Path) -> None:
    storage.check_output("s3://no-such-bucket/x")
    storage.check_output(str(tmp_path / "a" / "b"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [[], ["plan", "mini", "--num-images", "5", "--nodes", "1", "--cpus-per-node", "2"]])
def test_a_full_disk_under_stdout_is_one_line(words: list[str], tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "jobs", *words], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr
    assert words or "No space left on device" in done.stderr
