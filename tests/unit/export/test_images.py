"""Which files are images to predict, how their outputs are named, and how image files of all kinds are read."""

import io

import numpy as np
import pytest
from PIL import Image

from boxsup_dist.errors import InputError, RecordError
from boxsup_dist.export.images import IMAGES_PER_UNIT, find_images, read_image
from boxsup_dist.io import storage


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "in"
    for path in ("b.JPG", "sub/a.png", "a.jpg", "a.txt", ".hidden.jpg", ".cache/x.jpg", "v1.2"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def names(images) -> list[str]:
    return [item.name for item in images.items]


def test_a_folder_with_all_below_it_but_hidden_files(folder, tmp_path):
    images = find_images(str(folder), str(tmp_path / "out"))
    assert names(images) == ["a", "a.txt", "b", "sub/a", "v1.2"]
    assert images.items[3].uri == str(folder / "sub" / "a.png")
    assert images.identity == {"root": str(folder)}


def test_outputs_inside_the_folder_are_no_images(folder):
    storage.write_bytes(str(folder / "out" / "label_maps" / "a.png"), b"x")
    assert len(find_images(str(folder), str(folder / "out")).items) == 5


def test_a_pattern_a_single_image_and_another_store(folder, tmp_path):
    out = str(tmp_path / "out")
    assert names(find_images(str(folder / "**" / "*.png"), out)) == ["sub/a"]
    assert names(find_images(str(folder / "[ab].*"), out)) == ["a", "a.txt", "b"]
    assert names(find_images(str(folder / "a.jpg"), out)) == ["a"]
    storage.write_bytes("memory://predict/in/x/a.jpg", b"x")
    for uri in ("memory://predict/in", "memory://predict/in/**/*.jpg"):
        images = find_images(uri, out)
        assert names(images) == ["x/a"] and storage.read_bytes(images.items[0].uri) == b"x"
    storage.remove("memory://predict")


def test_a_list_is_relative_to_its_own_folder(folder, tmp_path):
    (folder / "list").write_text(f"sub/a.png\n\n{folder}/a.jpg\n../in/b.JPG\nabsent.jpg\n")
    images = find_images(str(folder / "list"), str(tmp_path / "out"))
    assert names(images) == ["a", "absent", "b", "sub/a"]  # an absent file is reported when it is read
    (folder / "list").write_text("s3://bucket/in/a.jpg\ns3://bucket/in/b/c.jpg\n")
    images = find_images(str(folder / "list"), str(tmp_path / "out"))
    assert names(images) == ["a", "b/c"] and images.identity == {"root": "s3://bucket/in"}


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("absent", "no such file or folder"),
        ("empty", "no image found"),
        ("nothing*", "no image found"),
        ("same", "would write the same output"),
        ("nested", "the same name as the folder of another image"),
        ("mixed.txt", "mixes file systems"),
        ("escaping.txt", "the name leaves its folder; file: s3://b"),
        ("binary", "neither an image"),
    ],
)
def test_what_cannot_be_predicted_is_refused_before_anything_runs(tmp_path, path, problem):
    (tmp_path / "empty").mkdir()
    for name in ("same/a.jpg", "same/a.png", "nested/a.jpg", "nested/a.png/b.jpg"):
        storage.write_bytes(str(tmp_path / name), b"x")
    (tmp_path / "mixed.txt").write_text("/a.jpg\ns3://b/a.jpg\n")
    (tmp_path / "escaping.txt").write_text("s3://b/x/../../a.jpg\ns3://b/x/y.jpg\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=problem):
        find_images(str(tmp_path / path), str(tmp_path / "out"))


def test_units_are_a_few_images_without_the_skipped(tmp_path):
    for i in range(2 * IMAGES_PER_UNIT + 2):
        storage.write_bytes(str(tmp_path / "in" / f"{i:02d}.jpg"), b"x")
    units = find_images(str(tmp_path / "in"), str(tmp_path / "out")).units(lambda item: item.name == "00")
    assert [len(unit) for unit in units] == [IMAGES_PER_UNIT, IMAGES_PER_UNIT, 1]
    assert units[0][0].name == "01"


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def read(data: bytes, max_pixels: int = 10_000) -> np.ndarray:
    return read_image(data, turn_by_exif=True, max_pixels=max_pixels)


def test_every_kind_of_image_becomes_rgb():
    grey = np.arange(60, dtype=np.uint8).reshape(6, 10)
    rgb = np.repeat(grey[..., None], 3, 2)
    shown = Image.fromarray(rgb)
    assert np.array_equal(read(encode(Image.fromarray(grey), "PNG")), rgb)
    assert np.array_equal(read(encode(Image.fromarray(grey.astype(np.uint16) * 256 + 7), "PNG")), rgb)
    assert np.array_equal(read(encode(shown.convert("RGBA"), "PNG")), rgb)
    assert np.array_equal(read(encode(shown.quantize(64), "PNG")), rgb)
    assert np.array_equal(read(encode(shown, "TIFF")), rgb)
    cmyk = read(encode(Image.new("CMYK", (10, 6), (0, 255, 255, 0)), "JPEG", quality=95))
    assert cmyk.shape == (6, 10, 3) and np.abs(cmyk.astype(int) - (255, 0, 0)).max() < 12
    assert read(encode(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG")).tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_photo_is_applied(orientation):
    """Position of the marked upper left pixel as the EXIF standard defines row 0 and column 0."""
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = read(encode(Image.fromarray(pixels), "PNG", exif=exif))
    top_left, turned = (
        {1: (0, 0), 2: (0, 2), 3: (1, 2), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (2, 1), 8: (2, 0)},
        (5, 6, 7, 8),
    )
    assert found.shape == ((3, 2, 3) if orientation in turned else (2, 3, 3))
    assert np.argwhere(found[..., 0] == 255).tolist() == [list(top_left[orientation])]
    as_stored = read_image(encode(Image.fromarray(pixels), "PNG", exif=exif), turn_by_exif=False, max_pixels=100)
    assert np.array_equal(as_stored, pixels)


def test_bytes_that_are_not_an_image_are_recognised_by_their_content():
    rng = np.random.default_rng(0)
    jpeg = encode(Image.fromarray(rng.integers(0, 256, (50, 50, 3), np.uint8)), "JPEG")
    for data, problem in (
        (b"a text", "not an image"),
        (b"", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (jpeg[: len(jpeg) // 2], "the image is damaged"),
    ):
        with pytest.raises(RecordError, match=problem):
            read(data)
    with pytest.raises(RecordError, match="the image is larger than allowed"):
        read(jpeg, max_pixels=2499)
