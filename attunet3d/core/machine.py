"""The machine a run finds itself on: device, seeds, versions."""

import platform
import random
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING

import numpy as np

from attunet3d.core.errors import DeviceError

if TYPE_CHECKING:
    import torch


def pick_device(name: str | None = None) -> "torch.device":
    """The device called `name`; without a name CUDA where there is one, else the CPU.

    Raises:
        DeviceError: The name is no device, or that device is not on this machine.

    Example:
        >>> pick_device("cpu").type
        'cpu'
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"--device {name}: must be cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"--device {name}: must be cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise DeviceError(
                f"--device {name}: this machine has {count} CUDA devices; use --device cpu"
            )
    return device


def computes_in_bfloat16(device: "torch.device") -> bool:
    """Whether `device` has instructions for bfloat16.

    Without them (GPUs before Ampere, CPUs without AVX-512 or its like) it is emulated: on an AVX2
    CPU a pass took hundreds of times as long as in float32.
    """
    import torch

    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return onednn_takes(torch.bfloat16)


@cache
def onednn_takes(dtype: "torch.dtype") -> bool:
    """Whether this processor and this torch convolve `dtype` by oneDNN."""
    import torch

    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def ran_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out, in torch or inside cuDNN or cuBLAS, which say so in other words."""
    import torch

    words = ("unable to find an engine", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(part in str(error) for part in words)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (every device)."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def versions() -> dict[str, str]:
    """Versions of this package and of what computes its numbers, for sidecars and summaries."""
    names = ("attunet3d", "torch", "monai", "numpy", "nibabel", "SimpleITK")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found
