"""RUN/config.json: the configuration that a run keeps, and whether another one may continue the run."""

from __future__ import annotations

from boxsup_dist.config import TrainConfig
from boxsup_dist.errors import SettingError
from boxsup_dist.io import storage

# Settings that may differ when a run goes on: they don't decide its result.
FREE_ON_RESUME = ("run_dir", "resources", "keep_checkpoints", "checkpoint_every_steps", "max_bad_records", "experiment")


def read_config(run_dir: str) -> TrainConfig:
    """The configuration that a run keeps. InputError without one, SettingError for that of another version."""
    uri = storage.join(storage.absolute(run_dir), "config.json")
    values = storage.read_json(uri)
    try:
        return TrainConfig.from_dict(values)
    except SettingError as error:
        raise error.at(file=uri) from None


def keep_config(config: TrainConfig, run_dir: str) -> None:
    """Store the resolved configuration; SettingError if the directory holds a run with other ones."""
    uri = storage.join(run_dir, "config.json")
    wanted = config.to_dict()
    assigns = any(source.supervision in ("box", "wssl_em") for source in config.sources)
    free = FREE_ON_RESUME if assigns else (*FREE_ON_RESUME, "assignment")
    if storage.exists(uri):
        # A setting that the run does not know yet is new, and its default what the run did.
        found = read_config(run_dir).to_dict()
        for name in wanted:
            if name not in free and found[name] != wanted[name]:
                raise SettingError(
                    "the run directory holds a run with another setting; choose another or delete it",
                    file=uri,
                    field=name,
                    value=wanted[name],
                    expected=str(found[name]),
                )
    storage.write_json(uri, wanted)
