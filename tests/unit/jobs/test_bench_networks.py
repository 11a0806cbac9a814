"""The table of networks has figures that are known of small networks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from boxsup_dist.training.step import Placer
from jobs.bench import networks
from jobs.bench.settings import Networks
from tests.networks import build_network


def test_each_network_is_compared_with_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("timm:test_resnet", "timm:test_vit3")
    networks.main(Networks(str(tmp_path), names, crop_px=40, rounds=2))
    rows = json.loads((tmp_path / "summary.json").read_text())["rows"]
    assert [(row["network"], row["stride"]) for row in rows] == [(names[0], 16), (names[1], 16)]
    assert rows[0]["forward"] == rows[0]["step"] == "1 (1 to 1)"
    count = sum(p.numel() for p in build_network(names[1], 21, weights="none").parameters())
    assert rows[1]["parameters"] == f"{count / 1e6:.1f} M"
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)


def test_operations_are_two_per_multiplication_and_attention_is_counted() -> None:
    """By hand for test_vit3: per token 12 products of width x width per block, and attention over all tokens."""
    network = build_network("timm:test_vit3", 2, weights="none", head_channels=4)
    found = float(networks.size_of(network, Placer(torch.device("cpu")).empty(320, 320))["GFLOP"]) * 1e9
    body = network.body.extractor
    width, blocks, hidden = body.embed_dim, len(body.blocks), body.blocks[0].mlp.fc1.out_features
    cells, tokens = 20 * 20, 20 * 20 + body.num_prefix_tokens
    per_block = tokens * width * (4 * width + 2 * hidden) + 2 * tokens**2 * width
    head = cells * (9 * width * 4 + 4 * 4 + 4 * 2)
    expected = 2 * (cells * 3 * 16**2 * width + blocks * per_block + head)
    assert found == pytest.approx(expected, rel=0.01)


def test_operations_and_kept_memory_of_a_layer() -> None:
    network = build_network("timm:test_resnet", 2, weights="none", head_channels=4)
    batch = Placer(torch.device("cpu")).empty(33, 33)
    twice = torch.cat([batch.images, batch.images])
    one = networks.kept_bytes(network, batch)
    two = networks.kept_bytes(network, batch._replace(images=twice, label_maps=torch.cat([batch.label_maps] * 2)))
    assert 1.9 < two / one <= 2.0
