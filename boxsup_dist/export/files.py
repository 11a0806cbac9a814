"""The folder of outputs: one file an image and kind, each written whole, so that what is there is done.

OUT/export.json              what the outputs are of, written first; a call for others is refused
OUT/label_maps/NAME.png      class ids as a palette PNG in VOC's colours
OUT/overlays/NAME.jpg        the image under its label map's colours
OUT/probabilities/NAME.npz   probs, float16 (C, H, W)
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from PIL import Image

from boxsup_dist.data.palette import encode_palette_png, voc_palette
from boxsup_dist.data.schema import BACKGROUND
from boxsup_dist.errors import SettingError
from boxsup_dist.io import storage

Kind = Literal["label_maps", "overlays", "probabilities"]
ENDING_OF: dict[Kind, str] = {"label_maps": ".png", "overlays": ".jpg", "probabilities": ".npz"}
_IDENTITY = "export.json"


def output_uri(out: str, kind: Kind, name: str) -> str:
    """Where an image's output of a kind lies."""
    return storage.join(out, kind, name + ENDING_OF[kind])


def keep_identity(out: str, identity: Mapping[str, Any]) -> None:
    """Note what a folder's outputs are of (JSON values). SettingError if it holds outputs of something else."""
    uri = storage.join(out, _IDENTITY)
    if not storage.exists(uri):
        storage.write_json(uri, identity)
        return
    found = storage.read_json(uri)
    differing = sorted(key for key in {*found, *identity} if found.get(key) != identity.get(key))
    if differing:
        raise SettingError(
            "the folder holds outputs of something else; choose another or delete it",
            file=out,
            field=f"out ({', '.join(differing)})",
            value={key: found.get(key) for key in differing},
            expected=str({key: identity.get(key) for key in differing}),
        )


def finished_names(out: str, kinds: tuple[Kind, ...]) -> set[str]:
    """Names of the images that have an output of every kind. Deletes what a killed call left half written."""
    finished: list[set[str]] = []
    for kind in kinds:
        folder, ending = storage.join(out, kind), ENDING_OF[kind]
        paths = storage.find_files(folder)
        for path in filter(storage.is_unfinished, paths):
            storage.remove(storage.join(folder, path))
        finished.append({path.removesuffix(ending) for path in paths if path.endswith(ending)})
    return set.intersection(*finished)


def write_outputs(out: str, name: str, kinds: tuple[Kind, ...], image: np.ndarray, probs: np.ndarray) -> None:
    """Write one image's outputs: image uint8 RGB (H, W, 3), probs float32 (C, H, W)."""
    label_map = probs.argmax(0).astype(np.uint8)
    encode = {
        "label_maps": lambda: encode_palette_png(label_map),
        "overlays": lambda: encode_overlay(image, label_map),
        "probabilities": lambda: encode_probs(probs),
    }
    for kind in kinds:
        storage.write_bytes(output_uri(out, kind, name), encode[kind]())


def encode_overlay(image: np.ndarray, label_map: np.ndarray) -> bytes:
    """JPEG bytes of an image, uint8 (H, W, 3), half covered by the colours of its label map; the background is not."""
    colours = voc_palette()[label_map]
    blended = ((image.astype(np.uint16) + colours) // 2).astype(np.uint8)
    buffer = io.BytesIO()
    shown = np.where((label_map == BACKGROUND)[..., None], image, blended)
    Image.fromarray(shown).save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def encode_probs(probs: np.ndarray) -> bytes:
    """Compressed npz bytes of probabilities, (C, H, W), as float16."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, probs=probs.astype(np.float16))
    return buffer.getvalue()
