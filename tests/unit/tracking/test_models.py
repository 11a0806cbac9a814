"""MLflow models in a real SQLite store: saved, published, found by URI, and loaded where this package is not."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pytest
import requests
import torch
import uvicorn
from mlflow.pyfunc import scoring_server
from PIL import Image

from boxsup_dist.config import NetworkSettings, SourceSettings, TrainConfig
from boxsup_dist.data.images import decode_image, decode_png
from boxsup_dist.data.schema import VOC_CLASSES
from boxsup_dist.data.tables import open_table
from boxsup_dist.errors import CheckpointError, InputError, RecordError, SettingError
from boxsup_dist.io import storage
from boxsup_dist.model import checkpoint, export
from boxsup_dist.model.checkpoint import CheckpointState
from boxsup_dist.model.networks import SegmentationNetwork, build_network
from boxsup_dist.runs.kept_config import write_config
from boxsup_dist.runs.summary import mlflow_run
from boxsup_dist.tracking import models
from boxsup_dist.tracking.client import make_client
from boxsup_dist.tracking.tracker import RunTracker
from jobs import export_model
from tests import networks
from tests.distributed import tiny

SPEC = networks.spec("timm:test_resnet", len(VOC_CLASSES), head_channels=8, dropout=0.0)


def make_state() -> CheckpointState:
    torch.manual_seed(0)
    network = build_network(SPEC, "none")
    torch.nn.init.normal_(network.score.weight)
    return CheckpointState(2, 0, 0, SPEC, network.state_dict())


def image_file(height: int = 40, width: int = 60) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def same(first: SegmentationNetwork, state: CheckpointState) -> bool:
    return all(torch.equal(value, state.model[key]) for key, value in first.state_dict().items())


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A finished run directory with an MLflow run in a new store; making it takes seconds, so all tests share it."""
    folder = tmp_path_factory.mktemp("runs")
    tiny.write_records(folder / "records", [tiny.make_record(i, "val") for i in range(3)])
    run_dir = str(folder / "box")
    config = TrainConfig(
        run_dir, (SourceSettings(str(folder / "records"), "mask"),), None, network=NetworkSettings("timm:test_resnet")
    )
    write_config(config)
    checkpoint.save(run_dir, make_state())
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracker = RunTracker(str(folder), system_metrics=False)
        tracker.start("export", "box")
        tracker.end()
        assert tracker.close(120)
    values = {"mlflow": {"tracking_uri": tracker.tracking_uri, "run_id": tracker.run_id()}}
    storage.write_json(storage.join(run_dir, "summary.json"), values)
    return run_dir


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("saved") / "model")
    models.save(folder, make_state(), VOC_CLASSES)
    return folder


def test_it_predicts_label_maps_from_image_bytes(saved: str) -> None:
    images = [image_file(), image_file(33, 21)]
    network = models.load_network(storage.join(saved, "data", "epoch-002-step-00000"))
    expected = [export.network_runner(network)(decode_image(data)).argmax(0) for data in images]
    for first, second in zip(expected, models.predict(saved, images), strict=True):
        np.testing.assert_array_equal(first, second)


def test_signature_class_names_and_requirements(saved: str) -> None:
    from mlflow.models import Model

    model = Model.load(saved)
    assert model.metadata[models.CLASS_NAMES] == list(VOC_CLASSES)
    assert [(c.name, c.type.name) for c in model.signature.inputs] == [("image", "binary")]
    assert [(c.name, c.type.name) for c in model.signature.outputs] == [("label_map", "binary")]
    requirements = Path(saved, "requirements.txt").read_text().split()
    assert all("==" in line for line in requirements)
    assert f"torch=={torch.__version__.partition('+')[0]}" in [line.partition("+")[0] for line in requirements]
    assert not list(Path(saved).rglob("*.pkl"))


def test_the_row_that_is_not_an_image_is_named(saved: str) -> None:
    with pytest.raises(RecordError, match="image of row 1"):
        models.predict(saved, [image_file(), b"not an image"])


