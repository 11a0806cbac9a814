"""What the operating system refuses: one error with the file and what to do, for every errno and operation."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from boxsup_dist.errors import (
    InputError,
    MachineError,
    MissingFileError,
    RecordError,
    UnreadableFileError,
    UnwritableFileError,
    cause_to_show,
    system_error,
)
from boxsup_dist.io import storage
from boxsup_dist.io.local import check_room
from boxsup_dist.records import voc
from boxsup_dist.records.build import pack_records
from boxsup_dist.records.reader import ListEntry
from tests import devkit

# errno -> words of what to do
GRID = {
    errno.EACCES: "this user may use",
    errno.EPERM: "this user may use",
    errno.EROFS: "mount this one for writing",
    errno.ENOSPC: "are free in",
    errno.EDQUOT: "quota",
    errno.EIO: "see dmesg",
    errno.ESTALE: "mount it again",
    errno.ENOTCONN: "mount it again",
    errno.ENAMETOOLONG: "a shorter name",
    errno.EISDIR: "not a folder",
    errno.ELOOP: "circle of links",
}
READS: dict[str, tuple[str, Callable[[str], Any]]] = {  # operation -> function of os that fails, and the call
    "read_bytes": ("open", storage.read_bytes),
    "read_json": ("open", storage.read_json),
    "exists": ("stat", storage.exists),
    "is_folder": ("stat", storage.is_folder),
    "list_names": ("scandir", lambda uri: storage.list_names(os.path.dirname(uri))),
    "find_files": ("scandir", lambda uri: storage.find_files(os.path.dirname(uri))),
    "glob_files": ("scandir", lambda uri: storage.glob_files(os.path.dirname(uri) + "/*.json")),
    "file_size": ("stat", storage.file_size),
    "read_ranges": ("open", lambda uri: storage.read_ranges(uri, [(0, 1)])),
}
WRITES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "make folder": ("makedirs", lambda uri: storage.write_bytes(uri, b"new")),
    "open": ("open", lambda uri: storage.write_bytes(uri, b"new")),
    "sync": ("fsync", lambda uri: storage.write_json(uri, 1)),
    "rename": ("replace", lambda uri: storage.write_bytes(uri, b"new")),
    "copy": ("fsync", lambda uri: storage.write_file(uri, Path(__file__))),
    "delete": ("remove", storage.remove),
    "check_output": ("open", lambda uri: storage.check_output(os.path.dirname(uri))),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.json").write_text("[1]")
    return tmp_path / "folder" / "a.json"


def refuse(monkeypatch: pytest.MonkeyPatch, name: str, code: int, below: Path) -> None:
    """Let a function of the system fail for every path below a folder."""
    import io

    module: Any = io if name == "open" else os
    real = getattr(module, name)

    def failing(path: Any, *args: Any, **kwargs: Any) -> Any:
        where = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.fspath(path)
        if str(where).startswith(str(below)):
            raise OSError(code, os.strerror(code), str(where))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(module, name, failing)
    if name == "open":
        monkeypatch.setattr("builtins.open", failing)
        monkeypatch.setattr(os, "open", failing_os_open(os.open, code, below))


def failing_os_open(real: Any, code: int, below: Path) -> Any:
    def failing(path: Any, *args: Any, **kwargs: Any) -> Any:
        if str(path).startswith(str(below)):
            raise OSError(code, os.strerror(code), str(path))
        return real(path, *args, **kwargs)

    return failing


def check_line(error: InputError, code: int, below: Path) -> None:
    text = str(error)
    assert f"; file: {below}" in text and f"found: '{os.strerror(code)}'" in text and "\n" not in text
    assert GRID[code] in text, text


@pytest.mark.parametrize("operation", READS)
@pytest.mark.parametrize("code", GRID)
def test_a_refused_read_names_the_file(file: Path, monkeypatch: pytest.MonkeyPatch, operation: str, code: int) -> None:
    name, call = READS[operation]
    refuse(monkeypatch, name, code, file.parent)
    with pytest.raises(UnreadableFileError) as found:
        call(str(file))
    monkeypatch.undo()
    check_line(found.value, code, file.parent)


@pytest.mark.parametrize("operation", WRITES)
@pytest.mark.parametrize("code", GRID)
def test_a_refused_write_names_the_file_and_leaves_nothing(
    file: Path, monkeypatch: pytest.MonkeyPatch, operation: str, code: int
) -> None:
    name, call = WRITES[operation]
    refuse(monkeypatch, name, code, file.parent)
    with pytest.raises(UnwritableFileError) as found:
        call(str(file))
    monkeypatch.undo()
    check_line(found.value, code, file.parent)
    assert file.read_text() == "[1]"
    if operation != "delete":  # which is what would clean up
        assert [path.name for path in file.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_what_the_machine_lacks_is_no_fault_of_the_file(file: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Otherwise a process with too many open files would leave out every further image."""
    refuse(monkeypatch, "open", code, file.parent)
    with pytest.raises(InputError, match=r"the system refuses; file: .*then run the same command again") as found:
        storage.read_bytes(str(file))
    assert type(found.value) is MachineError


def test_a_full_disk_names_what_is_needed_and_what_is_free(tmp_path: Path) -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    found = system_error(error, file=tmp_path / "absent" / "x.pt", writing=True, num_bytes=3 << 20)
    assert f"file: {tmp_path}/absent/x.pt; found: 'No space left on device'; expected: 3.0 MiB for this file, " in str(
        found
    )
    assert f"iB are free in {tmp_path}; " in str(found) and "then run the same command again: it continues" in str(
        found
    )
    assert str(pickle.loads(pickle.dumps(found))) == str(found)


