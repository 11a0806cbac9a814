"""Real Ray: what a run reports while it runs, and while it waits."""

import time
import urllib.request

import ray
import torch

from boxsup_dist.distributed import ordered
from boxsup_dist.distributed.events import EventLoop, Stalled
from boxsup_dist.distributed.pool import NetworkPool
from boxsup_dist.distributed.rates import StageRates
from boxsup_dist.runs.events import Progress


def wait_until(ready, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_silence_is_reported_and_again_after_twice_as_long(ray_local):
    events = []
    with EventLoop(events.append, stall_after_s=0.2) as loop:
        wait_until(lambda: len(events) == 2)
        loop.post(Progress(0, "train", 1, 2))
        wait_until(lambda: len(events) == 4)
    assert [type(event) for event in events[:4]] == [Stalled, Stalled, Progress, Stalled]
    assert events[2] == Progress(0, "train", 1, 2)
    first, second = (event.seconds for event in events[:2])
    assert first > 0.2 and second > 0.4


def rest(network: torch.nn.Module, unit: int) -> int:
    time.sleep(unit)
    return unit


def test_a_pool_without_a_result_says_what_it_waits_for(ray_local, monkeypatch):
    monkeypatch.setattr(ordered, "STALL_AFTER_S", 0.3)
    warnings = []
    members = NetworkPool(torch.nn.Identity, num_actors=1, num_cpus=0.25, warn=warnings.append)
    members.wait_ready()
    assert list(members.map(rest, [1])) == [1]
    members.close()
    assert warnings and "no unit of work finished for 0 s: 1 running on 1 actor; nodes" in warnings[0]
    assert "nodes of the cluster: 1" in warnings[0] and "CPUs free" in warnings[0]


def test_rates_are_metrics_of_ray(ray_local):
    rates = StageRates()
    rates.set("test_watch", 12.5)  # runs that other tests made in this session left rates of real stages
    rates.set_boxes(250.0)
    address = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"

    def text() -> str:
        return urllib.request.urlopen(address, timeout=10).read().decode()

    def lines() -> list[str]:
        return [line for line in text().splitlines() if 'stage="test_watch"' in line]

    wait_until(lines)
    (line,) = lines()
    assert line.startswith("ray_boxsup_images_per_s{") and line.endswith(" 12.5")
    for name in ("ray_boxsup_boxes_per_s", "ray_object_store_used_memory", "ray_spill_manager_objects_bytes"):
        wait_until(lambda name=name: name in text())
