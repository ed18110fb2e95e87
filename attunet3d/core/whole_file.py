"""Atomic writes: a file is written under a temporary name, flushed, then renamed.

A writer locks its temporary file until its process ends. So `sweep` can tell the files of killed
writers, which it deletes, from those that are still being written.
"""

import contextlib
import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from attunet3d.core.errors import WriteError

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be deleted, so that no lock is needed
    fcntl = None  # type: ignore[assignment]

PREFIX, ENDING = ".writing-", ".tmp"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the operating system, such as a full disk, into a `WriteError`."""
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"cannot be written ({error.strerror or error})",
            path=path,
            cure="free space or choose another output folder",
        ) from error


@contextlib.contextmanager
def replacing(path: Path, check: Callable[[Path], None] | None = None) -> Iterator[BinaryIO]:
    """Open a file that replaces `path` when the block ends without an error.

    Args:
        path: The file to create or replace; its folder must exist.
        check: Called with the temporary file between the flush to disk and the renaming; an
            exception cancels the write.

    Raises:
        WriteError: The disk is full, or the folder is missing or read-only. The old file is kept.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with replacing(Path(folder, "a.txt")) as file:
        ...         _ = file.write(b"whole"), file.write(b" or not at all")
        ...     Path(folder, "a.txt").read_bytes()
        b'whole or not at all'
    """
    path = Path(path)
    with writing(path):
        with _temporary(path) as (temporary, file):
            yield file
            file.flush()
            os.fsync(file.fileno())  # network file systems report a full disk only here
            if check is not None:
                check(temporary)
            if fcntl is None:  # Windows renames no open file
                file.close()
            os.replace(temporary, path)
        _sync_folder(path.parent)


def write_bytes(
    path: Path, data: bytes | memoryview, check: Callable[[Path], None] | None = None
) -> None:
    """Write `data` to `path` so that a reader sees the old file or the new one, never a part.

    Raises:
        WriteError: As `replacing`.
    """
    with replacing(path, check) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all; see `write_bytes`."""
    write_bytes(path, text.encode())


def make_folder(path: Path) -> Path:
    """Create `path` and its parents if they are missing, and return it.

    Raises:
        WriteError: A file has this name, or the parent is read-only.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(
            f"cannot be created ({error.strerror})", path=path, cure="name another folder"
        ) from error
    return Path(path)


def sweep(folder: Path) -> None:
    """Delete the temporary files of killed writers in `folder`.

    Files that are still being written are kept, also those of other machines if the file system
    shares locks.
    """
    pattern = re.compile(rf"{re.escape(PREFIX)}[a-z0-9_]{{8}}\..*{re.escape(ENDING)}", re.DOTALL)
    with contextlib.suppress(OSError):
        for path in Path(folder).iterdir():
            if pattern.fullmatch(path.name):
                _delete_left(path)


def _delete_left(path: Path) -> None:
    """Delete a temporary file unless its writer is running."""
    with contextlib.suppress(OSError):  # locked, gone, read-only, or a file system without locks
        if fcntl is None:
            path.unlink()  # Windows refuses while the file is open
            return
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file beside `path`, open and locked; deleted afterwards unless it was renamed."""
    temporary, descriptor = _create(path)
    try:
        with open(descriptor, "wb") as file:
            yield temporary, file
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _create(path: Path) -> tuple[Path, int]:
    while True:
        name = f"{PREFIX}{secrets.token_hex(4)}.{path.name[-40:]}{ENDING}"
        temporary = path.with_name(name)
        # The kernel applies the user's umask; another writer's file is never opened.
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        try:
            descriptor = os.open(temporary, flags, 0o666)
        except FileExistsError:
            continue
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks, where nobody sweeps
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        if fcntl is None or os.fstat(descriptor).st_nlink:
            return temporary, descriptor
        os.close(descriptor)  # swept before it was locked


def _sync_folder(folder: Path) -> None:
    # The rename itself is only durable once the folder's entry is on disk (POSIX).
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
