"""What a scan is, in words and numbers."""

from collections.abc import Iterable

import numpy as np

from attunet3d.core import as_table
from attunet3d.imaging.scan_check import hounsfield_warnings
from attunet3d.imaging.volume import Volume

UNITS = ("an unknown unit, read as millimetres", "metres", "millimetres", "micrometres")


def scan_summary(volume: Volume) -> str:
    """Grid, spacing, orientation, size, range of values and warnings of a scan.

    Example:
        >>> import numpy as np
        >>> from attunet3d.imaging.geometry import Grid
        >>> array = np.full((4, 4, 2), -1000, np.int16); array[0, 0, 0] = 300
        >>> print(scan_summary(Volume(array, Grid((4, 4, 2), np.diag([1.0, 1.0, 5.0, 1.0])))))
        voxels       4×4×2
        spacing      1×1×5 mm
        orientation  RAS (directions of the three voxel axes)
        size         4×4×10 mm
        values       -1000 to 300 HU, int16
    """
    grid = volume.grid
    size = [count * step for count, step in zip(grid.shape, grid.spacing_mm, strict=True)]
    low, high = volume.array.min(), volume.array.max()
    rows = [
        ("voxels", _times(grid.shape)),
        ("spacing", f"{_times(grid.spacing_mm)} mm"),
        ("orientation", f"{grid.axis_codes} (directions of the three voxel axes)"),
        ("size", f"{_times(size)} mm"),
        ("values", f"{low:g} to {high:g} HU, {volume.array.dtype}"),
    ]
    directions = grid.affine[:3, :3] / grid.spacing_mm
    if abs(directions.T @ directions - np.eye(3)).max() > 1e-3:
        rows.append(("axes", "not at right angles to each other"))
    if volume.geometry is not None:
        unit = int(volume.geometry.fields["xyzt_units"]) & 7
        rows.append(("header", f"NIfTI-{volume.geometry.version}, lengths in {UNITS[unit]}"))
    warnings = [("warning", text) for text in (*volume.warnings, *hounsfield_warnings(volume))]
    return as_table([*rows, *warnings])


def _times(numbers: Iterable[float]) -> str:
    return "×".join(f"{number:g}" for number in numbers)
