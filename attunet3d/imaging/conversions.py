"""Scans from other libraries as volumes, and label maps given back as what the scan was.

Images are recognised by what they offer, so that none of the libraries is imported for it.
"""

from typing import Any, cast

import numpy as np

from attunet3d.core import MAX_VOXELS, Array, DataError
from attunet3d.imaging.geometry import Grid
from attunet3d.imaging.itk_image import int16_if_exact, itk_affine
from attunet3d.imaging.nifti_header import parse_header
from attunet3d.imaging.nifti_writer import nifti_header
from attunet3d.imaging.volume import Segmentation, Volume, finite


def as_volume(scan: Any) -> Volume:
    """A scan in Hounsfield units as a volume.

    Args:
        scan: A `Volume`, a nibabel image, a SimpleITK image, a MONAI `MetaTensor` (1, I, J, K), or
            a pair of an array (I, J, K) and its 4×4 affine to RAS millimetres.

    Returns:
        int16 where that is exact, else float32; NaN and infinities count as air, with a warning.

    Raises:
        DataError: It is none of these, is not 3D, or its header breaks a rule.

    Example:
        >>> array = np.full((4, 4, 4), 40, np.int64)
        >>> volume = as_volume((array, np.diag([1.0, 1.0, 2.0, 1.0])))
        >>> volume.array.dtype.name, volume.grid.spacing_mm
        ('int16', (1.0, 1.0, 2.0))
    """
    if isinstance(scan, Volume):
        return scan
    if hasattr(scan, "dataobj"):
        return _from_nibabel(scan)
    if hasattr(scan, "GetDirection"):
        return _from_simpleitk(scan)
    if hasattr(scan, "meta") and hasattr(scan, "affine"):
        return _from_metatensor(scan)
    if isinstance(scan, tuple) and len(scan) == 2:
        return _volume(np.asarray(scan[0]), np.asarray(scan[1]))
    raise DataError(
        f"a scan cannot be a {type(scan).__name__}",
        cure="give a Volume, a nibabel or SimpleITK image, a MetaTensor or (array, affine)",
    )


def as_kind_of(segmentation: Segmentation, scan: Any) -> Any:
    """A label map as the kind of object that its scan was; see `as_volume`.

    Returns:
        A `Segmentation` for a `Volume`, an array for (array, affine), else an image or tensor of
        the scan's library with the scan's geometry.
    """
    array = segmentation.array
    if hasattr(scan, "dataobj"):
        import nibabel as nib

        header = nifti_header(array.shape, array.dtype, segmentation.geometry, segmentation.grid)
        kind = nib.Nifti1Image if header.sizeof_hdr == 348 else nib.Nifti2Image
        header.set_slope_inter(None, None)
        return kind(array, header.get_best_affine(), header)
    if hasattr(scan, "GetDirection"):
        import SimpleITK

        image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.T))
        image.CopyInformation(scan)
        return image
    if hasattr(scan, "meta") and hasattr(scan, "affine"):
        import torch

        return type(scan)(torch.from_numpy(array)[None], meta=dict(scan.meta))
    return array if isinstance(scan, tuple) else segmentation


def _from_nibabel(image: Any) -> Volume:
    array = np.asanyarray(image.dataobj)
    if not hasattr(image.header, "get_qform"):  # another format of nibabel's: only the affine
        return _volume(array, image.affine)
    image.update_header()  # the affine may have been changed
    header = image.header.copy()
    header.set_data_dtype(np.int16)  # those of the array in memory are not the file's
    header["vox_offset"] = header.sizeof_hdr + 4
    header["magic"] = b"n+1" if header.sizeof_hdr == 348 else b"n+2\0\r\n\x1a\n"
    found = parse_header(header.binaryblock, MAX_VOXELS)
    volume = _volume(array.reshape(found.shape), found.affine_mm)
    return Volume(volume.array, volume.grid, found.geometry, (*found.warnings, *volume.warnings))


def _from_simpleitk(image: Any) -> Volume:
    import SimpleITK

    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise DataError("a SimpleITK image must be one 3D volume of plain numbers")
    return _volume(SimpleITK.GetArrayFromImage(image).T, itk_affine(image))


def _from_metatensor(tensor: Any) -> Volume:
    if tensor.ndim != 4 or len(tensor) != 1:
        rule = f"a MetaTensor must have one channel (1, I, J, K), got {tuple(tensor.shape)}"
        raise DataError(rule, cure="load it with ensure_channel_first=True")
    affine = np.asarray(tensor.affine.cpu(), dtype=np.float64)
    if str(tensor.meta.get("space", "RAS")).endswith("LPS"):
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    return _volume(tensor.detach().cpu().numpy()[0], affine)


def _volume(array: Array, affine: Array) -> Volume:
    if array.ndim != 3 or array.dtype.kind not in "iuf":
        rule = f"a scan must be three-dimensional and of plain numbers, got {array.ndim}D"
        raise DataError(f"{rule} {array.dtype}", value=array.shape)
    i, j, k = array.shape
    array = np.asfortranarray(int16_if_exact(array))
    return finite(Volume(array, Grid((i, j, k), cast(Any, affine))))
