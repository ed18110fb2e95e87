"""What clients send: one file of bounded size, put where nothing of it can do harm.

The kind is recognised by the first bytes, never by a name. A ZIP archive holds one DICOM series (or
one NIfTI file); its members are written under numbers, so no path in it leads anywhere, and what
they unpack to is counted while it is unpacked, whatever the archive's directory says.
"""

import zipfile
import zlib
from pathlib import Path

from attunet3d.core import DataError, one_line

MOST_MEMBERS = 20_000
CHUNK = 1 << 20
ZIP, GZIP, NRRD = b"PK\x03\x04", b"\x1f\x8b", b"NRRD"
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
    if head.startswith(ZIP):
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
    left = most_bytes
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            if not 0 < len(members) <= MOST_MEMBERS:
                raise DataError(f"the archive holds {len(members)} files; from 1 to {MOST_MEMBERS}")
            for number, member in enumerate(members):
                with opened.open(member) as source, (series / f"{number:05}").open("wb") as target:
                    while part := source.read(CHUNK):
                        left -= len(part)
                        if left < 0:
                            raise DataError(f"the archive unpacks to more than {most_bytes} bytes")
                        target.write(part)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        reason = one_line(error)[:100]
        raise DataError(
            f"the archive cannot be unpacked ({reason})", cure="pack it again"
        ) from None
    archive.unlink()
    files = list(series.iterdir())
    if len(files) == 1:  # one NIfTI file, packed
        with files[0].open("rb") as file:
            ending = _ending(file.read(HEAD))
        if ending is not None:
            return files[0].rename(folder / f"scan{ending}")
    return series
