"""A network over a volume larger than it takes at once: overlapping windows, stitched slab by slab.

Along each axis there are as few windows as cover it with at least the overlap asked for, spread
evenly. Windows are the tensor product of three lists of starts, and their weights that of three
clamped 1-D Gaussians: the sum of weights at a voxel is n(x, y, z) = n_x(x) · n_y(y) · n_z(z), three
vectors instead of a volume.

Rows of windows follow each other along z. The weighted mean of the windows (see `stitching`) is
handed on as soon as no later window touches a plane, so that memory holds one row of windows and
not the volume. A volume smaller than the window is padded with its minimum, which is air once
Hounsfield units are clipped; the padding is cut off again.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attunet3d.core import Size, machine
from attunet3d.inference.forward_pass import ForwardPass
from attunet3d.inference.stitching import WindowSums, slab_planes

SIGMA = 1 / 8  # of the window's length, as nnU-Net and MONAI have it
FLOOR = 1e-2  # least weight along one axis: the product stays far above float32's rounding


@dataclass(frozen=True, eq=False)
class Slab:
    """The network's output for consecutive planes.

    Args:
        start: The first plane's index along z (axis 2) of the network's grid.
        logits: (K, X, Y, n) for the planes start … start + n - 1, up to a constant per voxel that
            all its classes share; K = 1 is the margin l1 - l0 of two classes.
        attention: (maps, X, Y, n), the gates' coefficients, if they were asked for.
    """

    start: int
    logits: Tensor
    attention: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Stitching:
    """How the outputs of windows become slabs."""

    all_channels: bool = False
    """Keep every channel as it is: neither two classes' difference nor many classes in float16."""
    weights: Literal["gaussian", "constant"] = "gaussian"
    """How much the middle of a window counts against its border."""
    note: Callable[[str], None] = field(default=lambda _: None)
    """Called with a sentence whenever memory forced another way."""


def sliding_window_slabs(
    image: Tensor,
    forward: ForwardPass,
    *,
    window: Size,
    overlap: float = 0.5,
    window_batch: int = 1,
    stitching: Stitching | None = None,
) -> Iterator[Slab]:
    """Run `forward` over overlapping windows of `image`; yield final slabs from z = 0 upwards.

    The image and the outputs of `forward` are only read. When memory runs out, windows are
    computed one at a time, then on CUDA stitched in the CPU's memory; finished windows are not
    repeated.

    Args:
        image: (C, X, Y, Z), on the device that `forward` works on.
        forward: (B, C, x, y, z) → (B, K, x, y, z).
        window: x, y, z voxels of a window.
        overlap: Least share of a window that its neighbour covers, in [0, 1).
        window_batch: Windows per call of `forward`.
        stitching: Channels, weights, and what is called with the reason of a fallback.

    Yields:
        Every plane once, in order.

    Raises:
        torch.OutOfMemoryError: One window does not fit, with the sums already on the CPU.

    Example:
        >>> image = torch.arange(120.0).reshape(1, 4, 5, 6)
        >>> slabs = list(sliding_window_slabs(image, lambda x: 2 * x, window=(3, 3, 3)))
        >>> torch.allclose(torch.cat([slab.logits for slab in slabs], -1), 2 * image)
        True
    """
    sizes = [max(size, part) for size, part in zip(image.shape[1:], window, strict=True)]
    padded, margins = pad(image, (sizes[0], sizes[1], sizes[2]))
    row = _Row(padded, forward, window, overlap, stitching or Stitching())
    for slab in row.slabs(window_batch):
        yield from without_padding(slab, margins, image.shape)