def test_the_model_server_answers_images_over_http(saved: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("__IS_IN_MLFLOW_SERVING_ENVIRONMENT", "true")  # `init` sets it
    app = scoring_server.init(mlflow.pyfunc.load_model(saved))  # what `mlflow models serve` runs
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/invocations"
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while thread.is_alive() and not server.started:
            time.sleep(0.01)
        try:
            images = [image_file(), image_file(30, 20)]
            rows = [{"image": base64.b64encode(data).decode()} for data in images]
            answer = requests.post(url, json={"dataframe_records": rows}, timeout=30)
            assert answer.status_code == 200, answer.text
            maps = [decode_png(base64.b64decode(row["label_map"])) for row in answer.json()["predictions"]]
            for found, expected in zip(maps, models.predict(saved, images), strict=True):
                assert np.array_equal(found, expected)
            bad = {"dataframe_records": [{"image": base64.b64encode(b"no image").decode()}]}
            answer = requests.post(url, json=bad, timeout=30)
            assert answer.status_code >= 400 and "not an image file" in answer.text
        finally:
            server.should_exit = True
            thread.join(10)
    assert not thread.is_alive()


def test_it_needs_neither_this_checkout_nor_ray(saved: str, tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules["ray"] = None
import mlflow.pyfunc, pandas
model = mlflow.pyfunc.load_model({saved!r})
rows = model.predict(pandas.DataFrame({{"image": [open("image.png", "rb").read()]}}))
import boxsup_dist
assert boxsup_dist.__file__.startswith({saved!r}), boxsup_dist.__file__
assert rows["label_map"][0].startswith(b"\\x89PNG")
"""
    (tmp_path / "image.png").write_bytes(image_file())
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def old_model(saved: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model as it was published when models.py was boxsup_dist/mlflow_model.py; `code/` is left out."""
    folder = tmp_path_factory.mktemp("old") / "model"
    shutil.copytree(saved, folder, ignore=shutil.ignore_patterns("code"))
    described = (folder / "MLmodel").read_text()
    lines = [line for line in described.splitlines() if not line.strip().startswith("code:")]
    old = "\n".join(lines).replace("boxsup_dist.tracking.models", "boxsup_dist.mlflow_model") + "\n"
    assert old.count("loader_module: boxsup_dist.mlflow_model") == 1
    (folder / "MLmodel").write_text(old)
    return str(folder)


def test_a_model_with_the_old_loader_predicts_in_this_process_and_in_a_new_one(
    saved: str, old_model: str, tmp_path: Path
) -> None:
    (expected,) = models.predict(saved, [image_file()])
    np.testing.assert_array_equal(models.predict(old_model, [image_file()])[0], expected)
    code = f"""
import sys
assert "boxsup_dist" not in sys.modules
import mlflow.pyfunc, pandas
model = mlflow.pyfunc.load_model({old_model!r})
rows = model.predict(pandas.DataFrame({{"image": [open("image.png", "rb").read()]}}))
open("label_map.png", "wb").write(rows["label_map"][0])
"""
    (tmp_path / "image.png").write_bytes(image_file())
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(decode_png((tmp_path / "label_map.png").read_bytes()), expected)


def test_the_checkpoint_of_a_model_with_the_old_loader_is_found(
    old_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow.artifacts

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", lambda artifact_uri, dst_path: old_model)
    store = f"sqlite:///{tmp_path}/mlflow.db"
    assert same(models.load_network("models:/old/1", store), make_state())
    other = tmp_path / "other"
    shutil.copytree(old_model, other)
    (other / "MLmodel").write_text((other / "MLmodel").read_text().replace("boxsup_dist.mlflow_model", "os.path"))
    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", lambda artifact_uri, dst_path: str(other))
    with pytest.raises(InputError, match=r"not made by jobs\.export_model.*os\.path"):
        models.load_network("models:/other/1", store)


def test_a_damaged_model_is_refused(saved: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    weights = next(folder.rglob("model.pt"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="damaged"):
        models.predict(str(folder), [image_file()])


def test_the_job_publishes_what_it_has_compared(run_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out = str(tmp_path / "out")
    export_model.main(export_model.Settings(run_dir, out, formats=("mlflow",), num_images=2, register="tiny-box"))
    summary = json.loads(Path(out, "summary.json").read_text())
    assert summary["formats"]["mlflow"]["share_equal"] == 1.0
    assert summary["formats"]["mlflow"]["num_images"] == 2
    assert summary["mlflow_uri"] == "models:/tiny-box/1"
    assert Path(out, "model", "MLmodel").exists()

    tracking_uri, run_id = mlflow_run(run_dir)
    for uri in ("models:/tiny-box/1", f"runs:/{run_id}/model"):
        assert models.is_model_uri(uri)
        assert same(models.load_network(uri, tracking_uri), make_state())
    assert "MLFLOW_TRACKING_URI" not in os.environ
    with pytest.raises(InputError, match="no such model"):
        models.load_network("models:/tiny-box/9", tracking_uri)

    weights = models.fetch_weights("checkpoint:models:/tiny-box/1", str(tmp_path / "start"), tracking_uri)
    assert weights == f"checkpoint:{tmp_path}/start/models-tiny-box-1"
    assert same(checkpoint.load_network(weights.removeprefix("checkpoint:")), make_state())
    # The second call finds the copy and asks no store.
    assert models.fetch_weights("checkpoint:models:/tiny-box/1", str(tmp_path / "start"), "sqlite:////no") == weights
    assert models.fetch_weights("checkpoint:runs/a", "nowhere") == "checkpoint:runs/a"
    assert models.fetch_weights(None, "nowhere") is None

    newest = checkpoint.latest(run_dir)
    assert newest is not None and not models.is_model_uri(newest)
    assert same(models.load_network(newest), make_state())


def test_the_best_network_is_logged_once_with_its_data_set(run_dir: str) -> None:
    tracking_uri, run_id = mlflow_run(run_dir)
    client = make_client(tracking_uri)
    data = open_table(str(Path(run_dir).parent / "records"), "records")
    uri = checkpoint.newest(run_dir)
    for _ in range(2):
        models.log_model(client, run_id, uri, VOC_CLASSES, epoch=2, metrics={"mean_iou": 41.5}, data=data)
    (found,) = client.search_logged_models([client.get_run(run_id).info.experiment_id])
    assert found.source_run_id == run_id and found.tags["checkpoint"] == uri
    (metric,) = found.metrics
    assert (metric.key, metric.value, metric.step) == ("best_mean_iou", 41.5, 2)
    assert (metric.dataset_name, metric.dataset_digest) == (f"records: {data.uri}", data.fingerprint[:36])
    assert [output.model_id for output in client.get_run(run_id).outputs.model_outputs] == [found.model_id]
    assert same(models.load_network(f"models:/{found.model_id}", tracking_uri), make_state())


def test_a_model_that_differs_leaves_nothing(run_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(folder: str, images: list[bytes]) -> list[np.ndarray]:
        return [np.full(decode_image(data).shape[:2], 7, np.uint8) for data in images]

    monkeypatch.setattr(models, "predict", other)
    out = tmp_path / "out"
    with pytest.raises(InputError, match="mlflow model does not compute"):
        export_model.main(export_model.Settings(run_dir, str(out), formats=("mlflow",), register="tiny-other"))
    assert not out.exists()


@pytest.mark.parametrize(
    "changes, field",
    [({"formats": ("tflite",)}, "formats"), ({"formats": ()}, "formats"), ({"num_images": 0}, "num_images"),
     ({"formats": ("onnx",), "register": "a"}, "formats")],
)  # fmt: skip
def test_bad_settings(changes: dict, field: str) -> None:
    with pytest.raises(SettingError) as caught:
        export_model.main(export_model.Settings("nowhere", "out", **changes))
    assert caught.value.field == field


def test_a_run_without_an_mlflow_run(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(InputError, match="no MLflow run"):
        export_model.main(export_model.Settings(str(tmp_path), "out", log=True))
