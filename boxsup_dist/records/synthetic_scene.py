"""One synthetic scene: textured objects of six shapes among distractors, with its exact instance map.

Only the outline of an object gives its class away. Each class prefers a hue and a kind of texture, but shares both
with other classes, with the distractors (convex shapes of no class) and with the background; it may lie anywhere.
Objects have parts that look different, and take on some of the colour behind them, so bottom-up grouping does not find
them easily.

An object covers 45 to 75 % of its box before others hide parts of it. The mean is near the 57 % of VOC's objects, so
training on filled rectangles is as strong a baseline here as on VOC.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

FILL_RANGE = (0.45, 0.75)  # share of its box that a whole object covers
_MIN_VISIBLE = 0.55  # share of an object's pixels that the frame and other objects must leave visible
_LONG_SIDE_PX = (160, 240)  # least and greatest longer side of an image
_OBJECT_SIZE = (0.36, 1.0)  # longer side of a whole object, as a share of the image's longer side
_NUM_DISTRACTORS = (1, 3)
_HUE_SD = 1 / 30  # standard deviation of a class's hue, in turns; neighbouring classes are 1/6 apart
_OWN_KIND_P = 0.95  # probability that a texture of a class is of the class's own kind
_OWN_PART_P = 0.85  # probability that a part of an object has a texture of the object's class
_LURE_P = 0.35  # probability that a distractor has a texture of some class
_GROUND_KINDS_P = (0.3, 0.06, 0.1, 0.04, 0.44, 0.06)  # probability of each of KINDS as the texture of a ground
_MAX_CAMOUFLAGE = 0.65  # largest share of the colour behind it that an object takes on
_PARTS_P = (0.2, 0.4, 0.4)  # probability that an object has 0, 1 or 2 parts that look different
_TRIES = 25  # places tried for an object before it is left out

FloatArray = NDArray[np.floating]
Outline = tuple[FloatArray, FloatArray | None]  # polygon (n, 2) in about [-1, 1], and a hole


@dataclass(frozen=True)
class Scene:
    """An image and the instances in it. Instance k has the value k + 1 in `instances`; 0 is background."""

    image: NDArray[np.uint8]  # (H, W, 3) RGB
    instances: NDArray[np.uint8]  # (H, W)
    names: list[str]  # class name of every instance
    visible: list[float]  # share of every instance's area that is neither hidden nor cut off


def _polar(radius: FloatArray) -> FloatArray:
    angles = np.linspace(0, 2 * np.pi, len(radius), endpoint=False)
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _cross(rng: np.random.Generator) -> Outline:
    a, b = rng.uniform(0.3, 0.48, 2)
    shift = rng.uniform(-0.35, 0.1)  # the arms cross off the middle
    x = [-b, b, b, 1, 1, b, b, -b, -b, -1, -1, -b]
    y = [-1, -1, shift - a, shift - a, shift + a, shift + a, 1, 1, shift + a, shift + a, shift - a, shift - a]
    return np.stack([x, y], axis=1).astype(float), None


def _ring(rng: np.random.Generator) -> Outline:
    circle = _polar(np.ones(48))
    offset = rng.uniform(-0.12, 0.12, 2)
    return circle * (1, rng.uniform(0.7, 1)), circle * rng.uniform(0.35, 0.55) * (1, rng.uniform(0.7, 0.9)) + offset


def _crescent(rng: np.random.Generator) -> Outline:
    bite, shift = rng.uniform(0.6, 0.8), rng.uniform(0.48, 0.7)
    return _polar(np.ones(48)), _polar(np.full(48, bite)) + np.array([shift, 0])


def _ell(rng: np.random.Generator) -> Outline:
    a, b = rng.uniform(0.65, 1.0, 2)
    return np.array([(-1, -1), (-1 + a, -1), (-1 + a, 1 - b), (1, 1 - b), (1, 1), (-1, 1)], float), None


def _blob(rng: np.random.Generator) -> Outline:
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    radius = np.ones(64)
    for frequency in (2, 3, 4):
        radius += rng.uniform(0.08, 0.22) * np.cos(frequency * angles + rng.uniform(0, 2 * np.pi))
    return _polar(radius), None


def _star(rng: np.random.Generator) -> Outline:
    points = int(rng.integers(5, 8))
    return _polar(np.tile([1.0, rng.uniform(0.52, 0.72)], points)), None


def _convex(rng: np.random.Generator) -> Outline:
    """Draw the outline of a distractor: a triangle, box, trapezoid or ellipse."""
    corners = int(rng.choice([3, 4, 4, 40]))
    return _polar(np.ones(corners) * rng.uniform(0.75, 1, corners if corners < 5 else 1)), None


# Per class its outline and its preferred kind of texture. Its preferred hue is its place on the colour circle.
OBJECTS: dict[str, tuple[Callable[[np.random.Generator], Outline], str]] = {
    "aeroplane": (_cross, "gradient"),
    "bicycle": (_ring, "stripes"),
    "bird": (_crescent, "speckle"),
    "chair": (_ell, "checks"),
    "dog": (_blob, "clouds"),
    "pottedplant": (_star, "dots"),
}
KINDS = ("gradient", "stripes", "speckle", "checks", "clouds", "dots")


def _noise(rng: np.random.Generator, shape: tuple[int, int], cell_px: float) -> FloatArray:
    """Draw smooth noise (H, W), of about zero mean and unit deviation, with features of `cell_px` pixels."""
    height, width = shape
    grid = rng.normal(size=(int(height / cell_px) + 3, int(width / cell_px) + 3)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))


def _pattern(rng: np.random.Generator, kind: str, shape: tuple[int, int]) -> FloatArray:
    """Draw a texture of one of KINDS as values in 0..1, (H, W)."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(5, 13)
    u = x * np.cos(angle) + y * np.sin(angle) + 1.2 * _noise(rng, shape, 24)
    v = y * np.cos(angle) - x * np.sin(angle) + 1.2 * _noise(rng, shape, 24)
    value: FloatArray
    if kind == "gradient":
        value = (u - u.min()) / (np.ptp(u) + 1e-6)
    elif kind == "stripes":
        value = 0.5 + 0.5 * np.sin(2 * np.pi * u / period)
    elif kind == "checks":
        value = 0.5 + 0.5 * np.sign(np.sin(np.pi * u / period) * np.sin(np.pi * v / period))
    elif kind == "dots":
        waves = np.cos(2 * np.pi * u / period) + np.cos(2 * np.pi * v / period)
        value = (waves > rng.uniform(0.3, 0.9)).astype(float)
    elif kind == "speckle":
        value = (_noise(rng, shape, rng.uniform(2, 3.5)) > rng.uniform(-0.3, 0.6)).astype(float)
    else:  # clouds
        octaves = sum(_noise(rng, shape, cell) * weight for cell, weight in ((28, 0.5), (12, 0.3), (5, 0.2)))
        value = np.clip(0.5 + 0.6 * octaves, 0, 1)
    return value


