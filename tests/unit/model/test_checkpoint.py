"""Checkpoints: round trip, torn and damaged ones, pruning, refusal to execute code."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path

import fsspec
import pytest
import torch

from boxsup_dist.config import OptimizerSettings
from boxsup_dist.data.labels import TableName
from boxsup_dist.errors import CheckpointError
from boxsup_dist.io import storage
from boxsup_dist.model import checkpoint
from boxsup_dist.model.checkpoint import CheckpointState, latest, list_checkpoints, load, load_network, save
from boxsup_dist.model.networks import build_network, parameter_groups
from tests import networks

SPEC = networks.spec("timm:resnet18", 3, head_channels=4)
LABELS = TableName("labels/epoch-004", "0123456789abcdef")


@pytest.fixture(params=["local", "object store"])
def run_uri(request, tmp_path):
    if request.param == "local":
        yield str(tmp_path / "run")
        return
    yield f"memory://{tmp_path.name}/run"
    fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)


def small(epoch: int = 0, step: int = 0, **fields) -> CheckpointState:
    return CheckpointState(epoch, step, seed=7, network=SPEC, model={"weight": torch.ones(2)}, **fields)


def test_a_restored_run_continues_as_the_unbroken_one(run_uri):
    torch.manual_seed(0)
    batch = torch.randint(0, 256, (2, 3, 33, 33), dtype=torch.uint8)

    def start():
        torch.manual_seed(0)
        network = build_network(SPEC, "none")
        optimizer = torch.optim.SGD(parameter_groups(network, OptimizerSettings()), lr=1e-3, momentum=0.9)
        return network, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2)

    def step(network, optimizer, scheduler) -> float:
        optimizer.zero_grad()
        loss = torch.log_softmax(network(batch), 1)[:, 1].neg().mean()
        loss.backward()
        optimizer.step()
        scheduler.step()
        return loss.item()

    network, optimizer, scheduler = start()
    first = step(network, optimizer, scheduler)
    state = CheckpointState(
        epoch=3,
        step=1,
        seed=7,
        network=SPEC,
        model=network.state_dict(),
        training={
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "rng": torch.get_rng_state(),
        },
        labels=LABELS,
        metrics={"loss": first},
        extra={"position": [1, 2]},
    )
    uri = save(run_uri, state)
    expected = [step(network, optimizer, scheduler) for _ in range(3)]

    loaded = load(uri)
    network, optimizer, scheduler = start()
    network.load_state_dict(loaded.model)
    optimizer.load_state_dict(loaded.training["optimizer"])
    scheduler.load_state_dict(loaded.training["scheduler"])
    torch.set_rng_state(loaded.training["rng"])
    assert [step(network, optimizer, scheduler) for _ in range(3)] == expected
    assert (loaded.epoch, loaded.step, loaded.seed, loaded.network) == (3, 1, 7, SPEC)
    assert (loaded.labels, loaded.metrics, loaded.extra) == (LABELS, {"loss": first}, {"position": [1, 2]})


def test_network_alone(run_uri):
    network = build_network(SPEC, "none")
    torch.nn.init.normal_(network.score.weight)
    uri = save(run_uri, CheckpointState(1, 0, 0, SPEC, network.state_dict()))
    again = load_network(uri)
    batch = torch.randint(0, 256, (1, 3, 20, 20), dtype=torch.uint8)
    assert not again.training and torch.equal(again(batch), network.eval()(batch))
    assert load(uri).labels is None


def test_latest_is_by_number_and_none_without_any(run_uri):
    assert latest(run_uri) is None
    for epoch, step in [(9, 5), (10, 0), (9, 123456), (1000, 0), (999, 3)]:
        save(run_uri, small(epoch, step), keep_last=None)
    names = [uri.rsplit("/", 1)[1] for uri in list_checkpoints(run_uri)]
    assert names == [
        "epoch-009-step-00005",
        "epoch-009-step-123456",
        "epoch-010-step-00000",
        "epoch-999-step-00003",
        "epoch-1000-step-00000",
    ]
    assert latest(run_uri).endswith(names[-1])


def test_a_write_killed_at_any_file_leaves_the_earlier_checkpoint(run_uri, monkeypatch):
    first = save(run_uri, small(1, labels=LABELS))
    write = storage.write_bytes
    for survivors in range(4):
        left = [survivors]

        def dying(uri, data, left=left):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            write(uri, data)

        monkeypatch.setattr(storage, "write_bytes", dying)
        with pytest.raises(KeyboardInterrupt):
            save(run_uri, small(2, labels=None))
        monkeypatch.setattr(storage, "write_bytes", write)
        assert latest(run_uri) == first and load(first).labels == LABELS
    with pytest.raises(CheckpointError, match="unfinished"):
        load(first.replace("epoch-001", "epoch-002"))
    second = save(run_uri, small(2, labels=None))
    assert latest(run_uri) == second and load(second).labels is None


def test_pruning_keeps_the_newest_whole_ones(run_uri):
    save(run_uri, small(1))
    torn = storage.join(run_uri, checkpoint.FOLDER, "epoch-002-step-00000")
    storage.write_bytes(storage.join(torn, "model.pt"), b"half")
    for epoch in (3, 4, 5):
        save(run_uri, small(epoch), keep_last=2)
    found = storage.list_names(storage.join(run_uri, checkpoint.FOLDER))
    assert found == ["epoch-004-step-00000", "epoch-005-step-00000"]


def test_a_damaged_file_is_named(tmp_path):
    uri = save(str(tmp_path), small(1))
    for name in ("model.pt", "training.pt", "state.json"):
        path = Path(uri) / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(CheckpointError, match="damaged") as caught:
            load(uri)
        assert caught.value.file == str(path)
        path.unlink()
        with pytest.raises(CheckpointError, match="is missing"):
            load(uri)
        path.write_bytes(whole)
    load(uri)
    with pytest.raises(CheckpointError, match="does not exist"):
        load(str(tmp_path / "nothing"))


def test_a_checkpoint_that_stored_its_labels_is_read_without_them(tmp_path):
    """As earlier versions wrote it: labels.parquet beside the weights, and nothing of the labels in the state."""
    uri = save(str(tmp_path), small(1))
    state = {name: value for name, value in storage.read_json(f"{uri}/state.json").items() if name != "labels"}
    storage.write_json(f"{uri}/state.json", state)
    storage.write_bytes(f"{uri}/labels.parquet", b"PAR1")
    manifest = storage.read_json(f"{uri}/manifest.json")
    for name in ("state.json", "labels.parquet"):
        data = storage.read_bytes(f"{uri}/{name}")
        manifest["files"][name] = {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    storage.write_json(f"{uri}/manifest.json", manifest)
    assert load(uri).labels is None and checkpoint.check(uri) is None
    assert torch.equal(checkpoint.load_weights(uri)[1]["weight"], torch.ones(2))


class Attack:
    def __reduce__(self):
        return (pytest.fail, ("the checkpoint was executed",))


def test_a_malicious_pickle_is_refused_without_executing_it(tmp_path):
    uri = save(str(tmp_path), small(1))
    buffer = io.BytesIO()
    torch.save({"weight": Attack()}, buffer)
    for name, data in [("model.pt", buffer.getvalue()), ("training.pt", pickle.dumps(Attack()))]:
        files = storage.read_json(f"{uri}/manifest.json")
        before = storage.read_bytes(f"{uri}/{name}")
        storage.write_bytes(f"{uri}/{name}", data)
        files["files"][name]["sha256"] = hashlib.sha256(data).hexdigest()
        storage.write_json(f"{uri}/manifest.json", files)
        with pytest.raises(CheckpointError, match="more than tensors"):
            load(uri)
        storage.write_bytes(f"{uri}/{name}", before)
        files["files"][name]["sha256"] = hashlib.sha256(before).hexdigest()
        storage.write_json(f"{uri}/manifest.json", files)
    load(uri)


def test_what_could_not_be_loaded_again_is_refused_at_saving(tmp_path):
    with pytest.raises(CheckpointError, match="more than tensors") as caught:
        save(str(tmp_path), small(1, training={"path": Path("x")}))
    assert caught.value.field == "training"
    assert latest(str(tmp_path)) is None


def test_weights_of_another_network_are_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="another network"):
        load_network(save(str(tmp_path), small(1)))
