"""The devices of this machine and what they can compute."""

import logging
import os
import platform
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from attunet3d.core.errors import DeviceError, one_line

if TYPE_CHECKING:
    import torch

MOST_DEVIATION = 1e-3
MOST_SIDE_BY_SIDE = 4  # cases read or scored at a time: each holds its scan and label
QUOTA = Path("/sys/fs/cgroup/cpu.max")
_log = logging.getLogger(__name__)


def usable_cores(quota: Path = QUOTA) -> int:
    """The cores that this process may run on, less if a control group sets a quota of time."""
    allowed = getattr(os, "sched_getaffinity", None)
    cores = len(allowed(0)) if allowed is not None else os.cpu_count() or 1
    try:
        share, period = quota.read_text(encoding="ascii").split()
        return max(1, min(cores, round(int(share) / int(period))))
    except (OSError, ValueError, ZeroDivisionError):  # no such file; "max": no quota
        return cores


def side_by_side(cases: int) -> int:
    """How many of so many cases are read or scored at a time."""
    return max(1, min(MOST_SIDE_BY_SIDE, usable_cores(), cases))


def pick_device(name: str | None = None, *, training: bool = False) -> "torch.device":
    """The device called `name`; without a name the CUDA device if there is one, else the CPU.

    An Apple GPU ("mps") is used only on request and only for inference. If it lacks an operator of
    the network, or its results differ from the CPU's, the CPU is used and there is a warning.

    Args:
        name: "cpu", "cuda", "cuda:N" or "mps".
        training: Whether the device must be able to train.

    Raises:
        DeviceError: The name is not a device's, or that device is not on this machine.

    Example:
        >>> pick_device("cpu").type
        'cpu'
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = ("cpu", "cuda") if training else ("cpu", "cuda", "mps")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in names:
        listed = ", ".join(names).replace("cuda", "cuda, cuda:N")
        raise DeviceError(f"--device {name}: must be one of {listed}", value=name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise DeviceError(
                f"--device {name}: this machine has {count} CUDA devices that torch can use",
                value=name,
                cure="use --device cpu",
            )
    return _checked_mps(device) if device.type == "mps" else device


def _checked_mps(device: "torch.device") -> "torch.device":
    import torch

    if not torch.backends.mps.is_available():
        raise DeviceError(
            "--device mps: this machine has no Apple GPU that torch can use",
            value="mps",
            cure="use --device cpu",
        )
    trouble = _trouble_with(device)
    if trouble is None:
        return device
    _log.warning("--device mps: %s; the CPU is used", trouble)
    return torch.device("cpu")


def _trouble_with(device: "torch.device") -> str | None:
    """Try the network's operators and say why a device cannot replace the CPU; None if it can."""
    import torch
    from torch.nn import functional

    generator = torch.Generator().manual_seed(0)
    image = torch.randn((1, 2, 8, 8, 8), generator=generator)
    weight = torch.randn((2, 2, 3, 3, 3), generator=generator)

    def compute(where: torch.device) -> torch.Tensor:
        maps = functional.conv3d(image.to(where), weight.to(where), padding=1)
        maps = functional.max_pool3d(functional.batch_norm(maps, None, None, training=True), 2)
        maps = functional.interpolate(maps, scale_factor=2, mode="trilinear")
        up = functional.conv_transpose3d(maps, weight.to(where), stride=2)
        return up.softmax(1).cpu()

    try:
        deviation = float((compute(device) - compute(torch.device("cpu"))).abs().max())
    except (NotImplementedError, RuntimeError, TypeError) as error:
        # What torch raises for an operator or a type that the device does not have.
        return f"it lacks an operator of the network ({one_line(error)[:120]})"
    if deviation <= MOST_DEVIATION:
        return None
    return f"its results differ from the CPU's by {deviation:.2g}"


def computes_in_bfloat16(device: "torch.device") -> bool:
    """Whether `device` multiplies bfloat16 matrices natively, so that it is faster than float32.

    GPUs before Ampere and CPUs without such instructions emulate it: on an AVX2 CPU a pass took
    hundreds of times as long as in float32. An x86 CPU needs AMX: with only the bfloat16
    instructions of AVX-512, a pass took twice as long. The rule depends on the hardware and times
    nothing, so that a machine always decides alike.
    """
    import torch

    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    has_tiles = not x86 or bool(torch.cpu._is_amx_tile_supported())
    return device.type == "cpu" and has_tiles and onednn_takes(torch.bfloat16)


@cache
def onednn_takes(dtype: "torch.dtype") -> bool:
    """Whether oneDNN convolves `dtype` on this processor and in this build of torch."""
    import torch

    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def ran_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error means that memory ran out, in torch or in cuDNN or cuBLAS."""
    import torch

    words = ("unable to find an engine", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError) or any(part in str(error) for part in words)
