"""Who may import whom, and that importing does nothing else: the rules of the architecture, read from the sources."""

from __future__ import annotations

import ast
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BASE = {"errors", "credentials", "randomness", "progress", "interrupts", "surroundings"}
STAGES = {"records", "proposals", "assignment", "training", "evaluation", "export"}
# Each part of the package, and the parts that it may import besides itself: docs/architecture.md draws this.
MAY_IMPORT: dict[str, set[str]] = dict.fromkeys(BASE, BASE)
MAY_IMPORT["config"] = MAY_IMPORT["io"] = BASE
MAY_IMPORT["data"] = {"io", "config", *BASE}
MAY_IMPORT["model"] = MAY_IMPORT["distributed"] = MAY_IMPORT["reporting"] = {"data", *MAY_IMPORT["data"]}
MAY_IMPORT |= {part: {"model", "distributed", *MAY_IMPORT["model"]} for part in {*STAGES, "tracking"}}
MAY_IMPORT["mlflow_model"] = {"tracking"}  # the old name of tracking.models, which published models hold
MAY_IMPORT["export"] = {*MAY_IMPORT["export"], "reporting"}  # overlays are drawn once
MAY_IMPORT["runs"] = {*STAGES, "tracking", "reporting", *MAY_IMPORT["tracking"]}
MAY_IMPORT["api"] = {"runs", *MAY_IMPORT["runs"]}
# Third-party packages of the parts that everybody imports.
FEW_PACKAGES: dict[str, set[str]] = {
    "errors": set(),
    "credentials": set(),
    "randomness": {"numpy"},
    "progress": {"rich"},
    "interrupts": {"psutil"},
    "surroundings": set(),
    "config": set(),
    "io": {"numpy", "pydantic", "pyarrow", "fsspec", "scipy", "h5py", "aiohttp", "botocore", "psutil", "s3fs"},
    "data": {"annotated_types", "numpy", "pyarrow", "PIL", "pillow_heif", "pycocotools"},
}
RAY_FILES = {
    "boxsup_dist.records.build",
    "boxsup_dist.proposals.build",
    "boxsup_dist.proposals.measure",
    "boxsup_dist.training.stream",
    "boxsup_dist.training.loop",
    "boxsup_dist.training.worker",
    "boxsup_dist.training.fit",
    "boxsup_dist.assignment.reassign",
    "boxsup_dist.assignment.build",
    "boxsup_dist.evaluation.evaluate",
    "boxsup_dist.runs.coordinator",
    "boxsup_dist.runs.train",
    "boxsup_dist.runs.comparison",
    "boxsup_dist.runs.command_line",
    "boxsup_dist.runs.calibration",
    "boxsup_dist.runs.console",
    "boxsup_dist.runs.events",
    "boxsup_dist.runs.networks",
    "boxsup_dist.runs.serving",
    "boxsup_dist.runs.start",
}
# Calls that a module may make when it is imported, besides those of its own classes: they make constants, types and
# wrapped functions, and have no effect.
PURE_CALLS = {
    "arg", "array", "bool_", "Ge", "compile", "dataclass", "field", "float", "float32", "frozenset", "get_args",
    "getLogger", "Lock", "Path",
    "inference_mode", "int32", "large_binary", "large_list", "list_", "method", "no_grad", "remote", "schema",
    "string", "Struct", "tuple", "TypeVar", "uint16", "uint32", "_voc",
}  # fmt: skip


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for folder in ("boxsup_dist", "jobs") for path in (ROOT / folder).rglob("*.py")}
PACKAGE = [name for name in SOURCES if name.partition(".")[0] == "boxsup_dist"]
PURE_FILES = [name for name in PACKAGE if name not in RAY_FILES and not name.startswith("boxsup_dist.distributed")]


@functools.cache
def tree(name: str) -> ast.Module:
    return ast.parse(SOURCES[name].read_text(), str(SOURCES[name]))


@functools.cache
def imports(name: str) -> frozenset[str]:
    """Every module that a file names in an import, wherever in the file; of our own the deepest that exists."""
    found = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{name}: imports are absolute"
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {member if member in SOURCES else node.module for member in members}
    return frozenset(found)


def third_party(name: str) -> set[str]:
    own = {"boxsup_dist", "jobs"}
    return {module.partition(".")[0] for module in imports(name)} - set(sys.stdlib_module_names) - own


def part_of(name: str) -> str:
    """The package's part that a module belongs to: "training" for boxsup_dist.training.order, "" for the package."""
    return name.split(".")[1] if "." in name else ""


def parts_used(name: str) -> set[str]:
    """Parts of the package that a module imports, besides its own and the version of the package itself."""
    found = {part_of(module) for module in imports(name) if module.partition(".")[0] == "boxsup_dist"}
    return found - {"", part_of(name)}


def test_the_lists_of_this_file_name_modules_that_exist():
    assert set(SOURCES) >= RAY_FILES
    assert {part_of(name) for name in PACKAGE} - {""} == set(MAY_IMPORT), "a new part needs a place in the rules"


