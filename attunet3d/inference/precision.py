"""Chooses float32 or bfloat16 for a forward pass; the choice depends on no other scan.

`inference.precision` "auto" means float32 on a CPU. On a GPU it means bfloat16 wherever its logits
in the middle of the scan at hand equal those of float32 up to rounding: a fault of a library shows
in some shapes and not in others, and a scan that fails the test says nothing about the next one.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from attunet3d.core import machine
from attunet3d.inference.forward_pass import ForwardPass

RELATIVE_ERROR = 0.02  # of bfloat16 logits against the largest float32 logit
AGREEMENT = 0.999  # least share of voxels with the same class


def deviation(fast: Tensor, exact: Tensor) -> str | None:
    """How `fast` logits (B, K, …) deviate from `exact` ones beyond rounding; None if they do not.

    Example:
        >>> exact = torch.tensor([[[1.0, -4.0], [-1.0, 4.0]]])
        >>> deviation(exact * 1.001, exact), deviation(-exact, exact)
        (None, 'relative error 2, same class in 0.0 % of voxels')
    """
    error = float((fast - exact).abs().max() / exact.abs().max().clamp(min=1e-12))
    same = float((fast.argmax(1) == exact.argmax(1)).float().mean())
    if error <= RELATIVE_ERROR and same >= AGREEMENT:
        return None
    return f"relative error {error:.2g}, same class in {100 * same:.1f} % of voxels"


def uses_bfloat16(wanted: str, device: torch.device) -> bool:
    """Whether bfloat16 is wanted by `inference.precision`, and the device computes it natively."""
    asked = wanted == "bfloat16" or (wanted == "auto" and device.type == "cuda")
    return asked and machine.computes_in_bfloat16(device)


def choose_precision(
    wanted: str,
    device: torch.device,
    forward: Callable[[torch.dtype], ForwardPass],
    sample: Tensor,
    note: Callable[[str], None],
) -> torch.dtype:
    """Choose the precision in which to segment one scan.

    Args:
        wanted: `inference.precision`.
        device: Where the networks run.
        forward: The networks as one function that computes in the given precision.
        sample: (B, C, x, y, z) of the scan, as large as its windows.
        note: Called with the reason for float32 where bfloat16 was asked for.
    """
    if not uses_bfloat16(wanted, device):
        if wanted == "bfloat16":
            note("this device does not compute bfloat16 natively: float32")
        return torch.float32
    if wanted == "bfloat16":
        return torch.bfloat16
    fast, exact = (forward(dtype)(sample) for dtype in (torch.bfloat16, torch.float32))
    found = deviation(fast, exact)
    if found is None:
        return torch.bfloat16
    note(f"bfloat16 self-test failed ({found}): float32")
    return torch.float32
