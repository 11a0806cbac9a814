"""A network to begin training with: pretrained weights, or a trained network with a new score layer.

The second is section 5.2 of the paper: the last layer of an 81-way COCO network is replaced by a 60-way one, and the
whole is fine-tuned on PASCAL-Context.
"""

from __future__ import annotations

from boxsup_dist.errors import WeightsError
from boxsup_dist.model import checkpoint
from boxsup_dist.model.networks import SCORE_PREFIX, NetworkSpec, SegmentationNetwork, build_from_spec
from boxsup_dist.model.weights import CHECKPOINT_PREFIX, TIMM_PREFIX


def start_network(spec: NetworkSpec, weights: str | None) -> SegmentationNetwork:
    """The network in training mode, with the weights of `model.weights`' specs, checkpoint:URI among them.

    New layers draw their values from torch's global generator. Raises SettingError, WeightsError or CheckpointError.
    """
    if weights is None or not weights.startswith(CHECKPOINT_PREFIX):
        return build_from_spec(spec, weights)
    return _transfer(spec, weights.removeprefix(CHECKPOINT_PREFIX))


def _transfer(spec: NetworkSpec, uri: str) -> SegmentationNetwork:
    """All of a trained network but its score layers, which start as those of a new network do: uniform.

    `uri` is a checkpoint's folder, or a run directory whose newest whole checkpoint is taken. Number of classes,
    dropout and output stride may differ, for no other layer's shape depends on them.
    """
    uri = checkpoint.newest(uri)
    source, state = checkpoint.load_weights(uri)
    network = build_from_spec(spec, "none")
    if _layers(source) != _layers(network.spec):
        raise WeightsError(
            "the checkpoint is of another network", file=uri, value=_layers(source), expected=_layers(network.spec)
        )
    new = {name: value for name, value in network.state_dict().items() if name.startswith(SCORE_PREFIX)}
    kept = {name: value for name, value in state.items() if not name.startswith(SCORE_PREFIX)}
    try:
        network.load_state_dict({**kept, **new}, strict=True)
    except RuntimeError as error:  # made with another version of timm, say
        raise WeightsError(
            "the checkpoint's layers are not those of its network", file=uri, value=str(error)[:300]
        ) from None
    return network


def _layers(spec: NetworkSpec) -> str:
    head = f"{spec.head} of " if spec.name.startswith(TIMM_PREFIX) else ""
    return f"{spec.name}, {head}{spec.head_channels} channels"
