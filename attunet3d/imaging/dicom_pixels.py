"""The stored values of a DICOM file's frames.

Plain pixels are taken as they lie, and RLE by pydicom. JPEG, JPEG-LS and JPEG 2000 go to the GDCM
that SimpleITK brings, which was found exact for all of them and needs no further package. GDCM
takes memory for whatever a header claims, so it gets a new file of the pixels alone, never the
file itself.
"""

import tempfile
import zlib
from pathlib import Path
from typing import Any

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
from attunet3d.imaging.dicom_file import COPY, CtFile, Pixels, parse

PLAIN = {
    *(ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian),
    DeflatedExplicitVRLittleEndian,
}
BY_GDCM = {*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes}
LARGEST_RATIO = 1100  # voxels per byte of a compressed image
MOST_HEADER = 1 << 26  # bytes beside the pixels that an inflated file may have


def stored_values(file: CtFile) -> Array:
    """Read a file's pixels.

    Returns:
        (frames, rows, columns), as stored: before slope and intercept.

    Raises:
        DataError: There are fewer pixels than the header claims, or they cannot be decoded.
        OSError: The file cannot be read.
    """
    pixels, path = file.pixels, file.path
    shape = pixels.frames, pixels.rows, pixels.columns
    size = path.stat().st_size
    claimed = pixels.frames * pixels.rows * pixels.columns
    if claimed > size * LARGEST_RATIO:
        rule = f"claims {claimed} pixels, more than its {size} bytes can hold"
        raise DataError(rule, path=path, value=claimed, cure=COPY)
    if pixels.syntax == DeflatedExplicitVRLittleEndian:
        _bound_inflation(path, claimed * pixels.bits_allocated // 8 + MOST_HEADER)
    with path.open("rb") as opened:
        dataset = parse(opened.fileno(), path, header_only=False)
    data = dataset.get_item("PixelData").value if "PixelData" in dataset else b""
    if not isinstance(data, bytes) or not data:
        raise DataError("is an image without pixels", path=path, cure=COPY)
    if pixels.syntax in PLAIN:
        return _plain(data, pixels, path).reshape(shape)
    try:
        decode = _by_gdcm if pixels.syntax in BY_GDCM else _by_pydicom
        array = decode(dataset, data, pixels)
    except Exception as error:  # decoders raise whatever they meet
        raise DataError(
            f"has pixels that cannot be decoded ({pixels.syntax.name}, {type(error).__name__})",
            path=path,
            cure="export the series uncompressed (Explicit VR Little Endian), or install"
            " pylibjpeg and pylibjpeg-openjpeg",
        ) from None
    if array.size != claimed:
        rule = f"holds {array.size} pixels, and claims {claimed}"
        raise DataError(rule, path=path, value=array.size, cure=COPY)
    return array.reshape(shape)


def _plain(data: bytes, pixels: Pixels, path: Path) -> Array:
    order = ">" if pixels.syntax == ExplicitVRBigEndian else "<"
    kind = np.dtype(f"{order}{'i' if pixels.signed else 'u'}{pixels.bits_allocated // 8}")
    count = pixels.frames * pixels.rows * pixels.columns
    if len(data) < count * kind.itemsize:
        raise DataError(
            f"breaks off: {len(data)} of {count * kind.itemsize} bytes of pixels",
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


def _bound_inflation(path: Path, most: int) -> None:
    """Refuse a deflated file that unpacks to more than `most` bytes, without keeping them."""
    with path.open("rb") as file:
        data = file.read()
    start = 132 + 12 + int.from_bytes(data[140:144], "little")  # PS3.10: length of the meta group
    decoder, piece, total = zlib.decompressobj(-zlib.MAX_WBITS), data[start:], 0
    while piece and not decoder.eof:
        total += len(decoder.decompress(piece, 1 << 20))
        piece = decoder.unconsumed_tail
        if total > most:
            rule = f"unpacks to more than {most} bytes; it is damaged or hostile"
            raise DataError(rule, path=path, value=most, cure=COPY)
