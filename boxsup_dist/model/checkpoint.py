"""Checkpoints: all that a killed run needs to continue, in a folder whose manifest is written last.

    RUN/checkpoints/epoch-003-step-00000/
        model.pt        state dict of the network
        training.pt     optimizer, scheduler, gradient scaler, RNG: whatever the training saves (tensors, plain values)
        state.json      epoch, step, seed, network spec, name and fingerprint of the labels table, metrics, other values
        manifest.json   size and hash of each file; readers trust only a folder that has it

A torn checkpoint has no manifest and is ignored, on local disks and object stores alike. Torch files are read with
weights_only=True: loading executes no code.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NotRequired, TypeVar

import torch
from torch import Tensor
from typing_extensions import TypedDict  # pydantic reads typing's from Python 3.12 on

from boxsup_dist.data.labels import TableName
from boxsup_dist.errors import CheckpointError, InputError, MissingFileError, WeightsError
from boxsup_dist.io import storage
from boxsup_dist.io.typed_json import parse_json
from boxsup_dist.model.networks import NetworkSpec, SegmentationNetwork, network_from_state

FORMAT_VERSION = 1
FOLDER = "checkpoints"
_AN_EARLIER_ONE = "delete its folder to continue from an earlier checkpoint"
_NOT_PLAIN = "more than tensors and plain values"
_NAME = re.compile(r"epoch-(\d{3,})-step-(\d{5,})")
T = TypeVar("T")


class _File(TypedDict):
    """What the manifest says of a file."""

    num_bytes: int
    sha256: str


class _Format(TypedDict):
    """The part of a manifest that every version has."""

    format_version: int


class _Manifest(_Format):
    files: dict[str, _File]


class _State(TypedDict):
    """state.json."""

    epoch: int
    step: int
    seed: int
    network: dict[str, Any]
    labels: NotRequired[TableName | None]  # missing: an earlier version stored the labels in the checkpoint
    metrics: dict[str, Any]
    extra: dict[str, Any]


@dataclass(frozen=True)
class CheckpointState:
    """The state of a run after `epoch` whole epochs and `step` steps of the next one."""

    epoch: int
    step: int
    seed: int
    network: NetworkSpec
    model: Mapping[str, Tensor]
    training: Mapping[str, Any] = field(default_factory=dict)  # state dicts by name; tensors and plain values only
    labels: TableName | None = None  # the labels that the epoch trains on; None before the first assignment
    metrics: Mapping[str, Any] = field(default_factory=dict)  # JSON values
    extra: Mapping[str, Any] = field(default_factory=dict)  # JSON values: data position, settings, ...

    @property
    def assigning_model(self) -> Mapping[str, Tensor]:
        """The weights that choose segments: the average over the steps if the run keeps one, else the newest."""
        average: Mapping[str, Tensor] | None = self.training.get("average")
        return self.model if average is None else average


def checkpoint_name(epoch: int, step: int) -> str:
    """Folder name of a checkpoint. Sort names by their numbers: they may have more digits than the padding."""
    return f"epoch-{epoch:03d}-step-{step:05d}"


def save(run_uri: str, state: CheckpointState, *, keep_last: int | None = 3, keep_epochs: Collection[int] = ()) -> str:
    """Write a checkpoint, then delete older ones.

    Args:
        run_uri: Run directory.
        state: What to keep.
        keep_last: How many of the newest whole checkpoints to keep; None keeps all.
        keep_epochs: Keep also the checkpoints at the end of these epochs, which count from 1.

    Returns:
        URI of the checkpoint.

    Raises:
        CheckpointError: `training` or `model` holds a value that cannot be loaded without executing code.
    """
    assert keep_last is None or keep_last >= 1
    uri = storage.join(storage.absolute(run_uri), FOLDER, checkpoint_name(state.epoch, state.step))
    files: dict[str, bytes | memoryview] = {
        "model.pt": _to_bytes(dict(state.model), "model"),
        "training.pt": _to_bytes(dict(state.training), "training"),
    }
    _remove(uri)  # a torn checkpoint, or the same step of an earlier attempt
    for name, data in files.items():
        storage.write_bytes(storage.join(uri, name), data)
    values = {
        "epoch": state.epoch,
        "step": state.step,
        "seed": state.seed,
        "network": state.network.to_dict(),
        "labels": None if state.labels is None else asdict(state.labels),
        "metrics": dict(state.metrics),
        "extra": dict(state.extra),
    }
    storage.write_json(storage.join(uri, "state.json"), values)
    files["state.json"] = storage.read_bytes(storage.join(uri, "state.json"))
    entries = {n: {"num_bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in files.items()}
    storage.write_json(storage.join(uri, "manifest.json"), {"format_version": FORMAT_VERSION, "files": entries})
    if keep_last is not None:
        _prune(run_uri, keep_last, {checkpoint_name(epoch, 0) for epoch in keep_epochs})
    return uri


def list_checkpoints(run_uri: str) -> list[str]:
    """URIs of the run's whole checkpoints, oldest first."""
    return [uri for _, uri in _folders(run_uri) if storage.exists(storage.join(uri, "manifest.json"))]


