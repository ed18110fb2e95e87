"""Scans and label maps: an array and the grid it lies on, read from and written to files."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from attunet3d.core import ENDINGS, NIFTI_ENDINGS, OTHER_ENDINGS, DataError, stem
from attunet3d.imaging.geometry import Grid
from attunet3d.imaging.nifti import read_nifti
from attunet3d.imaging.nifti_header import NiftiGeometry
from attunet3d.imaging.nifti_writer import write_nifti

MAX_VOXELS = 1024 * 1024 * 900
AIR_HU = -1024
CHANNEL = "_0000"


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

    array: npt.NDArray[Any]
    grid: Grid
    geometry: NiftiGeometry | None = None
    warnings: tuple[str, ...] = ()
    name: str = ""


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A label map on a scan's own grid.

    Args:
        array: (I, J, K) uint8 label values, in Fortran order.
        grid: The scan's grid.
        labels: Name of each label value; 0 is the background.
        geometry: The scan's NIfTI header, copied bit for bit into the file.

    Example:
        >>> import numpy as np
        >>> array = np.zeros((10, 10, 10), np.uint8); array[:5, :5, :4] = 1
        >>> grid = Grid((10, 10, 10), np.diag([1.0, 1.0, 2.0, 1.0]))
        >>> Segmentation(array, grid, {0: "background", 1: "pancreas"}).volume_ml(1)
        0.2
    """

    array: npt.NDArray[np.uint8]
    grid: Grid
    labels: dict[int, str]
    geometry: NiftiGeometry | None = None

    def volume_ml(self, value: int) -> float:
        """Millilitres that label `value` takes."""
        return round(int(np.count_nonzero(self.array == value)) * self.grid.voxel_volume_ml, 9)

    def save(self, path: Path) -> None:
        """Write a NIfTI file (uint8) with the scan's shape, affine, form codes and units.

        Raises:
            WriteError: The disk is full or the folder read-only; nothing is left behind.
        """
        write_nifti(path, self.array, self.geometry, self.grid)


def read_volume(
    path: Path, *, max_voxels: int = MAX_VOXELS, nonfinite: Literal["air", "refuse"] = "air"
) -> Volume:
    """Read a scan in Hounsfield units: NIfTI, a DICOM series folder, NRRD or MetaImage.

    Args:
        path: The file or folder.
        max_voxels: Largest scan accepted.
        nonfinite: NaN and infinities count as air with a warning, or are refused (training data).

    Returns:
        int16 where that is exact, else float32; Fortran order.

    Raises:
        UserError: The file is missing, damaged, hostile or no scan; the message names it.
    """
    volume = _read(Path(path), max_voxels)
    if volume.array.dtype.kind != "f" or np.isfinite(volume.array).all():
        return volume
    missing = ~np.isfinite(volume.array)
    count = int(np.count_nonzero(missing))
    if count == missing.size:
        raise DataError(f"{path}: no voxel is a number (all NaN or infinite); export it again")
    if nonfinite == "refuse":
        raise DataError(f"{path}: {count} voxels are NaN or infinite; mend the scan")
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
            raise DataError(f"{path}: the label map holds NaN or infinities; export it again")
        if (array != np.rint(array)).any():
            odd = float(array[array != np.rint(array)][0])
            raise DataError(f"{path}: label value {odd:g} is not whole; labels must be 0 to 255")
    low, high = float(array.min()), float(array.max())
    if low < 0:
        raise DataError(f"{path}: label value {low:g} is negative; labels must be 0 to 255")
    if high > 255:
        raise DataError(f"{path}: label value {high:g} is too high; labels must be 0 to 255")
    return replace(volume, array=array.astype(np.uint8, order="K"))


def _read(path: Path, max_voxels: int) -> Volume:
    if path.is_dir():
        if path.name.lower().endswith(NIFTI_ENDINGS):
            raise DataError(f"{path}: is a folder called like a scan; move what it holds out of it")
        from attunet3d.imaging.dicom import read_series

        array, grid, warnings = read_series(path, max_voxels)
        return Volume(array, grid, None, tuple(warnings), path.name)
    if path.name.lower().endswith(OTHER_ENDINGS):
        from attunet3d.imaging.dicom import read_image

        array, grid = read_image(path, max_voxels)
        return Volume(array, grid, None, (), path.name)
    array, grid, geometry, odd = read_nifti(path, max_voxels=max_voxels)
    return Volume(array, grid, geometry, tuple(odd), path.name)


def write_map(path: Path, array: npt.NDArray[Any], like: Volume) -> None:
    """Write values in [0, 1] on a scan's grid, as steps of 1/65535 (NIfTI's `scl_slope`).

    Args:
        path: `.nii.gz`.
        array: (I, J, K) or (I, J, K, N) float.
        like: The scan.

    Raises:
        WriteError: The disk is full or the folder read-only.
    """
    steps = np.rint(np.clip(array, 0, 1) * 65535).astype(np.uint16, order="K")
    write_nifti(path, steps, like.geometry, like.grid, slope=1 / 65535)


def find_scans(path: Path) -> list[tuple[str, Path]]:
    """The scans that a path names, as (case id, path), sorted by name.

    A file is one scan, of a pair the `.hdr`. A folder with scan files holds those (hidden and
    AppleDouble `._` files are passed over; a folder called like a scan is listed, so that reading
    refuses it); a folder without them is one DICOM series. The id is the file's name without its
    ending; where all files of a folder end in nnU-Net's channel `_0000`, without that too.

    Raises:
        DataError: Nothing is there, or the folder is empty.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; check the path")
    if not path.is_dir():
        return [(stem(path.name), path)]
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    scans = [entry for entry in entries if entry.name.lower().endswith(ENDINGS)]
    if scans:
        names = [stem(scan.name) for scan in scans]
        if all(name.endswith(CHANNEL) and name != CHANNEL for name in names):
            names = [name.removesuffix(CHANNEL) for name in names]
        return list(zip(names, scans, strict=True))
    if any(entry.is_file() for entry in entries):
        return [(path.resolve().name, path)]
    raise DataError(f"{path}: holds no scan; a folder of .nii.gz files or a DICOM series is read")
