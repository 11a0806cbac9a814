"""Proposal methods by name: what `jobs.build_proposals --method` can choose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from boxsup_dist.data.schema import Proposals
from boxsup_dist.errors import SettingError
from boxsup_dist.proposals.gop import GopSettings, gop
from boxsup_dist.proposals.imported import ImportedSettings, import_proposals
from boxsup_dist.proposals.mcg import McgSettings, detect, identity, mcg
from boxsup_dist.proposals.selective_search import SelectiveSearchSettings, selective_search


@dataclass(frozen=True)
class Method:
    """propose(image, settings, image_id=...), a pure function of an RGB image, uint8 (H, W, 3), and frozen settings.

    The settings are JSON values. For native methods the id is only a name; an import finds its file by it. `detect`, if
    there is one, computes the boundaries of several images together, for `propose` to be given as `boundaries`.
    `identity` gives the settings as the JSON values that tell one build from another.
    """

    propose: Callable[..., Proposals]
    settings_type: type
    detect: Callable[[Sequence[np.ndarray], Any], list] | None = None
    identity: Callable[[Any], dict[str, Any]] = asdict


METHODS = {
    "mcg": Method(mcg, McgSettings, detect, identity),
    "selective_search": Method(selective_search, SelectiveSearchSettings),
    "gop": Method(gop, GopSettings),
    "imported": Method(import_proposals, ImportedSettings),
}


def find_method(name: str, settings: Any = None) -> tuple[Method, Any]:
    """The method and its settings, the defaults if None. SettingError for an unknown name or another's settings."""
    if name not in METHODS:
        raise SettingError("no such proposal method", field="method", value=name, expected=" or ".join(METHODS))
    method = METHODS[name]
    settings = method.settings_type() if settings is None else settings
    if not isinstance(settings, method.settings_type):
        raise SettingError(
            "settings of another method",
            field="settings",
            value=type(settings).__name__,
            expected=method.settings_type.__name__,
        )
    return method, settings
