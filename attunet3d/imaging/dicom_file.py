"""Whether a DICOM file's elements lie within it, before a library takes memory for what they claim.

GDCM allocates what an element's length says: 764 bytes can take 10 GB. So each file is walked first
(DICOM PS3.5, chapter 7: tag, type, length, value; PS3.10, chapter 7: preamble and file meta group).
No value is read but the transfer syntax and the identifier of the series, which name no one.
"""

import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from attunet3d.core import DataError

PREAMBLE = 132
MOST_DEPTH, MOST_ELEMENTS = 32, 1_000_000
LARGEST_RATIO = 1100  # voxels a byte of a compressed image
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
ITEM_BYTES = {"little": b"\xfe\xff\x00\xe0", "big": b"\xff\xfe\xe0\x00"}
TRANSFER_SYNTAX, SERIES, PIXELS = 0x00020010, 0x0020000E, 0x7FE00010
IMPLICIT, BIG_ENDIAN = b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.2"
DEFLATED = b"1.2.840.10008.1.2.1.99"
LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
SHORT = {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN"}
SHORT |= {b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"}


@dataclass(frozen=True)
class DicomFile:
    """A file that a library may read.

    Args:
        path: The file.
        series: Identifier of its series; names no one.
        most_voxels: More cannot be in it.
    """

    path: Path
    series: bytes
    most_voxels: int


def is_dicom(path: Path) -> bool:
    """Whether a file says that it is DICOM."""
    with path.open("rb") as file:
        return file.read(PREAMBLE)[128:] == b"DICM"


def check(path: Path) -> DicomFile:
    """Walk all elements of a DICOM file.

    Raises:
        DataError: One does not lie within the file, or the file is packed as a whole.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= PREAMBLE:
            raise DataError(f"{path.name} breaks off; copy it again")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            walk = _Walk(data, size)
            try:
                walk.file()
            except _DamagedError:
                raise DataError(
                    f"{path.name} is damaged, or packed as a whole (deflated); export it again"
                ) from None
            return DicomFile(path, walk.series, size * LARGEST_RATIO)


class _DamagedError(Exception):
    """An element that is none, or reaches beyond what holds it."""


class _Walk:
    """A place in a file, and how the elements there are written."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self.data = data
        self.size = size
        self.place = PREAMBLE
        self.left = MOST_ELEMENTS
        self.explicit = True
        self.order: Literal["little", "big"] = "little"
        self.syntax = self.series = b""

    def file(self) -> None:
        """The file meta group, then the data set as its transfer syntax has it."""
        while self.place < self.size and self._tag() >> 16 == 2:
            self._element(self.size, 0)
        if not self.syntax or self.syntax == DEFLATED:
            raise _DamagedError
        self.explicit = self.syntax != IMPLICIT
        self.order = "big" if self.syntax == BIG_ENDIAN else "little"
        self._elements(self.size, 0)

    def _elements(self, end: int, depth: int) -> None:
        while self.place < end and self._element(end, depth) not in (ITEM_END, SEQUENCE_END):
            pass

    def _element(self, end: int, depth: int) -> int:
        """Pass over one element, with all that it holds; its tag."""
        self.left -= 1
        tag = self._tag()
        self.place += 4
        kind, length = self._head(tag)
        stop = end if length == UNDEFINED else self.place + length
        if stop > end or depth > MOST_DEPTH or self.left < 0:
            raise _DamagedError
        if tag == PIXELS and length == UNDEFINED:
            self._fragments(end)
        elif length == UNDEFINED or self._holds_elements(tag, kind, length):
            explicit = self.explicit
            self.explicit = explicit and kind != b"UN"  # PS3.5, 6.2.2: what it holds is implicit
            self._elements(stop, depth + 1)
            self.explicit = explicit
        elif tag == TRANSFER_SYNTAX:
            self.syntax = self._value(length)
        elif tag == SERIES and depth == 0:
            self.series = self._value(length)
        self.place = self.place if length == UNDEFINED else stop
        return tag

    def _holds_elements(self, tag: int, kind: bytes, length: int) -> bool:
        if tag == ITEM or kind == b"SQ":
            return True
        untold = kind in (b"", b"UN") and tag != PIXELS and length >= 8
        return untold and self.data[self.place : self.place + 4] == ITEM_BYTES[self.order]

    def _fragments(self, end: int) -> None:
        """The pieces of a compressed image."""
        while (tag := self._tag()) != SEQUENCE_END:
            length = self._number(self.place + 4, 4)
            self.place += 8 + length
            if tag != ITEM or self.place > end:
                raise _DamagedError
        self.place += 8

    def _head(self, tag: int) -> tuple[bytes, int]:
        """Type and length of the element whose tag was passed over."""
        begin = self.place
        kind = self.data[begin : begin + 2] if self.explicit and tag >> 16 != 0xFFFE else b""
        if kind and kind not in SHORT | LONG:
            raise _DamagedError
        at, size = (2, 2) if kind in SHORT else (4, 4) if kind else (0, 4)
        self.place += at + size
        return kind, self._number(begin + at, size)

    def _tag(self) -> int:
        return self._number(self.place, 2) << 16 | self._number(self.place + 2, 2)

    def _number(self, place: int, size: int) -> int:
        if place + size > self.size:
            raise _DamagedError
        return int.from_bytes(self.data[place : place + size], self.order)

    def _value(self, length: int) -> bytes:
        if length > 64:  # the longest identifier
            raise _DamagedError
        return self.data[self.place : self.place + length].rstrip(b"\0 ")
