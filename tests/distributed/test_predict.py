"""Real Ray: good and bad images, a stopped call that continues, a records table; labels of an epoch as files."""

from __future__ import annotations

import ctypes
import io
import json
import re
import socket
import sys
import tarfile
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from ray import serve

from boxsup_dist import api
from boxsup_dist.assignment.assign import assign_row_group
from boxsup_dist.config import PredictionSettings
from boxsup_dist.data import tables
from boxsup_dist.data.images import decode_image, decode_png, encode_png
from boxsup_dist.data.labels import open_labels, store_labels
from boxsup_dist.data.painting import front_order, painter
from boxsup_dist.data.schema import IGNORE_INDEX, VOC_CLASSES, iter_records
from boxsup_dist.errors import SettingError
from boxsup_dist.export import prediction
from boxsup_dist.export.labels import export_unit
from boxsup_dist.export.prediction import predict_unit
from boxsup_dist.io import storage
from boxsup_dist.model import checkpoint
from boxsup_dist.model.inference import predict_probs
from boxsup_dist.progress import ProgressMeter
from boxsup_dist.runs import serving
from boxsup_dist.runs.command_line import clear_errors
from boxsup_dist.runs.inputs import open_inputs
from boxsup_dist.runs.kept_config import read_config, write_config
from boxsup_dist.runs.layout import RunFiles
from jobs import export_labels, predict
from tests.distributed import tiny

BAD = ("cut.jpg", "notes.txt")
SHAPES = {  # (height, width) of each good image as it is seen
    "cmyk": (40, 50),
    "deep": (31, 44),
    "dot": (1, 1),
    "sub/turned": (60, 33),
    "plain": (64, 48),
    "wide": (20, 90),
}


@pytest.fixture(scope="module")
def network():
    """Random weights in the score layer too, so that the classes differ."""
    torch.manual_seed(0)
    network = tiny.build_network().eval()
    torch.nn.init.normal_(network.score.weight, std=1.0)
    return network


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, network) -> str:
    """A run directory of box supervision, on real tables, with a checkpoint and the labels of epochs 1 and 2."""
    folder = tmp_path_factory.mktemp("run")
    records, proposals, val = tiny.write_tables(folder, mask=tiny.POISON)
    rectangles = tiny.make_source(folder, "rectangles", records=val.uri)
    config = tiny.make_config(
        folder, folder / "box", sources=(tiny.make_source(folder), rectangles), val_records=None, duplicates="drop"
    )
    write_config(config)
    state = checkpoint.CheckpointState(2, 0, 0, network.spec, network.state_dict())
    checkpoint.save(config.run_dir, state)
    num_units = len(open_inputs(config).mixture.units)
    for epoch in (0, 1):
        parts = [
            assign_row_group(None, records.read(w), proposals.read(w), tiny.ASSIGNMENT, seed=epoch, epoch=epoch)
            for w in records.row_groups()
        ]
        rest = [parts[0].slice(0, 0)] * (num_units - len(parts))
        store_labels(RunFiles(config.run_dir).labels(epoch + 1), [*parts, *rest])
    return config.run_dir


