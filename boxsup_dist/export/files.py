"""The folder of outputs: one file per image and kind. A file that exists is whole, because each is written at once.

OUT/export.json              what the outputs were made from, written first; a call that differs is refused
OUT/label_maps/NAME.png      class ids as a palette PNG in the colours of the classes
OUT/overlays/NAME.jpg        the image under the colours and contours of its label map
OUT/legend.png               the colour of every class, with its name, in label maps and overlays
OUT/legend.json              the same for programs
OUT/probabilities/NAME.npz   probs, float16 (C, H, W)
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from boxsup_dist.data.palette import class_palette, encode_palette_png
from boxsup_dist.errors import SettingError
from boxsup_dist.io import storage
from boxsup_dist.reporting.overlay import overlay

Kind = Literal["label_maps", "overlays", "probabilities"]
ENDING_OF: dict[Kind, str] = {"label_maps": ".png", "overlays": ".jpg", "probabilities": ".npz"}
_IDENTITY = "export.json"


def output_uri(out: str, kind: Kind, name: str) -> str:
    """URI of an image's output of one kind."""
    return storage.join(out, kind, name + ENDING_OF[kind])


def keep_identity(out: str, identity: Mapping[str, Any]) -> None:
    """Record what a folder's outputs are made from, or check it against the record.

    Args:
        out: The folder.
        identity: JSON values: network, images and settings.

    Raises:
        SettingError: The folder holds outputs that were made from something else.
    """
    uri = storage.join(out, _IDENTITY)
    if not storage.exists(uri):
        storage.write_json(uri, identity)
        return
    found = storage.read_json(uri)
    if not isinstance(found, dict):
        raise SettingError("not the record of a folder's outputs: delete the folder", file=uri, value=found)
    differing = sorted(key for key in {*found, *identity} if found.get(key) != identity.get(key))
    if differing:
        raise SettingError(
            "the folder holds outputs of something else: choose another folder, or delete this one",
            file=out,
            field=f"out ({', '.join(differing)})",
            value={key: found.get(key) for key in differing},
            expected=str({key: identity.get(key) for key in differing}),
        )


def finished_names(out: str, kinds: tuple[Kind, ...]) -> set[str]:
    """Find the images that need no further work, and delete unfinished files of a killed call.

    Args:
        out: The folder.
        kinds: The outputs that are wanted; at least one.

    Returns:
        Names of the images that have an output of every kind.
    """
    finished: list[set[str]] = []
    for kind in kinds:
        folder, ending = storage.join(out, kind), ENDING_OF[kind]
        paths = storage.find_files(folder)
        for path in filter(storage.is_unfinished, paths):
            storage.remove(storage.join(folder, path))
        finished.append({path.removesuffix(ending) for path in paths if path.endswith(ending)})
    return set.intersection(*finished)


def write_outputs(
    out: str,
    name: str,
    kinds: tuple[Kind, ...],
    image: NDArray[np.uint8],
    probs: NDArray[np.float32],
    class_names: Sequence[str] = (),
) -> NDArray[np.uint8]:
    """Write the outputs of one image.

    Args:
        out: The folder.
        name: Name of the outputs.
        kinds: The outputs to write.
        image: RGB (H, W, 3).
        probs: The network's probabilities (C, H, W).
        class_names: Names of the classes, for their colours; () takes VOC's colours.

    Returns:
        The label map (H, W).
    """
    label_map: NDArray[np.uint8] = probs.argmax(0).astype(np.uint8)
    encode = {
        "label_maps": lambda: encode_palette_png(label_map, class_names),
        "overlays": lambda: encode_overlay(image, label_map, class_names),
        "probabilities": lambda: encode_probs(probs),
    }
    for kind in kinds:
        storage.write_bytes(output_uri(out, kind, name), encode[kind]())
    return label_map


def encode_overlay(image: NDArray[np.uint8], label_map: NDArray[np.uint8], class_names: Sequence[str] = ()) -> bytes:
    """JPEG of an image (H, W, 3) under its label map (H, W), in the colours of the classes."""
    buffer = io.BytesIO()
    drawn = overlay(image, label_map, class_palette(class_names))
    Image.fromarray(drawn).save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def encode_probs(probs: NDArray[np.float32]) -> bytes:
    """Compressed npz file with probabilities (C, H, W) as the float16 array `probs`."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, probs=probs.astype(np.float16))
    return buffer.getvalue()
