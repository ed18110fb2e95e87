"""What clients send: one file of bounded size, put where nothing of it can do harm.

The kind is recognised by the first bytes, never by a name. A ZIP archive holds one DICOM series (or
one NIfTI file); its members are written under numbers, so no path in it leads anywhere, and what
they unpack to is counted while it is unpacked, whatever the archive's directory says.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import HTTPException
from fastapi.concurrency import run_in_threadpool

from attunet3d.core import DataError
from attunet3d.imaging import SIGNATURE, unpack

MOST_MEMBERS = 20_000
GZIP, NRRD = b"\x1f\x8b", b"NRRD"
NIFTI_MAGIC = {b"n+1\0": 344, b"n+2\0\r\n\x1a\n": 4}  # the bytes, and where they stand
HEAD = 352


def accept(upload: Path, folder: Path, most_bytes: int) -> Path:
    """Make a readable scan of an uploaded file.

    Args:
        upload: The file as it came; it is moved or unpacked.
        folder: An empty folder of this upload alone.
        most_bytes: What a ZIP archive may unpack to.

    Returns:
        The scan: a file with its right ending, or the folder of a DICOM series.

    Raises:
        DataError: The file is not a scan, is damaged, or unpacks to too much.
    """
    with upload.open("rb") as file:
        head = file.read(HEAD)
    if head.startswith(SIGNATURE):
        return _unpack(upload, folder, most_bytes)
    ending = _ending(head)
    if ending is None:
        raise DataError(
            "the upload is neither NIfTI, NRRD nor a ZIP archive of a DICOM series",
            cure="send one of these",
        )
    return upload.rename(folder / f"scan{ending}")


def _ending(head: bytes) -> str | None:
    if head.startswith(GZIP):
        return ".nii.gz"
    if head.startswith(NRRD):
        return ".nrrd"
    found = any(head[at : at + len(magic)] == magic for magic, at in NIFTI_MAGIC.items())
    return ".nii" if found else None


def _unpack(archive: Path, folder: Path, most_bytes: int) -> Path:
    series = folder / "series"
    series.mkdir()
    unpack(archive, lambda number, _: series / f"{number:05}", most_bytes, MOST_MEMBERS)
    archive.unlink()
    files = list(series.iterdir())
    if len(files) == 1:  # one NIfTI file, packed
        with files[0].open("rb") as file:
            ending = _ending(file.read(HEAD))
        if ending is not None:
            return files[0].rename(folder / f"scan{ending}")
    return series


async def receive(
    body: AsyncIterator[bytes], path: Path, *, most_bytes: int, silence_s: float, upload_s: float
) -> None:
    """Write a request's body to a file, as it comes and no more than is allowed.

    Args:
        body: Its parts.
        path: Of the file.
        most_bytes: Largest body; see `AppOptions`, as for the rest.
        silence_s: Longest time without a byte.
        upload_s: Longest time in all.

    Raises:
        HTTPException: It is larger (413) or slower (408).
    """
    size, ends, parts = 0, time.monotonic() + upload_s, aiter(body)
    try:
        with path.open("wb") as file:
            while True:
                patience = min(silence_s, ends - time.monotonic())
                part = await asyncio.wait_for(anext(parts), patience)
                size += len(part)
                if size > most_bytes:
                    raise HTTPException(413, f"more than {most_bytes} bytes")
                await run_in_threadpool(file.write, part)
    except StopAsyncIteration:
        return
    except TimeoutError:
        longest = f"{silence_s:g} s without a byte, or {upload_s:g} s in all"
        raise HTTPException(408, f"the upload took too long: {longest}") from None
