"""What the command lines of all jobs have in common: how they are read, listed, called by name, and how they fail."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import os
import runpy
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro

from boxsup_dist import interrupts
from boxsup_dist.config import PredictionSettings, TrainConfig
from boxsup_dist.data.tables import open_table
from boxsup_dist.errors import InputError, SettingError, cause_to_show
from boxsup_dist.io import remote, storage

# Settings that several commands share: one name, one type and one help text for each.
RunDir = Annotated[str, tyro.conf.arg(help="Run directory of a training: a folder or URI.")]
RunDirs = Annotated[
    tuple[str, ...], tyro.conf.arg(name="run_dir", help="Run directories of trainings: one or several folders or URIs.")
]
Checkpoint = Annotated[
    str | None,
    tyro.conf.arg(
        help="Folder or URI of the checkpoint to use, or best: the run's best on its validation records. Default: the "
        "run's newest."
    ),
]
NumActors = Annotated[
    int | None,
    tyro.conf.arg(
        name="resources.num-actors",
        help="Processes that compute. The result does not depend on their number. Default: one per GPU, without "
        "GPUs one per CPU core.",
    ),
]
NumCpus = Annotated[
    int | None,
    tyro.conf.arg(help="CPUs of the local Ray session. Default: all cores. Refused when RAY_ADDRESS is set."),
]
Epochs = Annotated[
    int | None,
    tyro.conf.arg(
        name="optimizer.epochs",
        help="Passes over the training images. Default: the recipe's; `start` fits it to their number.",
    ),
]
Prediction = Annotated[PredictionSettings, tyro.conf.arg(name="")]
T = TypeVar("T")
_called_as: str | None = None  # set by `call`: run_module overwrites sys.argv[0]


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn an error of the user or of the operating system into one line on stderr and exit status 2.

    A reader that closes its end of a pipe early, such as `head`, ends the command with status 1 and no trace.
    """
    try:
        with interrupts.precedence():
            yield
        sys.stdout.flush()  # the disk under it may be full
    except BrokenPipeError:
        _give_up_stdout()
        raise SystemExit(1) from None
    except Exception as error:
        problem = _to_show(error)
        if problem is None:
            raise
        print(f"error: {problem}", file=sys.stderr)
        _give_up_stdout()
        raise SystemExit(2) from None


