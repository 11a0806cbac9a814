"""A trained network as an MLflow model: saved, published to a tracking store, and found again by its URI.

    MLmodel                 loader module, signature, class names       code/boxsup_dist     this package
    data/epoch-.../         the network as a checkpoint's folder        requirements.txt     pinned versions

No object is pickled: MLflow calls `_load_pyfunc` below, which reads the checkpoint, and that executes no code. The
model takes rows with an `image` (an image file's bytes) and gives rows with a `label_map`: a PNG of class ids.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import boxsup_dist
from boxsup_dist.data.images import decode_image, decode_png, encode_png
from boxsup_dist.errors import InputError, RecordError
from boxsup_dist.io import storage
from boxsup_dist.model import checkpoint
from boxsup_dist.model.checkpoint import CheckpointState
from boxsup_dist.model.inference import predict_log_probs
from boxsup_dist.model.networks import SegmentationNetwork
from boxsup_dist.model.weights import CHECKPOINT_PREFIX
from boxsup_dist.tracking.tracker import default_tracking_uri, make_client

if TYPE_CHECKING:
    import pandas as pd

MODEL = "model"  # folder of the artifacts of a run
CLASS_NAMES = "class_names"
URI_SCHEMES = ("models:/", "runs:/")
# What loading and predicting import; the versions are those of the environment that saves.
REQUIREMENTS = ("fsspec", "mlflow", "numpy", "pandas", "pillow", "pyarrow", "timm", "torch", "torchvision")


@dataclass(frozen=True)
class LabelMapModel:
    """What MLflow predicts with."""

    network: SegmentationNetwork
    class_names: tuple[str, ...]

    def predict(self, data: pd.DataFrame) -> pd.DataFrame:
        """Rows with `image` to rows with `label_map`, PNG of the image's size. RecordError names what is no image."""
        import pandas as pd

        return pd.DataFrame({"label_map": [encode_png(self._label_map(row, b)) for row, b in enumerate(data["image"])]})

    def _label_map(self, row: int, data: bytes) -> np.ndarray:
        try:
            image = decode_image(data)
        except Exception as error:  # the decoders of many formats fail in many ways
            raise RecordError("not an image file", field=f"image of row {row}", value=str(error)[:200]) from None
        return predict_log_probs(self.network, image, self.network.device).argmax(0).astype(np.uint8)


def _load_pyfunc(path: str) -> LabelMapModel:
    """Called by MLflow with the model's data. CheckpointError if it is damaged."""
    state = checkpoint.load(path)
    network = checkpoint.load_network(path).to("cuda" if torch.cuda.is_available() else "cpu")
    return LabelMapModel(network, tuple(state.extra[CLASS_NAMES]))


def save(folder: str, network_state: CheckpointState, class_names: Sequence[str]) -> None:
    """Write the model of a checkpoint to a local folder that does not exist yet."""
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    state = CheckpointState(
        network_state.epoch,
        network_state.step,
        network_state.seed,
        network_state.network,
        network_state.model,
        extra={CLASS_NAMES: list(class_names)},
    )
    with tempfile.TemporaryDirectory() as scratch:
        mlflow.pyfunc.save_model(
            folder,
            loader_module=__name__,
            data_path=checkpoint.save(scratch, state),
            code_paths=[str(Path(boxsup_dist.__file__).parent)],
            signature=ModelSignature(
                inputs=Schema([ColSpec(DataType.binary, "image")]),
                outputs=Schema([ColSpec(DataType.binary, "label_map")]),
            ),
            pip_requirements=[f"{name}=={metadata.version(name)}" for name in REQUIREMENTS],
            metadata={CLASS_NAMES: list(class_names)},
        )


def predict(folder: str, images: Sequence[bytes]) -> list[np.ndarray]:
    """Label maps uint8 (H, W) of image files by a saved model, loaded as its users load it."""
    import mlflow.pyfunc
    import pandas as pd

    rows = mlflow.pyfunc.load_model(folder).predict(pd.DataFrame({"image": list(images)}))
    return [decode_png(data) for data in rows["label_map"]]