def _colour(hue: float, saturation: float, value: float) -> FloatArray:
    return np.array(colorsys.hsv_to_rgb(hue % 1, np.clip(saturation, 0, 1), np.clip(value, 0, 1))) * 255


def _texture(
    rng: np.random.Generator, shape: tuple[int, int], hue: float, saturation: float, kind: str, contrast: float
) -> FloatArray:
    """Draw a texture of two colours (H, W, 3), which are `contrast` apart in brightness."""
    value = rng.uniform(0.35, 0.85)
    step = contrast * (1 if value < 0.6 else -1)
    first = _colour(hue, saturation, value)
    second = _colour(hue + rng.normal(0, 0.05), saturation + rng.normal(0, 0.15), value + step)
    weight = _pattern(rng, kind, shape)[..., None]
    return first * (1 - weight) + second * weight


def _class_texture(rng: np.random.Generator, name: str, shape: tuple[int, int]) -> FloatArray:
    """Draw a texture (H, W, 3) of a class: near the class's hue, mostly of its kind."""
    hue = list(OBJECTS).index(name) / len(OBJECTS) + rng.normal(0, _HUE_SD)
    kind = OBJECTS[name][1] if rng.random() < _OWN_KIND_P else str(rng.choice(KINDS))
    return _texture(rng, shape, hue, rng.uniform(0.3, 0.8), kind, rng.uniform(0.12, 0.3))


