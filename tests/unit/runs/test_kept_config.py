"""The configuration that a run directory keeps, and the directories that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from boxsup_dist.config import TrainConfig
from boxsup_dist.errors import InputError, SettingError
from boxsup_dist.runs.kept_config import read_config, write_config
from boxsup_dist.runs.layout import FORMAT
from tests.distributed import tiny


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    config = tiny.make_config(tmp_path, tmp_path / "run")
    write_config(config)
    return config


def test_a_configuration_is_read_as_it_was_written(config: TrainConfig) -> None:
    assert json.loads(Path(config.run_dir, "config.json").read_text())["format"] == FORMAT
    assert read_config(config.run_dir).to_dict() == config.to_dict()


@pytest.mark.parametrize("found", [None, 1, FORMAT + 1])
def test_a_directory_of_another_version_is_refused_with_what_to_do(config: TrainConfig, found: int | None) -> None:
    """The first version wrote no number, and counted epochs from 0."""
    values = config.to_dict() if found is None else {**config.to_dict(), "format": found}
    Path(config.run_dir, "config.json").write_text(json.dumps(values))
    with pytest.raises(SettingError, match=r"another directory.*--network\.weights checkpoint:") as caught:
        read_config(config.run_dir)
    assert caught.value.value == (found or 1) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[1]", "{half", json.dumps({"format": FORMAT, "unknown": 1})])
def test_what_is_no_configuration_is_an_error_that_names_the_file(config: TrainConfig, text: str) -> None:
    Path(config.run_dir, "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json"):
        read_config(config.run_dir)
