"""Normalised surface Dice (NSD) as papers report it: the area of two surfaces that agrees.

Nikolov et al., "Deep learning to achieve clinically applicable segmentation of head and neck
anatomy for radiotherapy", arXiv:1809.04430; the definition is that of google-deepmind's package
`surface-distance`. The corners of the voxels are looked at. A corner between eight voxels of which
some, but not all, belong to the organ is a surface element (surfel). Its area is that of the
triangles that marching cubes lays between these eight voxel centres, and its distance is that to
the nearest surfel of the other surface.

The package knows axis-aligned grids, and there the numbers are equal. Here triangles and corners
go through the grid's affine, so oblique and sheared grids are measured as they lie in the patient.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import permutations, product

import numpy as np
from scipy.spatial import KDTree

from attunet3d.core import Array, Floats, Mask
from attunet3d.imaging import Grid

SLAB_CORNERS = 2_000_000  # looked at together: bounds the memory whatever the mask
ROUNDING_MM = 1e-6  # of world positions: what lies exactly at the tolerance counts as within it
# Eight times the normals of marching cubes' triangles, as long as their areas, between the centres
# of eight voxels one apart. The key's bit 7 - (4a + 2b + c) says whether voxel (a, b, c) belongs to
# the mask. All other cases are these turned, mirrored, or with inside and outside exchanged.
# fmt: off
_TRIANGLES = {
    1: [[1, 1, 1]],
    3: [[-2, -2, 0], [2, 2, 0]],
    6: [[1, -1, 1], [-1, -1, 1]],
    7: [[4, 0, 0], [2, 2, 2], [1, 1, 1]],
    15: [[4, 0, 0], [4, 0, 0]],
    22: [[-1, -1, 1], [1, -1, 1], [1, -1, -1]],
    23: [[-1, -1, -1], [-2, -2, -2], [2, 2, 2], [1, 1, 1]],
    24: [[-1, 1, 1], [1, -1, -1]],
    25: [[0, -2, -2], [0, 2, 2], [-1, 1, 1]],
    27: [[1, 1, 1], [3, 3, 3], [0, -2, 2], [-2, 0, 2]],
    30: [[-4, 0, 0], [-1, -1, -1], [-2, -2, -2], [1, 1, 1]],
    60: [[2, -2, 0], [-2, 2, 0], [2, -2, 0], [2, -2, 0]],
    105: [[-1, 1, 1], [1, -1, 1], [-1, -1, 1], [1, 1, 1]],
}
# fmt: on


def normalised_surface_dice(
    prediction: Mask,
    reference: Mask,
    grid: Grid,
    tolerances_mm: Sequence[float],
    done: Callable[[float], object] = lambda share: None,
) -> list[float]:
    """The share of both surfaces' area that lies within a tolerance of the other surface.

    Args:
        prediction: (I, J, K); what lies beyond the array is outside the mask.
        reference: (I, J, K).
        grid: The grid of both.
        tolerances_mm: The tolerances, each of which gives one result.
        done: Called with the share of the work that is done.

    Returns:
        The share for each tolerance; 1 if both masks are empty, 0 if one of them is.

    Example:
        >>> mask = np.zeros((5, 5, 5), bool)
        >>> mask[1:3, 1:3, 1:3] = True
        >>> grid = Grid((5, 5, 5), np.eye(4))
        >>> [round(x, 2) for x in normalised_surface_dice(mask, np.roll(mask, 1, 0), grid, [0, 1])]
        [0.65, 1.0]
    """
    inverse = np.linalg.inv(grid.affine[:3, :3])
    halo = math.ceil(max(tolerances_mm) * float(np.linalg.norm(inverse[2]))) + 1  # planes
    corners = tuple(size + 1 for size in grid.shape)
    thickness = max(1, SLAB_CORNERS // (corners[0] * corners[1]))
    agreeing, whole = np.zeros(len(tolerances_mm)), 0.0
    for first in range(0, corners[2], thickness):
        last = min(first + thickness, corners[2])
        slabs = [_Slab(mask, grid, first - halo, last + halo) for mask in (prediction, reference)]
        for own, other in (slabs, slabs[::-1]):
            points, areas = own.surfels(first, last)
            whole += float(areas.sum())
            if len(points) and len(other.points):
                limit = max(tolerances_mm) + 2 * ROUNDING_MM
                distances = KDTree(other.points).query(points, distance_upper_bound=limit)[0]
                within = [distances <= mm + ROUNDING_MM for mm in tolerances_mm]
                agreeing += [float(areas[near].sum()) for near in within]
        done(last / corners[2])
    return [float(area) / whole if whole else 1.0 for area in agreeing]


class _Slab:
    """The surfels of a mask at corners `first` … `last` - 1 along the third axis.

    Corner i lies between the voxels i - 1 and i of an axis.
    """

    def __init__(self, mask: Mask, grid: Grid, first: int, last: int) -> None:
        first, last = max(first, 0), min(last, mask.shape[2] + 1)
        # Voxels first - 1 … last - 1, and a ring of what lies beyond the scan.
        low, high = max(first - 1, 0), min(last, mask.shape[2])
        beyond = (int(first == 0), int(last == mask.shape[2] + 1))
        voxels = np.pad(mask[..., low:high], ((1, 1), (1, 1), beyond)).view(np.uint8)
        codes = _codes(voxels)
        found = np.argwhere((codes != 0) & (codes != 255))
        self.areas = _areas(tuple(map(tuple, grid.affine[:3, :3].tolist())))[codes[tuple(found.T)]]
        self.layers = found[:, 2] + first
        found[:, 2] = self.layers
        self.points = grid.to_world(found - 0.5)

    def surfels(self, first: int, last: int) -> tuple[Floats, Floats]:
        """World positions (n, 3) and areas (n,), mm², at corners `first` … `last` - 1."""
        here = (self.layers >= first) & (self.layers < last)
        return self.points[here], self.areas[here]


def _codes(voxels: Array) -> Array:
    """The bits of the eight voxels around each inner corner."""
    a, b, c = (size - 1 for size in voxels.shape)
    codes = np.zeros((a, b, c), np.uint8)
    for bit, (i, j, k) in enumerate(product((0, 1), repeat=3)):
        codes |= voxels[i : i + a, j : j + b, k : k + c] << np.uint8(7 - bit)
    return codes


@lru_cache(maxsize=8)
def _areas(affine: tuple[tuple[float, ...], ...]) -> Floats:
    """The area, mm², of the surfel of each code, for voxel axes (3, 3)."""
    axes = np.array(affine)
    cofactors = np.linalg.det(axes) * np.linalg.inv(axes).T  # how normals of areas transform
    areas = np.zeros(256)
    for code, triangles in _TRIANGLES.items():
        corners = np.unpackbits(np.array([code], np.uint8)).reshape(2, 2, 2)
        normals = np.array(triangles) / 8
        for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
            mirrored = tuple(axis for axis in range(3) if signs[axis] < 0)
            turned = np.flip(corners.transpose(order), mirrored)
            same = int(np.packbits(turned)[0])
            area = np.linalg.norm(normals[:, order] * signs @ cofactors.T, axis=1).sum()
            areas[same] = areas[255 - same] = area
    return areas