def publish(folder: str, tracking_uri: str, run_id: str, name: str | None) -> str:
    """Leave a saved model in its run's artifacts, registered as `name` if given; returns its URI.

    InputError if the store refuses or does not answer.
    """
    from mlflow.exceptions import MlflowException

    try:
        with _store(tracking_uri) as client:
            client.log_artifacts(run_id, folder, MODEL)
            if name is None:
                return f"runs:/{run_id}/{MODEL}"
            if not any(found.name == name for found in client.search_registered_models(f"name='{name}'")):
                client.create_registered_model(name)
            source = storage.join(client.get_run(run_id).info.artifact_uri, MODEL)
            return f"models:/{name}/{client.create_model_version(name, source, run_id).version}"
    except MlflowException as error:
        raise InputError("MLflow does not take the model", field="register" if name else "log",
                         value=f"run {run_id}: {error}"[:300]) from None  # fmt: skip


def is_model_uri(uri: str) -> bool:
    """Whether a URI is MLflow's: models:/NAME/VERSION, models:/NAME@ALIAS or runs:/ID/model."""
    return uri.startswith(URI_SCHEMES)


def fetch_checkpoint(uri: str, folder: str, tracking_uri: str | None = None) -> str:
    """Download an MLflow model into a local folder; returns the checkpoint's folder inside it.

    `tracking_uri` None is MLFLOW_TRACKING_URI, else the store of ./runs. Nothing of the model is executed.
    InputError if it isn't there or was not saved by this module.
    """
    import mlflow.artifacts
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model

    store = tracking_uri or default_tracking_uri("runs")
    try:
        with _store(store):
            local = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder)
        flavor: Mapping[str, Any] = Model.load(local).flavors.get("python_function", {})
    except (MlflowException, OSError) as error:
        raise InputError(f"MLflow at {store} has no such model", field="model", value=uri,
                         expected=f"models:/NAME/VERSION or runs:/ID/{MODEL}; {error}"[:300]) from None  # fmt: skip
    if flavor.get("loader_module") != __name__:
        raise InputError("the model was not made by jobs.export_model", field="model", value=uri)
    return storage.join(local, storage.safe_name(flavor["data"], file=uri, field="data"))


def fetch_weights(weights: str | None, folder: str, tracking_uri: str | None = None) -> str | None:
    """A weights spec of `model.weights` with the MLflow model of checkpoint:models:/NAME/1 brought to `folder`.

    Other specs are given back as they are. A model that is in `folder` already is not fetched again, so that a training
    that goes on finds the weights that it began with.
    """
    uri = (weights or "").removeprefix(CHECKPOINT_PREFIX)
    if not is_model_uri(uri):
        return weights
    target = storage.join(storage.absolute(folder), re.sub(r"\W+", "-", uri))
    if not storage.exists(storage.join(target, "manifest.json")):
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(fetch_checkpoint(uri, scratch, tracking_uri))
            # The manifest comes last, as in every checkpoint.
            for file in sorted(source.iterdir(), key=lambda file: file.name == "manifest.json"):
                storage.write_bytes(storage.join(target, file.name), file.read_bytes())
    return CHECKPOINT_PREFIX + target


def load_network(uri: str, tracking_uri: str | None = None) -> SegmentationNetwork:
    """The network of an MLflow model, or of a checkpoint's folder, in evaluation mode on the CPU.

    InputError or CheckpointError if it can't be had.
    """
    if not is_model_uri(uri):
        return checkpoint.load_network(uri)
    with tempfile.TemporaryDirectory() as scratch:
        return checkpoint.load_network(fetch_checkpoint(uri, scratch, tracking_uri))


@contextmanager
def _store(tracking_uri: str) -> Iterator[Any]:
    """The client of a store, which is MLflow's current one meanwhile: its functions for model URIs know no other."""
    import mlflow

    known, named = mlflow.get_tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")
    client = make_client(tracking_uri)
    mlflow.set_tracking_uri(tracking_uri)
    try:
        yield client
    finally:
        mlflow.set_tracking_uri(known)
        os.environ.pop("MLFLOW_TRACKING_URI", None)  # which MLflow has set
        if named is not None:
            os.environ["MLFLOW_TRACKING_URI"] = named
