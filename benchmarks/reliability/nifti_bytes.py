"""NIfTI files made byte by byte, so that every field can be wrong; the truth is kept beside them.

Only the record layouts are nibabel's; geometry is worked out here from the NIfTI-1 standard
(nifti1.h, "3D image orientation and location in space").
"""

import gzip
import struct
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import header_dtype as layout_1
from nibabel.nifti2 import header_dtype as layout_2

Array = npt.NDArray[Any]
CODES = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "c8": 32, "f8": 64, "i1": 256, "u2": 512} | {
    "u4": 768,
    "i8": 1024,
    "u8": 1280,
    "f16": 1536,
    "c16": 1792,
}
SHAPE = (28, 32, 24)
SPACING = (2.0, 2.2, 2.5)
RADIUS_MM = 12.0
AIR, BODY, BALL = -1000.0, 40.0, 300.0


def rotation(b: float, c: float, d: float) -> Array:
    """The matrix of a unit quaternion (a, b, c, d) with a ≥ 0, as nifti1.h has it (method 2)."""
    a = np.sqrt(max(0.0, 1 - b * b - c * c - d * d))
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )


def qform_affine(quaternion: tuple[float, float, float], spacing: Any, qfac: float = 1) -> Array:
    """Voxel → world of a qform without its offset; quaternions as float32 holds them."""
    stored = [float(np.float32(q)) for q in quaternion]
    affine = np.eye(4)
    affine[:3, :3] = rotation(*stored) @ np.diag(spacing) @ np.diag([1, 1, qfac])
    return affine


def placed(affine: Array, centre_mm: Any, at: Any) -> Array:
    """`affine` shifted so that voxel `at` lies at `centre_mm`, rounded as a header holds it."""
    out = affine.copy()
    out[:3, 3] = np.asarray(centre_mm) - affine[:3, :3] @ np.asarray(at, float)
    return out.astype(np.float32).astype(np.float64)


@dataclass(frozen=True)
class Scan:
    """A phantom and the header that places it: air, a body around all, one bright ball.

    Args:
        affine: Voxel → RAS mm: the truth.
        shape: Voxels.
        unit_mm: Millimetres of the header's unit.
        radius_mm: Of the ball.
    """

    affine: Array
    shape: tuple[int, int, int] = SHAPE
    unit_mm: float = 1.0
    radius_mm: float = RADIUS_MM
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def middle(self) -> Array:
        """Voxel index of the ball's centre; off the middle, so that a mirrored one is seen."""
        return np.array(self.shape) * (0.37, 0.6, 0.42)

    @property
    def centre_mm(self) -> list[float]:
        """World position of the ball's centre."""
        return [round(float(x), 3) for x in self.affine[:3, :3] @ self.middle + self.affine[:3, 3]]

    def voxels(self) -> Array:
        """HU (I, J, K)."""
        index = np.stack([*np.indices(self.shape)], -1)
        to_ball = (index - self.middle) @ self.affine[:3, :3].T
        middle = (np.array(self.shape) - 1) / 2
        body = (((index - middle) / (np.array(self.shape) * 0.48)) ** 2).sum(-1) <= 1
        ball = (to_ball**2).sum(-1) <= self.radius_mm**2
        return np.where(ball, BALL, np.where(body, BODY, AIR))

    def with_fields(self, **fields: Any) -> "Scan":
        """The same with header fields overwritten."""
        return replace(self, fields={**self.fields, **fields})


def sform(affine: Array, unit_mm: float = 1.0, code: int = 1) -> dict[str, Any]:
    """Header fields of a sform, and the voxel sizes that fit it."""
    rows = affine[:3] / unit_mm
    sizes = np.linalg.norm(rows[:, :3], axis=0)
    return {
        "sform_code": code,
        "srow_x": rows[0],
        "srow_y": rows[1],
        "srow_z": rows[2],
        "pixdim": [1, *sizes, 1, 1, 1, 1],
    }


