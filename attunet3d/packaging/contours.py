"""Outlines of masks in one slice: closed polygons through the points halfway between voxels.

A hole is joined to the outline around it by a channel without width, a keyhole, so that each
polygon stands for itself: filled by the even-odd or by the nonzero rule, it covers the mask and not
the hole. A voxel is inside where its centre is, and no polygon passes through a centre, so filling
them gives the mask again exactly.
"""

import numpy as np
from skimage.measure import find_contours, points_in_poly

from attunet3d.core import Floats, Mask


def outlines(mask: Mask) -> list[Floats]:
    """Outline each connected part of a plane (voxels that touch at a corner only are apart).

    Args:
        mask: (I, J).

    Returns:
        Closed polygons, each (N, 2) in voxel indices, without the first point repeated at the end.

    Example:
        >>> mask = np.zeros((3, 3), bool); mask[1, 1] = True
        >>> outlines(mask)[0].tolist()
        [[1.5, 1.0], [1.0, 0.5], [0.5, 1.0], [1.0, 1.5]]
    """
    padded = np.pad(mask, 1).astype(np.float32)  # so that outlines close at the border
    rings = [ring[:-1] - 1 for ring in find_contours(padded, 0.5, fully_connected="low")]
    outer = [_without_straight_points(ring) for ring in rings if _area(ring) < 0]
    holes = [_without_straight_points(ring) for ring in rings if _area(ring) > 0]
    around: list[list[Floats]] = [[] for _ in outer]
    for hole in holes:
        around[_smallest_around(hole[0], outer)].append(hole)
    return [_with_keyholes(ring, inside) for ring, inside in zip(outer, around, strict=True)]


def _area(ring: Floats) -> float:
    """Area with a sign: negative for the outline of a part, positive for that of a hole."""
    x, y = ring.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _without_straight_points(ring: Floats) -> Floats:
    """Drop the points at which the outline does not turn."""
    into, out = ring - np.roll(ring, 1, 0), np.roll(ring, -1, 0) - ring
    turns = into[:, 0] * out[:, 1] - into[:, 1] * out[:, 0]
    return ring[np.abs(turns) > 1e-9]


def _smallest_around(point: Floats, rings: list[Floats]) -> int:
    candidates = [n for n, ring in enumerate(rings) if points_in_poly([point], ring)[0]]
    return min(candidates, key=lambda n: abs(_area(rings[n])))


def _with_keyholes(ring: Floats, holes: list[Floats]) -> Floats:
    """Join holes to a ring, the nearest first, so that no channel crosses another hole."""
    left = list(holes)
    while left:
        gaps = [np.linalg.norm(ring[:, None] - hole[None], axis=2) for hole in left]
        nearest = min(range(len(left)), key=lambda n: float(gaps[n].min()))
        i, j = np.unravel_index(gaps[nearest].argmin(), gaps[nearest].shape)
        turned = np.roll(left.pop(nearest), -int(j), axis=0)  # it starts at the channel
        ring = np.concatenate([ring[: i + 1], turned, turned[:1], ring[i:]])
    return ring
