"""How much memory a run may take: of the GPU, or of this machine and its control group.

On Linux a control group (a container, a SLURM job) may leave a process less than the machine has.
Groups lie one inside the other, and each of them may set a limit:

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
CLASSES_GB = (8, 11, 16, 24, 40, 80)  # of GPUs, and of machines
RESERVED = 0.03  # share of its nominal memory that a GPU or a firmware keeps for itself
GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


class _Files(NamedTuple):
    """Where a version of control groups keeps its numbers."""

    limit: str
    used: str
    idle_cache: str  # a line of memory.stat


_V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Files("memory.max", "memory.current", "inactive_file")


def memory_class(total: int) -> int:
    """The largest of the common sizes of memory that `total` bytes reach, in GB.

    A class stands for all machines of its size, so that a plan made for one of them is the plan
    made for any other. Below the smallest class whole gigabytes count.

    Example:
        >>> memory_class(25_438_126_080)  # a GPU that is sold as one of 24 GB
        24
        >>> memory_class(6 * GIGABYTE)
        6
    """
    reached = [size for size in CLASSES_GB if total >= (1 - RESERVED) * size * GIGABYTE]
    return max(reached, default=total // GIGABYTE)


def total_bytes(device: "torch.device") -> int:
    """The memory that `device` has, whoever uses it now."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return machine_total_bytes()


def machine_total_bytes() -> int:
    """The memory of this machine, or of the control group this process is in if that is less."""
    limits = (limit for limit, _ in _group_limits())
    return min([psutil.virtual_memory().total, *limits])


def available_bytes(device: "torch.device") -> int:
    """What a run can take on `device` without anybody swapping or being killed.

    What torch or malloc keeps of freed memory (`command_line.keep_freed_memory`) counts as free: it
    serves the next allocation.
    """
    import torch

    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    left = (left for _, left in _group_limits())
    return min([psutil.virtual_memory().available, *left]) + _kept_by_malloc_bytes()


def _group_limits(root: Path = GROUPS, own: Path = OWN_GROUPS) -> Iterator[tuple[int, int]]:
    """Limit and what it leaves, for this process's control groups and for those around them.

    File cache that nobody has touched of late counts as free: the kernel drops it before it kills.
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
    """The process's control groups of either version; their roots where nothing is known."""
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
    """A budget as the command line has it, in bytes; None stays None.

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
