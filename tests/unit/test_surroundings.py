"""What containers and batch systems lack: a home, a user's name, a locale, room for the paths of sockets."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from boxsup_dist import surroundings
from tests import bare

ROOT = Path(__file__).parents[2]
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.mark.parametrize("env", [ASCII, {"PYTHONIOENCODING": "ascii"}], ids=["locale", "PYTHONIOENCODING"])
def test_a_help_is_shown_on_an_output_of_ascii(env: dict[str, str]) -> None:
    words = [sys.executable, "-m", "jobs.train", "mini", "--help"]
    done = subprocess.run(words, cwd=ROOT, env=os.environ | env, capture_output=True, timeout=60)
    assert done.returncode == 0 and done.stderr == b""
    assert "--optimizer.epochs INT" in done.stdout.decode("ascii")


def test_what_ascii_lacks_is_replaced_in_results_and_progress(tmp_path: Path) -> None:
    out = tmp_path / "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
    words = ["-m", "jobs.make_synthetic", "--out", str(out), "--num-train", "2", "--num-val", "1"]
    env = os.environ | ASCII | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C.UTF-8"}
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=env, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert b"caf?" in done.stdout and (out / "VOC2012").is_dir()


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_a_process_without_a_home_gets_a_private_one(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(scratch / "absent"))
    surroundings.prepare()
    home = Path(os.environ["HOME"])
    assert home.parent == scratch and stat.S_IMODE(home.stat().st_mode) == 0o700
    monkeypatch.setenv("HOME", str(scratch / "absent"))
    surroundings.prepare()
    assert Path(os.environ["HOME"]) == home, "what libraries keep there is of use to the next command"


def test_a_home_that_is_there_stays(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(scratch))
    surroundings.prepare()
    assert os.environ["HOME"] == str(scratch) and not list(scratch.iterdir())


def test_a_folder_that_others_may_write_is_not_taken(scratch: Path) -> None:
    open_to_all = scratch / f"cache-{os.getuid()}"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    found = Path(surroundings.private_folder("cache"))
    assert found != open_to_all and found.parent == scratch and stat.S_IMODE(found.stat().st_mode) == 0o700


@pytest.mark.skipif(bare.why_not() is not None, reason=str(bare.why_not()))
def test_a_user_without_name_home_or_rights_gets_help_and_a_result(tmp_path: Path) -> None:
    done = bare.run(tmp_path, "-m", "jobs", "train", "demo", "--help")
    assert (done.returncode, done.stderr) == (0, "") and "--optimizer.epochs INT" in done.stdout
    out = tmp_path / "out" / "data"
    done = bare.run(tmp_path, "-m", "jobs.make_synthetic", "--out", str(out), "--num-train", "2", "--num-val", "1")
    assert done.returncode == 0, done.stderr
    assert "2 train, 1 val" in done.stdout and not list((tmp_path / "closed").iterdir())


@pytest.mark.skipif(bare.why_not() is not None, reason=str(bare.why_not()))
def test_functions_are_compiled_where_nothing_can_be_kept(tmp_path: Path) -> None:
    """Numba refuses a cache when neither the code's folder nor a home can be written."""
    code = "from boxsup_dist.proposals.compiled import compiled; from boxsup_dist.proposals import near_duplicates as n"
    code += "; import numpy as np; print(n._describe(np.array([0, 1]), np.array([0], np.uint16), np.array([7]),"
    code += " np.array([[1, 2, 3, 4]], np.int32))[1].tolist())"
    done = bare.run(tmp_path, "-c", code)
    assert (done.returncode, done.stdout) == (0, "[7.0]\n"), done.stderr
