"""The weighted means of a row of windows, plane by plane, in as little memory as labels allow.

A window's weights are normalised before they are summed, axis by axis, as they are a product of
three vectors: sums are means from the start. Two classes are summed as their margin, which alone
decides. Many classes in a wide volume are summed in float16, each as its distance below the
window's largest logit: the leading classes of a voxel lie near 0, where float16 is as precise as
float32.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from attunet3d.core import Size
from attunet3d.inference.large_arrays import zeros

SLAB_VALUES = 2**20  # per slab: 4 MB, which stay in the CPU's cache
GPU_SLAB_VALUES = 2**25
FEW_PLANES, MOST_SLAB_VALUES = 4, 2**22  # of many classes; fewer planes cost more than they save
PIECE_VALUES = 2**20  # of a window weighted at once: 4 MB, which stay in the CPU's cache
MOST_BYTES = 2**29  # of the CPU's memory for sums in float32; beyond it they are float16


class WindowSums:
    """Means over the planes that one row of windows touches.

    Args:
        like: (K, x, y, z), a window's output, for its channels, memory order and device.
        factors: Weights of a window along x, y and z.
        inverse: 1 / (sum of the weights) at each index of the volume along x, y and z.
        all_channels: Keep every channel as it is: neither margin nor float16.
        note: Called with a message if the sums are float16.
    """

    def __init__(
        self,
        like: Tensor,
        factors: Sequence[Tensor],
        inverse: Sequence[Tensor],
        all_channels: bool,
        note: Callable[[str], None],
    ) -> None:
        self.factors = [part.to(like.device) for part in factors]
        self.inverse = [part.to(like.device) for part in inverse]
        channels, *window = like.shape
        shape = len(inverse[0]), len(inverse[1]), window[2]
        need = 4 * channels * math.prod(shape)
        self.margin = channels == 2 and not all_channels
        half = channels > 2 and not (all_channels or like.is_cuda or need <= MOST_BYTES)
        if half:
            note(f"sums of {channels} classes need {need / 1e9:.1f} GB in float32: float16")
        # The sums have the outputs' memory order: adding across two orders takes three times as
        # long.
        self.order = sorted(range(3), key=lambda axis: -like.stride(axis + 1))
        slow, middle, fast = (window[axis] for axis in self.order)
        depth = slow if like.is_cuda else max(1, PIECE_VALUES // (middle * fast))
        # Reused for every window: fresh memory costs more than filling it.
        self.piece = like.new_empty((min(depth, slow), middle, fast))
        self.rounded = self.piece.half() if half else None
        stored = (channels - self.margin, *(shape[axis] for axis in self.order))
        self.sums = _zeros(stored, half, like.device)  # (K, slow, middle, fast)

    @property
    def means(self) -> Tensor:
        """The sums as (K, X, Y, z)."""
        return self.sums.permute(0, *(1 + self.order.index(axis) for axis in range(3)))

    def add(self, output: Tensor, start: Size) -> None:
        """Add a window's output (K, x, y, z), only read, whose first voxel is `start`."""
        output = output.permute(0, *(1 + axis for axis in self.order))
        corner = (*start[:2], 0)
        place = self.sums
        for axis in range(3):
            place = place.narrow(axis + 1, corner[self.order[axis]], output.shape[axis + 1])
        slow, middle, fast = (self._shares(axis, start[axis]) for axis in self.order)
        plane = middle[:, None] * fast
        for first in range(0, len(slow), len(self.piece)):
            part = slice(first, first + len(self.piece))
            shift = self._shift(output[:, part])
            for total, logits in zip(place[:, part], output[self.margin :, part], strict=True):
                piece = self.piece[: len(logits)]
                if shift is None:
                    torch.mul(logits, plane, out=piece)
                else:
                    torch.sub(logits, shift, out=piece).mul_(plane)
                self._add_piece(total, piece, slow[part, None, None])

    def _shift(self, logits: Tensor) -> Tensor | None:
        """What is subtracted from all logits (K, …) of a voxel."""
        if self.rounded is not None:
            return logits.amax(0)
        return logits[0] if self.margin else None

    def _add_piece(self, total: Tensor, piece: Tensor, shares: Tensor) -> None:
        if self.rounded is None:
            total.addcmul_(piece, shares)
        else:
            total += self.rounded[: len(piece)].copy_(piece.mul_(shares))

    def _shares(self, axis: int, first: int) -> Tensor:
        """The normalised weights along an axis of a window that starts at index `first`."""
        factor = self.factors[axis]
        shares = factor * self.inverse[axis][first : first + len(factor)]
        return shares.to(self.sums.device, torch.float32)

    def finished(self, count: int) -> Iterator[tuple[int, Tensor]]:
        """The first `count` planes, slab by slab: first index and logits (K, X, Y, n)."""
        means = self.means
        step = slab_planes(means[..., 0].numel(), means.device)
        for first in range(0, count, step):
            part = means[..., first : min(first + step, count)]
            yield first, part.to(torch.float32, copy=True)

    def shift(self, planes: int) -> None:
        """Move the sums down by `planes`, in steps that do not overlap themselves."""
        means = self.means
        kept = means.shape[3] - planes
        for first in range(0, kept, planes):
            last = min(first + planes, kept)
            means[..., first:last] = means[..., first + planes : last + planes]
        means[..., max(kept, 0) :] = 0

    def to_cpu(self) -> None:
        """Move the sums to the CPU's memory."""
        self.sums, self.piece = self.sums.cpu(), self.piece.cpu()
        self.factors = [part.cpu() for part in self.factors]
        self.inverse = [part.cpu() for part in self.inverse]


def slab_planes(plane_values: int, device: torch.device) -> int:
    """Planes per slab; on a GPU many, as each call has a cost."""
    if device.type == "cuda":
        return max(1, GPU_SLAB_VALUES // plane_values)
    few = min(FEW_PLANES, MOST_SLAB_VALUES // plane_values)
    return max(1, few, SLAB_VALUES // plane_values)


def _zeros(shape: tuple[int, ...], half: bool, device: torch.device) -> Tensor:
    if device.type == "cpu":
        return torch.from_numpy(zeros(shape, np.float16 if half else np.float32))
    return torch.zeros(shape, dtype=torch.float16 if half else torch.float32, device=device)
