"""One process per folder: a lock that names its holder and ends with its process.

The operating system keeps the lock (`flock`, or `LockFileEx` on Windows), so a process that was
killed, even by SIGKILL, holds it no longer. Who holds it stands in a file beside it.
"""

import contextlib
import errno
import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import filelock

from attunet3d.core import whole_file
from attunet3d.core.errors import WriteError

LOCK, HOLDER = ".attunet3d.lock", ".attunet3d.holder"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def locked_folder(path: Path, command: str) -> Iterator[None]:
    """Hold the lock of a run folder or an output folder.

    A file system without locks gives a warning, and the folder is used without one.

    Args:
        path: The folder; it is made when it is missing.
        command: What the holder does, for the message that others get, such as "train".

    Raises:
        WriteError: Another process holds the lock, or the folder cannot be written to.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as name, locked_folder(Path(name), "train"):
        ...     print(sorted(path.name for path in Path(name).iterdir()))
        ['.attunet3d.holder', '.attunet3d.lock']
    """
    path = whole_file.make_folder(path)
    lock = filelock.FileLock(path / LOCK, blocking=False, thread_local=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise WriteError(
            f"is in use by {_holder(path)}",
            path=path,
            cure="wait until that process ends, or name another folder",
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            reason = error.strerror or str(error)
            raise WriteError(
                f"cannot be written to ({reason})", path=path, cure="choose another folder"
            ) from error
        _log.warning("%s: this file system has no locks; start one process per folder", path)
    try:
        _name_holder(path, command)
        yield
    finally:
        for name in (HOLDER, LOCK):  # others notice when a lock's file is gone, and make a new one
            with contextlib.suppress(OSError):
                (path / name).unlink()
        lock.release()


def _name_holder(path: Path, command: str) -> None:
    facts = {
        "command": command,
        "pid": os.getpid(),
        "host": platform.node(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    with contextlib.suppress(WriteError):  # a full disk: the lock holds all the same
        whole_file.write_text(path / HOLDER, json.dumps(facts))


def _holder(path: Path) -> str:
    """The holder in words."""
    try:
        facts = json.loads((path / HOLDER).read_text(encoding="utf-8"))
        command, pid, host, since = (facts[key] for key in ("command", "pid", "host", "since"))
        return f"process {pid} on {host} since {since} (attunet3d {command})"
    except (OSError, ValueError, LookupError, TypeError):  # it has only just begun, or is ending
        return "another process"
