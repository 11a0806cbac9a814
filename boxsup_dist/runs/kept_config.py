"""RUN/config.json: the configuration that a run keeps, and whether another one may continue the run."""

from __future__ import annotations

from boxsup_dist.config import TrainConfig
from boxsup_dist.errors import SettingError
from boxsup_dist.io import storage
from boxsup_dist.runs.layout import FORMAT, RunFiles

# Settings that may differ when a run goes on: they don't decide its result.
FREE_ON_RESUME = ("run_dir", "resources", "keep_checkpoints", "checkpoint_every_steps", "max_bad_records", "experiment")


def read_config(run_dir: str) -> TrainConfig:
    """The configuration that a run keeps.

    Raises:
        InputError: the directory has no config.json, or it is not JSON.
        SettingError: another version wrote the directory.
    """
    uri = RunFiles(run_dir).config
    values = storage.read_json(uri)
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
        return TrainConfig.from_dict(values)
    except SettingError as error:
        raise SettingError(error.problem, file=uri, value=error.value) from None


def write_config(config: TrainConfig) -> None:
    """Store the configuration, and the format of the directory, in the run's directory."""
    storage.write_json(RunFiles(config.run_dir).config, {"format": FORMAT, **config.to_dict()})


def keep_config(config: TrainConfig) -> None:
    """Store the resolved configuration. SettingError if the directory holds a run with other settings."""
    uri = RunFiles(config.run_dir).config
    wanted = config.to_dict()
    assigns = any(source.supervision in ("box", "wssl_em") for source in config.sources)
    free = FREE_ON_RESUME if assigns else (*FREE_ON_RESUME, "assignment")
    if storage.exists(uri):
        # A setting that the run does not know yet is new, and its default what the run did.
        found = read_config(config.run_dir).to_dict()
        for name in wanted:
            if name not in free and found[name] != wanted[name]:
                raise SettingError(
                    "the run directory holds a run with another setting; choose another or delete it",
                    file=uri,
                    field=name,
                    value=wanted[name],
                    expected=str(found[name]),
                )
    write_config(config)
