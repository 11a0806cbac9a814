"""Settings of the proposal methods, and the choices in them.

They stand apart from the methods, so a command line shows and checks them without loading Numba or SciPy.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.errors import SettingError

NativeMethod = Literal["mcg", "selective_search", "gop"]  # need the image and nothing else
MethodName = Literal[NativeMethod, "imported", "prompted"]
Detector = Literal["gradient", "hed"]
Format = Literal["mcg", "gop", "rigor", "lpo", "rle"]
SIMILARITIES = "ctsfb"  # colour, texture, size, fill, border: the order of the weights
COLOUR_SPACES = ("rgb", "lab", "ab", "hsv", "hue", "rgi", "grey", "position")
BOUNDARIES = ("mean", "coarse")  # fields of edges.Boundaries


@dataclass(frozen=True)
class Tree:
    """One hierarchy of MCG: the similarities by which its regions are merged."""

    space: str | None  # colour space of the colour similarity; None without the letter c
    similarities: str  # letters of SIMILARITIES; a repeated letter weighs more
    boundary: str  # boundary map of the border similarity

    @classmethod
    def parse(cls, text: str) -> Tree:
        """Parse [SPACE:]SIMILARITIES[@BOUNDARY], for example "lab:csfb" or "ssffb@coarse".

        Raises:
            SettingError: If the text has another form, a SPACE without the letter c or the letter c without a SPACE, or
                a BOUNDARY without the letter b.
        """
        match = re.fullmatch(rf"(?:(\w+):)?([{SIMILARITIES}]+)(?:@(\w+))?", text)
        spaces, boundaries = COLOUR_SPACES, BOUNDARIES
        space, letters, boundary = match.groups() if match else (None, "", None)
        allowed_spaces = spaces if "c" in letters else (None,)
        allowed_boundaries = (None, *boundaries) if "b" in letters else (None,)
        if not letters or space not in allowed_spaces or boundary not in allowed_boundaries:
            raise SettingError(
                "not a hierarchy of MCG",
                field="hierarchies",
                value=text,
                expected=f"[SPACE:]SIMILARITIES[@BOUNDARY]; SIMILARITIES letters of {SIMILARITIES}; "
                f"with c a SPACE of {', '.join(spaces)}; with b, if not mean, a BOUNDARY of {', '.join(boundaries)}",
            )
        return cls(space, letters, boundary or "mean")

    def weights(self) -> NDArray[np.float64]:
        """Return the weight (5,) of each of SIMILARITIES: how often its letter occurs."""
        return np.array([float(self.similarities.count(letter)) for letter in SIMILARITIES])


@dataclass(frozen=True)
class McgSettings:
    """Settings of MCG: boundary detector, sizes and hierarchies.

    The default hierarchies were chosen out of 29 by hand, guided by the gain of each in the best Jaccard index on every
    fourth of the images on which they are measured.
    """

    max_candidates: int = 2000
    """Candidates to keep per image, the best ones."""
    edges: Detector = "gradient"
    """Boundary detector: gradient (local colour gradients, needs no weights) or hed (a learned network)."""
    hed_weights: str | None = None
    """Path or URI of HED's weight file, which python -m jobs.get_hed_weights makes; only with edges hed."""
    min_leaf_px: int = 8
    """Superpixels of fewer pixels are joined to a neighbour."""
    max_leaves: int = 2000
    """Largest number of superpixels: neighbours are joined, weak borders and small superpixels first."""
    max_side_px: int = 1000
    """Images with a longer side are shrunk to it and segmented; the superpixel map is enlarged to the image's size."""
    duplicate_jaccard: float = 0.8
    """Drop a candidate whose Jaccard index with a better one exceeds this."""
    hierarchies: tuple[str, ...] = (
        "ssffb", "position:csfb", "lab:csfb", "sfb@coarse", "hue:ctsfb", "ab:cf", "rgi:ctsf", "sf", "hsv:csf",
        "hue:ctsf",
    )  # fmt: skip
    """Each [SPACE:]SIMILARITIES[@BOUNDARY]. SIMILARITIES: first letters of colour, texture, size, fill, border; a
    repeated letter weighs more. SPACE: colour space for c. BOUNDARY: mean or coarse, for b."""
    single_steps: int = 2**16
    """Splits of each hierarchy, from its root, whose new regions are candidates."""
    pair_steps: int = 200
    """Splits in which each new region joined with one neighbour is a candidate too."""
    triplet_steps: int = 50
    """Splits in which each new region joined with two neighbours is a candidate too."""

    def __post_init__(self) -> None:
        for text in self.hierarchies:
            Tree.parse(text)
        for name, low, high in (
            ("max_candidates", 1, 2**31), ("min_leaf_px", 1, 2**31), ("max_leaves", 1, 2**13),
            ("max_side_px", 1, 2**15), ("duplicate_jaccard", 0, 1), ("single_steps", 0, 2**16),
            ("pair_steps", 0, self.single_steps), ("triplet_steps", 0, self.pair_steps),
        ):  # fmt: skip
            if not low <= getattr(self, name) <= high:
                raise SettingError(
                    "a setting is out of range", field=name, value=getattr(self, name), expected=f"{low} to {high}"
                )
        if not self.hierarchies:
            raise SettingError("MCG needs at least one hierarchy", field="hierarchies")
        if (self.edges == "hed") != (self.hed_weights is not None):
            has_weights = self.hed_weights is not None
            problem = "hed_weights has no effect unless edges is hed" if has_weights else "edges hed needs hed_weights"
            expected = "none" if has_weights else "the file that python -m jobs.get_hed_weights makes"
            raise SettingError(problem, field="hed_weights", value=self.hed_weights, expected=expected)


