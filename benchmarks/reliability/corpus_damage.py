"""What is done to a sound file to damage it, and files that are something else, by name."""

import bz2
import lzma
import zlib
from collections.abc import Callable

import numpy as np

from benchmarks.reliability.nifti_bytes import flipped, packed

Spoil = Callable[[bytes], bytes]  # from a scan's plain bytes
NOISE = np.random.default_rng(4).bytes(5000)
NRRD = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 4 4 4\nencoding: raw\n\n" + bytes(128)


def _holed(raw: bytes) -> bytes:
    data = packed(raw)
    middle = len(data) // 2
    return data[:middle] + bytes(2048) + data[middle + 2048 :]


def _wrong_crc(data: bytes) -> bytes:
    return data[:-8] + flipped(data[-8:-4], 0) + data[-4:]


def _wrong_length(data: bytes) -> bytes:
    return data[:-4] + flipped(data[-4:], 0)


def _cut(share: float) -> Spoil:
    return lambda raw: packed(raw)[: int(share * len(packed(raw)))]


def _plain_cut(share: float) -> Spoil:
    return lambda raw: raw[: int(share * len(raw))]


def _short(count: int) -> Spoil:
    return lambda raw: packed(raw)[:-count]


def _bit(share: float) -> Spoil:
    return lambda raw: flipped(packed(raw), share)


DAMAGED: dict[str, Spoil] = {
    **{f"cut_at_{share}": _cut(share) for share in (0.002, 0.02, 0.25, 0.6, 0.95)},
    **{f"plain_cut_at_{share}": _plain_cut(share) for share in (0.002, 0.02, 0.25, 0.6, 0.95)},
    **{f"cut_{count}_short": _short(count) for count in (1, 4, 8, 9)},
    "plain_cut_1_short": lambda raw: raw[:-1],
    **{f"bit_at_{share}": _bit(share) for share in (0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99)},
    "hole": _holed,
    "crc_wrong": lambda raw: _wrong_crc(packed(raw)),
    "length_wrong": lambda raw: _wrong_length(packed(raw)),
    "second_member_cut": lambda raw: packed(raw[:9000]) + packed(raw[9000:])[:-20],
    "second_member_crc": lambda raw: packed(raw[:9000]) + _wrong_crc(packed(raw[9000:])),
    "first_member_crc": lambda raw: _wrong_crc(packed(raw[:9000])) + packed(raw[9000:]),
    "garbage_behind": lambda raw: packed(raw) + b"garbage" * 9,
    "plain_more_behind": lambda raw: raw + b"garbage",
    "half_a_member_behind": lambda raw: packed(raw) + packed(raw)[:200],
}
NOT_SCANS: dict[str, Spoil] = {
    "empty.nii.gz": lambda raw: b"",
    "empty.nii": lambda raw: b"",
    "one_byte.nii.gz": lambda raw: b"\x1f",
    "gzip_magic_alone.nii.gz": lambda raw: b"\x1f\x8b",
    "gzip_header_alone.nii.gz": lambda raw: packed(b"")[:10],
    "gzip_of_nothing.nii.gz": lambda raw: packed(b""),
    "gzip_of_gzip.nii.gz": lambda raw: packed(packed(raw)),
    "gzip_of_noise.nii.gz": lambda raw: packed(NOISE),
    "noise.nii.gz": lambda raw: NOISE,
    "noise.nii": lambda raw: NOISE,
    "text.nii.gz": lambda raw: b"not a scan\n" * 60,
    "page.nii.gz": lambda raw: b"<!DOCTYPE html><title>404</title>",
    "zlib.nii.gz": zlib.compress,
    "bzip2.nii.gz": bz2.compress,
    "xz.nii.gz": lzma.compress,
    "zip.nii.gz": lambda raw: b"PK\x03\x04" + bytes(400),
    "png.nii.gz": lambda raw: b"\x89PNG\r\n\x1a\n" + bytes(400),
    "dicom.nii.gz": lambda raw: bytes(128) + b"DICM" + bytes(400),
    "nrrd.nii": lambda raw: NRRD,
    "header_alone.nii.gz": lambda raw: packed(raw[:348]),
    "zeros.nii": lambda raw: bytes(4096),
    "lfs_pointer.nii.gz": lambda raw: b"version https://git-lfs.github.com/spec/v1\nsize 1\n",
    "reversed.nii.gz": lambda raw: packed(raw)[::-1],
}