def qform(
    quaternion: tuple[float, float, float],
    spacing: Any,
    offset: Any,
    qfac: float = 1,
    code: int = 1,
) -> dict[str, Any]:
    """Header fields of a qform."""
    names = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
    return {
        "qform_code": code,
        **dict(zip(names, (*quaternion, *offset), strict=True)),
        "pixdim": [qfac, *spacing, 1, 1, 1, 1],
    }


def header(fields: dict[str, Any], version: int = 1, order: str = "<") -> bytes:
    """A header of 348 or 540 bytes with sound defaults under `fields`."""
    size = 348 if version == 1 else 540
    record = np.zeros((), (layout_1 if version == 1 else layout_2).newbyteorder(order))
    record["sizeof_hdr"] = size
    record["magic"] = b"n+1\0" if version == 1 else b"n+2\0\r\n\x1a\n"
    record["vox_offset"] = size + 4
    record["scl_slope"] = 1
    record["xyzt_units"] = 2
    for name, value in fields.items():
        record[name] = value
    return record.tobytes()


def stored(
    scan: Scan, dtype: str = "i2", *, slope: float = 1, inter: float = 0, **options: Any
) -> tuple[bytes, Array]:
    """Header and voxels of `scan` as one plain stream, and the HU that they stand for.

    Args:
        scan: What is stored.
        dtype: NumPy's name of the number type.
        slope: HU of one stored step.
        inter: HU of a stored 0.
        options: `version`, `order`, `between` (bytes after the header; 4 zeros by default) and
            `voxels` (HU in place of the phantom's).
    """
    version, order = options.get("version", 1), options.get("order", "<")
    hu = options.get("voxels")
    hu = scan.voxels() if hu is None else hu
    steps = (hu - inter) / slope
    kind = np.dtype(dtype)
    if kind.kind in "iu":
        bounds = np.iinfo(kind)
        steps = np.clip(np.rint(steps), float(bounds.min), float(bounds.max))
    with np.errstate(over="ignore"):
        data = steps.astype(kind.newbyteorder(order))
    fields = {
        "dim": [3, *scan.shape, 1, 1, 1, 1],
        "datatype": CODES[dtype],
        "bitpix": kind.itemsize * 8,
        "scl_slope": slope,
        "scl_inter": inter,
        **scan.fields,
    }
    head = header(fields, version, order) + options.get("between", bytes(4))
    truth = data.astype(np.float64) * slope + inter if kind.kind in "iuf" else hu
    return head + data.tobytes(order="F"), truth


def packed(raw: bytes, level: int = 6) -> bytes:
    """A gzip stream without a time stamp."""
    return gzip.compress(raw, level, mtime=0)


def packed_with_names(raw: bytes, name: bytes, comment: bytes) -> bytes:
    """A gzip stream with all optional parts of its header (RFC 1952: FEXTRA, FNAME, FCOMMENT)."""
    flags = 4 | 8 | 16
    head = b"\x1f\x8b\x08" + bytes([flags]) + bytes(4) + b"\0\xff"
    head += struct.pack("<H", 6) + b"AB\x02\0xy" + name + b"\0" + comment + b"\0"
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
    body = deflate.compress(raw) + deflate.flush()
    return head + body + struct.pack("<II", zlib.crc32(raw), len(raw) % 2**32)


def flipped(data: bytes, at: float, bit: int = 3) -> bytes:
    """`data` with one bit changed at a share of its length."""
    place = min(len(data) - 1, int(at * len(data)))
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def raw_header(path: Path) -> Any:
    """The header record of a file, gzipped or not, in this machine's byte order."""
    with path.open("rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if gzipped else path.open("rb") as file:
        data = file.read(540)
    version_1 = 348 in (int.from_bytes(data[:4], order) for order in ("little", "big"))
    kind = layout_1 if version_1 else layout_2
    little = int.from_bytes(data[:4], "little") == kind.itemsize
    record = np.frombuffer(data[: kind.itemsize], kind.newbyteorder("<" if little else ">"))[0]
    native = np.zeros((), kind)
    for name in kind.names:
        native[name] = record[name]
    return native
