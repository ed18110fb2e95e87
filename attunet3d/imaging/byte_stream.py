"""Reads the bytes of untrusted files, decompressed if they are gzip, in bounded memory.

Memory does not depend on what a file claims: the caller provides the buffers. A stream is read to
its end, so that every gzip checksum and length is verified.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from isal import igzip_lib, isal_zlib

from attunet3d.core import DataError

IsalError: Any = igzip_lib.IsalError  # its stub file calls it an instance
GZIP_MAGIC = b"\x1f\x8b"
READ_BYTES = 1 << 20
LEAST_PIECE = 1 << 12
CHUNK_BYTES = 1 << 22
MOST_EXCESS = 1 << 20  # bytes after the voxels that are ignored, with a warning
LARGEST_RATIO = 1100  # deflate cannot compress more than 1032 bytes to one
COPY = "copy the file again"


class ByteStream:
    """A regular file's bytes in order; gzip is recognised by its first two bytes, not by name.

    Attributes:
        most_bytes: Upper limit of the number of bytes.
        warnings: Irregularities of the stream.
    """

    def __init__(self, file: BinaryIO) -> None:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise DataError("is empty", cure=COPY)
        self.warnings: list[str] = []
        packed = file.read(2) == GZIP_MAGIC
        file.seek(0)
        self.most_bytes = size * (LARGEST_RATIO if packed else 1)
        plain = iter(lambda: file.read(CHUNK_BYTES), b"")
        self._chunks = _unpacked(file, self.warnings) if packed else plain
        self._chunk = memoryview(b"")

    def read(self, count: int) -> bytes:
        """The next `count` bytes, or as many as are left.

        Raises:
            DataError: The gzip stream is damaged.
        """
        buffer = bytearray(count)
        return bytes(buffer[: self._fill(memoryview(buffer))])

    def fill(self, buffer: memoryview) -> None:
        """Fill `buffer` with the next bytes.

        Raises:
            DataError: The stream ends too early, or is damaged.
        """
        filled = self._fill(buffer)
        if filled < len(buffer):
            raise DataError(f"is truncated: {filled} of {len(buffer)} bytes of voxels", cure=COPY)

    def finish(self) -> None:
        """Read to the end of the stream.

        Raises:
            DataError: It is damaged, or contains far more bytes than were requested.
        """
        excess = 0
        while count := self._fill(memoryview(bytearray(LEAST_PIECE))):
            excess += count
            if excess > MOST_EXCESS:
                raise DataError("contains far more bytes than its header says", cure=COPY)
        if excess:
            self.warnings.append(f"{excess} bytes after the voxels were ignored")

    def _fill(self, buffer: memoryview) -> int:
        """Fill `buffer` with as many bytes as there are, and return their number."""
        filled = 0
        while filled < len(buffer):
            self._chunk = self._chunk or memoryview(next(self._chunks, b""))
            piece = self._chunk[: len(buffer) - filled]
            if not piece:
                break
            buffer[filled : filled + len(piece)] = piece
            filled, self._chunk = filled + len(piece), self._chunk[len(piece) :]
        return filled


@contextmanager
def open_stream(path: Path) -> Iterator[ByteStream]:
    """Open a file for one pass over its bytes.

    Raises:
        DataError: It is not a regular file, or is empty.
        OSError: It cannot be opened or read.
    """
    # O_NONBLOCK: opening a named pipe that nobody writes to must not hang.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataError("is not a regular file", cure="copy the scan itself here")
    with os.fdopen(descriptor, "rb") as file:
        yield ByteStream(file)


def _unpacked(file: BinaryIO, warnings: list[str]) -> Iterator[bytes]:
    """Decompress a gzip file of one or more members piece by piece; verify all checksums."""
    decoder, pending, most = isal_zlib.decompressobj(31), memoryview(b""), LEAST_PIECE
    while True:
        pending = pending or memoryview(file.read(READ_BYTES))
        piece = pending[:most]
        try:
            chunk = decoder.decompress(piece, CHUNK_BYTES)
        except IsalError as error:
            raise DataError(f"the gzip stream is damaged ({error})", cure=COPY) from None
        left = len(decoder.unused_data if decoder.eof else decoder.unconsumed_tail)
        pending = pending[len(piece) - left :]
        if chunk:
            yield chunk
        if decoder.eof:
            pending = _behind_member(file, pending)
            if pending[:2] != GZIP_MAGIC:
                if pending:
                    warnings.append("bytes after the gzip stream were ignored: not gzip")
                return
            # A decoder copies what it does not use, and members may be tiny: small pieces first.
            decoder, most = isal_zlib.decompressobj(31), LEAST_PIECE
        elif not chunk and not piece:
            raise DataError("is truncated: the gzip stream has no end", cure=COPY)
        else:
            most = min(2 * most, READ_BYTES)


def _behind_member(file: BinaryIO, pending: memoryview) -> memoryview:
    """What follows a gzip member, without zero padding: at least two bytes if there are any."""
    if len(pending) < 2:
        pending = memoryview(bytes(pending) + file.read(READ_BYTES))
    while pending and pending[0] == 0:  # padding of tapes, which gzip itself ignores, too
        rest = bytes(pending).lstrip(b"\0")
        pending = memoryview(rest if len(rest) > 1 else rest + file.read(READ_BYTES))
    return pending
