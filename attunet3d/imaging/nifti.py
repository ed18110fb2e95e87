"""NIfTI files, read whole and checked, written whole or not at all.

One bounded pass over the stream: the header first, then exactly the bytes it claims, then on to
the end so that the gzip checksum and length are verified. Nothing is allocated that the header
claims beyond the limit or that a gzip stream of this size could not hold. A pair (`.hdr` and
`.img`) is read by its header's name.
"""

import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np

from attunet3d.core import Array, DataError, whole_file
from attunet3d.imaging.geometry import Grid
from attunet3d.imaging.nifti_header import (
    GEOMETRY_FIELDS,
    NiftiGeometry,
    NiftiHeader,
    header_size,
    parse_header,
)

fast_zlib: Any  # the same interface; the standard library's is slower
try:
    fast_zlib = import_module("isal.isal_zlib")
except ImportError:
    fast_zlib = zlib

READ_BYTES = 1 << 20
LEAST_PIECE = 1 << 12
CHUNK_BYTES = 1 << 22
GZIP_MAGIC = b"\x1f\x8b"
MOST_EXCESS = 1 << 20  # bytes after the voxels that are passed over, with a warning
LARGEST_RATIO = 1100  # deflate cannot pack more than 1032 bytes into one


def read_nifti(path: Path, *, max_voxels: int) -> tuple[Array, Grid, NiftiGeometry, list[str]]:
    """Read a NIfTI-1 or NIfTI-2 file, gzipped or not (told by content, not by name).

    Args:
        path: A regular file; of a pair the `.hdr`.
        max_voxels: Largest volume accepted.

    Returns:
        Voxels (I, J, K) in Fortran order, scaled: int16 where that is exact, else float32 (NaN and
        infinities as they are); their grid in mm; the header's geometry; warnings.

    Raises:
        DataError: The file is missing, damaged, hostile or no scan; the message names it.
    """
    path = Path(path)
    try:
        with ExitStack() as stack:
            files = [stack.enter_context(_open(part)) for part in parts_of(path)]
            return _read(files, max_voxels)
    except OSError as error:
        named = Path(error.filename or path).name  # of a pair it may be the other
        raise DataError(
            f"{path}: cannot be read ({named}: {error.strerror or error}); check the file and its"
            " rights"
        ) from None
    except (zlib.error, fast_zlib.error) as error:
        raise DataError(
            f"{path}: the gzip stream is damaged ({error}); copy the file again"
        ) from None
    except ValueError as error:  # ours, without the file's name as yet
        raise DataError(f"{path}: {error}") from None


def parts_of(path: Path) -> list[Path]:
    """The files that make one scan: itself, or of a pair the `.hdr` and the `.img` beside it."""
    for ending in (".hdr", ".hdr.gz"):
        if path.name.lower().endswith(ending):
            stem = path.name[: -len(ending)]
            endings = (".img", ".img.gz", ".IMG", ".IMG.GZ")
            images = [path.with_name(stem + end) for end in endings]
            return [path, next((image for image in images if image.exists()), images[0])]
    return [path]


def _open(path: Path) -> BinaryIO:
    # O_NONBLOCK: opening a named pipe that nobody writes to must not hang.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataError("is no regular file; copy the scan itself here")
    return os.fdopen(descriptor, "rb")


