"""The network that training starts with: with pretrained weights, or a trained network with a new score layer.

Section 5.2 of the paper does the second: it replaces the last layer of an 81-way COCO network by a 60-way layer, and
fine-tunes the network on PASCAL-Context.
"""

from __future__ import annotations

import torch

from boxsup_dist.config.parts import CHECKPOINT_PREFIX
from boxsup_dist.errors import WeightsError
from boxsup_dist.model import checkpoint
from boxsup_dist.model.networks import SCORE_PREFIX, NetworkSpec, SegmentationNetwork, build_network
from boxsup_dist.model.weights import TIMM_PREFIX


def start_network(spec: NetworkSpec, weights: str | None, *, random_fc: bool = False) -> SegmentationNetwork:
    """The network in training mode with its first weights.

    New layers draw their values from torch's global generator: seed it first.

    Args:
        spec: What to build.
        weights: A spec of `model.weights`, checkpoint:URI included. None: the network's usual weights.
        random_fc: As in `build_network`; a checkpoint has its own fc6 and fc7.

    Raises:
        SettingError: The network cannot be built, or `random_fc` has no effect.
        WeightsError: The weights cannot be read or are of another network.
        CheckpointError: There is no whole checkpoint at URI.
    """
    if weights is None or not weights.startswith(CHECKPOINT_PREFIX):
        return build_network(spec, weights, random_fc=random_fc)
    if random_fc:
        build_network(spec, "none", random_fc=True)  # refuses it
    return _transfer(spec, weights.removeprefix(CHECKPOINT_PREFIX))


def check_start(spec: NetworkSpec, weights: str | None, *, random_fc: bool = False) -> None:
    """Raise what start_network would raise; torch's random state stays as it was.

    It builds the network and throws it away: only this finds every misfit of weights and network, in a few seconds
    before a training instead of a minute inside its workers. The first time is without weights, so that a network that
    cannot be built is refused before its weights are downloaded.
    """
    with torch.random.fork_rng(devices=[]):
        build_network(spec, "none")
        start_network(spec, weights, random_fc=random_fc)


def _transfer(spec: NetworkSpec, uri: str) -> SegmentationNetwork:
    """All of a trained network except its score layers, which start uniform as those of a new network do.

    `uri` is the folder of a checkpoint, or a run directory: then its newest whole checkpoint is used. The number of
    classes, dropout and output stride may differ, because the shape of no other layer depends on them.
    """
    uri = checkpoint.newest(uri)
    source, state = checkpoint.load_weights(uri)
    network = build_network(spec, "none")
    if _layers(source) != _layers(network.spec):
        raise WeightsError(
            "the checkpoint is of another network", file=uri, value=_layers(source), expected=_layers(network.spec)
        )
    new = {name: value for name, value in network.state_dict().items() if name.startswith(SCORE_PREFIX)}
    kept = {name: value for name, value in state.items() if not name.startswith(SCORE_PREFIX)}
    try:
        network.load_state_dict({**kept, **new}, strict=True)
    except RuntimeError as error:  # for example made with another version of timm
        raise WeightsError(
            "the layers of the checkpoint are not those of its network", file=uri, value=str(error)[:300]
        ) from None
    return network


def _layers(spec: NetworkSpec) -> str:
    head = f"{spec.head} of " if spec.name.startswith(TIMM_PREFIX) else ""
    return f"{spec.name}, {head}{spec.head_channels} channels"
