"""Reads NRRD, MetaImage and other files by SimpleITK, and turns LPS into RAS."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from attunet3d.core import Array, DataError
from attunet3d.imaging import text_header
from attunet3d.imaging.geometry import LPS_TO_RAS, Grid


def read_image(path: Path, max_voxels: int) -> tuple[Array, Grid]:
    """Read a NRRD, MetaImage or other file that SimpleITK knows.

    Returns:
        Voxels (I, J, K) in Fortran order, int16 where that is exact, else float32; their grid.

    Raises:
        DataError: The file is missing, damaged, not 3D or too large, its voxels are in another
            folder, or it claims more voxels than it can contain.
    """
    import SimpleITK

    if not path.is_file():
        raise DataError("no such file", path=path, cure="check the path")
    text_header.check(path)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        size = reader.GetSize()
        if len(size) != 3 or reader.GetNumberOfComponents() != 1:
            rule = f"must be one 3D volume of plain numbers, got size {size}"
            raise DataError(rule, path=path, value=size, cure="convert it to one volume")
        if math.prod(size) > max_voxels:
            rule = f"{size} voxels; at most {max_voxels} are read"
            raise DataError(rule, path=path, value=size, cure="crop it")
        image = reader.Execute()
    except RuntimeError:
        raise DataError("cannot be read", path=path, cure="copy or convert it again") from None
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    affine[:3, :3] = LPS_TO_RAS @ direction * np.array(image.GetSpacing())
    affine[:3, 3] = LPS_TO_RAS @ np.array(image.GetOrigin())
    return _voxels(image), Grid(size, affine)


def _voxels(image: Any) -> Array:
    import SimpleITK

    array: Array = SimpleITK.GetArrayFromImage(image).T  # (k, j, i) in C order is (i, j, k) in F
    if array.dtype == np.int16:
        return array
    if array.dtype.kind in "iu" and array.min() >= -(2**15) and array.max() < 2**15:
        return array.astype(np.int16, order="K")
    return array.astype(np.float32, order="K")