@pytest.mark.parametrize("part", sorted(MAY_IMPORT))
def test_a_part_imports_only_what_lies_below_it(part):
    for name in PACKAGE:
        if part_of(name) == part:
            assert parts_used(name) <= MAY_IMPORT[part], f"{name} imports {parts_used(name) - MAY_IMPORT[part]}"


@pytest.mark.parametrize("part", FEW_PACKAGES)
def test_what_everybody_imports_needs_few_packages(part):
    for name in PACKAGE:
        if part_of(name) == part:
            assert third_party(name) <= FEW_PACKAGES[part], name


def test_only_jobs_import_jobs():
    assert not any(module.partition(".")[0] == "jobs" for name in PACKAGE for module in imports(name))


def test_a_command_imports_no_other_command():
    """A package of commands is one command; its modules and those of jobs.bench, which makes data, are for drills."""
    for name in SOURCES:
        if name.partition(".")[0] == "jobs":
            package = ".".join(name.split(".")[:2])
            allowed = {package, "jobs.__main__", *({"jobs.bench"} if package == "jobs.drill" else set())}
            used = {".".join(module.split(".")[:2]) for module in imports(name) if module.startswith("jobs.")}
            assert used <= allowed, f"{name} imports {used - allowed}"


def test_ray_only_in_the_ray_files_and_jobs():
    users = {name for name in PACKAGE if "ray" in third_party(name)}
    assert {name for name in users if part_of(name) != "distributed"} <= RAY_FILES


def test_pure_files_import_no_ray_file():
    layer = {name for name in PACKAGE if part_of(name) == "distributed"} | RAY_FILES
    for name in PURE_FILES:
        assert not imports(name) & layer, f"{name} imports {imports(name) & layer}"


def test_private_modules_of_ray_are_imported_in_one_file_only():
    users = {name for name in SOURCES if any(is_private_of_ray(module) for module in imports(name))}
    assert users == {"boxsup_dist.distributed.ray_internals"}


def is_private_of_ray(module: str) -> bool:
    first, *rest = module.split(".")
    return first == "ray" and any(part.startswith("_") for part in rest)


@pytest.mark.parametrize(
    "package, homes",
    [
        ("mlflow", {"tracking.calls", "tracking.client", "tracking.models", "tracking.tracker"}),
        ("pydensecrf", {"model.crf"}),
    ],
    ids=["mlflow", "pydensecrf"],  # a set's own text differs from process to process
)
def test_a_package_with_few_homes(package, homes):
    assert {name for name in SOURCES if package in third_party(name)} == {f"boxsup_dist.{home}" for home in homes}


def is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def calls_at_import(node: ast.AST) -> list[str]:
    """Names of what is called while a statement of a module or class body is executed."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        parts: list[ast.AST] = [*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)]
        return [call for part in parts for call in calls_at_import(part)]
    if isinstance(node, ast.Lambda):
        return []
    own = []
    if isinstance(node, ast.Call):
        own = [node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)]
    return own + [call for child in ast.iter_child_nodes(node) for call in calls_at_import(child)]


@pytest.mark.parametrize("name", SOURCES)
def test_module_bodies_hold_definitions_only(name):
    own_classes = {node.name for node in ast.walk(tree(name)) if isinstance(node, ast.ClassDef)}
    for statement in tree(name).body:
        if is_docstring(statement) or isinstance(statement, ast.Import | ast.ImportFrom):
            continue
        if isinstance(statement, ast.If):
            if name == "jobs":  # the start of a command, which comes before all other imports
                assert ast.unparse(statement.test) == "os.path.basename(sys.argv[0]) in ('-m', 'boxsup')"
                continue
            assert ast.unparse(statement.test) in ("__name__ == '__main__'", "TYPE_CHECKING")
            continue
        definition = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign | ast.AsyncFunctionDef
        assert isinstance(statement, definition), f"{name}:{statement.lineno} runs at import"
        impure = set(calls_at_import(statement)) - PURE_CALLS - own_classes
        assert not impure, f"{name}:{statement.lineno} calls {impure} at import"


def package_files() -> set[Path]:
    files = {path for folder in ("boxsup_dist", "jobs") for path in (ROOT / folder).rglob("*")}
    return {path for path in files if "__pycache__" not in path.parts}


def test_imports_need_no_ray_for_the_method_and_have_no_effect(tmp_path):
    # One process for both, as importing everything takes seconds: first the pure files where Ray and MLflow are not
    # installed, then all the others.
    code = f"""
import importlib, json, sys
sys.modules["ray"] = sys.modules["mlflow"] = None
for name in {sorted(PURE_FILES)!r}:
    importlib.import_module(name)
del sys.modules["ray"], sys.modules["mlflow"]
for name in {sorted(SOURCES)!r}:
    importlib.import_module(name)
import boxsup_dist
import ray
assert not ray.is_initialized()
loaded = [name for name in ("mlflow", "pillow_heif", "pydensecrf", "timm", "torchvision") if name in sys.modules]
with open("result.json", "w") as file:
    json.dump({{"loaded": loaded, "home": boxsup_dist.__file__}}, file)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    before = package_files()
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    assert package_files() == before
    result = json.loads((tmp_path / "result.json").read_text())
    assert Path(result["home"]).parents[1] == ROOT
    assert result["loaded"] == [], "heavy or optional packages are imported where they are used"
