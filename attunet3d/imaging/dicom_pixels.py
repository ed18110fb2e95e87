"""Hounsfield units of DICOM frames: their stored values, scaled by each frame's slope.

Plain pixels are taken as they lie, and RLE by pydicom. JPEG, JPEG-LS and JPEG 2000 go to the GDCM
that SimpleITK brings, which was found exact for all of them and needs no further package. GDCM
takes memory for whatever a header claims, so it gets a new file of the pixels alone, never the
file itself.
"""

import os
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydicom import Dataset, FileMetaDataset, dcmwrite
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from attunet3d.core import Array, DataError
from attunet3d.imaging.dicom_file import CtFile, Frame, Pixels, parse
from attunet3d.imaging.dicom_tags import COPY

PLAIN = {
    *(ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian),
    DeflatedExplicitVRLittleEndian,
}
BY_GDCM = {*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes}
LARGEST_RATIO = 1100  # voxels per byte of a compressed image
MOST_HEADER = 1 << 26  # bytes beside the pixels that an inflated file may have


def hounsfield(frames: Sequence[Frame]) -> Array:
    """Read the frames of a volume, each with its own slope and intercept.

    Returns:
        (columns, rows, frames) in Fortran order, int16 where that is exact, else float32.

    Raises:
        DataError: A file cannot be read, or its pixels cannot be decoded.
    """
    pixels = frames[0].file.pixels
    scales = {value for frame in frames for value in (frame.slope, frame.intercept)}
    dtype = np.dtype(np.int16 if all(scale.is_integer() for scale in scales) else np.float32)
    volume: Array = np.empty((pixels.columns, pixels.rows, len(frames)), dtype, order="F")
    place = {(frame.file.path, frame.number): k for k, frame in enumerate(frames)}
    for file in {frame.file.path: frame.file for frame in frames}.values():
        for number, values in enumerate(stored_values(file)):
            k = place.get((file.path, number))
            if k is None:  # a frame of another stack
                continue
            # float64 is exact for 32-bit integers
            scaled = values * np.float64(frames[k].slope) + frames[k].intercept
            fits = scaled.min() >= -(2**15) and scaled.max() < 2**15
            if volume.dtype == np.int16 and not fits:
                volume = volume.astype(np.float32, order="F")
            volume[..., k] = scaled.T
    return volume


def stored_values(file: CtFile) -> Array:
    """Read a file's pixels.

    Returns:
        (frames, rows, columns), as stored: before slope and intercept.

    Raises:
        DataError: There are fewer pixels than the header claims, or they cannot be decoded.
    """
    pixels, path = file.pixels, file.path
    claimed = pixels.frames * pixels.rows * pixels.columns
    dataset = _dataset(file, claimed)
    data = dataset.get_item("PixelData").value if "PixelData" in dataset else b""
    if not isinstance(data, bytes) or not data:
        raise DataError("is an image without pixels", path=path, cure=COPY)
    array = _plain(data, pixels, path) if pixels.syntax in PLAIN else _decoded(dataset, data, file)
    if array.size != claimed:
        rule = f"holds {array.size} pixels, and claims {claimed}"
        raise DataError(rule, path=path, value=array.size, cure=COPY)
    return array.reshape(pixels.frames, pixels.rows, pixels.columns)


def _dataset(file: CtFile, claimed: int) -> Dataset:
    """The whole data set of a file that can hold as many pixels as are claimed."""
    pixels, path = file.pixels, file.path
    try:
        with path.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            if claimed > size * LARGEST_RATIO:
                rule = f"claims {claimed} pixels, more than its {size} bytes can hold"
                raise DataError(rule, path=path, value=claimed, cure=COPY)
            if pixels.syntax == DeflatedExplicitVRLittleEndian:
                _bound_inflation(opened, path, claimed * pixels.bits_allocated // 8 + MOST_HEADER)
            return parse(opened.fileno(), path, header_only=False)
    except OSError as error:
        rule = f"cannot be read ({error.strerror})"
        raise DataError(rule, path=path, cure="check the file and its permissions") from None


def _decoded(dataset: Dataset, data: bytes, file: CtFile) -> Array:
    try:
        decode = _by_gdcm if file.pixels.syntax in BY_GDCM else _by_pydicom
        return decode(dataset, data, file.pixels)
    except Exception as error:  # decoders raise whatever they meet
        raise DataError(
            f"has pixels that cannot be decoded ({file.pixels.syntax.name},"
            f" {type(error).__name__})",
            path=file.path,
            cure="export the series uncompressed (Explicit VR Little Endian), or install"
            " pylibjpeg and pylibjpeg-openjpeg",
        ) from None


def _plain(data: bytes, pixels: Pixels, path: Path) -> Array:
    order = ">" if pixels.syntax == ExplicitVRBigEndian else "<"
    kind = np.dtype(f"{order}{'i' if pixels.signed else 'u'}{pixels.bits_allocated // 8}")
    count = pixels.frames * pixels.rows * pixels.columns
    if len(data) < count * kind.itemsize:
        raise DataError(
            f"is truncated: {len(data)} of {count * kind.itemsize} bytes of pixels",
            path=path,
            value=len(data),
            cure=COPY,
        )
    values = np.frombuffer(data, kind, count)
    unused = pixels.bits_allocated - pixels.bits_stored
    if unused:  # old files keep overlays there; a signed value's sign is its highest stored bit
        values = (values.astype(kind.newbyteorder("=")) << unused) >> unused
    return values


def _by_pydicom(dataset: Dataset, data: bytes, pixels: Pixels) -> Array:
    return get_decoder(pixels.syntax).as_array(dataset, raw=True)[0]


def _by_gdcm(dataset: Dataset, data: bytes, pixels: Pixels) -> Array:
    import SimpleITK

    alone: Any = Dataset()
    alone.file_meta = FileMetaDataset()
    alone.file_meta.TransferSyntaxUID = pixels.syntax
    alone.SOPClassUID, alone.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    alone.Rows, alone.Columns = pixels.rows, pixels.columns
    alone.NumberOfFrames, alone.SamplesPerPixel = pixels.frames, 1
    alone.BitsAllocated, alone.BitsStored = pixels.bits_allocated, pixels.bits_stored
    alone.HighBit, alone.PixelRepresentation = pixels.bits_stored - 1, int(pixels.signed)
    alone.PhotometricInterpretation = "MONOCHROME2"  # GDCM would turn MONOCHROME1 upside down
    alone.PixelData = data
    alone["PixelData"].VR = "OB"
    alone["PixelData"].is_undefined_length = True
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pixels.dcm")
        dcmwrite(path, alone, enforce_file_format=True)
        array: Array = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    return array


def _bound_inflation(file: BinaryIO, path: Path, most: int) -> None:
    """Refuse a deflated file that unpacks to more than `most` bytes, without keeping them."""
    data = file.read()
    start = 132 + 12 + int.from_bytes(data[140:144], "little")  # PS3.10: length of the meta group
    decoder, piece, total = zlib.decompressobj(-zlib.MAX_WBITS), data[start:], 0
    while piece and not decoder.eof:
        total += len(decoder.decompress(piece, 1 << 20))
        piece = decoder.unconsumed_tail
        if total > most:
            rule = f"unpacks to more than {most} bytes; it is damaged or hostile"
            raise DataError(rule, path=path, value=most, cure=COPY)
