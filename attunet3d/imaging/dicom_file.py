"""Reads one DICOM file's header: the kind of the object, and the position of each frame.

pydicom reads the header from a memory map, so that a length beyond the end of the file takes no
memory. No message contains a tag's text, which may name a person.
"""

import mmap
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.config import IGNORE
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    LegacyConvertedEnhancedCTImageStorage,
)

from attunet3d.core import DataError
from attunet3d.imaging.dicom_tags import (
    COPY,
    integer,
    items,
    number,
    numbers,
    orientation,
    spacing,
    text,
)

CT_CLASSES = {CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage}
PREAMBLE = 128
MOST_FRAMES = 10_000
TAGS: list[str] = [
    *("SOPClassUID", "Modality", "ImageType", "SeriesInstanceUID", "SeriesNumber"),
    *("SeriesDescription", "FrameOfReferenceUID", "InstanceNumber", "ImagesInAcquisition"),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated", "BitsStored"),
    *("PixelRepresentation", "ModalityLUTSequence", "ImagePositionPatient", "PixelSpacing"),
    *("ImageOrientationPatient", "SliceThickness", "SpacingBetweenSlices", "RescaleSlope"),
    *("RescaleIntercept", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]


@dataclass(frozen=True)
class Pixels:
    """How a file's pixels are stored."""

    rows: int
    columns: int
    frames: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    syntax: UID


@dataclass(frozen=True)
class Frame:
    """One slice: where it lies in LPS millimetres, and its scale of values."""

    file: "CtFile"
    number: int
    """The frame's index in its file, from 0."""
    position: tuple[float, ...]
    """Centre of the first pixel."""
    orientation: tuple[float, ...]
    """Unit vectors along a row and along a column."""
    spacing: tuple[float, ...]
    """Between rows, between columns."""
    thickness: float | None
    gap: float | None
    """SpacingBetweenSlices."""
    slope: float
    intercept: float


@dataclass(frozen=True, eq=False)
class CtFile:
    """A file with one or more frames of CT."""

    path: Path
    series: str
    """SeriesInstanceUID."""
    frame_of_reference: str
    """FrameOfReferenceUID; slices of another one lie in another space."""
    number: int | None
    """SeriesNumber."""
    description: str
    """SeriesDescription; compared with the user's choice, never shown."""
    instance: int | None
    """InstanceNumber."""
    expected: int | None
    """ImagesInAcquisition."""
    pixels: Pixels
    scaled: bool
    """Whether it has a RescaleSlope."""


def read_header(path: Path) -> tuple[list[Frame], str]:
    """Read a file's header.

    Returns:
        The frames of a CT image, and ""; or no frames, and the kind of the other object.

    Raises:
        DataError: The file is damaged, or breaks a rule of CT images.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(PREAMBLE + 4)
        if start[PREAMBLE:] != b"DICM" and not _without_preamble(start):
            return [], "file that is not DICOM"
        dataset = parse(file.fileno(), path, header_only=True)
    kind, name = _kind(dataset)
    if not name:
        raise DataError("is damaged: it does not say what it is (SOP class)", path=path, cure=COPY)
    if "LOCALIZER" in text(dataset, "ImageType"):
        return [], "localiser"
    if kind not in CT_CLASSES:
        return [], name
    modality = text(dataset, "Modality")
    if re.fullmatch("[A-Z]{2,}", modality) and modality != "CT":
        return [], f"image of modality {modality}"
    if modality not in ("CT", ""):
        raise DataError("has a damaged Modality", path=path, cure=COPY)
    with refusing_damage(path):
        return list(_frames(dataset, path)), ""


@contextmanager
def refusing_damage(path: Path) -> Iterator[None]:
    """Raise a DataError for whatever else pydicom raises in the block.

    It converts sequences when they are asked for, and damage shows as any exception.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"is damaged ({type(error).__name__})", path=path, cure=COPY) from None


def _kind(dataset: Any) -> tuple[str, str]:
    """An object's SOP class and its name, which is "" if the file is cut off or contradicts itself.

    The class is in the data set and in the meta group; anonymisers may empty the former.
    """
    inner, outer = text(dataset, "SOPClassUID"), text(dataset.file_meta, "MediaStorageSOPClassUID")
    kind = inner or outer
    if inner and outer and inner != outer:
        return kind, ""
    known = UID(kind, IGNORE).name if re.fullmatch(r"[0-9.]+", kind) else kind
    if known != kind:
        return kind, known.removesuffix(" Storage")
    return kind, "unknown object" if "SOPClassUID" in dataset else ""


