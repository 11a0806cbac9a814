"""RUN/config.json: the configuration that a run keeps, and which other configurations may continue the run."""

from __future__ import annotations

from boxsup_dist.config import TrainConfig, differences
from boxsup_dist.errors import SettingError
from boxsup_dist.io import storage
from boxsup_dist.model import checkpoint

# Settings that may change when a run is continued: the result does not depend on them.
FREE_ON_RESUME = ("run_dir", "resources", "keep_checkpoints", "checkpoint_every_steps", "max_bad_records", "experiment")


def read_config(run_dir: str) -> TrainConfig:
    """The configuration that a run keeps.

    Settings added after the run started take their defaults, which is how the run behaved.

    Raises:
        InputError: There is none.
        SettingError: It has settings of another version.
    """
    uri = storage.join(storage.absolute(run_dir), "config.json")
    values = storage.read_json(uri)
    try:
        return TrainConfig.from_dict(values)
    except SettingError as error:
        raise error.at(file=uri) from None


def check_resume(config: TrainConfig) -> None:
    """Check that the run directory, if it has a trained network, holds a run with these settings.

    Raises:
        SettingError: Settings differ; names each with both values.
    """
    uri = storage.join(config.run_dir, "config.json")
    if not storage.exists(uri) or not _has_trained(config.run_dir):
        return
    changed = _changed(config)
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

    A directory where nothing was trained takes any configuration. If it held another one, the MLflow run and the
    history of that attempt are not continued.
    """
    uri = storage.join(config.run_dir, "config.json")
    if storage.exists(uri) and not _has_trained(config.run_dir) and _changed(config):
        for name in ("mlflow_run_id", "history.jsonl"):
            storage.remove(storage.join(config.run_dir, name))
    storage.write_json(uri, config.to_dict())


def _has_trained(run_dir: str) -> bool:
    return checkpoint.latest(run_dir) is not None or storage.exists(storage.join(run_dir, "summary.json"))


def _free(config: TrainConfig) -> tuple[str, ...]:
    assigns = any(source.supervision in ("box", "wssl_em") for source in config.sources)
    return FREE_ON_RESUME if assigns else (*FREE_ON_RESUME, "assignment")


def _changed(config: TrainConfig) -> dict[str, tuple[object, object]]:
    free = _free(config)
    found = differences(read_config(config.run_dir), config)
    return {name: values for name, values in found.items() if name.split(".")[0] not in free}
