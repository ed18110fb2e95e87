"""How much memory a pass takes, and whether a stated budget allows one pass over the whole.

The budget is a class of machines, not what happens to be free: a scan is then segmented in the same
way today and tomorrow, and on every GPU of a kind.
"""

import torch

from attunet3d.core import (
    GIGABYTE,
    DeviceError,
    NetworkConfig,
    available_bytes,
    memory_class,
    total_bytes,
)
from attunet3d.models import finest_channels

MEMORY_SHARE = {"cpu": 0.5, "mps": 0.5, "cuda": 0.8}  # of the budget; programs share the first two
CUDNN_VALUES = 2**31  # of a tensor; with more cuDNN 9.8 to 9.14 computed wrongly, or not at all


def pass_bytes(
    config: NetworkConfig, classes: int, voxels: int, dtype: torch.dtype, *, split: bool = False
) -> int:
    """Estimated peak memory of one pass over `voxels`, weights left out.

    The peak lies in the last decoder block or, with many classes, behind it. There F and G channels
    of the two finest levels are side by side and once more concatenated, then convolved and
    normalised; with `split` they never are. Fused heads hold four times the logits, in float32, and
    a mean of several passes holds them once more.

    Args:
        config: The network.
        classes: Background included.
        voxels: Of the input.
        dtype: In which the network computes.
        split: Whether the decoder mixes channels before it upsamples (`split_convolution`).
    """
    first, second = finest_channels(config)
    coarser = config.strides is None or config.strides[0][0] > 1
    if split and coarser:
        features = 4 * first + second + (0 if config.norm == "batch" else 3 * first)
    else:
        features = 5 * first + 3 * second
    size = 2 if dtype == torch.bfloat16 else 4
    logits = classes * (5 if config.deep_supervision == "fused" else 2)
    return voxels * max(size * features, size * 4 * first + 4 * logits)


def why_not_whole(need: int, values: int, device: torch.device, budget: int) -> str | None:
    """Why a pass of `need` bytes, and `values` in its widest tensor, cannot be; None: it can."""
    if device.type == "cuda" and values >= CUDNN_VALUES:
        return "one pass over the whole has too many values for cuDNN: windows"
    if need > MEMORY_SHARE[device.type] * budget:
        return (
            f"one pass over the whole needs about {need / GIGABYTE:.1f} GB, too much for a budget"
            f" of {budget / GIGABYTE:.3g} GB: windows"
        )
    return None


def require_memory(need: int, device: torch.device, cure: str) -> None:
    """Refuse to begin what does not fit the memory that is free.

    Raises:
        DeviceError: It does not.
    """
    free = available_bytes(device)
    if need > free:
        raise DeviceError(
            f"needs about {need / GIGABYTE:.1f} GB of memory, of which {free / GIGABYTE:.1f} GB are"
            " free",
            value=need,
            cure=cure,
        )


def default_budget(device: torch.device) -> int:
    """The class of machines that the device belongs to by its total memory, in bytes."""
    return memory_class(total_bytes(device)) * GIGABYTE
