"""How much memory is free for a run: of the GPU, or of this machine and its control group."""

import contextlib
import ctypes
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

GROUPS, OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")  # Linux, cgroup v2


def available_bytes(device: "torch.device") -> int:
    """What a run can take on `device` without anybody swapping or being killed.

    What torch or malloc keeps of freed memory (`command_line.keep_freed_memory`) counts as free: it
    serves the next allocation.
    """
    import torch

    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    return min(_free_ram_bytes(), _free_in_control_group_bytes()) + _kept_by_malloc_bytes()


def _free_ram_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    """What Linux can give without swapping, its file cache included; elsewhere the free pages."""
    with contextlib.suppress(OSError):
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _free_in_control_group_bytes(root: Path = GROUPS, own: Path = OWN_GROUP) -> int:
    """What the limits of this process's group and of those above it leave.

    Without a limit more than any machine has. File cache that nobody has touched of late counts as
    free: the kernel drops it before it kills.
    """
    group = root
    with contextlib.suppress(OSError):
        for line in own.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("0::/"):
                group = root / line.removeprefix("0::/")
    folders = [group, *group.parents]
    return min(_free_in_group(folder) for folder in folders[: folders.index(root) + 1])


def _free_in_group(folder: Path) -> int:
    with contextlib.suppress(OSError, ValueError):  # no such file; "max"
        limit = int((folder / "memory.max").read_text(encoding="ascii"))
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        return max(0, limit - used + _idle_file_cache(folder))
    return sys.maxsize


def _idle_file_cache(group: Path) -> int:
    with contextlib.suppress(OSError):
        for line in (group / "memory.stat").read_text(encoding="ascii").splitlines():
            if line.startswith("inactive_file "):
                return int(line.split()[1])
    return 0


class _Mallinfo2(ctypes.Structure):
    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]


def _mallinfo2() -> _Mallinfo2:
    function = ctypes.CDLL(None).mallinfo2
    function.restype = _Mallinfo2
    found: _Mallinfo2 = function()
    return found


def _kept_by_malloc_bytes() -> int:
    """Freed blocks that glibc (2.33 and later) holds on to; 0 with another C library."""
    with contextlib.suppress(OSError, AttributeError):
        return int(_mallinfo2().fordblks)
    return 0