def test_a_disk_without_room_is_named_before_it_is_used(tmp_path: Path) -> None:
    """Ray would wait 30 s for processes that ended without a word, three times."""
    check_room(str(tmp_path), 1)
    with pytest.raises(UnwritableFileError, match=r"'No space left on device'; expected: 1099511627776.0 MiB") as found:
        check_room(str(tmp_path), 2**60)
    assert f"are free in {tmp_path}; " in str(found.value)
    check_room(str(tmp_path / "absent" / "yet"), 1)


def test_a_limit_of_the_size_of_files_is_one_line(tmp_path: Path) -> None:
    """A real error of the system, in a process of its own: the limit cannot be raised again."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    code = "import sys; from boxsup_dist.io import storage; storage.write_bytes(sys.argv[1], bytes(10000))"
    code = f"from boxsup_dist.runs.command_line import clear_errors\nwith clear_errors():\n    {code}"
    done = subprocess.run([sys.executable, "-B", "-c", code, str(tmp_path / "x")], preexec_fn=limit, text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert (
        f"cannot be written; file: {tmp_path}/x; found: 'File too large'" in done.stderr and "ulimit -f" in done.stderr
    )
    assert list(tmp_path.iterdir()) == []


def test_real_files_in_place_of_folders_and_folders_in_place_of_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for uri in ("file/x", "file/deeper/x"):
        with pytest.raises(UnwritableFileError, match="one of them is a file"):
            storage.write_bytes(str(tmp_path / uri), b"x")
        assert not storage.exists(str(tmp_path / uri))
        with pytest.raises(UnwritableFileError, match="one of them is a file"):
            storage.check_output(str(tmp_path / uri))
    with pytest.raises(UnwritableFileError, match=r"folder; found: 'Is a directory'; expected: a file"):
        storage.write_bytes(str(tmp_path / "folder"), b"x")
    with pytest.raises(UnreadableFileError, match="'Not a directory'"):
        storage.read_bytes(str(tmp_path / "file" / "x"))
    storage.check_output(str(tmp_path / "new" / "deep"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_name_that_is_as_long_as_the_system_allows_can_be_written(tmp_path: Path) -> None:
    uri = str(tmp_path / ("ä" * 125 + ".json"))  # 255 bytes
    storage.write_json(uri, 1)
    assert storage.read_json(uri) == 1 and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(UnwritableFileError, match="a shorter name"):
        storage.write_json(uri + "x", 1)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["a\0b", "half \ud800"])
def test_what_is_no_name_is_one_line(tmp_path: Path, name: str) -> None:
    """JSON and lists can hold such names; Python would raise a ValueError."""
    for call in (storage.read_bytes, storage.exists, storage.find_files, lambda uri: storage.write_bytes(uri, b"")):
        with pytest.raises(InputError, match=r"no name of a file; file: '.*(x00|ud800)"):
            call(str(tmp_path / name))


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsspec passes over it in silence; then images below it would be missing."""
    refuse(monkeypatch, "scandir", errno.EACCES, file.parent)
    for call in (storage.find_files, lambda uri: storage.glob_files(uri + "/**/*.json")):
        with pytest.raises(UnreadableFileError, match=r"Permission denied"):
            call(str(file.parents[1]))


@pytest.mark.parametrize("broken", ["JPEGImages/b.jpg", "Annotations/b.xml", "SegmentationClass/b.png"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_an_unreadable_file_leaves_its_image_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, code: int
) -> None:
    for name in "abc":
        devkit.write(tmp_path, name, masks={"SegmentationClass": devkit.mask()})
    refuse(monkeypatch, "open", code, tmp_path / broken)
    content = pack_records(
        [ListEntry(name, "train") for name in "abc"], lambda entry: voc.read_record(str(tmp_path), *entry)
    )
    assert content.table.column("image_id").to_pylist() == ["voc/a", "voc/c"] and content.counts["skipped"] == 1
    (problem,) = content.problems
    assert problem["image_id"] == "b" and broken in problem["problem"] and os.strerror(code) in problem["problem"]
    with pytest.raises((RecordError, UnreadableFileError)):
        pack_records([ListEntry("b", "train")], lambda entry: voc.read_record(str(tmp_path), *entry), strict=True)


# -- through Ray -------------------------------------------------------------------------------------------------------


class TestCauseToShow:
    """Ray wraps what a task raises; the text of its wrappers is a traceback."""

    def wrap(self, error: Exception) -> Exception:
        wrapped: Exception = RayTaskError("f", "Traceback ...\n" * 30, error).as_instanceof_cause()
        return wrapped

    def test_an_error_of_the_system_in_a_task(self) -> None:
        found = cause_to_show(self.wrap(PermissionError(errno.EACCES, "Permission denied", "/data/x.pt")))
        assert str(found).startswith(
            "the system refuses; file: /data/x.pt; found: 'Permission denied'; expected: a file"
        )

    def test_our_error_in_a_task_of_a_task(self) -> None:
        ours = MissingFileError("no such file", file="/x")
        assert cause_to_show(self.wrap(self.wrap(ours))) is ours

    def test_what_was_raised_from_it(self) -> None:
        try:
            raise RuntimeError("a library gave up") from OSError(errno.ENOSPC, "No space left on device", "/full/x")
        except RuntimeError as error:
            assert "file: /full/x; found: 'No space left on device'" in str(cause_to_show(error))

    def test_a_fault_of_the_program_is_shown_as_such(self) -> None:
        assert cause_to_show(KeyError("x")) is None and cause_to_show(self.wrap(KeyError("x"))) is None
