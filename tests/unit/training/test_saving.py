"""Checkpoints in the background: what is kept, in which order, and what becomes of errors."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from boxsup_dist.errors import InputError, LeaseError, StoreUnavailableError, UnwritableFileError
from boxsup_dist.io import storage
from boxsup_dist.model import checkpoint
from boxsup_dist.model.checkpoint import CheckpointState
from boxsup_dist.training.saving import Saver
from tests import networks

SPEC = networks.spec("timm:resnet18", 3, head_channels=4)


class Store:
    """Makes each write of a file wait until it is let through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.written: list[str] = []
        self.error: InputError | None = None
        write = storage.write_bytes

        def gated(uri: str, data: bytes | memoryview) -> None:
            assert self.open.wait(timeout=20)
            if self.error is not None:
                raise self.error
            write(uri, data)
            self.written.append("/".join(uri.split("/")[-2:]))

        monkeypatch.setattr(storage, "write_bytes", gated)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    return Store(monkeypatch)


def saver_of(run_dir: Path) -> Saver:
    return Saver(str(run_dir), keep_last=5, check_writer=lambda: None)


def state(step: int, model: dict[str, torch.Tensor], momentum: torch.Tensor) -> CheckpointState:
    training = {"optimizer": {"state": {0: {"momentum_buffer": momentum}}, "param_groups": [{"betas": (0.9, 0.99)}]}}
    return CheckpointState(0, step, 7, SPEC, model, training)


def test_the_training_goes_on_with_its_tensors_while_their_copy_is_written(store: Store, tmp_path: Path) -> None:
    """Twice, because the second save takes the memory of the first one's copy."""
    model, momentum = {"weight": torch.ones(2, 3)}, torch.zeros(4)
    saver = saver_of(tmp_path)
    for step in (1, 2):
        store.open.clear()
        saver.save(state(step, model, momentum))
        model["weight"] += 1
        momentum += 10
        assert checkpoint.latest(str(tmp_path)) is None or step == 2
        store.open.set()
        saver.finish()
    saver.close()
    for step, uri in enumerate(checkpoint.list_checkpoints(str(tmp_path)), 1):
        found = checkpoint.load(uri)
        assert torch.equal(found.model["weight"], torch.full((2, 3), float(step)))
        assert torch.equal(
            found.training["optimizer"]["state"][0]["momentum_buffer"], torch.full((4,), 10.0 * (step - 1))
        )
        assert found.training["optimizer"]["param_groups"] == [{"betas": (0.9, 0.99)}]


def test_a_save_waits_until_the_one_before_is_whole(store: Store, tmp_path: Path) -> None:
    saver = saver_of(tmp_path)
    saver.save(state(1, {"weight": torch.ones(1)}, torch.ones(1)))
    second = threading.Thread(target=lambda: saver.save(state(2, {"weight": torch.ones(1)}, torch.ones(1))))
    second.start()
    second.join(timeout=0.3)
    assert second.is_alive() and not store.written
    store.open.set()
    second.join()
    saver.finish()
    names = ["model.pt", "training.pt", "state.json", "manifest.json"]
    assert store.written == [f"epoch-000-step-0000{step}/{name}" for step in (1, 2) for name in names]
    saver.close()


@pytest.mark.parametrize("kind", [UnwritableFileError, StoreUnavailableError])
def test_an_error_of_the_thread_is_raised_once_at_the_next_look(store: Store, tmp_path: Path, kind: type[InputError]):
    saver = saver_of(tmp_path)
    saver.save(state(1, {"weight": torch.ones(1)}, torch.ones(1)))
    saver.check()  # still running
    store.error = kind("no room", file="s3://bucket/run")
    running = saver._running
    store.open.set()
    assert running is not None and running.exception() is store.error
    with pytest.raises(kind, match="no room"):
        saver.check()
    store.error = None
    saver.save(state(2, {"weight": torch.ones(1)}, torch.ones(1)))
    saver.finish()
    saver.close()
    (uri,) = checkpoint.list_checkpoints(str(tmp_path))
    assert uri.endswith("step-00002")


def test_nothing_is_written_where_another_command_writes(tmp_path: Path) -> None:
    def taken() -> None:
        raise LeaseError("another command has taken this folder over")

    saver = Saver(str(tmp_path), keep_last=1, check_writer=taken)
    saver.save(state(1, {"weight": torch.ones(1)}, torch.ones(1)))
    with pytest.raises(LeaseError):
        saver.finish()
    saver.close()
    assert not list(tmp_path.iterdir())