def latest(run_uri: str) -> str | None:
    """URI of the newest whole checkpoint of a run, or None."""
    whole = list_checkpoints(run_uri)
    return whole[-1] if whole else None


def newest(uri: str) -> str:
    """`uri` itself if it is the folder of a checkpoint, torn or not; else the newest whole checkpoint of that run.

    Raises:
        CheckpointError: It is neither.
    """
    uri = storage.absolute(uri)
    if any(storage.exists(storage.join(uri, name)) for name in ("manifest.json", "model.pt")):
        return uri
    found = latest(uri)
    if found is None:
        expected = "a run directory with a whole checkpoint (python -m jobs.train makes it), or a checkpoint's folder"
        raise CheckpointError("no checkpoint here", file=uri, expected=expected)
    return found


def load(uri: str) -> CheckpointState:
    """Read a whole checkpoint, with tensors on the CPU.

    Raises:
        CheckpointError: It is unfinished or damaged.
    """
    files = _manifest(uri)
    values = _read_state(uri, files)
    return CheckpointState(
        epoch=values["epoch"],
        step=values["step"],
        seed=values["seed"],
        network=NetworkSpec.from_dict(values["network"]),
        model=_from_bytes(uri, "model.pt", _read(uri, "model.pt", files)),
        training=_from_bytes(uri, "training.pt", _read(uri, "training.pt", files)),
        labels=values.get("labels"),
        metrics=values["metrics"],
        extra=values["extra"],
    )


def check(uri: str) -> TableName | None:
    """Compare each file of a checkpoint with its hash.

    Returns:
        The labels that the checkpoint names.

    Raises:
        CheckpointError: The checkpoint is unfinished or damaged; names the file.
    """
    files = _manifest(uri)
    for name in ("model.pt", "training.pt"):
        _read(uri, name, files)
    return _read_state(uri, files).get("labels")


def load_weights(uri: str) -> tuple[NetworkSpec, dict[str, Tensor]]:
    """Network spec and state dict of a checkpoint, on the CPU, without the state of the training.

    Raises:
        CheckpointError: It is unfinished or damaged.
    """
    files = _manifest(uri)
    spec = NetworkSpec.from_dict(_read_state(uri, files)["network"])
    return spec, _from_bytes(uri, "model.pt", _read(uri, "model.pt", files))


def load_network(uri: str) -> SegmentationNetwork:
    """The network of a checkpoint, in evaluation mode on the CPU; it needs no pretrained weights.

    Raises:
        CheckpointError: The checkpoint is unfinished or damaged, or its weights do not fit its network.
    """
    spec, model = load_weights(uri)
    try:
        return network_from_state(spec, model)
    except WeightsError as error:
        raise error.at(file=uri, kind=CheckpointError) from None


def _folders(run_uri: str) -> list[tuple[tuple[int, int], str]]:
    parent = storage.join(storage.absolute(run_uri), FOLDER)
    matches = [match for name in storage.list_names(parent) if (match := _NAME.fullmatch(name))]
    return sorted(((int(m[1]), int(m[2])), storage.join(parent, m[0])) for m in matches)


