"""Output files: what they hold, which images are done, the submission's layout, the COCO annotation file."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from boxsup_dist.data.images import decode_png
from boxsup_dist.data.palette import class_palette, encode_palette_png, voc_palette
from boxsup_dist.data.schema import VOC_CLASSES
from boxsup_dist.errors import SettingError
from boxsup_dist.export import coco, files, submission
from boxsup_dist.export.legend import write_legend
from boxsup_dist.io import storage


@pytest.fixture
def probs() -> np.ndarray:
    """Probabilities (21, 12, 9)."""
    scores = np.random.default_rng(0).normal(size=(21, 12, 9)).astype(np.float32)
    return np.exp(scores) / np.exp(scores).sum(0)


@pytest.mark.parametrize("names", [(), VOC_CLASSES, ("background", *"abcdefghijklmnopqrst")])
def test_label_maps_are_palette_pngs_in_the_colours_of_the_legend(tmp_path, names):
    label_map = np.array([[0, 1, 20], [255, 15, 0]], np.uint8)
    data = encode_palette_png(label_map, names)
    image = Image.open(io.BytesIO(data))
    shown = np.asarray(image.convert("RGB"))
    assert image.mode == "P" and np.array_equal(decode_png(data), label_map)
    assert voc_palette()[15].tolist() == [192, 128, 128]  # person, from the devkit's documentation
    assert np.array_equal(shown, voc_palette()[label_map]) == (names in ((), VOC_CLASSES))
    write_legend(str(tmp_path), names or VOC_CLASSES)
    colours = {entry["value"]: entry["colour"] for entry in json.loads((tmp_path / "legend.json").read_text())}
    assert shown.tolist() == [[colours[value] for value in row] for row in label_map.tolist()]


def test_an_image_is_done_when_it_has_every_output(tmp_path, probs):
    out, image = str(tmp_path), np.full((12, 9, 3), 200, np.uint8)
    files.write_outputs(out, "sub/a", ("label_maps", "overlays", "probabilities"), image, probs)
    files.write_outputs(out, "b", ("label_maps",), image, probs)
    rest = tmp_path / "label_maps" / ("c.png.tmp-" + "0" * 32)
    rest.write_bytes(b"half")
    assert files.finished_names(out, ("label_maps",)) == {"sub/a", "b"}
    assert files.finished_names(out, ("label_maps", "overlays", "probabilities")) == {"sub/a"}
    assert not rest.exists()
    assert np.array_equal(decode_png((tmp_path / "label_maps" / "b.png").read_bytes()), probs.argmax(0))
    stored = np.load(tmp_path / "probabilities" / "sub" / "a.npz")["probs"]
    assert stored.dtype == np.float16 and np.abs(stored - probs).max() < 1e-3
    overlay = np.asarray(Image.open(tmp_path / "overlays" / "sub" / "a.jpg"))
    assert overlay.shape == image.shape and overlay.dtype == np.uint8


def test_an_overlay_leaves_the_background_as_it_is():
    label_map = np.zeros((16, 32), np.uint8)
    label_map[:, 16:] = 15
    overlay = np.asarray(Image.open(io.BytesIO(files.encode_overlay(np.full((16, 32, 3), 100, np.uint8), label_map))))
    assert np.abs(overlay[:, :8].astype(int) - 100).max() < 5
    assert np.abs(overlay[:, 24:].astype(int) - (141, 113, 113)).max() < 5
    own = files.encode_overlay(np.full((16, 32, 3), 100, np.uint8), label_map, ["background", *"abcdefghijklmnop"])
    expected = 0.55 * 100 + 0.45 * class_palette(["background", "a"])[15]
    assert np.abs(np.asarray(Image.open(io.BytesIO(own)))[:, 26:] - expected).max() < 12


def test_a_folder_keeps_to_one_kind_of_outputs(tmp_path):
    files.keep_identity(str(tmp_path), {"network": "a", "scales": [1.0]})
    files.keep_identity(str(tmp_path), {"network": "a", "scales": [1.0]})
    with pytest.raises(SettingError, match=r"something else.*network.*'a'.*'b'"):
        files.keep_identity(str(tmp_path), {"network": "b", "scales": [1.0]})


def test_the_submission_has_the_servers_layout(tmp_path):
    maps = {"voc2012/2008_000001": np.eye(4, 5, dtype=np.uint8), "2008_000002": np.full((3, 2), 20, np.uint8)}
    for name, label_map in maps.items():
        storage.write_bytes(files.output_uri(str(tmp_path), "label_maps", name), encode_palette_png(label_map))
    uri = submission.write_submission(str(tmp_path), "comp6", maps)
    with tarfile.open(uri) as archive:
        assert archive.getnames() == [
            f"results/VOC2012/Segmentation/comp6_test_cls/{name}.png" for name in ("2008_000001", "2008_000002")
        ]
        for member, label_map in zip(archive.getmembers(), maps.values(), strict=True):
            content = archive.extractfile(member)
            assert content is not None and np.array_equal(decode_png(content.read()), label_map)
    before = storage.read_bytes(uri)
    submission.write_submission(str(tmp_path), "comp6", maps)
    assert storage.read_bytes(uri) == before
    assert submission.write_submission(str(tmp_path), "comp5", []).endswith("comp5.tar.gz")


def own(names, class_names=("background", "a", "b", "c"), have_source=False):
    return coco.CocoNames.own(names, class_names, have_source=have_source)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["val2017/000000397133", "COCO_val2014_000000000009"], [397133, 9]),
        (["000000000009", "2008_000001"], [1, 2]),  # not all have a number
        (["train/000000000009", "val/000000000009"], [1, 2]),  # two have the same
        (["b", "a/397133"], [1, 2]),
        ([], []),
    ],
)
def test_ids_are_cocos_numbers_or_count_the_images(names, expected):
    assert [place.id for place in own(names).images.values()] == expected


def test_the_file_name_of_a_record_is_that_in_its_data_set():
    found = own(["voc2012/2008_000001", "voc2012/sub/x"], have_source=True).images
    assert [place.file_name for place in found.values()] == ["2008_000001", "sub/x"]
    found = own(["voc2012/a", "voc2007/a"], have_source=True).images
    assert [place.file_name for place in found.values()] == ["voc2012/a", "voc2007/a"]


def test_the_regions_of_a_coco_file_are_the_label_maps(tmp_path):
    rng = np.random.default_rng(0)
    maps = {f"image {i}": rng.choice([0, 1, 3, 255], (5 + i, 7)).astype(np.uint8) for i in range(3)}
    maps["000000000009"] = np.zeros((2, 2), np.uint8)
    images = [coco.CocoImage(name, ".png", *m.shape, coco.connected_regions(m)) for name, m in maps.items()]
    uri = str(tmp_path / "coco.json")
    assert coco.write_coco(uri, images, own(list(maps))) == sum(len(image.annotations) for image in images) > 6
    found = COCO(uri)
    assert found.cats == {i: {"id": i, "name": name} for i, name in ((1, "a"), (2, "b"), (3, "c"))}
    assert {i: image["file_name"] for i, image in found.imgs.items()} == dict(enumerate((f"{n}.png" for n in maps), 1))
    for image_id, label_map in enumerate(maps.values(), 1):
        painted = np.zeros_like(label_map)
        for annotation in found.loadAnns(found.getAnnIds([image_id])):
            mask = found.annToMask(annotation).astype(bool)
            painted[mask] = annotation["category_id"]
            rows, columns = np.nonzero(mask)
            x, y, width, height = annotation["bbox"]
            assert (x, y, x + width, y + height) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert annotation["area"] == mask.sum()
        assert np.array_equal(painted, np.where(label_map == 255, 0, label_map))
    assert coco.write_coco(uri, [], own([])) == 0 and storage.read_json(uri)["images"] == []
