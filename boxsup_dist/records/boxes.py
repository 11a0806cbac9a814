"""What every reader checks of boxes and polygons: pixels, not relative coordinates, and inside the image or cut off."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.errors import RecordError
from boxsup_dist.records.settings import Outside

_LARGEST = 1e9  # JSON also has NaN, Infinity and integers of any number of digits
_ROUNDING_PX = 1.0  # rounding leaves some boxes and polygons a little outside the image; they are clipped


def is_numbers(value: object, count: int | None = None) -> bool:
    """Return whether a JSON value is a list of coordinates, `count` of them if that is given."""
    return (
        isinstance(value, list)
        and (count is None or len(value) == count)
        and all(isinstance(v, int | float) and -_LARGEST < v < _LARGEST for v in value)
    )


def reaches_outside(
    points: NDArray[np.float64], height: int, width: int, outside: Outside, *, what: str, field: str, value: object
) -> bool:
    """Check how far points reach beyond the image.

    Args:
        points: (N, 2) xy, the corners of a box or polygon.
        height: Height of the image, in pixels.
        width: Width of the image, in pixels.
        outside: "refuse" raises for points more than 1 px outside, "clip" for points further outside than the image is
            long.
        what: What the points are, such as "the box", for the error.
        field: Where the points stand, for the error.
        value: The points as the file has them, for the error.

    Returns:
        Whether a point is more than 1 px outside, so that the caller cuts off more than rounding.

    Raises:
        RecordError: As `outside` says.
    """
    beyond = max(-float(points.min()), float((points - (width, height)).max()))
    if beyond > (_ROUNDING_PX if outside == "refuse" else max(height, width)):
        expected = f"in {width} x {height}" + ("; or set outside to clip" if outside == "refuse" else "")
        raise RecordError(f"{what} lies outside the image", field=field, value=value, expected=expected)
    return beyond > _ROUNDING_PX


def refuse_relative(corners: Sequence[Sequence[float] | NDArray[np.float64]]) -> None:
    """Raise RecordError if all boxes (K, 4) of an image lie within 0..1, as relative coordinates do."""
    if corners and all(0 <= value <= 1 for box in corners for value in box):
        expected = "pixels: multiply relative coordinates by the image's width and height"
        problem = "all boxes of the image lie within 0..1: relative coordinates?"
        raise RecordError(problem, field="boxes", value=[float(value) for value in corners[0]], expected=expected)
