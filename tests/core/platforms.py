"""Run a command on a machine that lacks what Linux has: `python -m tests.core.platforms mac …`.

macOS has no /proc and no SC_AVPHYS_PAGES. Windows has no `fcntl`, `resource`, `os.sysconf`,
`O_NOFOLLOW` and `O_NONBLOCK`; there `ctypes.CDLL(None)` is a TypeError, an open file can be neither
renamed nor deleted, and a folder cannot be opened.
"""

import builtins
import ctypes
import io
import os
import shutil
import sys
from pathlib import Path
from typing import Any

POSIX_NAMES = (
    *("sysconf", "O_NOFOLLOW", "O_NONBLOCK", "O_DIRECTORY", "umask", "sched_getaffinity"),
    *("fork", "mkfifo", "fchmod", "chown"),
)


def without_proc() -> None:
    """Hide /proc and /sys from `open`."""
    real_open, real_os_open = io.open, os.open

    def hidden(path: object) -> bool:
        return isinstance(path, str | Path) and str(path).startswith(("/proc/self/cg", "/sys/fs"))

    def open_(path: Any, *arguments: Any, **options: Any) -> Any:
        if hidden(path):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return real_open(path, *arguments, **options)

    def os_open(path: Any, *arguments: Any, **options: Any) -> int:
        if hidden(path):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return real_os_open(path, *arguments, **options)

    io.open = builtins.open = open_  # type: ignore[assignment]
    os.open = os_open


def as_on_macos() -> None:
    """Take away what macOS lacks."""
    without_proc()
    real = os.sysconf

    def sysconf(name: Any) -> int:
        if "AVPHYS" in str(name):
            raise ValueError("unrecognized configuration name")
        return real(name)

    os.sysconf = sysconf
    os.sysconf_names.pop("SC_AVPHYS_PAGES", None)


def as_on_windows() -> None:
    """Take away what Windows lacks, once the libraries that know of Linux are loaded."""
    import nibabel  # noqa: F401
    import psutil  # noqa: F401
    import SimpleITK  # noqa: F401
    import torch
    import torch.utils.tensorboard  # noqa: F401

    without_proc()
    for module in [name for name in sys.modules if name.startswith("attunet3d")]:
        del sys.modules[module]
    for name in POSIX_NAMES:
        if hasattr(os, name):
            delattr(os, name)
    for name in ("fcntl", "resource"):
        sys.modules[name] = None  # type: ignore[assignment]
    real = ctypes.CDLL

    class CDLL(real):  # type: ignore[misc,valid-type]
        def __init__(self, name: Any, *arguments: Any, **options: Any) -> None:
            if name is None:
                raise TypeError("argument of type 'NoneType' is not iterable")
            super().__init__(name, *arguments, **options)

    ctypes.CDLL = CDLL  # type: ignore[misc]
    shutil._use_fd_functions = False  # type: ignore[attr-defined]  # rmtree opens no folder there
    _keep_open_files()


def _keep_open_files() -> None:
    """Windows renames and deletes no file that is open, and opens no folder."""
    replace, unlink, open_file = os.replace, os.unlink, os.open

    def refuse_open(path: Any) -> None:
        real = os.path.realpath(path)
        for descriptor in os.listdir("/proc/self/fd"):
            try:
                if os.readlink(f"/proc/self/fd/{descriptor}") == real:
                    raise PermissionError(13, "is open", str(path))
            except FileNotFoundError:
                continue

    def windows_replace(source: Any, target: Any) -> None:
        refuse_open(source)
        refuse_open(target)
        replace(source, target)

    def windows_unlink(path: Any, **options: Any) -> None:
        refuse_open(path)
        unlink(path, **options)

    def windows_open(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        nameless = flags & os.O_TMPFILE == os.O_TMPFILE  # as tempfile makes them, in its own way
        if os.path.isdir(path) and not nameless:
            raise PermissionError(13, "Permission denied", str(path))
        return open_file(path, flags, *arguments, **options)

    os.replace, os.unlink, os.open = windows_replace, windows_unlink, windows_open  # type: ignore[assignment]


def main() -> int:
    """Run `attunet3d ARGUMENTS` as on the platform that comes first."""
    platform, *sys.argv[1:] = sys.argv[1:]
    {"mac": as_on_macos, "windows": as_on_windows}[platform]()
    from attunet3d.__main__ import main as command

    return command()


if __name__ == "__main__":
    raise SystemExit(main())
