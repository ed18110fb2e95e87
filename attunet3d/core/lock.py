"""Locks a folder for one process.

The operating system releases the lock (`flock`, or `LockFileEx` on Windows) when the process ends,
even by SIGKILL. A file beside it says which process holds it.
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
PATIENCE_S = 30.0  # parts hold the whole folder only briefly
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
_Brief = contextlib.AbstractContextManager[None]
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def locked_folder(path: Path, command: str) -> Iterator[None]:
    """Hold the lock of a run folder or an output folder.

    On a file system without locks there is a warning, and the folder is used without a lock.

    Args:
        path: The folder, which is created if it is missing.
        command: The command that holds it, such as "train", for the messages of other processes.

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
    """Hold one part of an output folder, such as "2-of-8", while other processes hold others.

    Meanwhile no process can hold the whole folder, or a part of another division.

    Returns:
        A function that locks the whole folder briefly, to write to a file that all parts share.

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
    """Refuse if a running process holds a part for whose name `others` is true."""
    for file in path.glob(f"{PART}*.lock"):
        if others(file.stem.removeprefix(PART)):
            with _held(path, file.name, f"{file.stem}.holder"):
                pass


@contextlib.contextmanager
def _held(path: Path, name: str, holder: str, patience_s: float = 0) -> Iterator[None]:
    """Hold the lock file `name` in a folder; it and `holder` are deleted afterwards."""
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
        for file in (holder, name):  # waiting processes notice that the lock file is gone
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
    with contextlib.suppress(WriteError):  # a full disk; the lock works without this file
        whole_file.write_text(file, json.dumps(facts))


def _holder(file: Path) -> str:
    """The holder in words."""
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        command, pid, host, since = (facts[key] for key in ("command", "pid", "host", "since"))
        return f"process {pid} on {host} since {since} (attunet3d {command})"
    except (OSError, ValueError, LookupError, TypeError):  # it is just starting or ending
        return "another process"