@dataclass(frozen=True)
class Strategy:
    """One hierarchy of Selective Search: what is compared, and from which segmentation it starts."""

    space: str  # colour space
    similarities: str  # letters of SIMILARITIES
    start: float  # Felzenszwalb's scale of the segmentation that it starts from; 0: it starts from the superpixels

    @classmethod
    def parse(cls, text: str) -> Strategy:
        """Parse SPACE:SIMILARITIES[@START], for example "hsv:csf@2000".

        Raises:
            SettingError: If the text has another form.
        """
        match = re.fullmatch(rf"(\w+):([{SIMILARITIES}]+)(?:@(\d+(?:\.\d+)?))?", text)
        if match is None or match[1] not in COLOUR_SPACES:
            raise SettingError(
                "not a strategy of Selective Search",
                field="strategies",
                value=text,
                expected=f"SPACE:SIMILARITIES[@START]; SPACE one of {', '.join(COLOUR_SPACES)}; "
                f"SIMILARITIES letters of {SIMILARITIES}; START a scale",
            )
        return cls(match[1], match[2], float(match[3] or 0))


@dataclass(frozen=True)
class SelectiveSearchSettings:
    """Settings of Selective Search: sizes and strategies.

    The default strategies were chosen greedily out of 71, by the gain of each in the best Jaccard index on half of the
    images on which they are measured.
    """

    max_candidates: int = 2000
    """Candidates to keep per image, the best ones."""
    leaf_spaces: tuple[str, ...] = ("lab", "rgb")
    """Colour spaces of the fine segmentations; their overlay gives the superpixels."""
    leaf_scale: float = 100.0
    """Felzenszwalb's scale of the fine segmentations; a larger scale gives larger superpixels."""
    min_leaf_px: int = 30
    """Superpixels of fewer pixels are joined to a neighbour."""
    max_leaves: int = 1500
    """Largest number of superpixels: neighbours are joined, weak borders and small superpixels first."""
    max_side_px: int = 1000
    """Images with a longer side are shrunk to it and segmented; the superpixel map is enlarged to the image's size."""
    duplicate_jaccard: float = 0.9
    """A candidate whose Jaccard index with a better one exceeds this is moved behind all others."""
    strategies: tuple[str, ...] = (
        "hsv:csfb", "lab:sf", "hue:ctsf", "rgi:ctsf", "lab:cts", "hsv:csf@2000", "position:csf", "rgb:sfb", "rgi:csf",
        "hsv:sfb", "ab:cf", "hsv:ctsf", "hue:cts", "lab:csf@2000",
    )  # fmt: skip
    """One hierarchy each, SPACE:SIMILARITIES[@START]. SPACE: a colour space. SIMILARITIES: first letters of colour,
    texture, size, fill, border. START: scale of the segmentation to start from; by default the superpixels."""

    def __post_init__(self) -> None:
        for text in self.strategies:
            Strategy.parse(text)
        for name, low, high in (
            ("max_candidates", 1, 2**31), ("leaf_scale", 1e-9, math.inf), ("min_leaf_px", 1, 2**31),
            ("max_leaves", 1, 2**16), ("max_side_px", 1, 2**15), ("duplicate_jaccard", 0, 1),
        ):  # fmt: skip
            if not low <= getattr(self, name) <= high:
                raise SettingError(
                    "a setting is out of range", field=name, value=getattr(self, name), expected=f"{low} to {high}"
                )
        for space in self.leaf_spaces:
            if space not in COLOUR_SPACES:
                expected = ", ".join(COLOUR_SPACES)
                raise SettingError("no such colour space", field="leaf_spaces", value=space, expected=expected)
        if not self.leaf_spaces or not self.strategies:
            name = "leaf_spaces" if self.strategies else "strategies"
            raise SettingError(f"Selective Search needs at least one of {name}", field=name)