def _give_up_stdout() -> None:
    """Drop what stdout does not take, a closed pipe or a file on a full disk: Python would report it once more."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _to_show(error: Exception) -> InputError | None:
    """The error to show where a user or the machine caused one; None for a fault of the program."""
    if "ray" in sys.modules:  # an import of seconds
        from boxsup_dist.distributed.faults import fault_of

        if (problem := fault_of(error)) is not None:
            return problem
    return cause_to_show(error)


def run(
    main: Callable[[Any], object], choose_settings: Callable[[], type] | None = None, *, out_is_file: bool = False
) -> None:
    """Call `main` with the settings of the command line; a user's error ends it with one clear line.

    An output that cannot be written is found before the work.

    Args:
        main: The job. Its argument is typed with the dataclass of the settings; the docstring of its module is the
            description in the help.
        choose_settings: Gives that dataclass where it depends on the command line itself.
        out_is_file: Whether the setting `out` names a file, not a folder.
    """
    with clear_errors():
        remote.begin_command()
        chosen = choose_settings() if choose_settings is not None else get_type_hints(main)["settings"]
        settings = read(chosen, sys.modules[main.__module__].__doc__)
        check_out(settings, is_file=out_is_file)
        main(settings)


def check_out(settings: object, *, is_file: bool = False) -> None:
    """Raise UnwritableFileError if the settings have an `out`, a folder or file, that cannot be written."""
    out = getattr(settings, "out", None)
    if out is not None:
        storage.check_output(os.path.dirname(storage.absolute(out)) if is_file else out)


def read(
    settings_type: type[T], description: str | None, arguments: Sequence[str] | None = None, prog: str | None = None
) -> T:
    """The settings that the arguments give; --help or a wrong argument ends the process.

    Args:
        settings_type: Dataclass of the settings.
        description: Text of the help above the options.
        arguments: None: those of the process.
        prog: How to call the command; None: as the process was called.
    """
    config = (tyro.conf.DisallowNone,)  # not set is None; nobody has to type it
    return tyro.cli(settings_type, prog=prog or program(), description=description, args=arguments, config=config)


def open_tables(config: TrainConfig) -> None:
    """Raise TableError where a table of a training is absent or damaged, before the imports that take seconds."""
    for source in config.sources:
        open_table(source.records, "records")
        if source.proposals is not None:
            open_table(source.proposals, "proposals")
        if source.label_maps is not None:
            open_table(source.label_maps, "label_maps")
    if config.val_records is not None:
        open_table(config.val_records, "records")


def program() -> str:
    """How a person called this process: `python -m jobs.train`, or `boxsup train` through the front door."""
    if _called_as is not None:
        return _called_as
    spec = sys.modules["__main__"].__spec__
    if spec is None:
        return Path(sys.argv[0]).name
    return f"python -m {spec.name.removesuffix('.__main__')}"


def check_choice(value: str, choices: Iterable[str], field: str) -> None:
    """Raise SettingError, with the close matches and all choices, unless `value` is one of them."""
    choices = list(choices)
    if value in choices:
        return
    close = difflib.get_close_matches(value, choices)
    problem = f"no such {field}" + (f": did you mean {' or '.join(close)}?" if close else "")
    raise SettingError(problem, field=field, value=value, expected=f"one of {', '.join(choices)}")


def check_network(run_dir: str | None, checkpoint: str | None) -> None:
    """Raise SettingError unless a run directory or a checkpoint is set; the best checkpoint needs its run."""
    if run_dir is None and checkpoint is None:
        expected = "a run directory or a checkpoint: python -m jobs.train makes both"
        raise SettingError("no network to predict with", field="run_dir, checkpoint", expected=expected)
    if run_dir is None and checkpoint == "best":
        raise SettingError("the best checkpoint of which run?", field="run_dir", expected="set it, too")


# -- commands by name --------------------------------------------------------------------------------------------------


def front_door(package: str, groups: Mapping[str, Sequence[str]], default: str | None = None) -> tuple[str, list[str]]:
    """The command of a package that sys.argv names, and its arguments.

    Without a name the commands are listed and, unless there is a default, the process ends; so it does on --help.

    Args:
        package: Name of the package whose modules are the commands.
        groups: Names of the modules, in groups to be listed.
        default: The command to run where none is named.

    Raises:
        SettingError: There is no such command; the close matches are named.
    """
    arguments = sys.argv[1:]
    wants_help = bool(arguments) and arguments[0] in ("-h", "--help")
    if not arguments or wants_help:
        print(_listing(package, groups, default), flush=True)
    if wants_help or (default is None and not arguments):
        raise SystemExit(0)
    if default is not None and (not arguments or arguments[0].startswith("-")):
        return default, arguments
    name = arguments[0].replace("-", "_")
    check_choice(name, [name for names in groups.values() for name in names], "command")
    return name, arguments[1:]


def call(package: str, name: str, arguments: Sequence[str], *, shown: str | None = None) -> None:
    """Run a module of the package as the command that it is.

    Args:
        package: Name of the package.
        name: Name of the module.
        arguments: Its arguments.
        shown: How its help and errors name it; None: as this program was called, and the name.
    """
    global _called_as
    outer = _called_as, sys.argv
    _called_as, sys.argv = shown or f"{program()} {name}", [name, *arguments]
    try:
        runpy.run_module(f"{package}.{name}", run_name="__main__", alter_sys=True)
    finally:
        _called_as, sys.argv = outer


def run_step(name: str, arguments: Sequence[str]) -> None:
    """Run another job as a step of this one, and show it as a person would type it."""
    shown = f"python -m jobs.{name}"
    print(f"\n$ {shown} {shlex.join(arguments)}", flush=True)
    call("jobs", name, arguments, shown=shown)


def docstring_of(module: str) -> str:
    """Docstring of a module, or of a package's `__main__`, which is read but not imported."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, module
    path = Path(spec.origin)
    if spec.submodule_search_locations is not None:
        path = path.with_name("__main__.py")
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def _listing(package: str, groups: Mapping[str, Sequence[str]], default: str | None) -> str:
    width = max(len(name) for names in groups.values() for name in names) + 2
    command = "COMMAND" if default is None else "[NAME]"
    lines = [f"usage: {program()} {command} [OPTIONS]", "", docstring_of(package), ""]
    for group, names in groups.items():
        lines.append(f"{group}:")
        lines += [f"  {name:<{width}}{docstring_of(f'{package}.{name}').partition(chr(10))[0]}" for name in names]
        lines.append("")
    lines.append(f"`{program()} NAME --help` shows the options of one.")
    return "\n".join(lines)
