"""RUN/config.json: the configuration that a run keeps, and which other configurations may continue the run."""

from __future__ import annotations

from boxsup_dist.config import TrainConfig, differences
from boxsup_dist.errors import UNREADABLE_NOW, InputError, MissingFileError, SettingError
from boxsup_dist.io import storage
from boxsup_dist.io.typed_json import parse_json
from boxsup_dist.runs.layout import FORMAT, RunFiles
from boxsup_dist.runs.summary import is_finished

# Settings that may change when a run is continued: the result does not depend on them.
FREE_ON_RESUME = (
    "run_dir", "resources", "keep_checkpoints", "checkpoint_every_steps", "checkpoint_every_s", "max_bad_records",
    "experiment",
)  # fmt: skip


def read_config(run_dir: str) -> TrainConfig:
    """The configuration that a run keeps.

    Settings added after the run started take their defaults, which is how the run behaved.

    Raises:
        InputError: The directory has no config.json, it is not JSON, or a setting has another type.
        SettingError: Another version wrote the directory.
    """
    uri = RunFiles(run_dir).config
    if not storage.exists(uri):
        expected = "the run directory of a training; python -m jobs.train makes it"
        raise MissingFileError("no such file", file=uri, expected=expected)
    data = storage.read_bytes(uri)
    values = storage.parse_json(data, file=uri)
    if not isinstance(values, dict):
        raise SettingError("not the settings of a run", file=uri, value=type(values).__name__, expected="a JSON object")
    found = values.pop("format", 1)
    if found != FORMAT:
        raise SettingError(
            "another version of boxsup_dist wrote this run directory: train the run again in another directory; "
            f"to begin with its network, use --network.weights checkpoint:{run_dir}",
            file=uri,
            field="format",
            value=found,
            expected=str(FORMAT),
        )
    try:
        config = TrainConfig.from_dict(values)
    except SettingError as error:
        raise error.at(file=uri) from None
    parse_json(TrainConfig, data, file=uri)  # the types of the values
    return config


def write_config(config: TrainConfig) -> None:
    """Store the configuration, and the format of the directory, in the run's directory."""
    storage.write_json(RunFiles(config.run_dir).config, {"format": FORMAT, **config.to_dict()})


def check_resume(config: TrainConfig) -> None:
    """Check that the run directory, if it has a trained network, holds a run with these settings.

    Raises:
        SettingError: Settings differ; names each with both values.
        InputError: The file is damaged.
    """
    uri = RunFiles(config.run_dir).config
    if not storage.exists(uri) or not has_trained(config.run_dir):
        return
    try:
        changed = _changed(config)
    except InputError as error:
        if type(error) is not InputError:
            raise
        problem = f"{error.problem}; delete the file to continue the run, if this command has the run's settings"
        raise error.at(problem=problem) from None
    if changed:
        values = ", ".join(
            f"{name}: this run has {old}, the command says {new}" for name, (old, new) in changed.items()
        )
        raise SettingError(
            f"the run cannot continue with other settings: {values}",
            file=uri,
            field=", ".join(changed),
            expected=f"the values of this run, or another run_dir; free to change: {', '.join(_free(config))}",
        )


def keep_config(config: TrainConfig) -> None:
    """Store the configuration, after all checks.

    A directory where nothing was trained takes any configuration. If it held another one, the MLflow run, the
    history and the account of time of that attempt are not continued.
    """
    files = RunFiles(config.run_dir)
    if storage.exists(files.config) and not has_trained(config.run_dir) and not _holds(config):
        for uri in (files.mlflow_run_id, files.history, files.timeline):
            storage.remove(uri)
    write_config(config)


def _holds(config: TrainConfig) -> bool:
    """Whether the directory holds this configuration; another version's, or a damaged one, is another."""
    try:
        return not _changed(config)
    except UNREADABLE_NOW:
        raise
    except InputError:
        return False


def has_trained(run_dir: str) -> bool:
    """Whether a run has a checkpoint or a result."""
    from boxsup_dist.model import (
        checkpoint,
    )  # here, because it imports torch, which reading a configuration does not need

    return checkpoint.latest(run_dir) is not None or is_finished(run_dir)


def _free(config: TrainConfig) -> tuple[str, ...]:
    assigns = any(source.supervision in ("box", "wssl_em") for source in config.sources)
    return FREE_ON_RESUME if assigns else (*FREE_ON_RESUME, "assignment")


def _changed(config: TrainConfig) -> dict[str, tuple[object, object]]:
    free = _free(config)
    found = differences(read_config(config.run_dir), config)
    return {name: values for name, values in found.items() if name.split(".")[0] not in free}
