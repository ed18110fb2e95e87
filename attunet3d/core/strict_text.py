"""Text files from elsewhere: regular files of a bounded size, in UTF-8, and nothing else."""

import errno
import os
import stat
from pathlib import Path


def read_text(path: Path, most_bytes: int) -> str:
    """The text of a file, a byte order mark left out.

    Args:
        path: A regular file; pipes and devices are not opened to wait on or to read for ever.
        most_bytes: Larger files are not read.

    Raises:
        OSError: There is no such file, or it cannot be read.
        ValueError: It is no regular file, too large, or no UTF-8.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "a.txt")
        ...     _ = path.write_text("steps: 10")
        ...     read_text(path, 100)
        'steps: 10'
    """
    # O_NONBLOCK: opening a named pipe that nobody writes to must not hang.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        state = os.fstat(descriptor)
        if stat.S_ISDIR(state.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(state.st_mode):
            raise ValueError("no regular file")
        if state.st_size > most_bytes:
            raise ValueError(f"larger than {most_bytes} bytes")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(most_bytes).decode("utf-8-sig")
    finally:
        os.close(descriptor)
