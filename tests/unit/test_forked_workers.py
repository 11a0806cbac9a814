"""tests/forked_workers.py with a script in place of Ray's worker."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).parents[2]
CLIENT = """
import sys
from tests import forked_workers
forked_workers.LIBRARIES = ("colorsys",)
forked_workers.main()
"""
WORKER = """
import json, os, sys
from pathlib import Path
found = {"forked": "colorsys" in sys.modules, "argv": sys.argv, "own": os.environ.get("OWN"), "pid": os.getpid()}
found |= {"folder": os.getcwd(), "name": __name__, "parent": os.getppid(), "group": os.getpgid(0)}
Path(sys.argv[1]).write_text(json.dumps(found))
"""
RAYLET = """
import os, subprocess, sys, time
client, worker, context, *outs = sys.argv[1:]
for out in outs:
    subprocess.Popen([sys.executable, client, worker, out, context, "--language=PYTHON"], cwd=os.path.dirname(out))
    while not os.path.exists(out):
        time.sleep(0.01)
"""


def read_when_there(path: Path) -> dict:
    deadline = time.monotonic() + 60
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return json.loads(path.read_text())


def test_later_workers_are_forks_that_look_like_started_ones(tmp_path, monkeypatch):
    scripts = {"client": CLIENT, "worker": WORKER, "raylet": RAYLET}
    paths = {name: tmp_path / f"{name}.py" for name in scripts}
    for name, text in scripts.items():
        paths[name].write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    context = "--serialized-runtime-env-context=" + json.dumps({"env_vars": {"OWN": "1"}})
    outs = [tmp_path / name for name in ("first", "second", "third")]
    words = [str(paths["client"]), str(paths["worker"]), context, *map(str, outs)]
    subprocess.run([sys.executable, str(paths["raylet"]), *words], check=True, timeout=100)
    first, second, third = map(read_when_there, outs)
    assert [found["forked"] for found in (first, second, third)] == [False, True, True]
    assert first["parent"] == second["parent"] == third["parent"], "the parent of all is the first process"
    for found, out in zip((first, second, third), outs, strict=True):
        assert found["argv"] == [str(paths["worker"]), str(out)], "without what is meant for setup_worker.py"
        assert found["group"] == found["pid"], "the raylet kills a worker's whole group"
        assert (found["own"], found["name"], found["folder"]) == ("1", "__main__", str(tmp_path))
    deadline = time.monotonic() + 60
    while Path(f"/proc/{first['parent']}").exists():  # it looks once per second whether the raylet is there
        assert time.monotonic() < deadline
        time.sleep(0.05)
