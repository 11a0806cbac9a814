"""The drill network says what a machine lacks, and cleans up what a killed call left."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys

import pytest

from boxsup_dist.errors import InputError
from jobs.drill import chaos, network


def test_what_the_machine_lacks_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert network.missing() == "root"
    with pytest.raises(InputError, match="cannot run the drill; field: network; expected: root"):
        chaos.run_network_drill(str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert network.missing() == "the commands ip and tc (package iproute2)"


@pytest.mark.skipif(network.missing() is not None, reason=f"this machine lacks {network.missing()}")
def test_a_cut_link_lets_nothing_through_until_it_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    # Names and addresses of a drill that may run beside this test are others.
    monkeypatch.setattr(network, "PREFIX", "bstest-")
    monkeypatch.setattr(network, "BRIDGE", "bstest0")

    def answers(host: network.Host, address: str) -> bool:
        """Whether the other host refuses a connection, which takes an answer."""
        probe = f"import socket as s; c = s.socket(); c.settimeout(1); print(c.connect_ex(({address!r}, 9)))"
        done = subprocess.run([*host.words(), sys.executable, "-c", probe], capture_output=True, text=True, check=True)
        return int(done.stdout) == errno.ECONNREFUSED

    try:
        network.make_bridge("10.78.0.254/24")
        one, two = (network.Host(f"h{k}", f"10.78.0.{k}") for k in (1, 2))
        assert answers(one, two.address) and answers(one, "10.78.0.254")
        two.cut()
        assert not answers(one, two.address)
        two.join()
        assert answers(one, two.address)
    finally:
        network.clean()
    assert "bstest-" not in subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
