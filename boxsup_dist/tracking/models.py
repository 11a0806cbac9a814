"""A trained network as an MLflow model: saved, published to a tracking store, and found again by its URI.

    MLmodel                 loader module, signature, class names       code/boxsup_dist     this package
    data/epoch-.../         the network as a checkpoint's folder        requirements.txt     pinned versions

No object is pickled: MLflow calls `_load_pyfunc` below, which reads the checkpoint, and that executes no code. The
model takes rows with an `image` (an image file's bytes) and returns rows with a `label_map`: a PNG of class ids.

MLmodel names the loader module. Models published before this module moved name `boxsup_dist.mlflow_model`. MLflow puts
the model's `code/` first on the path, so in a process that has not imported boxsup_dist the model runs its own old copy
of the package. In a process that has imported it, or without `code/`, Python finds the name in the installed package:
there `boxsup_dist/mlflow_model.py` is an alias of this module.
"""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

import boxsup_dist
from boxsup_dist.config.parts import CHECKPOINT_PREFIX
from boxsup_dist.data.images import decode_image, decode_png, encode_png
from boxsup_dist.data.tables import Table
from boxsup_dist.errors import InputError, RecordError
from boxsup_dist.io import storage
from boxsup_dist.model import checkpoint
from boxsup_dist.model.checkpoint import CheckpointState
from boxsup_dist.model.inference import predict_log_probs
from boxsup_dist.model.networks import SegmentationNetwork
from boxsup_dist.tracking.address import default_tracking_uri
from boxsup_dist.tracking.calls import dataset_key
from boxsup_dist.tracking.client import make_client

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.tracking import MlflowClient

MODEL = "model"  # folder in a run's artifacts
CLASS_NAMES = "class_names"
URI_SCHEMES = ("models:/", "runs:/")
LOADER_MODULES = (__name__, "boxsup_dist.mlflow_model")  # the second is this module's name in older models
# What loading and predicting import, pinned to the versions of the environment that saves the model.
REQUIREMENTS = ("fsspec", "mlflow", "numpy", "pandas", "pillow", "pyarrow", "timm", "torch", "torchvision")


@dataclass(frozen=True)
class LabelMapModel:
    """The object that MLflow calls to predict."""

    network: SegmentationNetwork
    class_names: tuple[str, ...]

    def predict(self, data: pd.DataFrame) -> pd.DataFrame:
        """Predict the label maps of image files.

        Args:
            data: One row per image, with its file's bytes in the column `image`.

        Returns:
            One row per image: column `label_map`, a PNG of class ids in the image's size.

        Raises:
            RecordError: Bytes are not an image; names the row.
        """
        import pandas as pd

        maps = [encode_png(self._label_map(row, image)) for row, image in enumerate(data["image"])]
        return pd.DataFrame({"label_map": maps})

    def _label_map(self, row: int, data: bytes) -> NDArray[np.uint8]:
        try:
            image = decode_image(data)
        except Exception as error:  # each format's decoder raises errors of its own
            raise RecordError("not an image file", field=f"image of row {row}", value=str(error)[:200]) from None
        log_probs: NDArray[np.float32] = predict_log_probs(self.network, image, self.network.device)
        label_map: NDArray[np.uint8] = log_probs.argmax(0).astype(np.uint8)
        return label_map


def _load_pyfunc(path: str) -> LabelMapModel:
    """Load the model; MLflow calls this function by its name with the path of the model's data.

    Raises:
        CheckpointError: The data is damaged.
    """
    state = checkpoint.load(path)
    network = checkpoint.load_network(path).to("cuda" if torch.cuda.is_available() else "cpu")
    return LabelMapModel(network, tuple(state.extra[CLASS_NAMES]))


def save(folder: str, network_state: CheckpointState, class_names: Sequence[str]) -> None:
    """Write the network of a checkpoint as an MLflow model.

    Args:
        folder: Local folder to create; it must not exist.
        network_state: The checkpoint. Only the network is kept, without optimizer and labels.
        class_names: Names of the C classes; class 0 is the background.
    """
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
    warnings.filterwarnings("ignore", message=".*An input example was not provided")  # the signature is given
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


def predict(folder: str, images: Sequence[bytes]) -> list[NDArray[np.uint8]]:
    """Predict with a saved model, loaded the way its users load it.

    Args:
        folder: Local folder of the model.
        images: Bytes of image files.

    Returns:
        A label map (H, W) per image.
    """
    import mlflow.pyfunc
    import pandas as pd

    rows = mlflow.pyfunc.load_model(folder).predict(pd.DataFrame({"image": list(images)}))
    return [decode_png(data) for data in rows["label_map"]]


