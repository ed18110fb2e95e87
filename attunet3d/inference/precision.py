"""The precision of a pass: bfloat16 where it is wanted, computed natively and, on CUDA, holds.

With `inference.precision` "auto" a GPU computes in bfloat16 once its logits on the very input were
those of float32 up to rounding: a library's fault shows in some shapes and not in others, so an
input larger than any before is held to float32 anew.
"""

import threading
from collections.abc import Callable

import torch
from torch import Tensor

from attunet3d.core import machine
from attunet3d.inference.engine import Forward

RELATIVE_ERROR = 0.02  # of bfloat16 logits against the largest float32 logit
AGREEMENT = 0.999  # least share of voxels with the same class
RECHECK = 1.25  # an input this many times larger than any checked one is checked anew
LEAST_VOXELS = 2**12  # of an input that a check is tried on when memory is short


def parting(fast: Tensor, exact: Tensor) -> str | None:
    """How `fast` logits (B, K, …) part from `exact` ones beyond what rounding does; None: not.

    Example:
        >>> exact = torch.tensor([[[1.0, -4.0], [-1.0, 4.0]]])
        >>> parting(exact * 1.001, exact), parting(-exact, exact)
        (None, 'relative error 2, same class in 0.0 % of voxels')
    """
    error = float((fast - exact).abs().max() / exact.abs().max().clamp(min=1e-12))
    same = float((fast.argmax(1) == exact.argmax(1)).float().mean())
    if error <= RELATIVE_ERROR and same >= AGREEMENT:
        return None
    return f"relative error {error:.2g}, same class in {100 * same:.1f} % of voxels"


class Precision:
    """Which precision the passes of some networks compute in; any thread may ask.

    Args:
        prepared: The networks as one function, computing in the precision given.
        wanted: `inference.precision`.
        device: Theirs.
    """

    def __init__(
        self, prepared: Callable[[torch.dtype], Forward], wanted: str, device: torch.device
    ) -> None:
        self.prepared, self.wanted, self.device = prepared, wanted, device
        self.checked_values = 0  # of the largest input in which bfloat16 was held to float32
        self.parted: str | None = None  # how far it was off when it was
        self._lock = threading.Lock()

    def halves(self) -> bool:
        """Whether bfloat16 is wanted, and the device computes in it."""
        tried = self.wanted == "bfloat16" or (self.wanted == "auto" and self.device.type == "cuda")
        return tried and machine.computes_in_bfloat16(self.device)

    def choose(self, sample: Tensor, note: Callable[[str], None]) -> torch.dtype:
        """The precision to compute in.

        Args:
            sample: (B, C, X, Y, Z), the largest input that will be computed.
            note: Told why it is float32 against the wish.
        """
        if not self.halves():
            if self.wanted == "bfloat16":
                note("this device has no instructions for bfloat16: float32")
            return torch.float32
        if self.wanted == "bfloat16":
            return torch.bfloat16
        with self._lock:
            if self.parted is None and sample.numel() > RECHECK * self.checked_values:
                self._check(sample, note)
                self.checked_values = sample.numel()  # or the largest that memory lets be checked
            if self.parted:
                note(f"bfloat16 self-test failed ({self.parted}): float32")
            return torch.float32 if self.parted else torch.bfloat16

    def _check(self, sample: Tensor, note: Callable[[str], None]) -> None:
        try:
            fast, exact = (self.prepared(t)(sample) for t in (torch.bfloat16, torch.float32))
            self.parted = parting(fast, exact)
            return
        except RuntimeError as error:
            if not machine.ran_out_of_memory(error):
                raise
        torch.cuda.empty_cache()  # here: while the error lives, so do the tensors of that pass
        if sample.numel() < LEAST_VOXELS:  # then float32 is no choice here
            note("CUDA memory ran out in the bfloat16 self-test: left out")
            return
        note("CUDA memory ran out in the bfloat16 self-test: on the middle of the input")
        self._check(_middle(sample), note)


def _middle(sample: Tensor) -> Tensor:
    """Half of each axis of the first of `sample` (B, C, X, Y, Z)."""
    part = sample[:1]
    for axis in (2, 3, 4):
        length = part.shape[axis]
        part = part.narrow(axis, length // 4, max(1, length // 2))
    return part