def _coat(rng: np.random.Generator, name: str, shape: tuple[int, int]) -> FloatArray:
    """Draw the colours (H, W, 3) of an object: a texture of its class and up to two parts that look different."""
    coat = _class_texture(rng, name, shape)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    for _ in range(int(rng.choice([0, 1, 2], p=_PARTS_P))):
        angle, where = rng.uniform(0, 2 * np.pi), rng.uniform(-0.25, 0.25)
        level = np.cos(angle) * (x / shape[1] - 0.5) + np.sin(angle) * (y / shape[0] - 0.5)
        part = _class_texture(rng, name if rng.random() < _OWN_PART_P else str(rng.choice(list(OBJECTS))), shape)
        coat = np.where((level + 0.03 * _noise(rng, shape, 20) > where)[..., None], part, coat)
    return coat


def _lure(rng: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
    """Draw the colours (H, W, 3) of a distractor; some distractors look like a class."""
    if rng.random() < _LURE_P:
        return _class_texture(rng, str(rng.choice(list(OBJECTS))), shape)
    return _texture(rng, shape, rng.random(), rng.uniform(0.05, 0.6), str(rng.choice(KINDS)), rng.uniform(0.1, 0.3))


def _background(rng: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
    """Draw one to three textured grounds with wavy borders, (H, W, 3)."""
    canvas = np.zeros((*shape, 3))
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    level = y / shape[0] + rng.normal(0, 0.3) * x / shape[1] + 0.06 * _noise(rng, shape, 40)
    borders = [-np.inf, *sorted(rng.uniform(0.2, 0.9, int(rng.integers(0, 3))))]
    for border in borders:
        kind = str(rng.choice(KINDS, p=_GROUND_KINDS_P))
        ground = _texture(rng, shape, rng.random(), rng.uniform(0.05, 0.4), kind, rng.uniform(0.05, 0.2))
        canvas = np.where((level > border)[..., None], ground, canvas)
    return canvas


def _rasterise(
    outline: Outline, size_px: float, centre: FloatArray, rng: np.random.Generator, shape: tuple[int, int]
) -> NDArray[np.bool_]:
    """Draw the mask (H, W) of an outline: turned, stretched, a bit uneven, its box `size_px` on the longer side."""
    angle = rng.normal(0, np.deg2rad(20))
    turn = np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
    stretch = np.array([rng.choice([-1, 1]), 1]) * rng.uniform(0.75, 1.25, 2)
    points = [_densify(part) * stretch @ turn for part in outline if part is not None]
    low, high = points[0].min(axis=0), points[0].max(axis=0)
    mask = Image.new("1", (shape[1], shape[0]))
    draw = ImageDraw.Draw(mask)
    phases = rng.uniform(0, 2 * np.pi, 2)
    for part, fill in zip(points, (1, 0), strict=False):
        scaled = (part - (low + high) / 2) * size_px / (high - low).max()
        uneven = 0.02 * size_px * np.sin(scaled[:, ::-1] * 2 * np.pi / (0.45 * size_px) + phases)
        draw.polygon([tuple(p) for p in scaled + uneven + centre], fill=fill)
    return np.asarray(mask)


def _densify(polygon: FloatArray, per_edge: int = 12) -> FloatArray:
    """Add points along the edges of a polygon, so that the edges can be bent."""
    if len(polygon) > 24:
        return polygon
    t = np.arange(per_edge)[:, None] / per_edge
    return np.concatenate([a + t * (b - a) for a, b in zip(polygon, np.roll(polygon, -1, axis=0), strict=True)])


def tight_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return the box x0, y0, x1, y1, half-open, of the true pixels of a mask (H, W) that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def fill_ratio(mask: NDArray[np.bool_]) -> float:
    """Return the share of its tight box that a mask (H, W) covers; the mask must not be empty."""
    x0, y0, x1, y1 = tight_box(mask)
    return float(mask.sum()) / ((x1 - x0) * (y1 - y0))


def _object_mask(rng: np.random.Generator, name: str, shape: tuple[int, int]) -> tuple[NDArray[np.bool_], int]:
    """Draw an object's place: its mask (H, W) inside the frame, and its number of pixels before the frame cut it."""
    margin = max(shape)
    wide = (shape[0] + 2 * margin, shape[1] + 2 * margin)
    while True:
        size = float(np.exp(rng.uniform(*np.log(_OBJECT_SIZE)))) * max(shape)
        centre = rng.uniform(0.1, 0.9, 2) * (shape[1], shape[0])
        mask = _rasterise(OBJECTS[name][0](rng), size, centre + margin, rng, wide)
        if FILL_RANGE[0] <= fill_ratio(mask) <= FILL_RANGE[1]:
            return mask[margin : margin + shape[0], margin : margin + shape[1]], int(mask.sum())


def _paint(rng: np.random.Generator, canvas: FloatArray, mask: NDArray[np.bool_], name: str | None) -> None:
    """Paint an object, or for None a distractor, and its soft shadow over the canvas, in place."""
    shadow = ndimage.shift(mask.astype(np.float32), rng.uniform(-6, 6, 2), order=0)
    canvas *= (1 - rng.uniform(0, 0.35) * ndimage.gaussian_filter(shadow, 3))[..., None]
    x0, y0, x1, y1 = tight_box(mask)
    shape = (y1 - y0, x1 - x0)
    shade = 1 + rng.uniform(0, 0.35) * (2 * _pattern(rng, "gradient", shape) - 1)
    colours = (_coat(rng, name, shape) if name else _lure(rng, shape)) * shade[..., None]
    blend = rng.uniform(0, _MAX_CAMOUFLAGE)
    colours = (1 - blend) * colours + blend * canvas[mask].mean(axis=0)
    inside = mask[y0:y1, x0:x1]
    canvas[y0:y1, x0:x1][inside] = colours[inside]


def _photograph(rng: np.random.Generator, canvas: FloatArray) -> NDArray[np.uint8]:
    """Add uneven light, blur and sensor noise, and convert to uint8 (H, W, 3)."""
    shape = canvas.shape[:2]
    light = np.clip(rng.uniform(0.8, 1.15) * (1 + 0.12 * _noise(rng, shape, max(shape) / 2)), 0.5, 1.4)
    blurred: FloatArray = ndimage.gaussian_filter(canvas * light[..., None], (*[rng.uniform(0.4, 0.9)] * 2, 0))
    return np.clip(blurred + rng.normal(0, rng.uniform(2, 7), canvas.shape), 0, 255).astype(np.uint8)


def make_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene of 1 to 4 objects and 1 to 3 distractors, in random order of depth.

    An object or distractor is placed so that at least 55 % of every object stays visible; after 25 failed tries it is
    left out. A scene that ends without an object is drawn again.
    """
    long_side = int(rng.integers(_LONG_SIDE_PX[0], _LONG_SIDE_PX[1] + 1))
    sides = (long_side, int(long_side * rng.uniform(0.65, 1)))
    shape = sides if rng.random() < 0.3 else sides[::-1]
    canvas = _background(rng, shape)
    owner = np.zeros(shape, np.uint8)
    names: list[str] = []
    sizes: list[int] = []
    wanted = [str(n) for n in rng.choice(list(OBJECTS), int(rng.choice([1, 2, 3, 4], p=[0.3, 0.35, 0.25, 0.1])))]
    layers: list[str | None] = [*wanted, *[None] * int(rng.integers(_NUM_DISTRACTORS[0], _NUM_DISTRACTORS[1] + 1))]
    for layer in rng.permutation(np.array(layers, object)):
        for _ in range(_TRIES):
            mask, size = _place(rng, layer, shape)
            if not mask.any():
                continue
            after = np.where(mask, len(names) + 1 if layer else 0, owner)
            all_sizes = [*sizes, size] if layer else sizes
            pixels = np.bincount(after.ravel(), minlength=len(all_sizes) + 1)[1:]
            if all(count >= _MIN_VISIBLE * whole for count, whole in zip(pixels, all_sizes, strict=True)):
                _paint(rng, canvas, mask, layer)
                owner, sizes = after.astype(np.uint8), all_sizes
                names += [layer] if layer else []
                break
    if not names:
        return make_scene(rng)
    pixels = np.bincount(owner.ravel(), minlength=len(sizes) + 1)[1:]
    visible = [float(count / whole) for count, whole in zip(pixels, sizes, strict=True)]
    return Scene(_photograph(rng, canvas), owner, names, visible)


def _place(rng: np.random.Generator, layer: str | None, shape: tuple[int, int]) -> tuple[NDArray[np.bool_], int]:
    """Draw the mask (H, W) of an object or, for None, of a distractor, and count its pixels before the frame cut it."""
    if layer is not None:
        return _object_mask(rng, layer, shape)
    centre = rng.uniform(0, 1, 2) * (shape[1], shape[0])
    mask = _rasterise(_convex(rng), rng.uniform(0.08, 0.35) * max(shape), centre, rng, shape)
    return mask, int(mask.sum())