def log_model(
    client: MlflowClient,
    run_id: str,
    uri: str,
    class_names: Sequence[str],
    *,
    epoch: int,
    metrics: Mapping[str, float],
    data: Table,
) -> None:
    """Log the network of a checkpoint as the logged model of a run, with what was measured of it on a data set.

    A checkpoint that the run has logged before is not logged again.

    Args:
        client: Client of the store.
        run_id: The run.
        uri: The checkpoint.
        class_names: Names of the C classes; class 0 is the background.
        epoch: The epoch that ended with the checkpoint.
        metrics: Name -> value; each is logged as best_NAME.
        data: The records that they were measured on.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    experiment_id = client.get_run(run_id).info.experiment_id
    known = client.search_logged_models([experiment_id], filter_string=f"source_run_id = '{run_id}'")
    model = next((each for each in known if each.tags.get("checkpoint") == uri), None)
    if model is not None and model.status == LoggedModelStatus.READY:
        return
    if model is None:  # else an earlier attempt did not come to its end
        tags = {"checkpoint": uri, "epoch": str(epoch)}
        model = client.create_logged_model(experiment_id, "best", run_id, tags)
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, epoch)])
    name, digest = dataset_key(data)
    of_model: dict[str, Any] = {"model_id": model.model_id, "dataset_name": name, "dataset_digest": digest}
    with tempfile.TemporaryDirectory() as scratch:
        folder = os.path.join(scratch, MODEL)
        save(folder, checkpoint.load(uri), class_names)
        client.log_model_artifacts(model.model_id, folder)
    for metric, value in metrics.items():
        client.log_metric(run_id, f"best_{metric}", value, step=epoch, **of_model)
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def publish(folder: str, tracking_uri: str, run_id: str, name: str | None) -> str:
    """Copy a saved model to the artifacts of its MLflow run, and register it.

    Args:
        folder: Local folder of the model.
        tracking_uri: The store.
        run_id: The run that trained the network.
        name: Name to register the model under, created if it is new; None does not register it.

    Returns:
        `models:/NAME/VERSION`, or `runs:/RUN_ID/model` without a name.

    Raises:
        InputError: The store refuses or does not answer.
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
        raise InputError(
            "MLflow did not store the model",
            field="register" if name else "log",
            value=f"run {run_id}: {error}"[:300],
        ) from None


def is_model_uri(uri: str) -> bool:
    """Whether a URI names an MLflow model: models:/NAME/VERSION, models:/NAME@ALIAS or runs:/RUN_ID/model."""
    return uri.startswith(URI_SCHEMES)


def fetch_checkpoint(uri: str, folder: str, tracking_uri: str | None = None) -> str:
    """Download an MLflow model; nothing of it is executed.

    Args:
        uri: URI of the model (`is_model_uri`).
        folder: Local folder for the model.
        tracking_uri: The store; None is MLFLOW_TRACKING_URI or, if that is not set, the store of ./runs.

    Returns:
        The checkpoint's folder inside the model.

    Raises:
        InputError: The store has no such model, or the model was not saved by this module.
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
        raise InputError(
            f"MLflow at {store} has no such model",
            field="model",
            value=uri,
            expected=f"models:/NAME/VERSION or runs:/RUN_ID/{MODEL}; {error}"[:300],
        ) from None
    if flavor.get("loader_module") not in LOADER_MODULES:
        raise InputError(
            "the model was not made by jobs.export_model",
            file=uri,
            field="loader_module",
            value=flavor.get("loader_module"),
            expected=" or ".join(LOADER_MODULES),
        )
    return storage.join(local, storage.safe_name(flavor["data"], file=uri, field="data"))


def fetch_weights(weights: str | None, folder: str, tracking_uri: str | None = None) -> str | None:
    """Download the MLflow model that a weights setting names, such as checkpoint:models:/NAME/1.

    Args:
        weights: A setting as `model.weights` reads it.
        folder: Folder for the checkpoint. A model that is there already is not downloaded again, so that a resumed
            training finds the weights that it started from.
        tracking_uri: As in `fetch_checkpoint`.

    Returns:
        The setting with the checkpoint's local folder; `weights` unchanged if it names no MLflow model.

    Raises:
        InputError: As in `fetch_checkpoint`.
    """
    uri = (weights or "").removeprefix(CHECKPOINT_PREFIX)
    if not is_model_uri(uri):
        return weights
    target = storage.join(storage.absolute(folder), re.sub(r"\W+", "-", uri))
    if not storage.exists(storage.join(target, "manifest.json")):
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(fetch_checkpoint(uri, scratch, tracking_uri))
            # The manifest is written last, as in every checkpoint: its presence says that the copy is whole.
            for file in sorted(source.iterdir(), key=lambda file: file.name == "manifest.json"):
                storage.write_bytes(storage.join(target, file.name), file.read_bytes())
    return CHECKPOINT_PREFIX + target


def load_network(uri: str, tracking_uri: str | None = None) -> SegmentationNetwork:
    """Load the network of an MLflow model or of a checkpoint.

    Args:
        uri: URI of a model (`is_model_uri`) or of a checkpoint's folder.
        tracking_uri: As in `fetch_checkpoint`.

    Returns:
        The network in evaluation mode on the CPU.

    Raises:
        InputError: As in `fetch_checkpoint`.
        CheckpointError: The checkpoint is missing or damaged.
    """
    if not is_model_uri(uri):
        return checkpoint.load_network(uri)
    with tempfile.TemporaryDirectory() as scratch:
        return checkpoint.load_network(fetch_checkpoint(uri, scratch, tracking_uri))


@contextmanager
def _store(tracking_uri: str) -> Iterator[MlflowClient]:
    """The client of a store. Inside, it is MLflow's current store: MLflow's functions for model URIs use that one."""
    import mlflow

    known, named = mlflow.get_tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")
    client = make_client(tracking_uri)
    mlflow.set_tracking_uri(tracking_uri)
    try:
        yield client
    finally:
        mlflow.set_tracking_uri(known)
        os.environ.pop("MLFLOW_TRACKING_URI", None)  # set_tracking_uri has set it
        if named is not None:
            os.environ["MLFLOW_TRACKING_URI"] = named
