"""The configuration that a run directory keeps, what may continue the run, and the directories that are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from boxsup_dist.config import OptimizerSettings, ResourceSettings, SourceSettings, TrainConfig
from boxsup_dist.errors import InputError, SettingError, UnreadableFileError
from boxsup_dist.io import storage
from boxsup_dist.model.checkpoint import CheckpointState, save
from boxsup_dist.runs.kept_config import FREE_ON_RESUME, check_resume, keep_config, read_config, write_config
from boxsup_dist.runs.layout import FORMAT, RunFiles
from tests import networks


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    source = SourceSettings("records", "box", "proposals")
    return TrainConfig(str(tmp_path / "run"), (source,), "val", optimizer=OptimizerSettings(epochs=10)).check()


@pytest.fixture
def written(config: TrainConfig) -> TrainConfig:
    write_config(config)
    return config


def train_a_step(config: TrainConfig) -> None:
    """Write a checkpoint: the run now holds training that must not be lost."""
    network = networks.build_network("timm:test_resnet", 3, "none", head_channels=2)
    save(config.run_dir, CheckpointState(0, 1, 0, network.spec, network.state_dict()))


def test_a_directory_where_nothing_was_trained_takes_any_configuration(config: TrainConfig) -> None:
    check_resume(config)
    keep_config(config)
    for name in ("mlflow_run_id", "history.jsonl"):
        storage.write_bytes(storage.join(config.run_dir, name), b"of the first attempt")
    check_resume(config)
    keep_config(config)
    assert Path(config.run_dir, "mlflow_run_id").exists(), "the same run continues"
    other = replace(config, seed=7)
    check_resume(other)
    keep_config(other)
    assert read_config(config.run_dir) == other
    assert [path.name for path in Path(config.run_dir).iterdir()] == ["config.json"], (
        "another run starts from the beginning"
    )


@pytest.mark.parametrize("stored", [b"{half", b"[]", b'{"format": 0, "seed": 1}'])
def test_a_configuration_that_cannot_be_read_is_replaced_where_nothing_was_trained(
    config: TrainConfig, stored: bytes
) -> None:
    files = RunFiles(config.run_dir)
    storage.write_bytes(files.config, stored)
    storage.write_bytes(files.mlflow_run_id, b"of another version")
    check_resume(config)
    keep_config(config)
    assert read_config(config.run_dir) == config and not storage.exists(files.mlflow_run_id)
    storage.write_bytes(files.config, stored)
    train_a_step(config)
    with pytest.raises(InputError) as caught:
        check_resume(config)
    assert ("delete the file to continue the run" in str(caught.value)) == (stored == b"{half")
    Path(files.config).unlink()
    check_resume(config)


def test_a_configuration_that_cannot_be_read_now_is_not_replaced(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be the same run's: its history and MLflow run must not be lost."""
    keep_config(config)
    files = RunFiles(config.run_dir)
    storage.write_bytes(files.mlflow_run_id, b"a1")

    def fail(uri: str) -> bytes:
        raise UnreadableFileError("the file cannot be read", file=uri, value="Input/output error")

    with monkeypatch.context() as patch, pytest.raises(UnreadableFileError, match="Input/output error"):
        patch.setattr(storage, "read_bytes", fail)
        keep_config(replace(config, seed=7))
    assert storage.exists(files.mlflow_run_id) and read_config(config.run_dir) == config


def test_a_run_that_was_trained_names_every_setting_that_differs(config: TrainConfig) -> None:
    keep_config(config)
    train_a_step(config)
    check_resume(config)
    other = replace(config, seed=7, optimizer=replace(config.optimizer, epochs=20), experiment="another")
    with pytest.raises(SettingError) as caught:
        check_resume(other)
    assert caught.value.file == RunFiles(config.run_dir).config
    assert caught.value.field == "optimizer.epochs, seed"
    text = str(caught.value)
    assert "optimizer.epochs: this run has 10, the command says 20, seed: this run has 0, the command says 7" in text
    assert all(name in text for name in FREE_ON_RESUME)


def test_a_finished_run_keeps_its_settings_without_its_checkpoints(config: TrainConfig) -> None:
    keep_config(config)
    storage.write_json(RunFiles(config.run_dir).summary, {})
    with pytest.raises(SettingError, match="seed: this run has 0, the command says 7"):
        check_resume(replace(config, seed=7))


def test_free_settings_may_change(config: TrainConfig) -> None:
    keep_config(config)
    train_a_step(config)
    free = replace(config, resources=ResourceSettings(num_workers=2), keep_checkpoints=5, checkpoint_every_steps=3,
                   checkpoint_every_s=60.0, max_bad_records=0, experiment="another")  # fmt: skip
    check_resume(free)
    keep_config(free)
    assert read_config(config.run_dir) == free


def test_the_assignment_is_free_where_nothing_is_assigned(config: TrainConfig) -> None:
    masks = replace(config, sources=(SourceSettings("records", "mask"),))
    keep_config(masks)
    train_a_step(masks)
    check_resume(replace(masks, assignment=replace(masks.assignment, top_k=1)))


def test_settings_added_after_a_run_started_take_their_defaults(config: TrainConfig) -> None:
    keep_config(config)
    train_a_step(config)
    uri = RunFiles(config.run_dir).config
    values = storage.read_json(uri)
    del values["assignment"]["rank_weight"], values["duplicates"]
    storage.write_json(uri, values)
    check_resume(config)
    with pytest.raises(SettingError, match=r"assignment\.rank_weight: this run has 0\.0, the command says 0\.5"):
        check_resume(replace(config, assignment=replace(config.assignment, rank_weight=0.5)))


def test_a_configuration_is_read_as_it_was_written(written: TrainConfig) -> None:
    assert json.loads(Path(written.run_dir, "config.json").read_text())["format"] == FORMAT
    assert read_config(written.run_dir).to_dict() == written.to_dict()


@pytest.mark.parametrize("found", [None, 1, FORMAT + 1])
def test_a_directory_of_another_version_is_refused_with_what_to_do(written: TrainConfig, found: int | None) -> None:
    """The first version wrote no number, and counted epochs from 0."""
    values = written.to_dict() if found is None else {**written.to_dict(), "format": found}
    Path(written.run_dir, "config.json").write_text(json.dumps(values))
    with pytest.raises(SettingError, match=r"another directory.*--network\.weights checkpoint:") as caught:
        read_config(written.run_dir)
    assert caught.value.value == (found or 1) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[1]", "{half", json.dumps({"format": FORMAT, "unknown": 1})])
def test_what_is_no_configuration_is_an_error_that_names_the_file(written: TrainConfig, text: str) -> None:
    Path(written.run_dir, "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json"):
        read_config(written.run_dir)
