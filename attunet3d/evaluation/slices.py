"""Slices of scans in radiological convention: the patient's right on the left, superior up.

Axial slices are seen from the feet, coronal ones from the front, sagittal ones from the left
(anterior on the left). Slices run along the voxel axes nearest to these directions; a pixel has its
true size in mm, so thick slices look as thick as they are.
"""

from dataclasses import dataclass

import nibabel.orientations as orientations
import numpy as np

from attunet3d.core import Array, Box, DataError, Mask, Size, Triple
from attunet3d.imaging import Segmentation, Volume, extent

RADIOLOGICAL = "LPI"  # axes of a view: columns grow to the left, rows to posterior, inferior
PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}  # axis of the view across the slice

Voxels = Volume | Segmentation


@dataclass(frozen=True, eq=False)
class Slice:
    """One slice, ready to be drawn."""

    plane: str
    """axial, coronal or sagittal."""
    pixels: Array
    """(rows, columns), top row first."""
    extent_mm: tuple[float, float, float, float]
    """Left, right, bottom and top edge; millimetres run to the right and downwards."""


@dataclass(frozen=True, eq=False)
class View:
    """A scan with its voxel axes along left, posterior, inferior: a view of its own memory."""

    array: Array
    spacing_mm: Triple

    def cut(self, plane: str, index: int, box: Box | None = None) -> Slice:
        """Slice number `index` across `plane`, cut to `box` of this array if there is one."""
        across = PLANES[plane]
        column, row = (axis for axis in range(3) if axis != across)  # L before P before I
        pixels = np.take(self.array, index, axis=across).T  # (rows, columns)
        width, height = self.spacing_mm[column], self.spacing_mm[row]
        x, y = (box[column], box[row]) if box else map(slice, (0, 0), pixels.shape[::-1])
        edges = x.start * width, x.stop * width, y.stop * height, y.start * height
        return Slice(plane, pixels[y, x], edges)


def radiological_views(scan: Voxels, *others: Voxels) -> list[View]:
    """Turn a scan, and label or attention maps on its grid, so that they are seen as in a viewer.

    Raises:
        DataError: The grids differ, or an array does not have its grid's shape.

    Example:
        >>> from attunet3d.imaging import Grid
        >>> scan = Volume(np.zeros((4, 5, 6)), Grid((4, 5, 6), np.eye(4)))
        >>> (view,) = radiological_views(scan)
        >>> view.cut("axial", 0).pixels.shape, view.cut("axial", 0).extent_mm
        ((5, 4), (0.0, 4.0, 5.0, 0.0))
    """
    views = []
    for voxels in (scan, *others):
        if not scan.grid.matches(voxels.grid):
            raise DataError(
                f"scan and label map lie on different grids ({scan.grid.shape} and"
                f" {voxels.grid.shape} voxels, or elsewhere in the patient)",
                cure="resample one of them",
            )
        shape = voxels.array.shape
        if shape != voxels.grid.shape:
            raise DataError(f"array {shape}: must have the grid's {voxels.grid.shape}", value=shape)
        here = orientations.io_orientation(voxels.grid.affine)
        change = orientations.ornt_transform(here, orientations.axcodes2ornt(RADIOLOGICAL))
        array = orientations.apply_orientation(voxels.array, change)
        views.append(View(array, voxels.grid.oriented(RADIOLOGICAL).spacing_mm))
    return views


def middle(mask: Mask) -> Size:
    """The voxel nearest to the centre of mass of a mask (I, J, K), in planes that meet the mask.

    If the mask is empty, the middle of the array.

    Example:
        >>> mask = np.zeros((9, 3, 3), bool)
        >>> mask[[0, 8], 1, 1] = True
        >>> middle(mask)[1:], middle(mask)[0] in (0, 8)
        ((1, 1), True)
    """
    found = [size // 2 for size in mask.shape]
    for axis in range(3) if mask.any() else ():
        profile = np.count_nonzero(mask, axis=_others(axis))
        centre = profile @ np.arange(len(profile)) / profile.sum()
        planes = np.flatnonzero(profile)  # two parts may have their centre in neither
        found[axis] = int(planes[np.abs(planes - centre).argmin()])
    a, b, c = found
    return a, b, c


def frame(mask: Mask, spacing_mm: Triple, margin_mm: float) -> Box:
    """The box around a mask with a margin on each side; if it is empty, the whole array."""
    box = []
    for axis, size in enumerate(mask.shape):
        line = np.any(mask, axis=_others(axis))
        span = extent(line) if line.any() else slice(0, size)
        margin = round(margin_mm / spacing_mm[axis])
        box.append(slice(max(0, span.start - margin), min(size, span.stop + margin)))
    a, b, c = box
    return a, b, c


def _others(axis: int) -> tuple[int, ...]:
    return tuple(other for other in range(3) if other != axis)
