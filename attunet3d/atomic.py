"""Whole files or none: every file is written under a temporary name, flushed, then renamed."""

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from attunet3d.errors import UserError


class WriteError(UserError):
    """A file could not be written: a full disk, a read-only folder, a path that is not a folder."""


def write_bytes(
    path: Path, data: bytes | memoryview, check: Callable[[Path], None] | None = None
) -> None:
    """Write `data` to `path` so that a reader sees the old file or the new one, never a part.

    Args:
        path: Where the file shall stand; its folder must exist.
        data: The whole content.
        check: Called with the temporary file after it is flushed to disk and before it gets its
            name; what it raises cancels the write.

    Raises:
        WriteError: The disk is full, or the folder is missing or read-only. The old file stands.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_bytes(Path(folder, "a.txt"), b"whole")
        ...     print(Path(folder, "a.txt").read_bytes(), len(list(Path(folder).iterdir())))
        b'whole' 1
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(
            prefix=".", suffix=f".{path.name[-40:]}.tmp", dir=path.parent
        )
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            check(temporary)
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes 0600; keep the user's habit
        os.replace(temporary, path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise WriteError(
            f"{path}: cannot be written ({reason}); free space or choose another output folder"
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all; see `write_bytes`."""
    write_bytes(path, text.encode())


def make_folder(path: Path) -> Path:
    """Make `path` and its parents where they are missing, and return it.

    Raises:
        WriteError: A file stands in the way, or the parent is read-only.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"{path}: no folder can be made here ({error.strerror})") from error
    return Path(path)


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current


def _sync_folder(folder: Path) -> None:
    # The rename itself is only durable once the folder's entry is on disk (POSIX).
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
