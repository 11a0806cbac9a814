"""Fixtures of all tests: the folder of real data, and one small Ray session for the tests that need it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests import s3_server

WITH_RAY = (  # all that use `ray_local`
    "tests/distributed/",
    "tests/integration/test_coco_mini.py",
    "tests/integration/test_mlflow_ui.py",
    "tests/integration/test_voc_mini.py",
)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    """Of two processes one runs all tests that need Ray, in their order and in one session, the other the rest."""

    class RayTogether(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "ray" if nodeid.startswith(WITH_RAY) else nodeid

    return RayTogether(config, log)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real images and published files, beside the repository; BOXSUP_SHARED names another."""
    folder = Path(os.environ.get("BOXSUP_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    return folder


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A local Ray session with at most 2 CPUs, shared by all distributed tests."""
    import ray

    from boxsup_dist.distributed import session

    # Ray Train looks after its workers every two seconds, and at the end of a run as well: too long for tiny runs.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    s3_server.choose_address()  # its workers keep the environment that it starts with
    session.start(2)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3() -> Iterator[s3_server.S3Server]:
    """An S3 server, to which the environment points this process and Ray's workers."""
    with s3_server.serve() as server:
        yield server
