"""The front door and every command's line: what is listed, how fast and how alike each is answered, what is refused."""

from __future__ import annotations

import functools
import importlib
import json
import pkgutil
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest

import jobs
from boxsup_dist.config import TrainConfig
from boxsup_dist.proposals.settings import NativeMethod
from boxsup_dist.runs import command_line
from boxsup_dist.runs.recipes import RECIPES, RecipeName
from jobs import train
from jobs.__main__ import COMMANDS
from jobs.bench.settings import MEASUREMENTS

ROOT = Path(__file__).parents[3]
NAMES = [name for group in COMMANDS.values() for name in group]
# Of 2 seconds on a quiet machine; an import of torch, Ray or MLflow alone takes most of that.
HEAVY = {"torch", "ray", "mlflow", "matplotlib", "numba", "scipy", "timm"}
LINES = [
    *NAMES,
    *(f"train {recipe}" for recipe in RECIPES),
    *(f"build_proposals --method {method}" for method in get_args(NativeMethod)),
    *(f"bench {name}" for name in MEASUREMENTS),
]

MODULES = [
    *(f"jobs.{name}" for name in NAMES if name not in ("bench", "drill")),
    "jobs.__main__",
    "jobs.bench.__main__",
    "jobs.drill.__main__",
]


def call(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_every_job_is_listed_once() -> None:
    modules = {module.name for module in pkgutil.iter_modules(jobs.__path__)} - {"__main__"}
    assert sorted(NAMES) == sorted(modules)


def test_the_list_has_a_line_for_each_command() -> None:
    done = call("jobs")
    assert done.returncode == 0 and not done.stderr
    for name in NAMES:
        first = command_line.docstring_of(f"jobs.{name}").partition("\n")[0]
        assert re.search(rf"^  {name} +{re.escape(first)}$", done.stdout, re.M), name
        assert len(first) < 110 and first.endswith("."), name
    assert all(f"\n{group}:\n" in done.stdout for group in COMMANDS)


@pytest.mark.parametrize(
    ("words", "names"),
    [(("jobs", "trian"), ("train", "'trian'")), (("jobs.bench", "memroy"), ("memory", "'memroy'"))],
)
def test_a_mistyped_command_is_answered_with_the_close_ones(words: tuple[str, ...], names: tuple[str, ...]) -> None:
    done = call(*words)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"did you mean {names[0]}" in done.stderr and names[1] in done.stderr


def test_the_front_door_runs_a_command_and_says_how_it_was_called() -> None:
    done = call("jobs", "make-synthetic", "--help")
    assert done.returncode == 0 and "usage: python -m jobs make_synthetic" in done.stdout
    done = call("jobs", "bench", "memory", "--help")
    assert done.returncode == 0 and "usage: python -m jobs bench memory" in done.stdout


@pytest.mark.parametrize(
    ("words", "epochs", "warmup_epochs"),
    [
        ((), 10, 3),
        (("--optimizer.epochs", "4"), 4, 1),
        (("--optimizer.epochs", "4", "--assignment.warmup-epochs", "3"), 4, 3),
    ],
)
def test_the_warm_up_of_a_recipe_follows_the_epochs_and_a_set_one_stands(
    words: tuple[str, ...], epochs: int, warmup_epochs: int
) -> None:
    config = train.read_arguments(["mini", "--run-dir", "r", "--records", "t", *words]).config
    assert config.optimizer.epochs == epochs and config.assignment.warmup_epochs == warmup_epochs


def test_the_installed_script_is_the_front_door(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    scripts = (ROOT / "pyproject.toml").read_text().partition("[project.scripts]")[2]
    assert 'boxsup = "jobs.__main__:main"' in scripts
    code = "import sys; from jobs.__main__ import main; sys.argv[0] = '/somewhere/bin/boxsup'; main()"
    done = subprocess.run([sys.executable, "-c", code, "plan", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "usage: boxsup plan" in done.stdout


@functools.cache
def loaded() -> dict[str, dict[str, Any]]:
    """Each help, and what it and the import of each module load: in forks of a process without heavy packages."""
    code = f"""
import contextlib, importlib, io, json, os, runpy, sys, tempfile, time
import tyro, PIL.Image, rich.console, boxsup_dist.io.storage  # what all of them load, once

def look(line):
    name, *words = line.split()
    if name.startswith("import:"):
        importlib.import_module(name.removeprefix("import:"))
        return None
    sys.argv = [os.path.join("jobs", name + ".py"), *words, "--help"]
    try:
        runpy.run_module("jobs." + name, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        return error.code

found = {{}}
for line in {[*LINES, *(f"import:{name}" for name in MODULES)]!r}:
    with tempfile.TemporaryDirectory() as folder:
        if not (child := os.fork()):
            text, started = io.StringIO(), time.process_time()
            with contextlib.redirect_stdout(text):
                status = look(line)
            with open(folder + "/found", "w") as file:
                heavy, seconds = sorted({HEAVY!r} & set(sys.modules)), time.process_time() - started
                json.dump({{"text": text.getvalue(), "status": status, "heavy": heavy, "seconds": seconds}}, file)
            os._exit(0)
        os.waitpid(child, 0)
        with open(folder + "/found") as file:
            found[line] = json.load(file)
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("line", LINES)
def test_a_help_is_shown_at_once_and_names_the_command(line: str) -> None:
    found = loaded()[line]
    assert found["status"] == 0, found
    assert found["heavy"] == [], "heavy packages are imported where they are used"
    assert found["seconds"] < 2
    usage = found["text"].partition("\n")[0]
    assert re.match(rf"usage: python -m jobs.{line.split(' --')[0]}\b", usage) and ".py" not in usage, usage
    shown = " ".join(re.sub("[│╭╮╰╯─]", " ", found["text"]).split())
    first = command_line.docstring_of(f"jobs.{line.split()[0]}").partition("\n")[0]
    if not line.startswith(("bench ", "train ")):
        assert first in shown


@pytest.mark.parametrize("name", MODULES)
def test_a_command_is_imported_without_heavy_packages(name: str) -> None:
    assert loaded()[f"import:{name}"]["heavy"] == []


# -- one name, one type, one meaning -----------------------------------------------------------------------------------


def settings_types() -> dict[str, type]:
    """The settings of every command."""
    found = {}
    for name in NAMES:
        if name == "bench":
            found |= {f"bench {each}": kind for each, kind in MEASUREMENTS.items()}
        elif name == "drill":
            found[name] = importlib.import_module("jobs.drill.__main__").Settings
        else:
            found[name] = importlib.import_module(f"jobs.{name}").Settings
    return found


def arguments(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every option of a settings class as the command line spells it, and its type without None."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        hint, name = hints[field.name], field.name.replace("_", "-")
        if get_origin(hint) is typing.Annotated:
            hint, *markers = get_args(hint)
            for marker in markers:
                name = marker.name if getattr(marker, "name", None) is not None else name
        name = name.replace("_", "-")
        whole = ".".join(part for part in (prefix, name) if part)
        if is_dataclass(hint):
            yield from arguments(typing.cast(type, hint), whole)
        else:
            kinds = [part for part in get_args(hint) if part is not type(None)] if type(None) in get_args(hint) else []
            yield whole, kinds[0] if len(kinds) == 1 else hint


def spellings() -> dict[str, dict[str, Any]]:
    """Option -> command -> its type."""
    found: dict[str, dict[str, Any]] = {}
    for command, kind in settings_types().items():
        for name, hint in arguments(kind):
            found.setdefault(name, {})[command] = hint
    return found


# What a name that several commands share means. A new shared name needs a line here, or another name.
SHARED = {
    "batch-images": "images of a training step",
    "bench-table": "JSON table of all measurements",
    "coco-annotations": "COCO's files instances_*.json",
    "coco-images": "folders of COCO's images",
    "context-root": "folder of PASCAL-Context",
    "sbd-root": "folder of SBD",
    "checkpoint": "URI of a checkpoint, None: the run's newest",
    "box-format": "format of own boxes, None: found out",
    "boxes": "annotations of own images, a file or folder",
    "classes": "list of classes",
    "crop-px": "side of the crops to train on",
    "crf": "parameters of the dense CRF, None: without",
    "flip": "average with the mirrored image",
    "formats": "formats to export in; a network has other ones than masks",
    "hed-weights": "file of HED's weights",
    "images": "images on disk: a folder, and in predict also a file or pattern",
    "log": "store in the MLflow run of the training",
    "masks": "masks of some of the own images",
    "max-failed-share": "share of failed images from which a table is refused",
    "max-megapixels": "larger images are refused",
    "method": "one method that makes a table",
    "network": "name of a network with random weights, for a measurement",
    "networks": "names of networks with random weights, for a measurement",
    "num-cpus": "CPUs of the local Ray session",
    "num-images": "how many images",
    "num-train": "images of the split train",
    "optimizer.epochs": "passes over the training images",
    "out": "where to write",
    "outside": "what to do with boxes beyond their image",
    "proposals": "URI of the proposals table",
    "recipe": "name of a recipe",
    "records": "URI of the records table",
    "relative": "coordinates are shares of the image",
    "resources.num-actors": "processes that predict, reassign or evaluate",
    "rounds": "how often ways take turns",
    "run-dir": "run directory of a training, one or several",
    "scales": "factors on the image's size",
    "seconds": "how long to train",
    "seed": "seed of all draws",
    "split": "list of images of a data set",
    "supervision": "annotation that training uses",
    "background-logit": "added to the background's score",
    "tile-px": "side of a tile",
    "voc-root": "year folder of a VOC devkit",
}


def test_a_name_has_one_type_and_one_meaning() -> None:
    several = {name: by for name, by in spellings().items() if len(by) > 1}
    unexplained = set(several) - set(SHARED) - {name for name in several if name.startswith("resources.")}
    assert not unexplained, {name: sorted(several[name]) for name in unexplained}
    for name, by_command in several.items():
        kinds = {str(hint) for hint in by_command.values()}
        if name == "run-dir":
            assert kinds == {str(str), str(tuple[str, ...])}
        elif name == "method":
            assert all(get_origin(hint) is typing.Literal for hint in by_command.values())
        elif name == "formats":
            assert all(get_origin(get_args(hint)[0]) is typing.Literal for hint in by_command.values())
        else:
            assert len(kinds) == 1, (name, by_command)


def test_a_setting_of_a_run_is_spelled_as_in_its_configuration() -> None:
    of_runs = dict(arguments(TrainConfig))
    last_words = {name.rpartition(".")[2]: name for name in of_runs if "." in name}
    last_words.pop("flip")  # of a prediction: average with the mirrored image, which no run does
    for name, by_command in spellings().items():
        whole = last_words.get(name)
        assert whole is None or name in of_runs, f"{sorted(by_command)}: --{name} is --{whole} in a run"
        if name in of_runs and name != "run-dir":
            assert all(str(hint) == str(of_runs[name]) for hint in by_command.values()), name


def test_retired_spellings_are_gone() -> None:
    assert not {"run-dirs", "num-actors", "num-workers", "epochs"} & set(spellings())
    assert {"checkpoint", "run-dir"} <= {name for name, by in spellings().items() if "predict" in by}


def test_every_option_has_a_sentence() -> None:
    for command, found in loaded().items():
        for option, text in re.findall(r"│ (--[\w.-]+)[^│]*│\n│ +(\(required\)|\(default)", found["text"]):
            raise AssertionError(f"{command} {option}: {text}")


def test_the_names_of_recipes_are_those_that_exist() -> None:
    assert set(get_args(RecipeName)) == set(RECIPES)


# -- typical mistakes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "minni", "--run-dir", "a"], ["no such recipe", "did you mean mini?", "paper, mini, demo"]),
        (["train", "--run-dir", "a"], ["name a recipe first", "paper, mini, demo"]),
        (["train"], ["name a recipe first", "paper, mini, demo"]),
        (["build_proposals", "--method", "mgc"], ["did you mean mcg?", "selective_search"]),
        (["predict", "--images", "x", "--out", "y"], ["no network to predict with", "python -m jobs.train"]),
        (["figures", "--run-dir", "absent", "--out", "o"], ["config.json", "python -m jobs.train makes it"]),
        (["build_proposals", "--records", "absent", "--out", "o"], ["python -m jobs.build_records makes it"]),
        (["plan", "mini", "--num-images", "5", "--nodes", "1", "--cpus-per-node", "2", "--rates", "absent.json"],
         ["python -m jobs.calibrate mini"]),
        (["train", "mini", "--run-dir", "r", "--records", "absent", "--supervision", "mask"],
         ["absent", "python -m jobs.build_records makes it"]),
        (["evaluate", "--run-dir", "absent", "--out", "o"], ["config.json", "python -m jobs.train makes it"]),
        (["trimap", "--run-dir", "absent", "--records", "t", "--out", "o"], ["config.json"]),
        (["reassign", "--run-dir", "absent", "--out", "o"], ["config.json"]),
        (["decompose", "--box", "absent", "--mask", "absent", "--out", "o"], ["config.json"]),
        (["export_labels", "--run-dir", "absent", "--out", "o"], ["config.json"]),
        (["export_model", "--run-dir", "absent", "--out", "o"], ["config.json"]),
        (["tune_crf", "--run-dir", "absent", "--records", "t", "--out", "o"], ["config.json"]),
        (["bench", "crf", "--run-dir", "absent", "--records", "t"], ["config.json"]),
        (["proposal_quality", "--records", "absent", "--proposals", "p", "--out", "o"], ["jobs.build_records"]),
        (["build_label_maps", "--records", "absent", "--method", "grabcut", "--out", "o"], ["jobs.build_records"]),
        (["build_records", "--voc-root", "absent", "--split", "train", "--out", "o"], ["not a VOC devkit"]),
        (["build_data", "--voc2012", "absent", "--out", "o"], ["not a VOC devkit"]),
        (["calibrate", "mini", "--records", "absent", "--proposals", "p"], ["jobs.build_records"]),
        (["demo", "--voc-root", "absent"], ["not a VOC devkit"]),
        (["reproduce", "--table", "1", "--data", "absent", "--out", "o"], ["jobs.build_records"]),
        (["verify", "--tables", "absent"], ["absent"]),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_at_once_in_one_line_with_what_to_do(
    words: list[str], expected: list[str], tmp_path: Path
) -> None:
    """Before torch and Ray are imported, which alone takes longer than the 2 s of an answer."""
    code = f"""
import atexit, resource, runpy, sys
def report():
    used = resource.getrusage(resource.RUSAGE_SELF)
    heavy = sorted({HEAVY - {"scipy"}!r} & set(sys.modules))  # scipy: 0.2 s, for readers of data sets
    print("SPENT", round(used.ru_utime + used.ru_stime, 2), *heavy)
atexit.register(report)
sys.argv = {[words[0], *words[1:]]!r}
runpy.run_module("jobs.{words[0]}", run_name="__main__", alter_sys=True)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True,
                          text=True, env={"PYTHONPATH": str(ROOT), "PATH": ""})  # fmt: skip
    shown = (done.stdout.partition("SPENT")[0] if words[0] == "verify" else "") + done.stderr
    if words[0] == "verify":
        assert done.returncode == 1 and "damaged: " in shown, shown
    else:
        assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, shown
    assert all(part in shown for part in expected), shown
    seconds, *heavy = done.stdout.rpartition("SPENT ")[2].split()
    assert not heavy and float(seconds) < 2, (seconds, heavy)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["calibrate", "minni"], ["paper", "mini", "demo"]),
        (["calibrate"], ["paper,mini,demo"]),
        (["evaluate", "--run-dir", "a", "--out", "b", "--record", "c"], ["--records"]),
        (
            ["train", "mini", "--run-dir", "a", "--records", "r", "--optimzer.epochs", "3"],
            ["--optimizer.epochs", "python -m jobs.train mini --help"],
        ),
        (["build_label_maps", "--records", "a", "--out", "b", "--method", "grab"], ["grabcut", "wssl"]),
        (["plan", "mini", "--num-images", "5", "--nodes", "1", "--cpus-per-node", "two"], ["--cpus-per-node", "two"]),
        (["reproduce", "--table", "2", "--data", "a", "--out", "b", "--epochs", "3"], ["--optimizer.epochs"]),
    ],
)
def test_a_wrong_argument_is_answered_with_the_right_ones(words: list[str], expected: list[str]) -> None:
    done = call(f"jobs.{words[0]}", *words[1:])
    assert done.returncode == 2
    assert all(part in done.stdout + done.stderr for part in expected), done.stdout + done.stderr


def test_a_reader_that_stops_early_leaves_no_trace():
    """`boxsup | head`: the list is longer than one write, and nobody reads the end of it."""
    command = [sys.executable, "-c", "import jobs.__main__ as front; front.main()"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1
