"""Reads and checks NIfTI files: first the header, then exactly the bytes that it claims.

No memory is allocated beyond the limit, or for more bytes than a file of this size can contain. A
pair (`.hdr` and `.img`) is read by the name of its header.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from attunet3d.core import Array, DataError
from attunet3d.imaging.byte_stream import COPY, ByteStream, open_stream
from attunet3d.imaging.geometry import Grid
from attunet3d.imaging.nifti_header import (
    NiftiGeometry,
    NiftiHeader,
    header_size,
    parse_header,
)


def read_nifti(path: Path, *, max_voxels: int) -> tuple[Array, Grid, NiftiGeometry, list[str]]:
    """Read a NIfTI-1 or NIfTI-2 file, gzipped or not (recognised by content, not by name).

    Args:
        path: A regular file; the `.hdr` of a pair.
        max_voxels: Largest volume accepted.

    Returns:
        Voxels (I, J, K) in Fortran order, scaled: int16 where that is exact, else float32 (NaN and
        infinities as they are); their grid in mm; the header's geometry; warnings.

    Raises:
        DataError: The file is missing, damaged, hostile or not a scan; the message names it.
    """
    with open_nifti(path, max_voxels) as (header, stream):
        raw = np.empty(header.voxel_bytes, np.uint8)
        stream.fill(raw.data)
        stream.finish()
        array = _scaled(raw.view(header.dtype), header).reshape(header.shape, order="F")
        grid = Grid(header.shape, header.affine_mm)
        return array, grid, header.geometry, [*header.warnings, *stream.warnings]


@contextmanager
def open_nifti(
    path: Path, max_voxels: int, volumes: int = 1
) -> Iterator[tuple[NiftiHeader, ByteStream]]:
    """Read and check a file's header; yield it with the stream, positioned at the voxels.

    The file's name is added to errors inside the block.

    Args:
        path: A regular file; the `.hdr` of a pair.
        max_voxels: Largest volume accepted.
        volumes: How many the file must hold.

    Raises:
        DataError: As `read_nifti`.
    """
    try:
        with ExitStack() as stack:
            streams = [stack.enter_context(open_stream(part)) for part in pair_of(Path(path))]
            yield _begin(streams, max_voxels, volumes)
    except OSError as error:
        named = Path(error.filename or path).name  # it may be the other file of a pair
        raise DataError(
            f"cannot be read ({named}: {error.strerror or error})",
            path=path,
            cure="check the file and its permissions",
        ) from None
    except DataError as error:
        raise error.within(Path(path)) from None


def _begin(
    streams: list[ByteStream], max_voxels: int, volumes: int
) -> tuple[NiftiHeader, ByteStream]:
    first, last = streams[0], streams[-1]
    start = first.read(4)
    start += first.read(header_size(start) - len(start))
    if len(start) < header_size(start):
        raise DataError("ends within the header", cure=COPY)
    header = parse_header(start, max_voxels, pair=first is not last, volumes=volumes)
    skipped = header.offset - len(start)
    if first is not last:
        first.finish()  # to verify the checksum of the header's file as well
        first.warnings.clear()
        skipped = header.offset
    claimed = header.offset + header.voxel_bytes
    if claimed > last.most_bytes:
        raise DataError(f"claims {claimed} bytes, more than it can hold", value=claimed, cure=COPY)
    last.fill(memoryview(bytearray(skipped)))
    return header, last


def pair_of(path: Path) -> list[Path]:
    """The files of one scan: the file itself, or the `.hdr` and the `.img` of a pair."""
    images = voxel_files(path)
    there = [image for image in images if image.exists()]
    return [path, *(there or images)[:1]]


def voxel_files(path: Path) -> list[Path]:
    """The names that the `.img` of a `.hdr` may have, the usual one first; none for other files."""
    for ending in (".hdr", ".hdr.gz"):
        if path.name.lower().endswith(ending):
            stem = path.name[: -len(ending)]
            endings = (".img", ".img.gz", ".IMG", ".IMG.GZ")
            return [path.with_name(stem + end) for end in endings]
    return []


def _scaled(raw: Array, header: NiftiHeader) -> Array:
    """Stored values × slope + intercept: int16 where exact, else float32."""
    if raw.dtype == np.dtype("int16") and (header.slope, header.intercept) == (1, 0):
        return raw
    whole = header.slope.is_integer() and header.intercept.is_integer()
    if raw.dtype.kind in "iu" and whole:
        ends = [int(raw.min()) * int(header.slope) + int(header.intercept)]
        ends += [int(raw.max()) * int(header.slope) + int(header.intercept)]
        if min(ends) >= -(2**15) and max(ends) < 2**15 and abs(header.intercept) < 2**62:
            # Intermediate values wrap modulo 2^16; the result is right because it fits.
            values = raw.astype(np.int16)
            values *= np.array(int(header.slope) % 2**16).astype(np.int16)
            values += np.array(int(header.intercept)).astype(np.int16)
            return values
    with np.errstate(over="ignore"):  # the caller checks for values that become infinite
        scaled = raw.astype(np.float32)
        if (header.slope, header.intercept) != (1, 0):
            scaled *= np.float32(header.slope)
            scaled += np.float32(header.intercept)
    return scaled
