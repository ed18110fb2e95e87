"""Writes NIfTI files atomically, with a geometry that all readers interpret alike.

A header has two affines. The sform can be any affine; the qform consists of a rotation, spacings
and an offset, so it cannot represent the sheared grid of a tilted gantry. Programs built on ITK
read the qform. A sheared grid gets none, so that they refuse the file instead of displacing it.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from isal import igzip

from attunet3d.core import Array, whole_file
from attunet3d.imaging.geometry import Grid
from attunet3d.imaging.nifti_header import GEOMETRY_FIELDS, NiftiGeometry


def write_nifti(
    path: Path, array: Array, geometry: NiftiGeometry | None, grid: Grid, *, slope: float = 1.0
) -> None:
    """Write voxels as NIfTI-1, or in the version that the source had.

    Args:
        path: `.nii.gz` (gzip level 1) or `.nii`.
        array: (I, J, K), or (I, J, K, N) for N maps, best in Fortran order.
        geometry: Copied bit for bit, for an output on a source's voxels; None: made from `grid`.
        grid: Where the voxels lie; its shape is the array's.
        slope: The values are the stored numbers times this.

    Raises:
        WriteError: The disk is full or the folder read-only; nothing is left behind.
    """
    assert array.shape[:3] == grid.shape, (array.shape, grid.shape)
    header = nifti_header(array.shape, array.dtype, geometry, grid, slope)
    with nifti_file(path, header) as file:
        file.write(np.asfortranarray(array).reshape(-1, order="F").data.cast("B"))


def write_nifti_planes(
    path: Path, planes: Iterable[Array], geometry: NiftiGeometry | None, grid: Grid
) -> None:
    """Write voxels as uint8 by planes (I, J), as `write_nifti` does; memory holds one plane.

    Raises:
        WriteError: The disk is full or the folder read-only; nothing is left behind.
    """
    header = nifti_header(grid.shape, np.uint8, geometry, grid)
    with nifti_file(path, header) as file:
        for plane in planes:
            file.write(plane.astype(np.uint8).tobytes(order="F"))


@contextmanager
def nifti_file(path: Path, header: Any) -> Iterator[BinaryIO]:
    """Open a file for the bytes of the voxels, which replaces `path` when the block ends.

    Raises:
        WriteError: The disk is full or the folder read-only; nothing is left behind.
    """
    with whole_file.replacing(Path(path)) as file:
        if not Path(path).name.endswith(".gz"):
            file.write(header.binaryblock + bytes(4))
            yield file
            return
        # Neither a name nor a time in the gzip header: equal maps give equal files.
        with igzip.IGzipFile(filename="", mode="wb", compresslevel=1, fileobj=file, mtime=0) as gz:
            gz.write(header.binaryblock + bytes(4))
            yield gz


def nifti_header(
    shape: tuple[int, ...],
    dtype: Any,
    geometry: NiftiGeometry | None,
    grid: Grid,
    slope: float = 1.0,
) -> Any:
    """A header for voxels on `grid`; see `write_nifti`.

    Example:
        >>> sheared = np.array([[1.0, 0, 0, 0], [0, 1, 0.4, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
        >>> header = nifti_header((9, 9, 9), np.uint8, None, Grid((9, 9, 9), sheared))
        >>> int(header["sform_code"]), int(header["qform_code"])
        (1, 0)
    """
    if geometry is None:
        header = _made(grid)
        header.set_data_shape(shape)
    else:
        header = nib.Nifti1Header() if geometry.version == 1 else nib.Nifti2Header()
        for name in GEOMETRY_FIELDS:
            header[name] = geometry.fields[name]
        if len(shape) == 4:
            header["dim"][:] = [4, *shape, 1, 1, 1]
    header.set_data_dtype(dtype)
    header["vox_offset"] = header.sizeof_hdr + 4
    header["scl_slope"], header["scl_inter"] = slope, 0
    header["magic"] = b"n+1" if header.sizeof_hdr == 348 else b"n+2\0\r\n\x1a\n"
    return header


def _made(grid: Grid) -> Any:
    header = nib.Nifti1Header()
    header.set_data_shape(grid.shape)
    header.set_xyzt_units("mm")
    header.set_sform(grid.affine, 1)
    header.set_qform(grid.affine, 0 if grid.is_sheared else 1, strip_shears=True)
    return header