@torch.no_grad()
def whole_volume(
    image: Tensor, forward: ForwardPass, *, divisor: Size, all_channels: bool = False
) -> Iterator[Slab]:
    """Run `forward` once over the whole `image`, padded to multiples of `divisor`.

    Args:
        image: (C, X, Y, Z).
        forward: (1, C, x, y, z) → (1, K, x, y, z).
        divisor: Product of the network's strides along x, y, z.
        all_channels: Keep both channels of a two-channel output.

    Raises:
        torch.OutOfMemoryError: The volume does not fit; nothing has been yielded yet.
    """
    x, y, z = (-(-size // part) * part for size, part in zip(image.shape[1:], divisor, strict=True))
    padded, margins = pad(image, (x, y, z))
    logits = decisive_channels(forward(padded[None]), all_channels)[0].float()  # (K, x, y, z)
    planes = slab_planes(logits.shape[0] * x * y, logits.device)
    for start in range(0, z, planes):
        yield from without_padding(
            Slab(start, logits[..., start : start + planes]), margins, image.shape
        )


class _Row:
    """One row of windows along z at a time, and the sums of the planes that it touches."""

    def __init__(
        self,
        image: Tensor,
        forward: ForwardPass,
        window: Size,
        overlap: float,
        stitching: Stitching,
    ) -> None:
        self.image = image
        self.device = image.device
        self.forward = forward
        self.window = window
        self.stitching = stitching
        sizes = image.shape[1:]
        self.starts = [window_starts(n, w, overlap) for n, w in zip(sizes, window, strict=True)]
        self.factors = [axis_weights(length, stitching.weights) for length in window]
        parts = zip(sizes, self.starts, self.factors, strict=True)
        self.inverse = [inverse_sum(n, starts, factor) for n, starts, factor in parts]
        self.sums_device = image.device
        self.sums: WindowSums | None = None  # made when the number of channels is known

    @torch.no_grad()
    def slabs(self, batch: int) -> Iterator[Slab]:
        """Every plane of the padded image, in order."""
        columns = list(product(self.starts[0], self.starts[1]))
        ends = [*self.starts[2][1:], self.image.shape[3]]
        for start, end in zip(self.starts[2], ends, strict=True):
            batch = self._add_row(columns, start, batch)
            assert self.sums is not None
            for first, logits in self.sums.finished(end - start):
                yield Slab(start + first, logits.to(self.device))
            self.sums.shift(end - start)

    def _add_row(self, columns: list[tuple[int, int]], z: int, batch: int) -> int:
        """Add all windows that start at plane `z`; return the batch size that fitted."""
        done = 0
        while done < len(columns):
            now = columns[done : done + batch]
            try:
                outputs = self._predict(now, z)
                self.sums = self.sums or self._no_sums(outputs[0])
            except RuntimeError as error:
                if not machine.ran_out_of_memory(error):
                    raise
                batch = self._make_room(batch, error)
                continue
            for index, (x, y) in enumerate(now):
                self.sums.add(outputs[index], (x, y, z))
            done += len(now)
            del outputs  # before the next ones are made
        return batch

    def _predict(self, columns: list[tuple[int, int]], z: int) -> Tensor:
        a, b, c = self.window
        parts = [self.image[:, x : x + a, y : y + b, z : z + c] for x, y in columns]
        # One window is a view of the image, which must not be written to.
        inputs = parts[0][None] if len(parts) == 1 else torch.stack(parts)  # (B, C, x, y, z)
        outputs = self.forward(inputs.to(self.device))
        return outputs.to(self.sums_device, torch.float32)

    def _no_sums(self, like: Tensor) -> WindowSums:
        options = self.stitching
        return WindowSums(like, self.factors, self.inverse, options.all_channels, options.note)

    def _make_room(self, batch: int, error: RuntimeError) -> int:
        """Ask for less memory, or give up by raising the error."""
        if batch > 1:
            batch = 1
            self.stitching.note(f"{self.device.type.upper()} memory ran out: windows one at a time")
        elif self.sums_device.type == "cuda":
            self.image, self.sums_device = self.image.cpu(), torch.device("cpu")
            if self.sums is not None:
                self.sums.to_cpu()
            self.stitching.note("CUDA memory ran out: windows stitched in the CPU's memory")
        else:
            raise error
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return batch


def window_starts(size: int, window: int, overlap: float) -> list[int]:
    """First indices of the fewest windows that cover `size`, neighbours sharing >= `overlap`.

    Example:
        >>> window_starts(256, 96, 0.5), window_starts(125, 96, 0.25), window_starts(50, 96, 0.5)
        ([0, 40, 80, 120, 160], [0, 29], [0])
    """
    free = size - window
    if free <= 0:
        return [0]
    step = max(1, window - math.ceil(window * overlap - 1e-9))  # 0.07 · 100 is 7, not 8
    last = math.ceil(free / step)  # windows after the first
    return [(2 * i * free + last) // (2 * last) for i in range(last + 1)]  # rounded i·free/last


def axis_weights(length: int, weights: Literal["gaussian", "constant"] = "gaussian") -> Tensor:
    """Weights (length,) of a window along one axis: a Gaussian that never falls below `FLOOR`.

    Example:
        >>> [round(float(w), 3) for w in axis_weights(5)]
        [0.01, 0.278, 1.0, 0.278, 0.01]
    """
    if weights == "constant":
        return torch.ones(length)
    distance = torch.arange(length) - (length - 1) / 2
    return torch.exp(-0.5 * (distance / (SIGMA * length)) ** 2).clamp_(min=FLOOR)


def inverse_sum(size: int, starts: list[int], factor: Tensor) -> Tensor:
    """1 / n(i) along one axis, n(i) being the sum of the windows' weights at index i."""
    total = torch.zeros(size, dtype=torch.float64)
    for start in starts:
        total[start : start + len(factor)] += factor
    return total.reciprocal()


def pad(image: Tensor, size: Size) -> tuple[Tensor, Size]:
    """`image` (C, X, Y, Z) padded to `size` with its minimum, and the voxels put before each axis.

    Example:
        >>> padded, before = pad(torch.ones(1, 2, 4, 4), (5, 4, 4))
        >>> tuple(padded.shape), before
        ((1, 5, 4, 4), (1, 0, 0))
    """
    missing = [wanted - here for wanted, here in zip(size, image.shape[1:], strict=True)]
    a, b, c = (lack // 2 for lack in missing)
    if not any(missing):
        return image, (0, 0, 0)
    x, y, z = missing
    return F.pad(image, (c, z - c, b, y - b, a, x - a), value=float(image.min())), (a, b, c)


def decisive_channels(outputs: Tensor, all_channels: bool) -> Tensor:
    """The channels (B, K, …) to accumulate: of two classes the difference, which alone decides."""
    if outputs.shape[1] == 2 and not all_channels:
        return outputs[:, 1:] - outputs[:, :1]
    return outputs


def without_padding(slab: Slab, before: Size, shape: torch.Size) -> Iterator[Slab]:
    """The slab without the padding; nothing where all of it is padding."""
    _, sx, sy, sz = shape
    x, y, z = before
    first, last = max(slab.start, z), min(slab.start + slab.logits.shape[-1], z + sz)
    if first < last:
        inner = slab.logits[:, x : x + sx, y : y + sy, first - slab.start : last - slab.start]
        yield Slab(first - z, inner)