@dataclass(frozen=True)
class GopSettings:
    """Settings of GOP: sizes, seeds, and what is a critical level and a near-duplicate."""

    max_candidates: int = 800
    """Candidates to keep per image, the best ones."""
    min_leaf_px: int = 8
    """Superpixels of fewer pixels are joined to a neighbour."""
    max_leaves: int = 1500
    """Largest number of superpixels: neighbours are joined, weak borders and small superpixels first."""
    max_side_px: int = 1000
    """Images with a longer side are shrunk to it and segmented; the superpixel map is enlarged to the image's size."""
    num_seeds: int = 120
    """Number of seeds for each of the five distances."""
    level_ratio: float = 1.2
    """A level is critical if no level within this factor of its area has a stronger contour."""
    duplicate_jaccard: float = 0.77
    """Drop a candidate whose Jaccard index with a better one exceeds this."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_candidates", 1, 2**31), ("min_leaf_px", 1, 2**31), ("max_leaves", 1, 2**16),
            ("max_side_px", 1, 2**15), ("num_seeds", 1, 2**16), ("level_ratio", 1, math.inf),
            ("duplicate_jaccard", 0, 1),
        ):  # fmt: skip
            if not low <= getattr(self, name) <= high:
                raise SettingError(
                    "a setting is out of range", field=name, value=getattr(self, name), expected=f"{low} to {high}"
                )


@dataclass(frozen=True)
class ImportedSettings:
    """Settings of the import: where the files are, and in which format."""

    folder: str = ""
    """Folder or URI of the files. A file is named by the image id without its source: 2007_000032.mat. With the format
    rle also one JSON file with the masks of all images."""
    format: Format = "mcg"
    """Program that wrote the files; rle: masks in JSON, of SAM, SA-1B or COCO, recognised by their content."""
    max_candidates: int | None = None
    """Candidates to keep per image, the best ones; by default all."""
    also: NativeMethod | None = None
    """A method whose candidates, by its default settings, stand behind those of the files. By default none."""

    def __post_init__(self) -> None:
        if not self.folder:
            raise SettingError("the method imported needs the folder of the files: set folder", field="folder")
        if self.format not in get_args(Format):
            expected = " or ".join(get_args(Format))
            raise SettingError("unknown format", field="format", value=self.format, expected=expected)
        if self.max_candidates is not None and self.max_candidates < 1:
            raise SettingError(
                "a setting is out of range", field="max_candidates", value=self.max_candidates, expected=">= 1"
            )
        _check_also(self.also)


@dataclass(frozen=True)
class PromptedSettings:
    """Settings of a segmenter that is prompted with the boxes of the records."""

    onnx_encoder: str = ""
    """Path or URI of the encoder: an ONNX file of SAM, MobileSAM, EfficientSAM or SAM 2."""
    onnx_decoder: str = ""
    """Path or URI of the decoder that belongs to it."""
    also: NativeMethod | None = None
    """A method whose candidates, by its default settings, stand behind the masks. By default none."""

    def __post_init__(self) -> None:
        for name in ("onnx_encoder", "onnx_decoder"):
            if not getattr(self, name):
                raise SettingError(f"the method prompted needs two ONNX files: set {name}", field=name)
        _check_also(self.also)


def _check_also(also: str | None) -> None:
    if also is not None and also not in get_args(NativeMethod):
        expected = " or ".join(get_args(NativeMethod))
        raise SettingError("not a method that can be added", field="also", value=also, expected=expected)


SETTINGS: dict[MethodName, type] = {
    "mcg": McgSettings,
    "selective_search": SelectiveSearchSettings,
    "gop": GopSettings,
    "imported": ImportedSettings,
    "prompted": PromptedSettings,
}
