"""The machine a run finds itself on: device, precision, seeds."""

import logging
import platform
from functools import cache
from typing import TYPE_CHECKING

from attunet3d.core.errors import DeviceError

if TYPE_CHECKING:
    import torch

MOST_DEVIATION = 1e-3
_log = logging.getLogger(__name__)


def pick_device(name: str | None = None, *, training: bool = False) -> "torch.device":
    """The device called `name`; without a name CUDA where there is one, else the CPU.

    An Apple GPU ("mps") is used when it is asked for, and for inference only. Where it lacks an
    operator of the network, or computes other numbers than the CPU, the CPU is used with a warning.

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
    """What keeps a device from computing as the CPU does, tried on the network's operators."""
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
        return f"it lacks an operator of the network ({' '.join(str(error).split())[:120]})"
    if deviation <= MOST_DEVIATION:
        return None
    return f"its results differ from the CPU's by {deviation:.2g}"


def computes_in_bfloat16(device: "torch.device") -> bool:
    """Whether `device` multiplies matrices of bfloat16 natively, so that it is worth its rounding.

    GPUs before Ampere and CPUs without such instructions emulate it: on an AVX2 CPU a pass took
    hundreds of times as long as in float32. An x86 CPU needs AMX: with AVX-512's instructions for
    bfloat16 alone a pass took twice as long. The rule looks at the machine and times nothing, so
    that the same machine always computes alike.
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
    """Whether this processor and this torch convolve `dtype` by oneDNN."""
    import torch

    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def ran_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out, in torch or inside cuDNN or cuBLAS, which say so in other words."""
    import torch

    words = ("unable to find an engine", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError) or any(part in str(error) for part in words)