def _read(files: list[BinaryIO], max_voxels: int) -> tuple[Array, Grid, NiftiGeometry, list[str]]:
    warnings: list[str] = []
    chunks, room = _stream(files[0], warnings)
    start = b""
    while len(start) < 540 and (chunk := next(chunks, b"")):
        start += chunk
    if len(start) < header_size(start):
        raise DataError("ends within the header; copy it again")
    header = parse_header(start, max_voxels, pair=len(files) > 1)
    if len(files) > 1:
        _fill(memoryview(b""), 0, start, chunks)  # to its end: the header's checksum counts as well
        chunks, room = _stream(files[1], warnings)
        start = next(chunks, b"")
    voxel_bytes = int(np.prod(header.shape, dtype=object)) * header.dtype.itemsize
    if header.offset + voxel_bytes > room:
        raise DataError(
            f"claims {header.offset + voxel_bytes} bytes, more than it can hold; copy it again"
        )
    raw = np.empty(voxel_bytes, np.uint8)
    excess = _fill(raw.data, header.offset, start, chunks)
    if excess:
        warnings.append(f"{excess} bytes after the voxels were passed over")
    grid = Grid(header.shape, header.affine_mm)
    array = _scaled(raw.view(header.dtype), header).reshape(header.shape, order="F")
    return array, grid, header.geometry, [*header.warnings, *warnings]


def _stream(file: BinaryIO, warnings: list[str]) -> tuple[Iterator[bytes], int]:
    """The pieces of a file, unpacked where it is gzip, and how many bytes it can hold."""
    size = os.fstat(file.fileno()).st_size
    if size == 0:
        raise DataError("is empty; copy it again")
    packed = file.read(2) == GZIP_MAGIC
    file.seek(0)
    if packed:
        return _inflated(file, warnings), size * LARGEST_RATIO
    return iter(lambda: file.read(CHUNK_BYTES), b""), size


def _inflated(file: BinaryIO, warnings: list[str]) -> Iterator[bytes]:
    """Pieces of a gzip file of one or more members; each member's checksum is verified."""
    decoder, pending, most = fast_zlib.decompressobj(31), memoryview(b""), LEAST_PIECE
    while True:
        pending = pending or memoryview(file.read(READ_BYTES))
        piece = pending[:most]
        chunk = decoder.decompress(piece, CHUNK_BYTES)
        left = len(decoder.unused_data if decoder.eof else decoder.unconsumed_tail)
        pending = pending[len(piece) - left :]
        if chunk:
            yield chunk
        if decoder.eof:
            pending = _behind_member(file, pending)
            if pending[:2] != GZIP_MAGIC:
                if pending:
                    warnings.append(
                        "bytes that are not gzip after the gzip stream were passed over"
                    )
                return
            # What a decoder does not use it copies: small pieces first, for members may be tiny.
            decoder, most = fast_zlib.decompressobj(31), LEAST_PIECE
        elif not chunk and not piece:
            raise DataError("breaks off: the gzip stream has no end; copy it again")
        else:
            most = min(2 * most, READ_BYTES)


def _behind_member(file: BinaryIO, pending: memoryview) -> memoryview:
    """What follows a member: its first two bytes at least, without padding of zeros."""
    if len(pending) < 2:
        pending = memoryview(bytes(pending) + file.read(READ_BYTES))
    while pending and pending[0] == 0:  # tape formats pad so
        rest = bytes(pending).lstrip(b"\0")
        pending = memoryview(rest if len(rest) > 1 else rest + file.read(READ_BYTES))
    return pending


def _fill(buffer: memoryview, offset: int, start: bytes, chunks: Iterator[bytes]) -> int:
    """Fill `buffer` with the stream's bytes from `offset` on; return how many are left over."""
    position, excess, chunk = -offset, 0, start
    while chunk:
        piece = memoryview(chunk)[max(0, -position) :]
        begin = max(0, position)
        taken = min(len(piece), len(buffer) - begin)
        if taken > 0:
            buffer[begin : begin + taken] = piece[:taken]
        if len(piece) > max(0, taken):
            excess += len(piece) - max(0, taken)
            if excess > MOST_EXCESS:
                raise DataError(
                    "unpacks to far more bytes than its header says; it is damaged or hostile"
                )
        position += len(chunk)
        chunk = next(chunks, b"")
    if position < len(buffer):
        raise DataError(
            f"breaks off: {max(0, position)} of {len(buffer)} bytes of voxels; copy it again"
        )
    return excess


