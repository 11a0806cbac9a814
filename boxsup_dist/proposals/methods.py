"""The proposal methods by name, which are the choices of `jobs.build_proposals --method`.

To add a method:

1. Write a function `propose(image, settings, *, image_id) -> Proposals` in a file of this folder. `image` is RGB, uint8
   (H, W, 3). The result depends on nothing but the image and the settings, and with `needs_boxes` on the boxes.
   `assemble.ranked_proposals` makes Proposals of a superpixel map and of segments that are ordered best first.
2. Write a frozen dataclass of its settings in settings.py, JSON values with a docstring each, that checks itself in
   `__post_init__`; add it to SETTINGS and the name to MethodName.
3. Register both in METHODS.
4. Test it in tests/unit/proposals/; test_native_methods.py has the properties that every method must have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.data.schema import Proposals
from boxsup_dist.errors import SettingError
from boxsup_dist.proposals.edges import Boundaries
from boxsup_dist.proposals.encoding import merge
from boxsup_dist.proposals.gop import gop
from boxsup_dist.proposals.imported import identity as imported_identity
from boxsup_dist.proposals.imported import import_proposals
from boxsup_dist.proposals.mcg import detect, mcg
from boxsup_dist.proposals.mcg import identity as mcg_identity
from boxsup_dist.proposals.prompted import identity as prompted_identity
from boxsup_dist.proposals.prompted import prompted
from boxsup_dist.proposals.selective_search import selective_search
from boxsup_dist.proposals.settings import SETTINGS, MethodName, NativeMethod


@dataclass(frozen=True)
class Method:
    """One proposal method."""

    propose: Callable[..., Proposals]
    """propose(image, settings, image_id=...), and with `detect` also boundaries=..."""
    settings_type: type
    """The frozen dataclass of the method's settings."""
    detect: Callable[[Sequence[NDArray[np.uint8]], Any], list[Boundaries]] | None = None
    """detect(images, settings): the boundaries of several images, computed together faster than one by one."""
    needs_boxes: bool = False
    """propose(...) takes also boxes_xyxy=(K, 4): the proposals then depend on the boxes of the records."""
    identity: Callable[[Any], dict[str, Any]] = asdict
    """identity(settings): JSON values that distinguish a build with these settings from any other."""


METHODS: dict[MethodName, Method] = {
    "mcg": Method(mcg, SETTINGS["mcg"], detect, identity=mcg_identity),
    "selective_search": Method(selective_search, SETTINGS["selective_search"]),
    "gop": Method(gop, SETTINGS["gop"]),
    "imported": Method(import_proposals, SETTINGS["imported"], identity=imported_identity),
    "prompted": Method(prompted, SETTINGS["prompted"], needs_boxes=True, identity=prompted_identity),
}


def propose(method: Method, image: NDArray[np.uint8], settings: Any, *, image_id: str, **given: Any) -> Proposals:
    """The proposals of an image by a method, and behind them those of the method that its settings add (`also`).

    Args:
        method: The method.
        image: RGB (H, W, 3).
        settings: Settings of the method.
        image_id: Id of the image.
        given: Further arguments of `method.propose`.
    """
    found = method.propose(image, settings, image_id=image_id, **given)
    also = _also(settings)
    return found if also is None else merge(found, also.propose(image, also.settings_type(), image_id=image_id))


def identity(method: Method, settings: Any) -> dict[str, Any]:
    """JSON values that distinguish a build with these settings from any other. Raises as `method.identity`."""
    values = {name: value for name, value in method.identity(settings).items() if name != "also"}
    also = _also(settings)
    return values if also is None else {**values, "also": {settings.also: also.identity(also.settings_type())}}


def _also(settings: Any) -> Method | None:
    name: NativeMethod | None = getattr(settings, "also", None)
    return None if name is None else METHODS[name]


def find_method(name: str, settings: Any = None) -> tuple[Method, Any]:
    """Find a method and complete its settings.

    Args:
        name: A key of METHODS.
        settings: The method's settings; None takes the defaults.

    Raises:
        SettingError: If there is no such method, or the settings are another method's or out of range.
    """
    if name not in METHODS:
        raise SettingError("no such proposal method", field="method", value=name, expected=" or ".join(METHODS))
    method = METHODS[name]
    settings = method.settings_type() if settings is None else settings
    if not isinstance(settings, method.settings_type):
        raise SettingError(
            f"these are not the settings of the method {name}",
            field="settings",
            value=type(settings).__name__,
            expected=method.settings_type.__name__,
        )
    return method, settings
