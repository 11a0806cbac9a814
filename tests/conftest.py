"""Fixtures and order of all tests: the folder of real data, one small Ray session per process, and who runs what.

`make test` runs two processes. The files whose tests need Ray come first, each of them in one process; the other tests
follow one by one wherever a process is free, so that both processes end at nearly the same time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from tests import forked_workers, s3_server

WITH_RAY = (  # the longest first
    "tests/distributed/test_train.py",
    "tests/distributed/",
    "tests/integration/test_coco_mini.py",
    "tests/integration/test_mlflow_ui.py",
    "tests/integration/test_own_voc_mini.py",
    "tests/integration/test_voc_mini.py",
)

# Two processes with a thread for every core wait for each other: the unit tests took 249 CPU seconds, with this 145.
# NumPy and torch read it when they are imported; processes that tests start inherit it.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

# The same examples in every run of `make test`; other ones each time, and far more, in `make test-long`.
settings.register_profile("short", max_examples=200, deadline=None, derandomize=True)
settings.register_profile("long", max_examples=20_000, deadline=None, database=None)
settings.load_profile("short")


def needs_ray(nodeid: str) -> bool:
    """Whether a test is in a file that starts Ray."""
    return nodeid.startswith(WITH_RAY)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need Ray, and put them first."""
    for item in items:
        if needs_ray(item.nodeid):
            item.add_marker(pytest.mark.ray)
    items.sort(key=lambda item: [not item.nodeid.startswith(place) for place in WITH_RAY])


class FilesWithRay(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Gives a process a whole file of tests that need Ray, or any other single test."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.partition("::")[0] if needs_ray(nodeid) else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    """Our scheduler, in the order of the collection."""
    config.option.loadscopereorder = False
    return FilesWithRay(config, log)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real images and published files, beside the repository; BOXSUP_SHARED names another."""
    folder = Path(os.environ.get("BOXSUP_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    return folder


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A local Ray session with at most 2 CPUs, shared by all tests of this process."""
    import ray

    from boxsup_dist.distributed import session

    # Ray Train checks its workers every two seconds, and at the end of a run as well: too long for tiny runs.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # A local session has no nodes that are taken away; its watcher is a process of 2 CPU seconds in each training.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    forked_workers.use()
    s3_server.choose_address()  # its workers keep the environment that it starts with
    session.start(2)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3() -> Iterator[s3_server.S3Server]:
    """An S3 server, to which the environment points this process and Ray's workers."""
    with s3_server.serve() as server:
        yield server
