"""Filling of polygons in a plane of voxels: a voxel is inside where its centre is.

By the even-odd rule over all polygons of the plane: a polygon inside another one is a hole, one
inside a hole is a part again. A channel without width that joins a hole to the outline around it (a
keyhole) crosses every row twice at one place and changes nothing.
"""

from collections.abc import Iterable

import numpy as np

from attunet3d.core import Floats, Mask


def fill_polygons(polygons: Iterable[Floats], shape: tuple[int, int]) -> Mask:
    """The voxels whose centres lie inside an odd number of polygons.

    Args:
        polygons: Corners (N, 2) of each in voxel indices; the last is joined to the first.
        shape: (I, J); what reaches beyond is cut off.

    Returns:
        (I, J).

    Example:
        >>> square = np.array([[0.5, 0.5], [0.5, 3.5], [2.5, 3.5], [2.5, 0.5]])
        >>> fill_polygons([square], (4, 5)).astype(int).tolist()
        [[0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]
    """
    # A voxel's parity is the number of edges that cross its line at a greater i. An edge that
    # crosses at i = x lies beyond the voxels 0 … ceil(x) - 1: it is counted at ceil(x).
    crossings = np.zeros((shape[0] + 1, shape[1]), np.int32)
    for corners in polygons:
        (a, b), (c, d) = corners.T[..., None], np.roll(corners, -1, 0).T[..., None]
        first = max(0, int(np.ceil(corners[:, 1].min())))
        rows = np.arange(first, min(shape[1], int(np.floor(corners[:, 1].max())) + 1))
        edge, row = np.nonzero((b > rows) != (d > rows))  # a corner belongs to one of its edges
        a, b, c, d = (part[edge, 0] for part in (a, b, c, d))
        x = a + (c - a) * (rows[row] - b) / (d - b)
        np.add.at(crossings, (np.clip(np.ceil(x), 0, shape[0]).astype(int), rows[row]), 1)
    beyond = crossings[::-1].cumsum(0)[::-1][1:]
    inside: Mask = beyond % 2 == 1
    return inside
