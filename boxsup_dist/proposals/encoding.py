"""The one encoding of proposals, made of what programs have: superpixels and their unions, or masks.

`encode` makes Proposals of the proposals of a file, `from_masks` cuts masks into superpixels, `merge` lays two sets of
proposals of an image over each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from boxsup_dist.data.schema import Proposals
from boxsup_dist.data.superpixels import superpixel_extents, union_boxes
from boxsup_dist.errors import RecordError

_Integer = TypeVar("_Integer", bound=np.integer)
MAX_SUPERPIXELS = 2**16  # ids are uint16


class Found(NamedTuple):
    """The P proposals of a file, as the file has them."""

    superpixels: NDArray[np.int64] | NDArray[np.uint16]  # (H, W), any ids
    members: Sequence[NDArray[np.integer]]  # superpixel ids of each proposal; some may have no pixel
    scores: NDArray[np.float64] | None  # (P,)


def encode(found: Found, max_candidates: int | None = None, *, image_id: str = "") -> Proposals:
    """Convert the proposals of a file: superpixel ids 0..S-1, sorted members, no empty proposal, best first.

    Args:
        found: The proposals as the file has them.
        max_candidates: Keep only that many, the best ones; None keeps all.
        image_id: Id of the image.

    Raises:
        RecordError: If the scores are bad or there are more than 2**16 superpixels.
    """
    ids, superpixels = compact(found.superpixels)
    members: list[NDArray[np.uint16]] = []
    scores: list[float] = []
    for j in _order(found.scores, len(found.members)):
        if len(members) == max_candidates:
            break
        places = np.searchsorted(ids, found.members[j]).clip(max=len(ids) - 1)
        own = np.unique(places[ids[places] == found.members[j]])
        if len(own):
            members.append(own.astype(np.uint16))
            scores.append(0.0 if found.scores is None else found.scores[j])
    indptr = np.cumsum([0, *map(len, members)])
    indices = np.concatenate([np.empty(0, np.uint16), *members])
    by_rank = np.linspace(1, 0, len(members), endpoint=False, dtype=np.float32)
    extents = superpixel_extents(superpixels, len(ids))
    return Proposals(
        image_id=image_id,
        superpixels=superpixels,
        num_superpixels=len(ids),
        indptr=indptr,
        indices=indices,
        objectness=by_rank if found.scores is None else np.array(scores, np.float32),
        boxes=union_boxes(extents, indptr, indices).astype(np.uint16),
    )


def _order(scores: NDArray[np.float64] | None, count: int) -> NDArray[np.intp]:
    """Return the indices of `count` proposals by falling score; equal and missing scores keep the file's order."""
    if scores is None:
        return np.arange(count)
    if len(scores) != count or not np.isfinite(scores).all():
        raise RecordError(
            "the scores are not one number per proposal", field="scores", value=len(scores), expected=f"{count} numbers"
        )
    return np.argsort(-scores, kind="stable")


def compact(superpixels: NDArray[_Integer]) -> tuple[NDArray[_Integer], NDArray[np.uint16]]:
    """Renumber a map (H, W): return the ids that occur, sorted, and the map of their indices in that list."""
    ids, places = np.unique(superpixels, return_inverse=True)
    if len(ids) > MAX_SUPERPIXELS:
        expected = f"<= {MAX_SUPERPIXELS}; of masks, set a smaller max_candidates"
        raise RecordError("too many superpixels", field="superpixels", value=len(ids), expected=expected)
    return ids, places.reshape(superpixels.shape).astype(np.uint16)


def from_masks(
    scored: Iterable[tuple[NDArray[np.bool_], float | None]], *, shape: tuple[int, int], most: int | None = None
) -> Found:
    """Convert masks to unions of superpixels; a superpixel is the set of pixels that lie in the same masks.

    Args:
        scored: Masks (H, W) and their scores, which are all None or all numbers. Each mask is asked for when the one
            before is stored, cropped to its box: in the size of the image, hundreds would fill the memory.
        shape: (H, W) of the image.
        most: Take only that many masks that have a pixel, the first ones; None takes all.
    """
    draws = np.random.default_rng(0)
    total = np.zeros(shape, np.uint64)  # per pixel the sum of its masks' random numbers: equal sums, the same masks
    crops: list[tuple[tuple[slice, slice], NDArray[np.bool_]]] = []
    scores: list[float | None] = []
    for mask, score in scored:
        x, y, width, height = cv2.boundingRect(np.ascontiguousarray(mask, np.uint8))
        if width == 0:
            continue
        where = (slice(y, y + height), slice(x, x + width))
        crops.append((where, mask[where].copy()))
        scores.append(score)
        total[where][crops[-1][1]] += draws.integers(2**64, dtype=np.uint64)
        if len(crops) == most:
            break
    pieces = compact(total)[1]
    sizes = np.bincount(pieces.ravel())
    members = [np.unique(pieces[where][crop]) for where, crop in crops]
    assert all(sizes[own].sum() == crop.sum() for own, (_, crop) in zip(members, crops, strict=True)), "equal sums"
    return Found(pieces, members, None if None in scores else np.array(scores, np.float64))


def merge(first: Proposals, second: Proposals) -> Proposals:
    """The proposals of both over superpixels that both are unions of; those of `first` stand before all others.

    The objectness falls with the rank: the scores of two programs do not compare.

    Args:
        first: Proposals of an image.
        second: Others of the same image.

    Raises:
        RecordError: There are more than 2**16 common superpixels.
    """
    count = first.num_superpixels
    # The second's ids lead: superpixels of a hierarchy are numbered so that they compress well.
    pairs, places = np.unique(second.superpixels.astype(np.int64) * count + first.superpixels, return_inverse=True)
    members = _pieces(first, pairs % count) + _pieces(second, pairs // count)
    superpixels = places.reshape(first.superpixels.shape).astype(np.int64)
    return encode(Found(superpixels, members, None), image_id=first.image_id)


def _pieces(proposals: Proposals, owners: NDArray[np.int64]) -> list[NDArray[np.int32]]:
    """The pieces of each proposal, where piece i is a part of the superpixel `owners[i]`."""
    superpixels, pieces = proposals.num_superpixels, len(owners)
    inside = (np.ones(len(proposals.indices), bool), proposals.indices.astype(np.int64), proposals.indptr)
    parts = (np.ones(pieces, bool), (owners, np.arange(pieces)))
    membership = scipy.sparse.csr_matrix(inside, (len(proposals), superpixels))
    product = membership @ scipy.sparse.csr_matrix(parts, (superpixels, pieces))
    product.sort_indices()
    found: list[NDArray[np.int32]] = np.split(product.indices, product.indptr[1:-1])
    return found if len(proposals) else []
