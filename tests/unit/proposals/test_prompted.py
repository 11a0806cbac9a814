"""The segmenter that is prompted with boxes: every family of ONNX files gives the masks of its own computation."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch

from boxsup_dist.errors import InputError, RecordError, SettingError, WeightsError
from boxsup_dist.proposals import encoding, prompted
from boxsup_dist.proposals.gop import gop
from boxsup_dist.proposals.methods import METHODS, identity, propose
from boxsup_dist.proposals.settings import GopSettings, ImportedSettings, NativeMethod, PromptedSettings
from tests import onnx_pairs
from tests.onnx_pairs import FAMILIES, write_pair
from tests.unit.proposals.pictures import blobs, drawn, jaccard


def scene(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image (H, W, 3) of two objects of one colour each, their masks (2, H, W), and their boxes (2, 4)."""
    scale = min(height // 90, width // 100)
    small = np.zeros((2, 90, 100), bool)
    small[0, 20:60, 15:45] = small[0, 40:60, 15:80] = small[1, 65:85, 50:98] = True
    masks = np.zeros((2, height, width), bool)
    masks[:, : 90 * scale, : 100 * scale] = small.repeat(scale, 1).repeat(scale, 2)
    image = np.full((height, width, 3), 120, np.uint8)
    image[masks[0]], image[masks[1]] = (220, 60, 30), (20, 90, 200)
    return image, masks, scale * np.array([[15, 20, 80, 60], [50, 65, 98, 85]], np.float32)


@pytest.fixture(params=FAMILIES)
def settings(request, tmp_path) -> PromptedSettings:
    return PromptedSettings(*write_pair(tmp_path, request.param))


@pytest.mark.parametrize("shape", [(90, 120), (240, 101), (1100, 700)])
def test_each_family_finds_the_objects_of_the_boxes(settings, shape):
    """Each image is brought into the frame of the encoder and each mask back, also where the frame is stretched."""
    image, truth, boxes = scene(*shape)
    found = prompted.prompted(image, settings, boxes_xyxy=boxes, image_id="a/b")
    assert found.image_id == "a/b" and found.superpixels.shape == shape
    assert len(found) == 2 * len(onnx_pairs.DISTANCES), "three masks a box"
    assert jaccard(found, list(truth)).max(0).min() > 0.9
    assert (np.diff(found.objectness) <= 0).all()
    assert found.objectness[0] == pytest.approx(1, abs=0.05), "all of the second box has one colour"
    assert (jaccard(found, [truth[1]])[0] > 0.9).all()
    tight = np.abs(found.boxes[:, None].astype(float) - boxes).max(2).min(0)
    assert (tight <= 2).all()


def test_an_image_without_boxes_has_no_candidate_and_is_not_encoded(settings, monkeypatch):
    monkeypatch.setattr(prompted.Segmenter, "_encode", None)
    found = prompted.prompted(blobs(), settings, boxes_xyxy=np.empty((0, 4)))
    assert len(found) == 0 and found.num_superpixels == 1


def test_candidates_of_another_method_stand_behind_the_masks(tmp_path):
    settings = PromptedSettings(*write_pair(tmp_path, "sam"), also="gop")
    image, _, boxes = scene(90, 120)
    image = np.clip(image + np.random.default_rng(0).normal(0, 6, image.shape), 0, 255).astype(np.uint8)
    found = propose(METHODS["prompted"], image, settings, image_id="a", boxes_xyxy=boxes)
    masks = prompted.prompted(image, settings, boxes_xyxy=boxes)
    other = gop(image, GopSettings())
    assert len(found) == len(masks) + len(other) and len(masks) == 6
    assert (drawn(found) == np.concatenate([drawn(masks), drawn(other)])).all()
    assert found.num_superpixels >= other.num_superpixels
    assert np.unique(found.superpixels).tolist() == list(range(found.num_superpixels))


def test_merging_with_nothing_changes_no_mask():
    own, none = gop(blobs(), GopSettings()), encoding.encode(encoding.from_masks([], shape=(60, 80)))
    assert (drawn(encoding.merge(own, none)) == drawn(own)).all()
    assert (drawn(encoding.merge(none, own)) == drawn(own)).all()
    assert len(encoding.merge(none, none)) == 0


def test_the_files_are_known_by_their_content(tmp_path):
    files = write_pair(tmp_path / "a", "sam")
    first = identity(METHODS["prompted"], PromptedSettings(*files))
    assert set(first) == {"onnx_encoder", "onnx_decoder"} and first["onnx_encoder"].startswith("sha256:")
    moved = PromptedSettings(*write_pair(tmp_path / "b", "sam"))
    assert identity(METHODS["prompted"], moved) == first
    (tmp_path / "b/encoder_data.bin").write_bytes(b"weights")
    assert identity(METHODS["prompted"], moved)["onnx_encoder"] != first["onnx_encoder"]
    also = identity(METHODS["prompted"], PromptedSettings(*files, also="gop"))
    assert also == {**first, "also": {"gop": identity(METHODS["gop"], GopSettings())}}
    imported = ImportedSettings(str(tmp_path))
    assert "also" not in identity(METHODS["imported"], imported), "tables of before are the same build"


@pytest.mark.parametrize("method", get_args(NativeMethod))
def test_a_method_can_stand_behind_files_too(tmp_path, method):
    (tmp_path / "a.json").write_text('[{"segmentation": [[10, 10, 40, 10, 40, 30, 10, 30]]}]')
    settings = ImportedSettings(str(tmp_path), "rle", also=method)
    found = propose(METHODS["imported"], blobs(), settings, image_id="x/a")
    assert len(found) > 5 and found.boxes[0].tolist() == [10, 10, 40, 30]


# -- files that are no segmenter ---------------------------------------------------------------------------------------


class Other(torch.nn.Module):
    def forward(self, image):
        return image * 2


def test_another_network_is_refused_with_what_was_found(tmp_path):
    encoder, decoder = write_pair(tmp_path, "sam")
    with pytest.raises(WeightsError) as caught:
        prompted.open_segmenter(decoder, encoder)  # exchanged
    text = str(caught.value)
    assert text.startswith("not the decoder of a box-prompted segmenter") and encoder in text
    assert "input_image ['image_height', 'image_width', 3] tensor(float) -> image_embeddings" in text
    assert "SAM: image_embeddings, point_coords, " in text and "SAM 2: image_embed, high_res_feats_0" in text
    with pytest.raises(WeightsError, match=r"the encoder does not fit the decoder; .*decoder\.onnx; found: .*an image"):
        prompted.open_segmenter(decoder, decoder)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [("sam2", "sam", r"\(any, any, 3\) or \(1, 3, 1024, 1024\).*the decoder is SAM's"),
     ("efficient", "sam", "the decoder is SAM's"),
     ("sam", "sam2", r"\(1, 3, 1024, 1024\) of floats -> image_embed, .*SAM 2's"),
     ("sam", "efficient", r"\(N, 3, any, any\) of floats -> image_embeddings .*EfficientSAM's")],
)  # fmt: skip
def test_an_encoder_of_another_family_is_refused(tmp_path, first, second, expected):
    encoder, decoder = write_pair(tmp_path / "1", first)[0], write_pair(tmp_path / "2", second)[1]
    with pytest.raises(WeightsError, match=f"the encoder does not fit the decoder; .*encoder.onnx.*{expected}"):
        prompted.open_segmenter(encoder, decoder)


