"""Files are whole or absent."""

import os

import pytest

from boxsup_dist.errors import InputError, UnreadableFileError, UnwritableFileError
from boxsup_dist.io import storage


def one_byte(uri: str) -> bytes:
    return storage.read_ranges(uri, [(0, 1)])[0]


def test_write_makes_folders_and_reads_back(tmp_path):
    uri = storage.join(str(tmp_path), "a", "b.bin")
    storage.write_bytes(uri, b"one")
    storage.write_bytes(uri, b"two")
    assert storage.read_bytes(uri) == b"two"
    assert storage.list_names(str(tmp_path / "a")) == ["b.bin"]


@pytest.mark.parametrize("broken_call", ["fsync", "replace"])
def test_failing_write_leaves_the_old_content_and_no_rest(tmp_path, monkeypatch, broken_call):
    uri = str(tmp_path / "x.bin")
    storage.write_bytes(uri, b"old")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, broken_call, fail)
    with pytest.raises(UnwritableFileError, match=r"cannot be written; file: .*x\.bin; found: 'disk full'"):
        storage.write_bytes(uri, b"new")
    monkeypatch.undo()
    assert storage.read_bytes(uri) == b"old"
    assert storage.list_names(str(tmp_path)) == ["x.bin"]


def test_other_stores_by_uri():
    uri = "memory://storage-test/folder/x.json"
    storage.write_json(uri, {"a": [1, 2]})
    assert storage.read_json(uri) == {"a": [1, 2]}
    assert storage.exists(uri)
    assert storage.list_names("memory://storage-test/folder") == ["x.json"]
    storage.remove("memory://storage-test/folder")
    assert not storage.exists(uri)
    assert storage.list_names("memory://storage-test/folder") == []


@pytest.mark.parametrize("store", ["local", "memory"])
def test_files_below_a_folder_and_by_pattern(tmp_path, store):
    root = str(tmp_path / "found") if store == "local" else "memory://storage-test/found"
    (tmp_path / "big").write_bytes(b"content")
    storage.write_bytes(storage.join(root, "b.txt"), b"old")
    storage.write_file(storage.join(root, "a", "c.txt"), tmp_path / "big")
    assert storage.find_files(root) == ["a/c.txt", "b.txt"]
    assert storage.glob_files(storage.join(root, "**", "*.txt")) == [
        storage.join(root, n) for n in ("a/c.txt", "b.txt")
    ]
    assert storage.glob_files(storage.join(root, "*")) == [storage.join(root, "b.txt")]  # no folders
    assert storage.read_bytes(storage.join(root, "a", "c.txt")) == b"content"
    assert storage.is_folder(root) and not storage.is_folder(storage.join(root, "b.txt"))
    assert storage.find_files(storage.join(root, "absent")) == []
    storage.remove(root)


def test_a_killed_writes_rest_is_known_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *paths: None)  # killed before it
    storage.write_bytes(str(tmp_path / "x.png"), b"x")
    (rest,) = storage.list_names(str(tmp_path))
    assert storage.is_unfinished(rest) and not storage.is_unfinished("x.tmp-1.png")


def test_absent_and_damaged_files_are_named(tmp_path):
    for read in (storage.read_bytes, storage.read_json, storage.file_size, one_byte):
        with pytest.raises(InputError, match=r"no such file.*absent"):
            read(str(tmp_path / "absent"))
    (tmp_path / "bad").write_bytes(b"{")
    with pytest.raises(InputError, match="not valid JSON"):
        storage.read_json(str(tmp_path / "bad"))


def test_absolute_keeps_uris_and_anchors_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("x/../y") == str(tmp_path / "y")
    assert storage.absolute(f"file://{tmp_path}/y") == str(tmp_path / "y")
    assert storage.absolute("s3://bucket/y/") == "s3://bucket/y"


def test_parts_of_a_file(tmp_path):
    uri = str(tmp_path / "x")
    storage.write_bytes(uri, b"0123456789")
    assert storage.file_size(uri) == 10
    assert storage.read_ranges(uri, [(7, 10), (0, 2), (3, 3)]) == [b"789", b"01", b""]
    with pytest.raises(UnreadableFileError, match=r"became shorter; file: .*x; found: 'only 2 of 3 bytes"):
        storage.read_ranges(uri, [(8, 11)])


@pytest.fixture
def no_files(tmp_path):
    """A folder with what has no content to read, and what the answer calls it."""
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "pipe.jpg")
    (tmp_path / "circle.jpg").symlink_to(tmp_path / "circle.jpg")
    return {
        "pipe": "a named pipe",
        "folder": "a folder",
        "device": "a device",
        "link": "a named pipe",
        "circle": "levels",
    }


@pytest.mark.parametrize("read", [storage.read_bytes, storage.read_json, storage.file_size, one_byte])
def test_what_is_no_file_is_named_and_not_waited_for(tmp_path, no_files, read):
    for name, found in no_files.items():
        with pytest.raises(
            UnreadableFileError, match=rf"(not a file|cannot be read); file: .*{name}.jpg; found: '.*{found}"
        ):
            read(str(tmp_path / f"{name}.jpg"))
    with pytest.raises(UnreadableFileError, match=r"cannot be read; file: .*; found: 'File name too long'"):
        read(str(tmp_path / ("x" * 300)))


def test_listings_show_links_and_what_is_no_file_but_no_folder(tmp_path, no_files):
    """Reading names them; a link to an image is an image."""
    (tmp_path / "image.jpg").write_bytes(b"x")
    (tmp_path / "linked.jpg").symlink_to(tmp_path / "image.jpg")
    names = sorted(f"{name}.jpg" for name in [*no_files.keys() - {"folder"}, "image", "linked"])
    assert storage.find_files(str(tmp_path)) == names
    assert storage.glob_files(str(tmp_path / "*.jpg")) == [str(tmp_path / name) for name in names]
    assert storage.read_bytes(str(tmp_path / "linked.jpg")) == b"x"


@pytest.mark.parametrize(
    ("content", "match"),
    [(b"[" * 100_000, "nested too deep"), (b"\xff\xfe1", "not valid JSON"), (b"1" * 5000, "not valid JSON")],
)
def test_json_that_python_cannot_read_is_named(tmp_path, content, match):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=rf"{match}; file: .*a\.json"):
        storage.read_json(str(tmp_path / "a.json"))


def test_size_of_a_file_and_of_a_folder(tmp_path):
    storage.write_bytes(str(tmp_path / "a" / "x"), b"12345")
    storage.write_bytes(str(tmp_path / "a" / "deep" / "y"), b"123")
    assert storage.size(str(tmp_path / "a" / "x")) == 5 and storage.size(str(tmp_path / "a")) >= 8


def test_what_lies_below_a_file_is_an_absent_folder(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    assert storage.list_names(str(tmp_path / "file" / "folder")) == []
