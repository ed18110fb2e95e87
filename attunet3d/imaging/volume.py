"""Scans and label maps: an array and the grid it lies on, read from and written to files."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from attunet3d.core import (
    MAX_VOXELS,
    NIFTI_ENDINGS,
    OTHER_ENDINGS,
    Array,
    Box,
    DataError,
    LabelMap,
    Mask,
    Regions,
)
from attunet3d.imaging.components import label_mask
from attunet3d.imaging.geometry import Grid
from attunet3d.imaging.nifti import read_nifti
from attunet3d.imaging.nifti_header import NiftiGeometry
from attunet3d.imaging.nifti_writer import write_nifti

AIR_HU = -1024
SMALLEST_SPACING_MM = 0.01


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan or label map.

    Args:
        array: (I, J, K), indexed as the grid's affine has it, in Fortran order.
        grid: Where its voxels lie.
        geometry: The NIfTI header it came with, for outputs on the same voxels.
        warnings: What was odd about the file.
        name: The file's name, for messages.
    """

    array: Array
    grid: Grid
    geometry: NiftiGeometry | None = None
    warnings: tuple[str, ...] = ()
    name: str = ""

    def cropped(self, box: Box) -> "Volume":
        """The voxels in a box, a view, with the grid that they lie on.

        The header is left out: it belongs to all the voxels.

        Example:
            >>> volume = Volume(np.arange(8).reshape(2, 2, 2), Grid((2, 2, 2), np.eye(4)))
            >>> part = volume.cropped((slice(1, 2), slice(0, 2), slice(0, 2)))
            >>> part.array.tolist(), part.grid.affine[:3, 3].tolist()
            ([[[4, 5], [6, 7]]], [1.0, 0.0, 0.0])
        """
        return replace(self, array=self.array[box], grid=self.grid.cropped(box), geometry=None)


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A label map on a scan's own grid.

    Args:
        array: (I, J, K) uint8 label values, in Fortran order.
        grid: The scan's grid.
        labels: Name of each label value; 0 is the background.
        geometry: The scan's NIfTI header, copied bit for bit into the file.
        regions: Where labels overlap, the values that make up each; a voxel has the value of the
            last label that it belongs to.

    Example:
        >>> import numpy as np
        >>> array = np.zeros((10, 10, 10), np.uint8); array[:5, :5, :4] = 1
        >>> grid = Grid((10, 10, 10), np.diag([1.0, 1.0, 2.0, 1.0]))
        >>> Segmentation(array, grid, {0: "background", 1: "pancreas"}).volume_ml(1)
        0.2
    """

    array: LabelMap
    grid: Grid
    labels: dict[int, str]
    geometry: NiftiGeometry | None = None
    regions: Regions = field(default_factory=dict)

    def values_of(self, value: int) -> tuple[int, ...]:
        """The values that make up label `value`."""
        return self.regions.get(value, (value,))

    def mask_of(self, value: int, part: Any = ...) -> Mask:
        """The voxels of label `value`; `part` indexes the array where only some are looked at.

        Example:
            >>> array = np.array([0, 1, 2]).reshape(3, 1, 1)
            >>> names = {0: "background", 1: "pancreas", 2: "tumour"}
            >>> case = Segmentation(array, Grid((3, 1, 1), np.eye(4)), names, None, {1: (1, 2)})
            >>> case.mask_of(1).ravel().tolist(), case.mask_of(2, np.s_[1:, 0, 0]).tolist()
            ([False, True, True], [False, True])
        """
        return label_mask(self.array[part], value, self.regions)

    def layers(self) -> list[list[int]]:
        """The labels but the background in groups in which none overlaps another.

        Example:
            >>> grid, names = Grid((1, 1, 1), np.eye(4)), {0: "none", 1: "a", 2: "b", 3: "c"}
            >>> Segmentation(np.zeros((1, 1, 1)), grid, names, None, {1: (1, 2)}).layers()
            [[1, 3], [2]]
        """
        layers: list[list[int]] = []
        for value in sorted(filter(None, self.labels)):
            parts = set(self.values_of(value))
            for layer in layers:
                if all(parts.isdisjoint(self.values_of(other)) for other in layer):
                    layer.append(value)
                    break
            else:
                layers.append([value])
        return layers

    def volume_ml(self, value: int) -> float:
        """Millilitres that label `value` takes."""
        return round(int(np.count_nonzero(self.mask_of(value))) * self.grid.voxel_volume_ml, 9)

    def save(self, path: Path) -> None:
        """Write a NIfTI file (uint8) with the scan's shape, affine, form codes and units.

        Raises:
            WriteError: The disk is full or the folder read-only; nothing is left behind.
        """
        write_nifti(path, self.array, self.geometry, self.grid)


def read_volume(
    path: Path,
    *,
    max_voxels: int = MAX_VOXELS,
    nonfinite: Literal["air", "refuse"] = "air",
    series: str | None = None,
) -> Volume:
    """Read a scan in Hounsfield units: NIfTI, a DICOM series folder, NRRD or MetaImage.

    Args:
        path: The file or folder.
        max_voxels: Largest scan accepted.
        nonfinite: NaN and infinities count as air with a warning, or are refused (training data).
        series: Which of several DICOM series: its number, UID, or a part of its description.

    Returns:
        int16 where that is exact, else float32; Fortran order.

    Raises:
        UserError: The file is missing, damaged, hostile or not a scan; the message names it.
    """
    volume = _read(Path(path), max_voxels, series)
    try:
        return finite(volume, nonfinite)
    except DataError as error:
        raise error.within(Path(path)) from None


def finite(volume: Volume, nonfinite: Literal["air", "refuse"] = "air") -> Volume:
    """The volume with air for NaN and infinities, and a warning of them.

    Raises:
        DataError: No voxel is finite, or not all are and `nonfinite` is "refuse".
    """
    if volume.array.dtype.kind != "f" or np.isfinite(volume.array).all():
        return volume
    missing = ~np.isfinite(volume.array)
    count = int(np.count_nonzero(missing))
    if count == missing.size:
        raise DataError("no voxel is a number (all NaN or infinite)", cure="export it again")
    if nonfinite == "refuse":
        rule = f"{count} voxels are NaN or infinite"
        raise DataError(rule, value=count, cure="replace them")
    array = np.where(missing, np.float32(AIR_HU), volume.array)
    warning = f"{count} voxels are NaN or infinite; they count as air"
    return replace(volume, array=array, warnings=(*volume.warnings, warning))


def read_label(path: Path, *, max_voxels: int = MAX_VOXELS) -> Volume:
    """Read a label map: whole numbers from 0 to 255, in any number type.

    Returns:
        uint8, Fortran order.

    Raises:
        UserError: As `read_volume`.
        DataError: A value is NaN, not whole, negative, or above 255.
    """
    volume = _read(Path(path), max_voxels)
    array = volume.array
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            rule = "the label map holds NaN or infinities"
            raise DataError(rule, path=path, cure="export it again")
        if (array != np.rint(array)).any():
            _refuse(path, float(array[array != np.rint(array)][0]), "not whole")
    low, high = float(array.min()), float(array.max())
    if low < 0:
        _refuse(path, low, "negative")
    if high > 255:
        _refuse(path, high, "too high")
    return replace(volume, array=array.astype(np.uint8, order="K"))


def _refuse(path: Path, value: float, what: str) -> None:
    rule = f"label value {value:g} is {what}: labels must be whole numbers from 0 to 255"
    raise DataError(rule, path=path, value=value, cure="export the labels again")


def _read(path: Path, max_voxels: int, series: str | None = None) -> Volume:
    name = path.name.lower()
    if path.is_dir():
        if name.endswith(NIFTI_ENDINGS):
            rule = "is a directory named like a scan"
            raise DataError(rule, path=path, cure="move its contents elsewhere")
        from attunet3d.imaging.dicom import read_series

        array, grid, warnings = read_series(path, max_voxels, series)
        volume = Volume(array, grid, None, tuple(warnings), path.name)
    elif name.endswith(OTHER_ENDINGS):
        from attunet3d.imaging.itk_image import read_image

        array, grid, warnings = read_image(path, max_voxels)
        volume = Volume(array, grid, None, tuple(warnings), path.name)
    else:
        array, grid, geometry, warnings = read_nifti(path, max_voxels=max_voxels)
        volume = Volume(array, grid, geometry, tuple(warnings), path.name)
    return _checked(volume, path)


def _checked(volume: Volume, path: Path) -> Volume:
    smallest = min(volume.grid.spacing_mm)
    if smallest < SMALLEST_SPACING_MM:
        rule = f"voxels are {smallest:g} mm long: at least {SMALLEST_SPACING_MM} mm are read"
        cure = "correct the header's spacing or units"
        raise DataError(rule, path=path, value=smallest, cure=cure)
    if not volume.grid.is_sheared:
        return volume
    warning = (
        f"the grid is sheared by {volume.grid.shear_deg:.1f}° (tilted gantry): programs built on"
        " ITK (3D Slicer, ITK-SNAP, SimpleITK) refuse its label map, unless written --orthogonal"
    )
    return replace(volume, warnings=(*volume.warnings, warning))
