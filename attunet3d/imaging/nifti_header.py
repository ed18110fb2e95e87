"""Reads and checks the header of a NIfTI file.

The rules, which are those of nibabel and ITK where the two agree:

* The sform counts if its code is not 0, else the qform, else the voxel sizes with a warning that
  the patient's left and right are unknown. Where both count and differ by more than a tenth of a
  voxel at a corner, the sform counts and a warning says so; where they contradict each other on
  left and right (determinants of opposite sign), the file is refused.
* Any invertible affine is accepted, including gantry tilt, shear and left-handed axes; none is
  silently made orthonormal.
* Lengths are converted to millimetres by `xyzt_units` (metre, millimetre, micron; 0 counts as mm).
* Trailing dimensions of size 1 are dropped; more than one volume, fewer than three dimensions and
  colour or complex voxels are refused.
* A single file (`n+1`, `n+2`) or a header and its voxels in two (`ni1`, `ni2`); Analyze 7.5, which
  has no orientation, is refused.
* A qfac (`pixdim[0]`) of 0 counts as 1, as nifti1.h has it.
* A slope of 0 or one that is not finite means no scaling; an intercept that is not finite means 0.
* Free text (`descrip`, `aux_file`, `db_name`, `intent_name`) and extensions are never kept: they
  may name a patient.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from attunet3d.core import Array, DataError, Floats, Size

LARGEST_OFFSET = 1 << 24  # bytes of extensions that are skipped at most
DTYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2"} | {
    768: "u4",
    1024: "i8",
    1280: "u8",
}
MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
GEOMETRY_FIELDS = (
    *("dim", "pixdim", "xyzt_units", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)


@dataclass(frozen=True, eq=False)
class NiftiGeometry:
    """The header fields that place the voxels, bit for bit, for an output on the same voxels."""

    version: int
    """1 or 2."""
    fields: Mapping[str, Array]
    """`GEOMETRY_FIELDS` by name, in the byte order of this machine."""


@dataclass(frozen=True, eq=False)
class NiftiHeader:
    """What is needed to read the voxels and to locate them."""

    shape: Size
    volumes: int
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float
    affine_mm: Floats
    geometry: NiftiGeometry
    warnings: tuple[str, ...]

    @property
    def voxel_bytes(self) -> int:
        """Bytes that the voxels of all volumes take."""
        return math.prod(self.shape) * self.volumes * self.dtype.itemsize


def header_size(start: bytes) -> int:
    """Size of the header in bytes, given its first four bytes.

    Raises:
        DataError: They are not those of NIfTI-1 or NIfTI-2 in either byte order.
    """
    sizes = {int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")}
    for size in (348, 540):
        if size in sizes and len(start) >= 4:
            return size
    raise DataError(
        "is not a NIfTI file (sizeof_hdr is neither 348 nor 540)", cure="convert or copy it again"
    )


def parse_header(
    data: bytes, max_voxels: int, *, pair: bool = False, volumes: int = 1
) -> NiftiHeader:
    """Read and check a header, without allocating memory for the voxels.

    Args:
        data: The first `header_size` bytes of the decompressed file.
        max_voxels: Largest volume accepted.
        pair: Whether the voxels are in a separate file, by default from its first byte on.
        volumes: How many volumes the file must hold.

    Raises:
        DataError: A field breaks a rule; the message has no file name yet.
    """
    size = header_size(data)
    endian: Literal["<", ">"] = "<" if int.from_bytes(data[:4], "little") == size else ">"
    kind = nib.Nifti1Header if size == 348 else nib.Nifti2Header
    header = kind(binaryblock=bytes(data[:size]), endianness=endian, check=False)
    magic = header["magic"].tobytes()[:3]
    wanted = (b"ni" if pair else b"n+") + (b"1" if size == 348 else b"2")
    if magic != wanted:
        kind_of = "of a pair (Analyze is not read)" if pair else "of a single file"
        # Other bytes are not quoted: they may be misplaced text, which may name a patient.
        found = repr(magic) if magic in (b"n+1", b"ni1", b"n+2", b"ni2") else "none of NIfTI's"
        raise DataError(
            f"has magic {found}: must be {wanted!r}, NIfTI {kind_of}", cure="convert it to .nii.gz"
        )
    shape = _shape(header, max_voxels, volumes)
    affine, warnings = _affine_mm(header, shape)
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not np.isfinite(slope):
        slope, intercept = 1.0, 0.0
    fields = {name: _native(header[name]) for name in GEOMETRY_FIELDS}
    return NiftiHeader(
        shape=shape,
        volumes=volumes,
        dtype=_dtype(header).newbyteorder(endian),
        offset=_offset(header, 0 if pair else size + 4),
        slope=slope,
        intercept=intercept if np.isfinite(intercept) else 0.0,
        affine_mm=affine,
        geometry=NiftiGeometry(1 if size == 348 else 2, fields),
        warnings=tuple(warnings),
    )


def _native(value: Array) -> Array:
    array = np.array(value)
    return array.astype(array.dtype.newbyteorder("="))


def _shape(header: Any, max_voxels: int, volumes: int) -> Size:
    dim = [int(n) for n in header["dim"]]
    damaged = "the header is damaged; copy or convert the scan again"
    if not 1 <= dim[0] <= 7:
        raise DataError(f"has dim[0] = {dim[0]}: must be 1 to 7", value=dim[0], cure=damaged)
    sizes = dim[1 : dim[0] + 1]
    if min(sizes) < 1:
        raise DataError(
            f"has dimensions {sizes}: each must be 1 or more", value=sizes, cure=damaged
        )
    if dim[0] < 3:
        raise DataError(
            f"is a {dim[0]}D image {sizes}: a scan has three dimensions", cure="give the volume"
        )
    found = math.prod(sizes[3:])
    if found != volumes:
        wanted = "must be one" if volumes == 1 else f"must be {volumes}"
        raise DataError(
            f"holds {found} volumes {sizes}: {wanted}", value=found, cure="split it and pick one"
        )
    i, j, k = sizes[:3]
    if i * j * k > max_voxels:  # Python integers: no overflow
        raise DataError(
            f"claims {i}×{j}×{k} voxels: at most {max_voxels} are read",
            value=(i, j, k),
            cure="crop it; infer takes more with inference.max_voxels",
        )
    return i, j, k


def _dtype(header: Any) -> np.dtype[Any]:
    code = int(header["datatype"])
    if code not in DTYPES:
        known = {32: "complex", 128: "RGB", 1792: "complex", 2304: "RGBA", 1: "one-bit"}
        raise DataError(
            f"has {known.get(code, 'unknown')} voxels (datatype {code}): must be plain numbers",
            value=code,
            cure="convert it",
        )
    dtype, bits = np.dtype(DTYPES[code]), int(header["bitpix"])
    if bits not in (0, dtype.itemsize * 8):
        raise DataError(
            f"has bitpix {bits} for datatype {code}: must be {dtype.itemsize * 8}",
            value=bits,
            cure="the header is damaged; copy or convert the scan again",
        )
    return dtype


def _offset(header: Any, least: int) -> int:
    offset = float(header["vox_offset"])
    if not np.isfinite(offset) or not least <= offset <= LARGEST_OFFSET or offset != int(offset):
        raise DataError(
            f"has vox_offset {offset:g}: must be a whole number of bytes from {least} to"
            f" {LARGEST_OFFSET}",
            value=offset,
            cure="the header is damaged; copy or convert the scan again",
        )
    return int(offset)


def _affine_mm(header: Any, shape: Size) -> tuple[Floats, list[str]]:
    """Voxel → RAS mm by the rules above, and warnings."""
    unit = int(header["xyzt_units"]) & 7
    if unit not in MM_PER_UNIT:
        raise DataError(
            f"has xyzt_units {unit}: lengths must be in metre (1), millimetre (2) or micron (3)",
            value=unit,
            cure="correct the header",
        )
    scale = np.array([[MM_PER_UNIT[unit]]] * 3 + [[1.0]])  # row by row: infinities stay quiet
    sform = np.asarray(header.get_sform(), float) if int(header["sform_code"]) > 0 else None
    qform = _qform(header) if int(header["qform_code"]) > 0 else None
    if sform is None and qform is None:
        if min(header["pixdim"][1:4]) < 0:
            raise DataError(
                "has negative voxel sizes and no orientation", cure="correct the header"
            )
        base = np.asarray(header.get_base_affine(), float)
        return scale * base, [
            "the header has no orientation (sform_code = qform_code = 0): the patient's left and"
            " right are unknown; spacing is from pixdim"
        ]
    if sform is None:
        assert qform is not None
        return scale * qform, []
    if qform is None or not np.isfinite(sform).all():
        return scale * sform, []
    return scale * sform, _disagreement(sform, qform, shape)


def _qform(header: Any) -> Floats | None:
    header = header.copy()
    header["pixdim"][0] = -1 if header["pixdim"][0] < 0 else 1
    try:
        qform = np.asarray(header.get_qform(), float)
    except (ValueError, HeaderDataError):
        qform = np.full((4, 4), np.nan)
    if not np.isfinite(qform).all():
        if int(header["sform_code"]) > 0:
            return None  # the sform counts, and an invalid qform is ignored
        raise DataError(
            "has an invalid qform: the quaternion must be finite and no longer than 1, the voxel"
            " sizes finite and not negative",
            cure="correct the header",
        )
    return qform


def _disagreement(sform: Floats, qform: Floats, shape: Size) -> list[str]:
    if np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0:
        raise DataError(
            "has a sform and a qform that contradict each other on the patient's left and right",
            cure="set the wrong one's code to 0",
        )
    corners = np.stack(np.meshgrid(*[[0, n - 1] for n in shape]), -1).reshape(-1, 3)
    offsets = corners @ (sform - qform)[:3, :3].T + (sform - qform)[:3, 3]
    apart = np.linalg.norm(offsets, axis=1).max()
    if apart <= 0.1 * np.linalg.norm(sform[:3, :3], axis=0).min():
        return []
    return [f"sform and qform differ by up to {apart:.3g} (in the header's unit); the sform counts"]