def parse(descriptor: int, path: Path, *, header_only: bool) -> Dataset:
    """Parse an open file from a memory map; `header_only` keeps the tags that this module uses.

    Raises:
        DataError: It cannot be parsed.
    """
    if os.fstat(descriptor).st_size <= PREAMBLE:
        raise DataError("is truncated", path=path, cure=COPY)
    tags = TAGS if header_only else None
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as data:
        source: Any = data  # an mmap reads and seeks like a file
        try:
            return dcmread(source, stop_before_pixels=header_only, force=True, specific_tags=tags)
        except Exception as error:  # parsers fail in any way on damaged or hostile files
            rule = f"is a DICOM file that cannot be parsed ({type(error).__name__})"
            raise DataError(rule, path=path, cure=COPY) from None


def _without_preamble(start: bytes) -> bool:
    """Whether a file begins with the elements of a DICOM data set, little or big endian."""
    group = start[:2]
    return len(start) >= 8 and (
        (group in (b"\x08\0", b"\x02\0") and start[3] == 0) or (group == b"\0\x08" and not start[2])
    )


def _frames(dataset: Dataset, path: Path) -> Iterator[Frame]:
    shared = items(dataset, "SharedFunctionalGroupsSequence")
    each = items(dataset, "PerFrameFunctionalGroupsSequence")
    file = _file(dataset, path, shared, each)
    count = file.pixels.frames
    if count > 1 and len(each) != count:
        rule = f"holds {count} frames, and says where {len(each)} of them lie"
        raise DataError(rule, path=path, value=count, cure=COPY)
    for index in range(count):
        groups = [*each[index : index + 1], *shared]
        slope = number(dataset, groups, "RescaleSlope", path)
        if slope == 0:
            raise DataError("has RescaleSlope 0", path=path, value=slope, cure=COPY)
        yield Frame(
            file,
            index,
            numbers(dataset, groups, "ImagePositionPatient", 3, path),
            orientation(dataset, groups, path),
            spacing(dataset, groups, path),
            number(dataset, groups, "SliceThickness", path),
            number(dataset, groups, "SpacingBetweenSlices", path),
            1.0 if slope is None else slope,
            number(dataset, groups, "RescaleIntercept", path) or 0.0,
        )


def _file(dataset: Dataset, path: Path, shared: list[Dataset], each: list[Dataset]) -> CtFile:
    if "ModalityLUTSequence" in dataset:
        rule = "stores values by a table (ModalityLUTSequence), not by slope and intercept"
        raise DataError(rule, path=path, cure="export it with a rescale slope")
    samples = integer(dataset, "SamplesPerPixel")
    if samples not in (1, None):
        rule = f"holds colour ({samples} samples per pixel): CT has one"
        raise DataError(rule, path=path, value=samples, cure="export the CT itself")
    return CtFile(
        path,
        text(dataset, "SeriesInstanceUID"),
        text(dataset, "FrameOfReferenceUID"),
        integer(dataset, "SeriesNumber"),
        text(dataset, "SeriesDescription"),
        integer(dataset, "InstanceNumber"),
        integer(dataset, "ImagesInAcquisition"),
        _pixels(dataset, path),
        number(dataset, [*each[:1], *shared], "RescaleSlope", path) is not None,
    )


def _pixels(dataset: Dataset, path: Path) -> Pixels:
    sizes = {}
    for name in ("Rows", "Columns", "BitsAllocated", "BitsStored"):
        sizes[name] = integer(dataset, name) or 0
        if sizes[name] < 1:
            raise DataError(f"does not give {name}", path=path, cure=COPY)
    frames = integer(dataset, "NumberOfFrames") or 1
    if not 1 <= frames <= MOST_FRAMES:
        rule = f"claims {frames} frames: must be 1 to {MOST_FRAMES}"
        raise DataError(rule, path=path, value=frames, cure=COPY)
    allocated, stored = sizes["BitsAllocated"], sizes["BitsStored"]
    if allocated not in (8, 16, 32) or stored > allocated:
        rule = f"stores {stored} bits in {allocated}: must be at most as many, in 8, 16 or 32"
        raise DataError(rule, path=path, value=allocated, cure=COPY)
    signed = integer(dataset, "PixelRepresentation") == 1
    return Pixels(
        sizes["Rows"], sizes["Columns"], frames, allocated, stored, signed, _syntax(dataset)
    )


def _syntax(dataset: Any) -> UID:
    """The transfer syntax, or, if the file has no meta group, the plain one that was recognised."""
    given = text(dataset.file_meta, "TransferSyntaxUID")
    if given:
        return UID(given, IGNORE)
    implicit, little = dataset.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian
