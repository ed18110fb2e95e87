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
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from attunet3d.core import whole_file
from attunet3d.core.errors import WriteError

LOCK, HOLDER, PART = ".attunet3d.lock", ".attunet3d.holder", ".attunet3d.part-"
PATIENCE_S = 30.0  # of parts with each other, which hold the folder for a moment only
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
_Brief = contextlib.AbstractContextManager[None]
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
    with _held(path, LOCK, HOLDER):
        _refuse_parts(path, lambda name: True)
        _name_holder(path / HOLDER, command)
        yield


@contextlib.contextmanager
def locked_part(path: Path, command: str, part: str) -> Iterator[Callable[[], _Brief]]:
    """Hold a part of an output folder, such as "2-of-8", beside processes that hold other parts.

    Parts of another division, or the whole folder, cannot be held meanwhile.

    Returns:
        What holds the whole folder for a moment, for a file that all parts write to.

    Raises:
        WriteError: Another process holds the part, the folder or a part of another division.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as name:
        ...     folder = Path(name)
        ...     with locked_part(folder, "infer", "1-of-2"), locked_part(folder, "infer", "2-of-2"):
        ...         print(len(list(folder.glob(".attunet3d.part-*.lock"))))
        2
    """
    path = whole_file.make_folder(path)
    division = part.partition("-")[2]
    with contextlib.ExitStack() as stack:
        with _held(path, LOCK, HOLDER, PATIENCE_S):
            _refuse_parts(path, lambda name: not name.endswith(f"-{division}"))
            lock, holder = (f"{PART}{part}{ending}" for ending in (".lock", ".holder"))
            stack.enter_context(_held(path, lock, holder))
            _name_holder(path / holder, command)
        yield lambda: _held(path, LOCK, HOLDER, PATIENCE_S)


def _refuse_parts(path: Path, others: Callable[[str], bool]) -> None:
    """Refuse when a living process holds a part whose name `others` picks."""
    for file in path.glob(f"{PART}*.lock"):
        if others(file.stem.removeprefix(PART)):
            with _held(path, file.name, f"{file.stem}.holder"):
                pass


@contextlib.contextmanager
def _held(path: Path, name: str, holder: str, patience_s: float = 0) -> Iterator[None]:
    """Hold the lock of a file in a folder; its files go with it."""
    lock = filelock.FileLock(path / name, timeout=patience_s, thread_local=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise WriteError(
            f"is in use by {_holder(path / holder)}",
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
        yield
    finally:
        for file in (holder, name):  # others notice when a lock's file is gone, and make a new one
            with contextlib.suppress(OSError):
                (path / file).unlink()
        lock.release()


def _name_holder(file: Path, command: str) -> None:
    facts = {
        "command": command,
        "pid": os.getpid(),
        "host": platform.node(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    with contextlib.suppress(WriteError):  # a full disk: the lock holds all the same
        whole_file.write_text(file, json.dumps(facts))


def _holder(file: Path) -> str:
    """The holder in words."""
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        command, pid, host, since = (facts[key] for key in ("command", "pid", "host", "since"))
        return f"process {pid} on {host} since {since} (attunet3d {command})"
    except (OSError, ValueError, LookupError, TypeError):  # it has only just begun, or is ending
        return "another process"
