"""Memory that a run may use: that of the GPU, or of this machine and its control group.

On Linux a control group (a container, a SLURM job) may limit a process to less than the machine
has. Groups are nested, and each of them may set a limit:

```
version 2    /proc/self/cgroup: 0::/slurm/job          /sys/fs/cgroup/slurm/job/memory.max
version 1    /proc/self/cgroup: 4:memory:/slurm/job    /sys/fs/cgroup/memory/…/memory.limit_in_bytes
```
"""

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil

from attunet3d.core.errors import SettingsError

if TYPE_CHECKING:
    import torch

GIGABYTE = 10**9
CLASSES_GB = (8, 11, 16, 24, 40, 80)
RESERVED = 0.03  # fraction of the nominal memory that the GPU or the firmware reserves
GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


class _Files(NamedTuple):
    """Where a version of control groups keeps its numbers."""

    limit: str
    used: str
    idle_cache: str  # a line of memory.stat


_V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Files("memory.max", "memory.current", "inactive_file")


def memory_class(total: int) -> int:
    """The largest common memory size, in GB, that `total` bytes reach.

    Plans depend on this class only, so all machines of one class get the same plan. Below the
    smallest class, the class is the number of whole gigabytes.

    Example:
        >>> memory_class(25_438_126_080)  # a GPU that is sold as one of 24 GB
        24
        >>> memory_class(6 * GIGABYTE)
        6
    """
    reached = [size for size in CLASSES_GB if total >= (1 - RESERVED) * size * GIGABYTE]
    return max(reached, default=total // GIGABYTE)


def total_bytes(device: "torch.device") -> int:
    """The total memory of `device`, free or in use."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return machine_total_bytes()


def machine_total_bytes() -> int:
    """The memory of this machine, or the limit of this process's control group if that is less."""
    limits = (limit for limit, _ in _group_limits())
    return min([psutil.virtual_memory().total, *limits])


def available_bytes(device: "torch.device") -> int:
    """Memory that a run can use on `device` without swapping or being killed.

    Freed memory that torch or malloc keeps (`command_line.keep_freed_memory`) counts as free, since
    the next allocation uses it.
    """
    import torch

    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    left = (left for _, left in _group_limits())
    return min([psutil.virtual_memory().available, *left]) + _kept_by_malloc_bytes()


def _group_limits(root: Path = GROUPS, own: Path = OWN_GROUPS) -> Iterator[tuple[int, int]]:
    """The limits of this process's control groups and their parents, and what is left of each.

    Inactive file cache counts as free, since the kernel drops it before it kills a process.
    """
    for folder, files in _own_groups(root, own):
        for group in (folder, *folder.parents):
            with contextlib.suppress(OSError, ValueError):  # no such file; "max"
                limit = int((group / files.limit).read_text(encoding="ascii"))
                used = int((group / files.used).read_text(encoding="ascii"))
                yield limit, max(0, limit - used + _idle_cache_bytes(group, files))
            if group in (root, root / "memory"):
                break


def _own_groups(root: Path, own: Path) -> Iterator[tuple[Path, _Files]]:
    """The root groups and the process's own groups, of both versions."""
    yield root, _V2
    yield root / "memory", _V1
    with contextlib.suppress(OSError):
        for line in own.read_text(encoding="utf-8", errors="replace").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                yield root / path.strip("/"), _V2
            elif "memory" in controllers.split(","):
                yield root / "memory" / path.strip("/"), _V1


def _idle_cache_bytes(group: Path, files: _Files) -> int:
    with contextlib.suppress(OSError):
        for line in (group / "memory.stat").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(" ")
            if name == files.idle_cache:
                return int(value)
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
    with contextlib.suppress(OSError, AttributeError, TypeError):  # TypeError: Windows
        return int(_mallinfo2().fordblks)
    return 0


def parse_memory(text: str | None) -> int | None:
    """The bytes of a memory budget as given on the command line; None stays None.

    Raises:
        SettingsError: It is not a positive number of gigabytes.

    Example:
        >>> parse_memory("24GB"), parse_memory("1.5 gb")
        (24000000000, 1500000000)
    """
    if text is None:
        return None
    number = text.strip().lower().removesuffix("gb")
    try:
        budget = round(float(number) * GIGABYTE)
    except (ValueError, OverflowError):
        budget = 0
    if budget <= 0:
        rule = f"--memory {text}: is not a positive number of gigabytes"
        raise SettingsError(rule, value=text, cure="write it as 24GB")
    return budget
