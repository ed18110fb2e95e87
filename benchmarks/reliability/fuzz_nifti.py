"""Fuzzed: NIfTI files, each field by its name; what is taken must be what nibabel reads."""

import logging
import random
import struct
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from attunet3d.imaging import Volume, read_label, read_volume
from benchmarks.reliability.fuzz_input import MOST_VOXELS, DisagreementError, Files
from benchmarks.reliability.mutations import gzipped, mutated, packed

logging.getLogger("nibabel.global").setLevel("CRITICAL")  # it tells of every header it fixes
UNIT_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}

NIFTI1 = {"sizeof_hdr": (0, "i"), "dim_info": (39, "b"), "datatype": (70, "h"), "bitpix": (72, "h")}
NIFTI1 |= {f"dim{i}": (40 + 2 * i, "h") for i in range(8)}
NIFTI1 |= {f"pixdim{i}": (76 + 4 * i, "f") for i in range(8)}
NIFTI1 |= {"vox_offset": (108, "f"), "slope": (112, "f"), "inter": (116, "f"), "units": (123, "b")}
NIFTI1 |= {"qform": (252, "h"), "sform": (254, "h"), "magic": (344, "i"), "extension": (348, "i")}
NIFTI1 |= {f"float{i}": (256 + 4 * i, "f") for i in range(18)}  # quaternion, offsets, rows
NIFTI1 |= {"extension size": (352, "i"), "extension code": (356, "i")}
NIFTI2 = {"sizeof_hdr": (0, "i"), "magic": (4, "q"), "datatype": (12, "h"), "bitpix": (14, "h")}
NIFTI2 |= {f"dim{i}": (16 + 8 * i, "q") for i in range(8)}
NIFTI2 |= {f"pixdim{i}": (104 + 8 * i, "d") for i in range(8)}
NIFTI2 |= {"vox_offset": (168, "q"), "slope": (176, "d"), "inter": (184, "d"), "units": (500, "i")}
NIFTI2 |= {"qform": (344, "i"), "sform": (348, "i"), "extension": (540, "i")}
NIFTI2 |= {f"float{i}": (352 + 8 * i, "d") for i in range(18)}
DATATYPES = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1280, 1536, 1792, 2304, -4]


@cache
def nifti_seeds() -> tuple[bytes, ...]:
    """Sound files, not packed: both versions and byte orders, several types and affines."""
    found = []
    affine = np.array([[-0.8, 0.1, 0, 30], [0.1, -0.9, 0.2, 20], [0, 0.3, 2.5, -50], [0, 0, 0, 1]])
    values = np.random.default_rng(0).integers(0, 200, (5, 4, 3))
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        for number, dtype in enumerate(("i2", "u1", "f4", "f8", "i4", "u2", "i8", "i1")):
            header = kind.header_class(endianness="<>"[number % 2])
            array = (values - 100 * (dtype == "i1")).astype(dtype)
            array = array[..., None] if number == 3 else array
            image = kind(array, affine, header)
            image.header.set_data_dtype(dtype)
            image.header.set_xyzt_units(("mm", "micron", "meter", "unknown")[number % 4])
            image.set_sform(affine, number % 3)
            image.set_qform(affine, (number + 1) % 3, strip_shears=True)
            if number % 2:
                image.header.set_slope_inter(0.5 * number, -1024 + number)
            if number == 4:
                image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"hello"))
            found.append(image.to_bytes())
    return tuple(found)


def nifti(rng: random.Random) -> Files:
    """A spoilt NIfTI file, packed in one of many ways or not."""
    data = rng.choice(nifti_seeds())
    fields = (
        NIFTI1 if 348 in struct.unpack("<i", data[:4]) + struct.unpack(">i", data[:4]) else NIFTI2
    )
    endian = "<" if int.from_bytes(data[:4], "little") in (348, 540) else ">"
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        name = rng.choice(list(fields))
        place, code = fields[name]
        value = packed(code, endian, rng)
        if name == "datatype":
            value = struct.pack(endian + code, rng.choice(DATATYPES))
        elif name in ("qform", "sform", "units", "dim0") or name.startswith("dim"):
            value = struct.pack(endian + code, rng.choice((-1, 0, 1, 2, 3, 4, 5, 7, 8, 10)))
        data = data[:place] + value + data[place + len(value) :]
    if rng.random() < 0.3:
        data = mutated(data, rng, rng.choice(nifti_seeds()))
    if rng.random() < 0.1:
        data += rng.choice((bytes(1), bytes(4096), rng.randbytes(100), bytes(2 << 20)))
    return {"a.nii.gz": gzipped(data, rng)} if rng.random() < 0.6 else {"a.nii": data}


def check_nifti(path: Path) -> None:
    """What ours and nibabel both take must be the same scan, by the rules of `nifti_header`."""
    found = read_volume(path, max_voxels=MOST_VOXELS)
    try:
        image = nib.load(path)
        shape = image.shape
        affine = np.diag([UNIT_MM[int(image.header["xyzt_units"]) & 7]] * 3 + [1.0]) @ image.affine
        terms = _terms(image)
    except Exception:  # nibabel refuses, in its many ways
        return
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if shape != found.array.shape or shape != found.grid.shape:
        raise DisagreementError(f"shape {found.array.shape}, nibabel {shape}")
    if _placed_alike(found) and not np.array_equal(found.grid.affine, affine):
        raise DisagreementError(f"affine {found.grid.affine.tolist()}, nibabel's {affine.tolist()}")
    _compare(found, *(part.reshape(shape) for part in terms))


def _placed_alike(found: Volume) -> bool:
    """Whether ours and nibabel go by the same rule.

    nibabel takes a form code that the standard does not know for 0, and a qfac it does not know for
    1; ours, as ITK, goes by the sign of either.
    """
    assert found.geometry is not None
    fields = found.geometry.fields
    codes = {int(fields[name]) for name in ("qform_code", "sform_code")}
    return codes <= set(range(5)) and float(fields["pixdim"][0]) in (-1, 0, 1)


def _terms(image: Any) -> tuple[np.ndarray, np.ndarray]:
    """Voxels in float64, and how large the terms were that they are sums of."""
    proxy = image.dataobj
    raw = np.asarray(proxy.get_unscaled(), np.float64)
    with np.errstate(all="ignore"):
        scaled = raw * proxy.slope
        return scaled + proxy.inter, np.abs(raw) + np.abs(scaled) + np.abs(proxy.inter)


def _compare(found: Volume, wanted: np.ndarray, size: np.ndarray) -> None:
    """Finite voxels must be equal to within the rounding of float32."""
    finite = np.isfinite(wanted) & (size < np.finfo(np.float32).max / 2)
    slack = 4 * np.finfo(np.float32).eps * size + 1e-44
    with np.errstate(all="ignore"):
        apart = np.abs(found.array.astype(np.float64) - wanted) > slack
    if (apart & finite).any():
        place = tuple(int(n[0]) for n in np.nonzero(apart & finite))
        raise DisagreementError(f"voxel {place}: {found.array[place]}, nibabel {wanted[place]}")


def check_label(path: Path) -> None:
    """Labels come as uint8, each the value that stands in the file."""
    found = read_label(path, max_voxels=MOST_VOXELS)
    scan = read_volume(path, max_voxels=MOST_VOXELS)
    if found.array.dtype != np.uint8 or not np.array_equal(found.array, scan.array):
        raise DisagreementError("the label map is not what the scan of the same file is")