def test_a_decoder_that_takes_one_point_is_refused(tmp_path):
    """As EfficientSAM's own export: the number of points of a query is fixed to one."""
    item = SimpleNamespace(name="batched_point_coords", shape=[1, "num_points", 1, 2])
    with pytest.raises(WeightsError, match=r"two corners of one box.*field: batched_point_coords; found: \[1, 'num"):
        prompted._check_points("f.onnx", SimpleNamespace(get_inputs=lambda: [item]))


@pytest.mark.parametrize("content", [b"", b"no network", None])
def test_a_file_that_is_no_network_is_refused(tmp_path, content):
    encoder, decoder = write_pair(tmp_path, "sam")
    Path(encoder).unlink()
    if content is not None:
        Path(encoder).write_bytes(content)
    with pytest.raises(InputError, match=r"(not a network that ONNX Runtime|no such file).*encoder\.onnx"):
        identity(METHODS["prompted"], PromptedSettings(encoder, decoder))


def test_a_failure_of_the_segmenter_is_one_line_of_its_image(tmp_path, monkeypatch):
    settings = PromptedSettings(*write_pair(tmp_path, "sam2"))
    monkeypatch.setattr(prompted.Segmenter, "_prepare", lambda *_: (np.zeros((1, 3, 8, 8), np.float32), (8, 8)))
    with pytest.raises(RecordError, match="the segmenter fails on the image; found: ") as caught:
        prompted.prompted(blobs(), settings, boxes_xyxy=np.array([[1, 1, 5, 5]]))
    assert "\n" not in str(caught.value)


def test_a_network_in_a_store_is_read_from_there(tmp_path, monkeypatch):
    encoder, decoder = write_pair(tmp_path, "sam2")
    shutil.copy(encoder, tmp_path / "other.onnx")
    monkeypatch.setattr(prompted.storage, "is_local", lambda uri: False)
    monkeypatch.setattr(prompted.storage, "absolute", lambda uri: uri)
    segmenter = prompted.open_segmenter(str(tmp_path / "other.onnx"), decoder)
    assert segmenter.family.name == "SAM 2"


@pytest.mark.parametrize(
    ("given", "field"),
    [({}, "onnx_encoder"), ({"onnx_encoder": "e"}, "onnx_decoder"),
     ({"onnx_encoder": "e", "onnx_decoder": "d", "also": "imported"}, "also")],
)  # fmt: skip
def test_settings_are_checked(given, field):
    with pytest.raises(SettingError, match=f"field: {field}"):
        PromptedSettings(**given)