def _scaled(raw: Array, header: NiftiHeader) -> Array:
    """Stored values × slope + intercept: int16 where exact, else float32."""
    if raw.dtype == np.dtype("int16") and (header.slope, header.intercept) == (1, 0):
        return raw
    whole = header.slope.is_integer() and header.intercept.is_integer()
    if raw.dtype.kind in "iu" and whole:
        ends = [int(raw.min()) * int(header.slope) + int(header.intercept)]
        ends += [int(raw.max()) * int(header.slope) + int(header.intercept)]
        if min(ends) >= -(2**15) and max(ends) < 2**15 and abs(header.intercept) < 2**62:
            # Wraps modulo 2^16 on the way, which ends right because the result fits.
            values = raw.astype(np.int16)
            values *= np.array(int(header.slope) % 2**16).astype(np.int16)
            values += np.array(int(header.intercept)).astype(np.int16)
            return values
    with np.errstate(over="ignore"):  # beyond float32 becomes infinite, which the caller judges
        scaled = raw.astype(np.float32)
        if (header.slope, header.intercept) != (1, 0):
            scaled *= np.float32(header.slope)
            scaled += np.float32(header.intercept)
    return scaled


def write_nifti(
    path: Path,
    array: Array,
    geometry: NiftiGeometry | None,
    grid: Grid,
    *,
    slope: float = 1.0,
) -> None:
    """Write voxels; the file is read back and compared before it gets its name.

    Args:
        path: `.nii.gz` (gzip level 1) or `.nii`.
        array: (I, J, K), or (I, J, K, N) for N maps, best in Fortran order.
        geometry: Copied bit for bit, for an output on a source's voxels; None: made from `grid`.
        grid: Where the voxels lie; its shape is the array's.
        slope: Value of one stored step.

    Raises:
        WriteError: The disk is full or the folder read-only; nothing is left behind.
    """
    assert array.shape[:3] == grid.shape, (array.shape, grid.shape)
    header = _header_for(array, geometry, grid, slope)
    head = header.binaryblock + bytes(4)
    body = np.asfortranarray(array).reshape(-1, order="F").data.cast("B")
    checksum = fast_zlib.crc32(body, fast_zlib.crc32(head))
    if Path(path).name.endswith(".gz"):
        packer = fast_zlib.compressobj(1, zlib.DEFLATED, 31)
        data = b"".join([packer.compress(head), packer.compress(body), packer.flush()])
    else:
        data = b"".join([head, body])

    def reads_back(written: Path) -> None:
        """Refuse a file whose bytes are not those that were meant."""
        found = 0
        with written.open("rb") as file:
            packed = data.startswith(GZIP_MAGIC)
            for chunk in (
                _inflated(file, []) if packed else iter(lambda: file.read(CHUNK_BYTES), b"")
            ):
                found = fast_zlib.crc32(chunk, found)
        if found != checksum:
            raise OSError("what was written does not read back; the disk may be failing")

    whole_file.write_bytes(Path(path), data, reads_back)


def _header_for(array: Array, geometry: NiftiGeometry | None, grid: Grid, slope: float) -> Any:
    if geometry is None:
        header = nib.Nifti1Header()
        header.set_data_shape(array.shape)
        header.set_xyzt_units("mm")
        header.set_sform(grid.affine, 1)
        header.set_qform(grid.affine, 1, strip_shears=True)
    else:
        header = nib.Nifti1Header() if geometry.version == 1 else nib.Nifti2Header()
        for name in GEOMETRY_FIELDS:
            header[name] = geometry.fields[name]
        if array.ndim == 4:
            header["dim"][:] = [4, *array.shape, 1, 1, 1]
    header.set_data_dtype(array.dtype)
    header["vox_offset"] = header.sizeof_hdr + 4
    header["scl_slope"], header["scl_inter"] = slope, 0
    header["magic"] = b"n+1" if header.sizeof_hdr == 348 else b"n+2\0\r\n\x1a\n"
    return header
