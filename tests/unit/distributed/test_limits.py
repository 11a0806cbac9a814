"""The limits of containers and batch systems that a Ray session respects: CPUs, and the length of a socket's path."""

from __future__ import annotations

from pathlib import Path

import pytest

from boxsup_dist import surroundings
from boxsup_dist.distributed import ray_internals, session
from boxsup_dist.errors import SettingError

NO_LIMIT = 10**6


def quota(tmp_path: Path, own: str, files: dict[str, str]) -> int:
    """The quota of a process whose cgroups are `own`, where the system shows these files."""
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return session._cgroup_quota(tmp_path / "cgroup", tmp_path / "own")


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "max 100000\n"}, NO_LIMIT),
        ("0::/slurm/job_7/step_0\n", {"slurm/job_7/cpu.max": "400000 100000\n", "cpu.max": "max 100000\n"}, 4),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "800000 100000\n"}, 2),
        ("4:cpu,cpuacct:/docker/1f\n3:memory:/\n",
         {"cpu,cpuacct/cpu.cfs_quota_us": "150000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 2),
        ("4:cpu:/job\n", {"cpu/job/cpu.cfs_quota_us": "-1\n", "cpu/job/cpu.cfs_period_us": "100000\n"}, NO_LIMIT),
        ("0::/\n", {"cpu.max": "no number\n"}, NO_LIMIT),
        ("", {}, NO_LIMIT),
    ],
    ids=["container", "no limit", "Slurm", "the tightest", "version 1 in Docker", "version 1 without", "odd", "none"],
)  # fmt: skip
def test_the_quota_of_cpus_is_found(tmp_path, own, files, expected) -> None:
    assert quota(tmp_path, own, files) == expected


def test_a_quota_bounds_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_cgroup_quota", lambda: 1)
    assert session.num_cores() == 1


def test_a_path_that_is_too_long_for_a_socket_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    longest = "/" + "x" * (ray_internals.MAX_SOCKET_BYTES - len(ray_internals.SOCKET) - 2)
    assert len(f"{longest}/{ray_internals.SOCKET}") == 107
    monkeypatch.setenv("TMPDIR", longest)
    assert ray_internals.short_folder() is None
    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.setenv(name, longest + "x")
        folder = ray_internals.short_folder()
        assert folder is not None and folder.startswith("/tmp/boxsup-")
        # Ray adds the rest to this folder itself.
        assert len(f"{folder}/{ray_internals.SOCKET.removeprefix('ray/')}") <= 107


def test_without_a_short_folder_the_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, where: str) -> str:
        raise OSError(30, "Read-only file system")

    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/" + "x" * 80)
    monkeypatch.setattr(surroundings, "private_folder", refuse)
    with pytest.raises(SettingError, match=r"TMPDIR.*RAY_TMPDIR=FOLDER, of at most 39 bytes"):
        ray_internals.short_folder()
