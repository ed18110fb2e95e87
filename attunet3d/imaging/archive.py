"""ZIP archives from elsewhere: unpacked within limits, each member where the caller says.

What a member unpacks to is counted while it is unpacked, whatever the archive's directory claims.
"""

import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from attunet3d.core import DataError, WriteError, case_names, one_line

MOST_BYTES = 64 * 2**30
MOST_FILES = 200_000
KEPT_FREE = 2**30  # bytes that unpacking leaves on the disk
CHUNK = 1 << 20
SIGNATURE = b"PK\x03\x04"


def is_archive(path: Path) -> bool:
    """Whether a file is a ZIP archive, by its first bytes.

    Raises:
        OSError: It cannot be read.
    """
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(SIGNATURE)) == SIGNATURE


def unpack(
    archive: Path,
    place: Callable[[int, str], Path],
    most_bytes: int = MOST_BYTES,
    most_files: int = MOST_FILES,
) -> None:
    """Unpack the files of an archive; its links become small files, its folders are not made.

    Args:
        archive: A ZIP file.
        place: Says where a member is written, by its number from 0 and its name; see `beneath`.
        most_bytes: What all members together may unpack to.
        most_files: How many members it may have.

    Raises:
        DataError: The archive is damaged or encrypted, holds nothing or too much, or `place`
            refuses a name.
        WriteError: The disk is full.
    """
    left = most_bytes
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            if not 0 < len(members) <= most_files:
                rule = f"the archive holds {len(members)} files; it must hold 1 to {most_files}"
                raise DataError(rule)
            for number, member in enumerate(members):
                target = place(number, member.filename)
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(member) as source, target.open("xb") as file:
                    while part := source.read(CHUNK):
                        left -= len(part)
                        if left < 0:
                            rule = f"the archive unpacks to more than {most_bytes} bytes"
                            raise DataError(rule, cure="unpack it yourself and give the folder")
                        file.write(part)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        # NotImplementedError: an unknown compression; RuntimeError: a password is needed.
        rule = f"the archive cannot be unpacked ({one_line(error)[:100]})"
        raise DataError(rule, cure="pack it again, without a password") from None
    except FileExistsError:
        raise DataError(
            "the archive holds two files of the same name", cure="pack it again"
        ) from None
    except OSError as error:
        rule = f"the archive cannot be unpacked here ({error.strerror})"
        raise WriteError(rule, path=archive, cure="name a larger disk by TMPDIR") from None


def beneath(folder: Path) -> Callable[[int, str], Path]:
    r"""Places members in a folder under their own names; refuses names that lead out of it.

    Example:
        >>> beneath(Path("/data"))(0, "PAT\\1.dcm").as_posix()
        '/data/PAT/1.dcm'
        >>> beneath(Path("/data"))(0, "../1.dcm")
        Traceback (most recent call last):
        ...
        attunet3d.core.errors.DataError: path '../1.dcm': must be relative to the root, ...
    """
    return lambda number, name: case_names.inside(folder, name.replace("\\", "/"))


def room_on_disk(folder: Path) -> int:
    """Bytes that an archive may unpack to in a folder: a fixed limit, or what is left on disk."""
    return max(0, min(MOST_BYTES, shutil.disk_usage(folder).free - KEPT_FREE))
