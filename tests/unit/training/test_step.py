"""The device's part of a step: sums, gradients that do not depend on the ranks, prefetch, compilation; without Ray."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from copy import deepcopy
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist

from boxsup_dist.data.schema import IGNORE_INDEX
from boxsup_dist.errors import SettingError
from boxsup_dist.model.loss import expected_labels
from boxsup_dist.model.networks import SegmentationNetwork
from boxsup_dist.training.step import (
    DeviceBatch,
    Placer,
    StepSums,
    check_compiler,
    compute_gradients,
    placed_ahead,
)
from tests.distributed import tiny

SIZE_PX = 65


def make_network() -> SegmentationNetwork:
    """The same in every process: random weights, also in the score layer."""
    torch.manual_seed(0)
    network = tiny.build_network()
    with torch.no_grad():
        network.score.weight.normal_(0, 0.1)
    return network.to(memory_format=torch.channels_last)


def make_batch(num_images: int) -> DeviceBatch:
    """Images whose label maps have very different numbers of valid pixels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_images, SIZE_PX, SIZE_PX, 3)).astype(np.uint8)
    label_maps = rng.integers(0, 21, images.shape[:3]).astype(np.uint8)
    for index in range(num_images):
        label_maps[index, : 60 * index // num_images] = IGNORE_INDEX
    return Placer(torch.device("cpu")).place(images, label_maps)


def gradients_of(network: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


def test_sums_keep_their_names_on_the_way_through_a_tensor():
    packed = StepSums.pack(torch.device("cpu"), loss=torch.tensor(2.5), images=3, errors=True)
    assert packed.dtype == torch.float64
    assert StepSums(*packed.tolist()) == StepSums(loss=2.5, images=3.0, errors=1.0)
    with pytest.raises(AssertionError, match="no such field"):
        StepSums.pack(torch.device("cpu"), imagse=3)


def test_gradients_are_those_of_the_mean_over_valid_pixels():
    network, batch = make_network(), make_batch(3)
    plain = deepcopy(network)
    sums = compute_gradients(network, batch, images=3).sums()
    loss = torch.nn.functional.cross_entropy(plain(batch.images), batch.label_maps.long(), ignore_index=IGNORE_INDEX)
    loss.backward()
    assert sums.loss / sums.weights == pytest.approx(loss.item(), rel=1e-5)
    assert (sums.images, sums.errors, sums.weights) == (3, 0, int((batch.label_maps != IGNORE_INDEX).sum()))
    for ours, theirs in zip(gradients_of(network), gradients_of(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_only_the_chosen_label_maps_are_completed_by_the_network():
    network, batch = make_network(), make_batch(2)
    with torch.no_grad():
        network.score.bias[0] = 2.0  # near the difference of the biases: the network finds background in some boxes
    labels = expected_labels(network(batch.images), batch.label_maps).clone()
    labels[1] = batch.label_maps[1]
    expected = compute_gradients(network, batch._replace(label_maps=labels)).sums()
    em = batch._replace(is_em=torch.tensor([True, False]))
    before = batch.label_maps.clone()
    assert compute_gradients(network, em, complete_labels=True).sums() == expected
    assert compute_gradients(network, em).sums() == compute_gradients(network, batch).sums() != expected
    assert torch.equal(batch.label_maps, before), "the stream's arrays stay as they are"


def test_two_ranks_with_unequal_shares_make_the_gradients_of_one():
    """DDP's mean over both ranks; tests/distributed has real ones."""
    whole = make_batch(3)
    shares = [DeviceBatch(whole.images[rank::2], whole.label_maps[rank::2], None) for rank in (0, 1)]
    sums = [torch.tensor(compute_gradients(make_network(), share, images=len(share.images)).sums()) for share in shares]
    networks = [make_network() for _ in shares]
    for rank, (network, share) in enumerate(zip(networks, shares, strict=True)):
        with mock.patch.object(dist, "all_reduce", lambda own, other=sums[1 - rank]: own.add_(other)):
            found = compute_gradients(network, share, num_ranks=2, images=len(share.images), errors=rank).sums()
        assert found[:7] == pytest.approx([*(sums[0] + sums[1]).tolist()[:6], float(rank)])
    one = make_network()
    compute_gradients(one, whole)
    for left, right, expected in zip(*map(gradients_of, (*networks, one)), strict=True):
        torch.testing.assert_close((left + right) / 2, expected, rtol=1e-4, atol=1e-7)


def test_a_compiled_network_makes_the_same_gradients():
    """The graph as torch.compile takes it, without the compiler of kernels, which takes minutes."""
    plain = make_network()
    compiled = deepcopy(plain)
    compiled.compile(backend="eager", fullgraph=True)
    for count in (2, 1):  # an epoch's last batch may be smaller
        for network in (plain, compiled):
            network.zero_grad()
        batch = make_batch(count)
        assert compute_gradients(compiled, batch).sums() == compute_gradients(plain, batch).sums()
        for ours, theirs in zip(gradients_of(compiled), gradients_of(plain), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert list(compiled.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("ahead", [False, True])
def test_batches_come_in_order_each_with_its_copy(ahead: bool):
    found = list(placed_ahead(iter(range(5)), lambda batch: -batch, ahead=ahead))
    assert found == [(batch, -batch) for batch in range(5)]


def test_the_next_batch_is_placed_during_the_step_and_no_further_one():
    placed: list[int] = []
    pairs = placed_ahead(iter(range(9)), placed.append, ahead=True)
    next(pairs)
    end = time.monotonic() + 10
    while len(placed) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.05)
    assert placed == [0, 1]
    pairs.close()


def test_an_error_of_the_stream_reaches_the_step_and_the_thread_ends():
    def failing() -> Iterator[int]:
        yield 0
        raise ValueError("no such image")

    threads = threading.active_count()
    pairs = placed_ahead(failing(), lambda batch: batch, ahead=True)
    assert next(pairs) == (0, 0)
    with pytest.raises(ValueError, match="no such image"):
        next(pairs)
    end = time.monotonic() + 10
    while threading.active_count() > threads and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() == threads


def test_a_machine_without_a_compiler_is_named(monkeypatch: pytest.MonkeyPatch):
    check_compiler()
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(SettingError, match=r"has no C\+\+ compiler.*field: resources.compile; found: True"):
        check_compiler()