def _prune(run_uri: str, keep_last: int, keep_names: Collection[str]) -> None:
    """Delete everything older than the `keep_last` newest whole checkpoints but these, torn checkpoints too."""
    kept = list_checkpoints(run_uri)[-keep_last:]
    for _, uri in _folders(run_uri):
        if uri == kept[0]:
            return
        if uri.rpartition("/")[2] not in keep_names:
            _remove(uri)


def _remove(uri: str) -> None:
    storage.remove(storage.join(uri, "manifest.json"))  # first: a half-deleted checkpoint must not read as whole
    storage.remove(uri)


def _manifest(uri: str) -> dict[str, _File]:
    path = storage.join(uri, "manifest.json")
    if not storage.exists(path):
        state = "is unfinished" if storage.exists(uri) else "does not exist"
        raise CheckpointError(f"the checkpoint {state}", file=uri, expected="a folder with manifest.json")
    data = storage.read_bytes(path)
    found = _parse(_Format, data, path)["format_version"]
    if found != FORMAT_VERSION:
        raise CheckpointError("the checkpoint has the format of another version", file=path, field="format_version",
                              value=found, expected=str(FORMAT_VERSION))  # fmt: skip
    return _parse(_Manifest, data, path)["files"]


def _parse(kind: type[T], data: bytes, path: str) -> T:
    try:
        return parse_json(kind, data, file=path)
    except InputError as error:
        problem = f"a file of the checkpoint is damaged ({error.problem}); {_AN_EARLIER_ONE}"
        raise error.at(kind=CheckpointError, problem=problem) from None


def _read(uri: str, name: str, files: Mapping[str, _File]) -> bytes:
    path = storage.join(uri, name)
    try:
        data = storage.read_bytes(path)
    except MissingFileError:
        raise CheckpointError("a file of the checkpoint is missing", file=path) from None
    if name not in files or hashlib.sha256(data).hexdigest() != files[name]["sha256"]:
        raise CheckpointError(
            f"a file of the checkpoint is damaged; {_AN_EARLIER_ONE}",
            file=path,
            value=f"{len(data)} bytes",
            expected=f"the content that manifest.json describes: {files.get(name)}",
        )
    return data


def _read_state(uri: str, files: Mapping[str, _File]) -> _State:
    return _parse(_State, _read(uri, "state.json", files), storage.join(uri, "state.json"))


def copy_of(value: Any, memory: Any = None) -> Any:
    """A copy of a state on the CPU, in which tensors are in dictionaries, lists and tuples at any depth.

    The copy of a tensor on a GPU is in pinned memory, and complete when the device is synchronised.

    Args:
        value: The state.
        memory: An earlier copy that nothing reads any more. Its tensors are overwritten where they fit: the pages of
            new ones cost more than the copy itself.
    """
    if isinstance(value, Tensor):
        if not isinstance(memory, Tensor) or (memory.shape, memory.dtype) != (value.shape, value.dtype):
            memory = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda, requires_grad=False)
        return memory.copy_(value.detach(), non_blocking=True)
    if isinstance(value, dict):
        named = memory if isinstance(memory, dict) else {}
        return {key: copy_of(item, named.get(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        before = memory if isinstance(memory, list | tuple) and len(memory) == len(value) else [None] * len(value)
        return type(value)(copy_of(item, old) for item, old in zip(value, before, strict=True))
    return value


def _check_plain(value: Any, name: str) -> None:
    """Raise CheckpointError on what could not be loaded without executing code: now, not when a crashed run resumes."""
    if isinstance(value, dict):
        for pair in value.items():
            _check_plain(pair, name)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_plain(item, name)
    elif not isinstance(value, Tensor) and type(value) not in (type(None), bool, int, float, str):
        raise CheckpointError(f"the file would hold {_NOT_PLAIN}", field=name, value=type(value).__name__)


def _to_bytes(value: Any, name: str) -> memoryview:
    _check_plain(value, name)
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getbuffer()


def _from_bytes(uri: str, name: str, data: bytes) -> Any:
    try:
        return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:  # unpickling foreign bytes fails in many ways
        raise CheckpointError(
            f"the file holds {_NOT_PLAIN}, or is not a torch file",
            file=storage.join(uri, name),
            value=str(error).splitlines()[0][:200],
        ) from None
