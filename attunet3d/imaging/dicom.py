"""DICOM series, NRRD and MetaImage files, read by SimpleITK onto our grids (LPS → RAS).

No DICOM tag ends up in a message, an output or a log: tags name patients and hospitals.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from attunet3d.core import DataError
from attunet3d.imaging import dicom_file, text_header
from attunet3d.imaging.geometry import Grid

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
MOST_SLICES = 10_000


def read_series(folder: Path, max_voxels: int) -> tuple[npt.NDArray[Any], Grid, list[str]]:
    """Read the one DICOM series in a folder.

    The third axis is laid through the slices' positions, so a tilted gantry gives a sheared grid
    and not a shifted scan.

    Returns:
        Voxels (I, J, K) in HU, Fortran order, int16 where exact; their grid; warnings.

    Raises:
        DataError: No series, several, slices missing or doubled, or an image too large.
    """
    import SimpleITK

    files, odd = _slices(folder)
    names = tuple(str(file.path) for file in files)
    try:
        positions, spacing, direction, size = _slice_positions(names)
    except RuntimeError:  # its text quotes the file, tags and all
        raise DataError(f"{folder}: a DICOM file cannot be read; copy the series again") from None
    order = np.argsort(positions @ direction[:, 2], kind="stable")
    names, positions = tuple(names[i] for i in order), positions[order]
    count = len(positions)
    if size[0] * size[1] > min(file.most_voxels for file in files):
        raise DataError(f"{folder}: a slice claims more voxels than it can hold; copy it again")
    if size[0] * size[1] * count > max_voxels:
        raise DataError(f"{folder}: {size[0]}×{size[1]}×{count} voxels; at most {max_voxels}")
    step, warnings = _step(positions, spacing, direction, folder)
    try:
        image = SimpleITK.ReadImage(names)
    except RuntimeError:
        raise DataError(f"{folder}: the DICOM series cannot be read; copy it again") from None
    affine = np.eye(4)
    affine[:3, :2] = LPS_TO_RAS @ direction[:, :2] * spacing[:2]
    affine[:3, 2] = LPS_TO_RAS @ step
    affine[:3, 3] = LPS_TO_RAS @ positions[0]
    array = _voxels(image, folder)
    grid = Grid((array.shape[0], array.shape[1], array.shape[2]), affine)
    return array, grid, [*odd, *warnings]


def _slices(folder: Path) -> tuple[list[dicom_file.DicomFile], list[str]]:
    """The files of the one series in a folder, each sound, and a warning of files passed over."""
    found, others = [], 0
    try:
        for path in sorted(folder.iterdir()):
            if not path.is_file() or path.name.startswith(".") or path.name == "DICOMDIR":
                continue
            if dicom_file.is_dicom(path):
                found.append(dicom_file.check(path))
            else:
                others += 1
            if len(found) > MOST_SLICES:
                raise DataError(f"{folder}: more than {MOST_SLICES} slices")
    except DataError as error:
        raise DataError(f"{folder}: {error}") from None
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from None
    if not found:
        raise DataError(f"{folder}: holds neither scan files nor a DICOM series")
    counts = Counter(file.series for file in found)
    if len(counts) > 1:
        sizes = ", ".join(map(str, counts.values()))
        raise DataError(f"{folder}: holds {len(counts)} DICOM series ({sizes} files); keep one")
    return found, [f"{others} files that are no DICOM were passed over"] if others else []


def _slice_positions(names: tuple[str, ...]) -> tuple[Any, Any, Any, tuple[int, int]]:
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    positions, shapes = [], set()
    for name in names:
        reader.SetFileName(name)
        reader.ReadImageInformation()
        positions.append(reader.GetOrigin())
        shapes.add((reader.GetSize()[:2], tuple(np.round(reader.GetDirection(), 4))))
    if len(shapes) != 1:
        raise RuntimeError("slices of different size or direction")
    direction = np.array(reader.GetDirection()).reshape(3, 3)
    width, height = reader.GetSize()[:2]
    return np.array(positions), np.array(reader.GetSpacing()), direction, (width, height)


def _step(positions: Any, spacing: Any, direction: Any, folder: Path) -> tuple[Any, list[str]]:
    """The vector from slice to slice in LPS mm, and what is odd about the slices."""
    if len(positions) == 1:
        return direction[:, 2] * spacing[2], ["one DICOM slice; its thickness is the header's"]
    steps = np.diff(positions, axis=0)
    mean = (positions[-1] - positions[0]) / (len(positions) - 1)
    gap = float(np.linalg.norm(mean))
    apart = float(np.linalg.norm(steps - mean, axis=1).max())
    if gap < 1e-3 or apart > max(0.1 * gap, 0.05):
        raise DataError(
            f"{folder}: DICOM slices are missing, doubled or uneven (up to {apart:.2f} mm off);"
            " export the whole series again"
        )
    tilt = np.degrees(np.arccos(min(1.0, abs(float(mean @ direction[:, 2])) / gap)))
    return mean, [
        f"the gantry was tilted by {tilt:.1f}°; the grid is sheared"
    ] if tilt > 0.1 else []


def read_image(path: Path, max_voxels: int) -> tuple[npt.NDArray[Any], Grid]:
    """Read a NRRD, MetaImage or other file that SimpleITK knows.

    Raises:
        DataError: The file is missing, damaged, not 3D, or too large.
        DataError: Its voxels lie elsewhere, or cannot be as many as it says.
    """
    import SimpleITK

    if not path.is_file():
        raise DataError(f"{path}: no such file; check the path")
    text_header.check(path)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        size = reader.GetSize()
        if len(size) != 3 or reader.GetNumberOfComponents() != 1:
            raise DataError(f"{path}: must be one 3D volume of plain numbers, got size {size}")
        if int(np.prod(size, dtype=object)) > max_voxels:
            raise DataError(f"{path}: {size} voxels; at most {max_voxels} are read")
        image = reader.Execute()
    except RuntimeError:
        raise DataError(f"{path}: cannot be read; copy or convert it again") from None
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    affine[:3, :3] = LPS_TO_RAS @ direction * np.array(image.GetSpacing())
    affine[:3, 3] = LPS_TO_RAS @ np.array(image.GetOrigin())
    array = _voxels(image, path)
    return array, Grid((array.shape[0], array.shape[1], array.shape[2]), affine)


def _voxels(image: Any, path: Path) -> npt.NDArray[Any]:
    import SimpleITK

    array = SimpleITK.GetArrayFromImage(
        image
    ).T  # (k, j, i) in C order = (i, j, k) in Fortran order
    if array.ndim != 3:
        raise DataError(f"{path}: must be one 3D volume of plain numbers")
    if array.dtype == np.int16:
        return array  # type: ignore[no-any-return]
    if array.dtype.kind in "iu" and array.min() >= -(2**15) and array.max() < 2**15:
        return array.astype(np.int16, order="K")  # type: ignore[no-any-return]
    return array.astype(np.float32, order="K")  # type: ignore[no-any-return]