@pytest.fixture
def images(tmp_path) -> Path:
    """Six good images and two bad ones."""
    rng = np.random.default_rng(0)

    def noise(*shape: int) -> Image.Image:
        return Image.fromarray(rng.integers(0, 256, shape, np.uint8))

    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    noise(40, 50, 3).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(rng.integers(0, 2**16, (31, 44), np.uint16)).save(folder / "deep.png")
    noise(1, 1).save(folder / "dot.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: 33 x 60 as stored
    noise(33, 60, 3).save(folder / "sub" / "turned.jpg", exif=exif)
    noise(64, 48, 3).save(folder / "plain.jpg")
    noise(20, 90, 4).save(folder / "wide.png")
    (folder / "notes.txt").write_text("no image")
    buffer = io.BytesIO()
    noise(64, 64, 3).save(buffer, "JPEG")
    (folder / "cut.jpg").write_bytes(buffer.getvalue()[:1500])
    return folder


def settings(run_dir: str, images: Path | str, out: Path, **changes) -> predict.Settings:
    return predict.Settings(str(images), str(out), run_dir, num_actors=1, **changes)


def label_maps(out: Path) -> dict[str, np.ndarray]:
    folder = out / "label_maps"
    return {p: decode_png((folder / p).read_bytes()) for p in storage.find_files(str(folder)) if p.endswith(".png")}


def test_good_images_are_predicted_bad_ones_reported_and_a_stopped_call_continues(
    ray_local, run_dir, network, images, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    wanted = settings(run_dir, images, out, overlays=True, probabilities=True, submission="comp6", coco_json=True)

    def interrupt(meter, count):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ProgressMeter, "advance", interrupt)
        predict.main(wanted)
    before = {p: (out / "label_maps" / p).stat().st_mtime_ns for p in label_maps(out)}
    assert before and not (out / "summary.json").exists()
    done = next(iter(before))
    (out / "overlays" / done).with_suffix(".jpg").unlink()  # an image without one of its outputs is not done

    with pytest.raises(SystemExit) as exit_:
        predict.main(wanted)
    assert exit_.value.code == 1
    maps = label_maps(out)
    assert {p.removesuffix(".png"): m.shape for p, m in maps.items()} == SHAPES
    after = {p: (out / "label_maps" / p).stat().st_mtime_ns for p in before}
    assert {p for p in before if before[p] != after[p]} == {done}
    summary = storage.read_json(str(out / "summary.json"))
    assert [Path(entry["file"]).name for entry in summary["failed"]] == list(BAD)
    assert "the image is damaged" in summary["failed"][0]["reason"] and "not an image" in summary["failed"][1]["reason"]
    assert (summary["num_images"], summary["num_failed"]) == (8, 2)
    assert summary["num_predicted"] + summary["num_finished_before"] == 6
    printed = capsys.readouterr().err
    assert all(f"failed: {images / name}: " in printed for name in BAD)

    turned = np.asarray(Image.open(images / "sub" / "turned.jpg").transpose(Image.Transpose.ROTATE_270))
    probs = predict_probs(network, turned, PredictionSettings())
    stored = np.load(out / "probabilities" / "sub" / "turned.npz")["probs"]
    assert np.abs(stored - probs).max() < 2e-3
    # An actor has one thread: sums differ from ours in their last digits.
    assert (maps["sub/turned.png"] == probs.argmax(0)).mean() > 0.99
    assert Image.open(out / "overlays" / "sub" / "turned.jpg").size == (33, 60)

    with tarfile.open(out / "comp6.tar.gz") as archive:
        folder = "results/VOC2012/Segmentation/comp6_test_cls"
        assert sorted(archive.getnames()) == sorted(f"{folder}/{Path(name).name}.png" for name in SHAPES)
    coco = COCO(str(out / "coco.json"))
    file_of = {name: next(str(p.relative_to(images)) for p in images.rglob(f"{Path(name).name}.*")) for name in SHAPES}
    id_of = {image["file_name"]: image_id for image_id, image in coco.imgs.items()}
    assert set(id_of) == set(file_of.values()) and all(isinstance(image_id, int) for image_id in coco.imgs)
    assert coco.cats[1]["name"] == "aeroplane"
    for name in SHAPES:
        painted = np.zeros(SHAPES[name], np.uint8)
        for annotation in coco.loadAnns(coco.getAnnIds([id_of[file_of[name]]])):
            painted[coco.annToMask(annotation) == 1] = annotation["category_id"]
        assert np.array_equal(painted, maps[f"{name}.png"])


def predict_or_crash(network, unit, **options):
    """Predict as `predict_unit`; the image "plain" ends the process by SIGSEGV."""
    if any(item.name == "plain" for item in unit):
        ctypes.string_at(0)
    return predict_unit(network, unit, **options)


def test_an_image_that_ends_its_process_is_named_and_the_others_are_predicted(
    ray_local, run_dir, images, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(prediction, "predict_unit", predict_or_crash)
    summary = predict.predict(settings(run_dir, images, tmp_path / "out"))
    failed = {Path(entry["file"]).name: entry["reason"] for entry in summary["failed"]}
    assert set(failed) == {*BAD, "plain.jpg"} and summary["num_predicted"] == 5
    # Ray reports a lost actor as dead, or as one that does not answer yet.
    assert re.match(
        "ended its process 4 times: (its process does not answer: )?native code crashed", failed["plain.jpg"]
    )
    assert {p.removesuffix(".png") for p in label_maps(tmp_path / "out")} == set(SHAPES) - {"plain"}
    assert f"failed: {images / 'plain.jpg'}: ended its process 4 times" in capsys.readouterr().err


def test_a_records_table_is_predicted_as_its_images_are_stored(ray_local, run_dir, network, tmp_path):
    table = tables.open_table(str(Path(run_dir).parent / "val"), "records")
    options = PredictionSettings(scales=(0.8, 1.0), flip=True)
    out = tmp_path / "out"
    newest = checkpoint.latest(run_dir)
    assert newest is not None
    predict.main(settings(newest, table.uri, out, prediction=options))
    records = [record for where in table.row_groups() for record in iter_records(table.read(where))]
    maps = label_maps(out)
    assert set(maps) == {f"{record.image_id}.png" for record in records} and len(records) == tiny.NUM_VAL
    for record in records:
        assert record.image is not None
        probs = predict_probs(network, decode_image(record.image), options)
        assert (maps[f"{record.image_id}.png"] == probs.argmax(0)).mean() > 0.999
    with pytest.raises(SystemExit) as exit_, clear_errors():
        predict.main(settings(newest, table.uri, out))
    assert exit_.value.code == 2


def test_the_service_answers_as_predict_writes_and_refuses_in_one_line(ray_local, run_dir, images, tmp_path):
    predict.predict(settings(run_dir, images, tmp_path / "out"))
    expected = label_maps(tmp_path / "out")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served = serving.ServedNetwork(run_dir, VOC_CLASSES, PredictionSettings(), 1, 8, 10**5, 10**6)
    try:
        serving.start(served, host="127.0.0.1", port=port, num_replicas=1, cpus=1.0, gpus=0.0)

        def ask(path: str, data: bytes | None = None, **headers: str) -> tuple[int, bytes]:
            request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return answer.status, answer.read()
            except urllib.error.HTTPError as error:
                return error.code, error.read()

        def label_map(name: str) -> np.ndarray:
            file = next(images.rglob(f"{Path(name).name}.*"))
            return decode_png(ask("/predict", file.read_bytes(), Accept="image/png")[1])

        with ThreadPoolExecutor(6) as threads:  # they wait together, so they share batches of several sizes
            for name, found in zip(SHAPES, threads.map(label_map, SHAPES), strict=True):
                assert np.array_equal(found, expected[f"{name}.png"]), name
        photo = (images / "plain.jpg").read_bytes()
        answer = json.loads(ask("/predict", photo)[1])
        for found in answer["classes"]:
            assert found["name"] == VOC_CLASSES[found["class_id"]]
            mask = coco_mask.decode(found["segmentation"])
            assert np.array_equal(mask, expected["plain.png"] == found["class_id"])
        assert decode_image(ask("/predict?as=overlay", photo)[1]).shape == (64, 48, 3)
        assert b"Drop an image" in ask("/")[1] and json.loads(ask("/health")[1])["classes"] == list(VOC_CLASSES)
        form = {"Content-Type": "multipart/form-data; boundary=x"}
        refused = [
            (ask("/predict", b"no image"), 422, b"not an image"),
            (ask("/predict", (images / "cut.jpg").read_bytes()), 422, b"damaged"),
            (ask("/predict", b""), 400, b"no file"),
            (ask("/predict", bytes(10**5 + 1)), 413, b"larger than 0.1 MB"),
            (ask("/predict", encode_png(np.zeros((1001, 1000), np.uint8))), 422, b"larger than allowed"),
            (ask("/predict", photo, **form), 415, b"--data-binary"),
            (ask("/predict?as=gif", photo), 400, b"choose one of json"),
            (ask("/predict"), 405, b"POST an image"),
            (ask("/nothing"), 404, b"POST an image"),
        ]
        for (status, text), wanted, words in refused:
            assert status == wanted and words in text and text.count(b"\n") == 1, text
    finally:
        serve.shutdown()


@pytest.mark.parametrize("undecided", ["ignore", "decided"])
def test_exported_labels_are_what_the_epoch_trained_on(ray_local, run_dir, tmp_path, undecided):
    summary = export_labels.export_labels(export_labels.Settings(run_dir, str(tmp_path), undecided=undecided))
    config = read_config(run_dir)
    mixture = open_inputs(config).mixture
    labels = open_labels(RunFiles(run_dir).labels(2))
    coco = COCO(str(tmp_path / "coco.json"))
    id_of = {image["file_name"]: image_id for image_id, image in coco.imgs.items()}
    assert sorted(coco.imgs) == list(range(1, tiny.NUM_TRAIN + 1))
    chosen = {(row["image_id"], row["box_index"]): row for row in labels.read_all().to_pylist()}
    assert (summary["epoch"], summary["num_images"], summary["num_boxes"]) == (2, tiny.NUM_TRAIN, len(chosen))
    assert len(label_maps(tmp_path)) == tiny.NUM_TRAIN
    of_library = dict(api.read_labels(run_dir, 2))
    num_undecided = 0
    for index in mixture.with_supervision("box"):
        unit = mixture.units[index]
        paint = painter(unit, labels.segments(index), mixture.assignment, decided=undecided == "decided")
        for record in iter_records(unit.source.records.read(unit.where)):
            expected = paint(record)
            stored = (tmp_path / "label_maps" / f"{record.image_id}.png").read_bytes()
            assert np.array_equal(decode_png(stored), expected)
            assert undecided == "decided" or np.array_equal(of_library[record.image_id], expected)
            annotations = coco.loadAnns(coco.getAnnIds([id_of[f"{record.image_id.removeprefix('tiny/')}.jpg"]]))
            assert len(annotations) == len(record.boxes_xyxy)
            for k, annotation in enumerate(annotations):
                row = chosen[record.image_id, k]
                for name in ("overlap_cost", "regression_cost", "rank", "proposal_index"):
                    assert annotation[name] == row[name] or not np.isfinite(row[name])
                x, y, width, height = annotation["bbox"]
                assert np.allclose((x, y, x + width, y + height), record.boxes_xyxy[k])
                assert annotation["category_id"] == record.class_ids[k]
                assert annotation["iscrowd"] == record.crowd[k]
            painted = np.zeros_like(expected)
            for k in front_order(record.boxes_xyxy):
                painted[coco.annToMask(annotations[k]) == 1] = annotations[k]["category_id"]
            decided = expected != IGNORE_INDEX
            assert np.array_equal(painted[decided], expected[decided])
            num_undecided += int((~decided).sum())
    assert num_undecided > 0  # a crowd's box at least


def test_a_unit_whose_images_another_source_has_exports_nothing(run_dir, tmp_path):
    mixture = open_inputs(read_config(run_dir)).mixture
    none = replace(mixture, units=tuple(unit._replace(rows=()) for unit in mixture.units))
    labels = open_labels(RunFiles(run_dir).labels(2))
    assert export_unit(0, mixture=none, labels=labels, undecided="ignore", out=str(tmp_path)) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"images": "/absent"}, ["no such file or folder", "/absent"]),
        ({"run_dir": "/absent"}, ["no checkpoint here", "/absent"]),
        ({"crf": "none"}, ["unknown CRF settings", "deeplab_vgg"]),
        ({"scales": "0"}, ["scales", "0 < factor <= 8"]),
        ({"max_megapixels": "0"}, ["max_megapixels", "> 0"]),
    ],
)
def test_bad_settings_end_with_status_2_before_anything_runs(
    run_dir, images, tmp_path, monkeypatch, capsys, changes, expected
):
    values = {"run_dir": run_dir, "images": str(images), "out": str(tmp_path / "out"), **changes}
    words = [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", value)]
    monkeypatch.setattr(sys, "argv", ["predict", *words])
    with pytest.raises(SystemExit) as exit_:
        predict.run(predict.main)
    assert exit_.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and all(part in line for part in expected), line
    assert not (tmp_path / "out").exists()


def test_an_epoch_without_labels_is_reported(run_dir, tmp_path):
    with pytest.raises(SettingError, match=r"no labels of this epoch.*found: 7; expected: 1 to 2"):
        export_labels.export_labels(export_labels.Settings(run_dir, str(tmp_path), epoch=7))
