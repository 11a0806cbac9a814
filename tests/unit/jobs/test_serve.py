"""What jobs.serve refuses before it starts: a missing extra, a port in use, a setting out of range."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from boxsup_dist.errors import InputError, SettingError
from jobs import serve


def test_a_missing_extra_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "_NEEDED", ("no_such_package_here",))
    with pytest.raises(InputError, match=r'not installed.*no_such_package_here.*pip install "boxsup-dist\[serve\]"'):
        serve.main(serve.Settings("run"))


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SettingError, match=rf"cannot listen here.*127\.0\.0\.1:{taken.getsockname()[1]}"):
            serve.main(serve.Settings("run", port=taken.getsockname()[1]))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"run_dir": None}, "run_dir, checkpoint"),
        ({"port": 70000}, "port"),
        ({"max_upload_mb": 0.0}, "max_upload_mb"),
        ({"max_batch_size": 0}, "max_batch_size"),
    ],
)
def test_a_setting_that_cannot_work_is_named(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(SettingError) as error:
        serve.Settings(**{"run_dir": "run", **changes}).check()
    assert error.value.field == field
