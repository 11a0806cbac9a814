"""Export a trained network to MLflow, ONNX and torch.export, checked on real images.

python -m jobs.export_model --run-dir R --out O --formats mlflow onnx torch

O/model/         MLflow model: image bytes in, label maps out (mlflow.pyfunc.load_model,
                 or over HTTP: mlflow models serve -m O/model --env-manager local)
O/model.onnx     images (N, 3, H, W) of RGB 0..255 in, logits (N, C, H, W) out, for any N, H, W
O/model.pt2      the same for torch.export.load
O/summary.json   how far each agrees with the network; a format that does not agree is not published
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from boxsup_dist.config import InputType, TrainConfig
from boxsup_dist.data.images import decode_image
from boxsup_dist.data.tables import Table, open_table
from boxsup_dist.errors import InputError, SettingError
from boxsup_dist.io import storage
from boxsup_dist.runs.command_line import Checkpoint, RunDir, run
from boxsup_dist.runs.kept_config import read_config
from boxsup_dist.runs.summary import mlflow_run, write_result

if TYPE_CHECKING:
    from boxsup_dist.model.checkpoint import CheckpointState
    from boxsup_dist.model.export import Comparison
    from boxsup_dist.model.networks import SegmentationNetwork

Format = Literal["mlflow", "onnx", "torch"]
FILES: dict[Format, str] = {"mlflow": "model", "onnx": "model.onnx", "torch": "model.pt2"}


@dataclass(frozen=True)
class Settings:
    """Which network, which formats, and where they go."""

    run_dir: RunDir
    out: str
    """Folder or URI of the models and summary.json."""
    formats: tuple[Format, ...] = ("mlflow", "onnx", "torch")
    """Formats to write."""
    checkpoint: Checkpoint = None
    check_images: tuple[str, ...] = ()
    """Image files to compare on. Default: images of the run's validation records, else of its training records."""
    num_images: int = 8
    """Images to compare on where check_images names none."""
    input_type: InputType = "uint8"
    """Type of the images that the ONNX and torch models take."""
    log: bool = False
    """Also store the MLflow model in the MLflow run of the training, as runs:/ID/model."""
    register: str | None = None
    """Register the model under this name, as models:/NAME/VERSION. Includes --log."""

    def check(self) -> None:
        """Raise SettingError on settings that cannot work or would have no effect."""
        unknown = sorted(set(self.formats) - set(get_args(Format)))
        if unknown or not self.formats:
            raise SettingError("unknown format", field="formats", value=unknown, expected=str(get_args(Format)))
        if (self.log or self.register) and "mlflow" not in self.formats:
            raise SettingError("only the MLflow model can be published", field="formats", value=self.formats,
                               expected="mlflow among them")  # fmt: skip
        if not self.check_images and self.num_images < 1:
            raise SettingError("a setting is out of range", field="num_images", value=self.num_images, expected=">= 1")


def main(settings: Settings) -> None:
    """Write every format, compare it with the network, then publish it; write OUT/summary.json and print it."""
    settings.check()
    tracked = mlflow_run(settings.run_dir) if settings.log or settings.register else None
    config = read_config(settings.run_dir)
    from boxsup_dist.model import checkpoint, export
    from boxsup_dist.model.networks import network_from_state
    from boxsup_dist.runs.checkpoints import find_checkpoint
    from boxsup_dist.tracking import models

    uri = find_checkpoint(settings.run_dir, settings.checkpoint)
    state = checkpoint.load(uri)
    classes = open_table(config.sources[0].records, "records").classes
    images = _images(settings, config)
    network = network_from_state(state.network, state.model)
    out = storage.absolute(settings.out)
    summary: dict[str, Any] = {"checkpoint": uri, "network": state.network.to_dict(), "class_names": list(classes)}
    summary |= {"input_type": settings.input_type, "formats": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for name in settings.formats:
            started = time.monotonic()
            path = os.path.join(scratch, FILES[name])
            comparison = _write(name, path, network, state, classes, images, settings.input_type)
            export.check_equal(comparison, name)
            summary["formats"][name] = {
                **asdict(comparison),
                "num_bytes": _upload(path, storage.join(out, FILES[name])),
                "seconds": time.monotonic() - started,
            }
            if name == "mlflow" and tracked is not None:
                summary["mlflow_uri"] = models.publish(path, *tracked, settings.register)
    lines = [_line(name, values) for name, values in summary["formats"].items()]
    if "mlflow_uri" in summary:
        lines.append(f"published as {summary['mlflow_uri']}")
    write_result(out, summary, lines)


def _line(name: str, values: dict[str, Any]) -> str:
    size = f"{name:<8} {values['num_bytes'] / 1e6:7.1f} MB"
    equal = f"{values['share_equal']:.4%} of {values['num_pixels']:,} pixels equal"
    difference = values["max_abs_difference"]
    return f"{size}   {equal}" + ("" if difference is None else f", logits differ by {difference:.1e} at most")


def _write(
    name: Format,
    path: str,
    network: SegmentationNetwork,
    state: CheckpointState,
    classes: Sequence[str],
    images: Sequence[bytes],
    input_type: InputType,
) -> Comparison:
    """Write one format, load it again and compare its results with those of the network."""
    from boxsup_dist.model import export
    from boxsup_dist.tracking import models

    decoded = [decode_image(data) for data in images]
    logits = [export.network_runner(network)(image) for image in decoded]
    if name == "mlflow":
        models.save(path, state, classes)
        return export.compare([values.argmax(0) for values in logits], models.predict(path, images))
    writer, runner = {
        "onnx": (export.write_onnx, export.onnx_runner),
        "torch": (export.write_torch, export.torch_runner),
    }[name]
    writer(network, path, classes, input_type)
    run_model = runner(path, input_type)
    return export.compare(logits, [run_model(image) for image in decoded])


def _images(settings: Settings, config: TrainConfig) -> list[bytes]:
    if settings.check_images:
        return [storage.read_bytes(storage.absolute(uri)) for uri in settings.check_images]
    found = []
    for data in _stored_images(open_table(config.val_records or config.sources[0].records, "records")):
        found.append(data)
        if len(found) == settings.num_images:
            break
    if not found:
        raise InputError("the records hold no image to compare on", field="check_images", expected="image files")
    return found


def _stored_images(records: Table) -> Iterator[bytes]:
    for where in records.row_groups():
        yield from records.read(where, ("image",)).column("image").to_pylist()


def _upload(path: str, uri: str) -> int:
    """Copy a file, or a folder that replaces an earlier one, to its URI; returns its bytes."""
    source = Path(path)
    if source.is_file():
        storage.write_bytes(uri, source.read_bytes())
        return source.stat().st_size
    storage.remove(uri)
    files = sorted(file for file in source.rglob("*") if file.is_file())
    for file in files:
        storage.write_bytes(storage.join(uri, *file.relative_to(source).parts), file.read_bytes())
    return sum(file.stat().st_size for file in files)


if __name__ == "__main__":
    run(main)
