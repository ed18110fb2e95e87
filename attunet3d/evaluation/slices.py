"""Slices of scans in radiological convention: the patient's right on the left, superior up.

Axial slices are seen from the feet, coronal ones from the front, sagittal ones from the left
(anterior on the left). Slices run along the voxel axes nearest to these directions; a pixel has its
true size in mm, so thick slices look as thick as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import nibabel.orientations as orientations
import numpy as np

from attunet3d.core import Array, Box, DataError
from attunet3d.imaging import Grid

RADIOLOGICAL = "LPI"  # axes of a view: columns grow to the left, rows to posterior, inferior
PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}  # axis of the view across the slice

Point = tuple[int, int, int]


class Voxels(Protocol):
    """Any array with its grid: a `Volume`, a `Segmentation`."""

    @property
    def array(self) -> Array:
        """(I, J, K)."""

    @property
    def grid(self) -> Grid:
        """Where the voxels lie."""


@dataclass(frozen=True, eq=False)
class View:
    """A scan with its voxel axes along left, posterior, inferior; nothing is copied.

    Args:
        array: (L, P, I) view of the scan.
        spacing_mm: Of its axes.
    """

    array: Array
    spacing_mm: tuple[float, float, float]

    @property
    def whole(self) -> Box:
        """The box of everything."""
        a, b, c = (slice(0, size) for size in self.array.shape)
        return a, b, c

    def cut(self, plane: str, index: int, box: Box) -> "Slice":
        """The slice number `index` across `plane`, cut to `box` of this array."""
        across = PLANES[plane]
        column, row = (axis for axis in range(3) if axis != across)  # L before P before I
        pixels = np.take(self.array, index, axis=across).T  # (rows, columns)
        first = box[column].start * self.spacing_mm[column], box[row].start * self.spacing_mm[row]
        size = self.spacing_mm[column], self.spacing_mm[row]
        return Slice(plane, pixels[box[row], box[column]], size, first)


@dataclass(frozen=True, eq=False)
class Slice:
    """One slice, ready to be drawn.

    Args:
        plane: "axial", "coronal" or "sagittal".
        pixels: (rows, columns), top row first.
        pixel_mm: Width and height of a pixel.
        first_mm: Left and top edge of the first pixel.
    """

    plane: str
    pixels: Array
    pixel_mm: tuple[float, float]
    first_mm: tuple[float, float]

    @property
    def extent_mm(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top edge; millimetres run to the right and downwards."""
        (rows, columns), (width, height) = self.pixels.shape, self.pixel_mm
        left, top = self.first_mm
        return left, left + columns * width, top + rows * height, top

    def centres_mm(self) -> tuple[Array, Array]:
        """Positions of the pixel centres along the columns and along the rows."""
        (rows, columns), (width, height) = self.pixels.shape, self.pixel_mm
        left, top = self.first_mm
        return left + (np.arange(columns) + 0.5) * width, top + (np.arange(rows) + 0.5) * height


def radiological_view(voxels: Voxels) -> View:
    """Turn a scan, a label map or an attention map the way it is looked at.

    Raises:
        DataError: The array has not its grid's shape.

    Example:
        >>> from types import SimpleNamespace
        >>> scan = SimpleNamespace(array=np.zeros((4, 5, 6)), grid=Grid((4, 5, 6), np.eye(4)))
        >>> top = radiological_view(scan).cut("axial", 0, (slice(0, 4), slice(0, 5), slice(0, 6)))
        >>> top.pixels.shape, top.extent_mm
        ((5, 4), (0.0, 4.0, 5.0, 0.0))
    """
    if voxels.array.shape != voxels.grid.shape:
        raise DataError(f"array {voxels.array.shape}: must have the grid's {voxels.grid.shape}")
    here = orientations.io_orientation(voxels.grid.affine)
    change = orientations.ornt_transform(here, orientations.axcodes2ornt(RADIOLOGICAL))
    array = orientations.apply_orientation(voxels.array, change)
    return View(array, voxels.grid.oriented(RADIOLOGICAL).spacing_mm)


def radiological_views(scan: Voxels, *others: Voxels) -> list[View]:
    """`radiological_view` several that lie on one grid.

    Raises:
        DataError: Their grids differ.
    """
    for other in others:
        if not scan.grid.matches(other.grid):
            raise DataError(
                f"scan and label map lie on different grids ({scan.grid.shape} and"
                f" {other.grid.shape} voxels, or elsewhere in the patient); resample one of them"
            )
    return [radiological_view(voxels) for voxels in (scan, *others)]


def middle(mask: Array) -> Point:
    """Voxel nearest to the centre of mass of a mask (I, J, K), in planes that meet the mask.

    The middle of the array when the mask is empty.

    Example:
        >>> mask = np.zeros((9, 3, 3), bool)
        >>> mask[[0, 8], 1, 1] = True
        >>> middle(mask)[1:], middle(mask)[0] in (0, 8)
        ((1, 1), True)
    """
    found = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        profile = np.count_nonzero(mask, axis=others)
        if not profile.any():
            return (mask.shape[0] // 2, mask.shape[1] // 2, mask.shape[2] // 2)
        centre = profile @ np.arange(len(profile)) / profile.sum()
        planes = np.flatnonzero(profile)  # the centre of two apart may lie in neither
        found.append(int(planes[np.abs(planes - centre).argmin()]))
    a, b, c = found
    return a, b, c


def frame(masks: Sequence[Array], spacing_mm: Sequence[float], margin_mm: float) -> Box:
    """The box around all masks with a margin on each side; the whole array when all are empty."""
    together = np.logical_or.reduce(masks)
    box = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        hit = np.flatnonzero(together.any(axis=others))
        margin = round(margin_mm / spacing_mm[axis])
        size = together.shape[axis]
        low, high = (hit[0] - margin, hit[-1] + 1 + margin) if len(hit) else (0, size)
        box.append(slice(max(0, int(low)), min(size, int(high))))
    a, b, c = box
    return a, b, c
