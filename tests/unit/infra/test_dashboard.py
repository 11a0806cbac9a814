"""The Grafana dashboard asks for metrics that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import ray

ROOT = Path(__file__).parents[3]
WHERE_RAY_NAMES_METRICS = ("dashboard/modules/reporter/reporter_agent.py", "core/src/ray/raylet/raylet")


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    """Each is one that distributed/rates.py exports or that this version of Ray does."""
    dashboard = json.loads((ROOT / "infra/grafana.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    names = {name for text in asked for name in re.findall(r"\bray_(\w+)\{", text)}
    assert len(names) >= 8 and len(asked) == sum(len(re.findall(r"\bray_", text)) for text in asked)
    ours = (ROOT / "boxsup_dist/distributed/rates.py").read_bytes()
    rays = b"".join((Path(ray.__file__).parent / path).read_bytes() for path in WHERE_RAY_NAMES_METRICS)
    unknown = {n for n in names if f'Gauge("{n}"'.encode() not in ours and n.encode() not in rays}
    assert not unknown
    assert {"boxsup_images_per_s", "boxsup_boxes_per_s"} <= names, "all of our own are shown"
