"""Reads NRRD, MetaImage and other files by SimpleITK, and turns LPS into RAS.

The text headers of MetaImage and NRRD may refer to any other file for their voxels and claim any
size, and SimpleITK follows. Here that file must lie beside the header, and the claimed size must
fit the bytes that are there.
"""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from attunet3d.core import Array, DataError, Floats
from attunet3d.imaging.geometry import LPS_TO_RAS, Grid

HEADER_BYTES = 65_536  # read at most; headers have a few hundred
MOST_INFLATED = 1100  # bytes from one byte of a deflated stream; its limit is 1032
VOXELS_ENTRY = re.compile(rb"^(?:ElementDataFile\s*=|data ?file:)\s*(.*?)\s*$", re.I | re.M)
SIZES_ENTRY = re.compile(rb"^(?:DimSize\s*=|sizes:)[ \t]*([0-9 \t]+?)\s*$", re.I | re.M)
DIRECTION_ENTRY = re.compile(
    rb"^(?:(?:TransformMatrix|Orientation|Rotation)\s*=|space directions:)", re.I | re.M
)
ENDINGS = (".mha", ".mhd", ".nrrd", ".nhdr")
NO_DIRECTION = (
    "the file gives no direction of its axes: the patient's left and right are unknown; the axes"
    " are taken to run to left, posterior and superior"
)


def read_image(path: Path, max_voxels: int) -> tuple[Array, Grid, list[str]]:
    """Read a NRRD, MetaImage or other file that SimpleITK knows.

    Returns:
        Voxels (I, J, K) in Fortran order, int16 where that is exact, else float32; their grid;
        warnings.

    Raises:
        DataError: The file is missing, damaged, not 3D or too large, its voxels are in another
            folder, or it claims more voxels than it can contain.
    """
    import SimpleITK

    if not path.is_file():
        raise DataError("no such file", path=path, cure="check the path")
    warnings = check_header(path)
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
    array: Array = SimpleITK.GetArrayFromImage(image).T  # (k, j, i) in C order is (i, j, k) in F
    return int16_if_exact(array), Grid(size, itk_affine(image)), warnings


def itk_affine(image: Any) -> Floats:
    """Voxel → RAS mm of a SimpleITK image."""
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    affine[:3, :3] = LPS_TO_RAS @ direction * np.array(image.GetSpacing())
    affine[:3, 3] = LPS_TO_RAS @ np.array(image.GetOrigin())
    return affine


def int16_if_exact(array: Array) -> Array:
    """The array as int16 where it holds whole numbers that fit, else as float32."""
    if array.dtype in (np.int16, np.float32):
        return array
    whole = array.dtype.kind in "iu" and array.min() >= -(2**15) and array.max() < 2**15
    return array.astype(np.int16 if whole else np.float32, order="K")


def check_header(path: Path) -> list[str]:
    """Refuse a header that points out of its folder or claims more than its bytes can hold.

    Files of other formats (GIPL) pass; of these SimpleITK reads no direction.

    Returns:
        A warning where the file does not give the direction of its axes.

    Raises:
        DataError: The header does so, or gives no size.
    """
    if not path.name.lower().endswith(ENDINGS):
        return [NO_DIRECTION]
    text = _header(path)
    voxels = _voxel_file(path, text)
    sizes = SIZES_ENTRY.search(text)
    if sizes is None or len(sizes[1]) > 100:
        raise DataError("its header gives no size", path=path, cure="convert the scan again")
    count = math.prod(map(int, sizes[1].split()))
    held = voxels.stat().st_size
    if count > MOST_INFLATED * held:
        rule = f"claims {count} voxels, more than its {held} bytes can hold"
        raise DataError(rule, path=path, value=count, cure="copy it again")
    return [] if DIRECTION_ENTRY.search(text) else [NO_DIRECTION]


def pair_of(path: Path) -> list[Path]:
    """A MetaImage or NRRD file and, if its header names another one for the voxels, that one.

    Raises:
        DataError: That one does not lie beside it.
    """
    voxels = _voxel_file(path, _header(path))
    return [path] if voxels == path else [path, voxels]


def voxel_files(path: Path) -> list[Path]:
    """The file, there or not, that a MetaImage or NRRD header names for the voxels, if it does.

    Raises:
        DataError: It would not lie beside the header.
    """
    voxels = _named(path, _header(path))
    return [] if voxels == path else [voxels]


def _header(path: Path) -> bytes:
    with path.open("rb") as file:
        text = file.read(HEADER_BYTES)
    if text.startswith(b"NRRD"):
        text = re.split(rb"\r?\n\r?\n", text, maxsplit=1)[0]  # then come the voxels
    return text


def _voxel_file(path: Path, header: bytes) -> Path:
    """The file itself, or the one in its folder to which its header refers."""
    voxels = _named(path, header)
    if not voxels.is_file() or voxels.resolve().parent != path.resolve().parent:
        raise _elsewhere(path)
    return voxels


def _named(path: Path, header: bytes) -> Path:
    """As `_voxel_file`, whether it is there or not."""
    named = VOXELS_ENTRY.search(header)
    if named is None or named[1].upper() == b"LOCAL":
        return path
    # LIST is not a name: it announces a list of paths, which may lead anywhere.
    if not re.fullmatch(rb"\w[\w .+-]*", named[1]) or named[1].upper().startswith(b"LIST"):
        raise _elsewhere(path)
    return path.parent / named[1].decode("ascii")


def _elsewhere(path: Path) -> DataError:
    rule = "its voxels must be in the file itself or in one beside it"
    return DataError(rule, path=path, cure="convert the scan to a single file")
