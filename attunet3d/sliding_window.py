"""A network over a volume larger than it takes at once: overlapping windows, stitched slab by slab.

Rows of windows go up along z; planes that no later window touches are divided by the sum of their
weights (an outer product of three vectors, see `windows`) and handed on, so memory holds one row
of windows and not the volume. A volume smaller than the window is padded with its minimum, which
is air once Hounsfield units are clipped; the padding is cut off again.

Many classes in a wide volume are summed in float16, as margins over background: a label hangs on
the margin's sign, and float16 is as precise about a small margin as about a large one. Weights are
then normalised before they are summed, so that sums are means and neither overflow nor vanish.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from mmap import mmap
from typing import Literal

import torch
from torch import Tensor

from attunet3d.config import Size
from attunet3d.windows import axis_weights, inverse_sum, outer, pad, window_starts

Network = Callable[[Tensor], Tensor]

SLAB_VALUES = 2**20  # most values of a slab: 4 MB
MOST_SUMS_BYTES = 2**29  # of the CPU's memory for sums in float32; beyond it they are float16


@dataclass(frozen=True, eq=False)
class Slab:
    """Final logits of some neighbouring planes.

    Args:
        start: The first plane's index along z (axis 2) of the network's grid.
        logits: (K, X, Y, n) for the planes start … start + n - 1, up to a number that all classes
            of a voxel share; K = 1 is the margin l1 - l0 of two classes.
    """

    start: int
    logits: Tensor


@dataclass(frozen=True, kw_only=True)
class Stitching:
    """How the outputs of windows become slabs."""

    all_channels: bool = False
    """Keep every channel as it is: not two classes' difference, nor float16 margins of many."""
    weights: Literal["gaussian", "constant"] = "gaussian"
    """How much the middle of a window counts against its border."""
    note: Callable[[str], None] = field(default=lambda _: None)
    """Called with a sentence whenever memory forced another way."""


def sliding_window(
    image: Tensor,
    predictor: Network,
    *,
    window: Size,
    overlap: float = 0.5,
    window_batch: int = 1,
    stitching: Stitching | None = None,
) -> Iterator[Slab]:
    """Run `predictor` over overlapping windows of `image`; yield final slabs from z = 0 upwards.

    The image and what the predictor returns are only read. When CUDA memory runs out the windows
    are done one at a time, then stitched in the CPU's memory; done windows are not repeated.

    Args:
        image: (C, X, Y, Z), on the device that the predictor works on.
        predictor: (B, C, x, y, z) → (B, K, x, y, z).
        window: x, y, z voxels of a window.
        overlap: Least share of a window that its neighbour covers, in [0, 1).
        window_batch: Windows a call of the predictor.
        stitching: Channels, weights, and who hears of fallbacks.

    Yields:
        Every plane once, in order.

    Raises:
        torch.OutOfMemoryError: One window does not fit, with the sums already on the CPU.

    Example:
        >>> image = torch.arange(120.0).reshape(1, 4, 5, 6)
        >>> slabs = list(sliding_window(image, lambda x: 2 * x, window=(3, 3, 3)))
        >>> torch.allclose(torch.cat([slab.logits for slab in slabs], -1), 2 * image)
        True
    """
    sizes = [max(size, part) for size, part in zip(image.shape[1:], window, strict=True)]
    padded, margins = pad(image, (sizes[0], sizes[1], sizes[2]))
    row = _Row(padded, predictor, window, overlap, stitching or Stitching())
    for slab in row.slabs(window_batch):
        yield from _cut(slab, margins, image.shape)


@torch.no_grad()
def whole_volume(
    image: Tensor, predictor: Network, *, divisor: Size, all_channels: bool = False
) -> Iterator[Slab]:
    """Run `predictor` once over the whole `image`, padded to multiples of `divisor`.

    Args:
        image: (C, X, Y, Z).
        predictor: (1, C, x, y, z) → (1, K, x, y, z).
        divisor: Product of the network's strides along x, y, z.
        all_channels: Keep both channels of a two-channel output.

    Yields:
        Every plane once, in order.

    Raises:
        torch.OutOfMemoryError: The volume does not fit; nothing has been yielded yet.
    """
    x, y, z = (-(-size // part) * part for size, part in zip(image.shape[1:], divisor, strict=True))
    padded, margins = pad(image, (x, y, z))
    logits = _channels(predictor(padded[None]), all_channels)[0].float()  # (K, x, y, z)
    planes = _planes(logits.shape[0] * x * y)
    for start in range(0, z, planes):
        yield from _cut(Slab(start, logits[..., start : start + planes]), margins, image.shape)


class _Row:
    """One row of windows along z at a time, and the sums of the planes that it touches."""

    def __init__(
        self, image: Tensor, predictor: Network, window: Size, overlap: float, stitching: Stitching
    ) -> None:
        self.image = image
        self.device = image.device
        self.predictor = predictor
        self.window = window
        self.stitching = stitching
        sizes = image.shape[1:]
        self.starts = [window_starts(n, w, overlap) for n, w in zip(sizes, window, strict=True)]
        self.factors = [axis_weights(length, stitching.weights) for length in window]
        self.weights = outer(self.factors).to(self.device)  # (x, y, z)
        parts = zip(sizes, self.starts, self.factors, strict=True)
        self.inverse = [inverse_sum(n, starts, factor) for n, starts, factor in parts]
        # (K, X, Y, z), made when K is known; or means of K - 1 margins in float16
        self.sums: Tensor | None = None

    @torch.no_grad()
    def slabs(self, batch: int) -> Iterator[Slab]:
        """Every plane of the padded image, in order."""
        columns = list(product(self.starts[0], self.starts[1]))
        ends = [*self.starts[2][1:], self.image.shape[3]]
        for start, end in zip(self.starts[2], ends, strict=True):
            batch = self._add_row(columns, start, batch)
            yield from self._finished(start, end)
            self._shift(end - start)

    def _add_row(self, columns: list[tuple[int, int]], z: int, batch: int) -> int:
        """Add all windows that start at plane `z`; return the batch size that memory allowed."""
        done = 0
        while done < len(columns):
            now = columns[done : done + batch]
            try:
                outputs = self._predict(now, z)
                self._make_sums(outputs)
            except torch.OutOfMemoryError as error:
                batch = self._make_room(batch, error)
                continue
            self._add(now, z, outputs)
            done += len(now)
            del outputs
        return batch

    def _predict(self, columns: list[tuple[int, int]], z: int) -> Tensor:
        a, b, c = self.window
        parts = [self.image[:, x : x + a, y : y + b, z : z + c] for x, y in columns]
        # One window is a view: the predictor may read it, and it is nobody's to write to.
        inputs = parts[0][None] if len(parts) == 1 else torch.stack(parts)  # (B, C, x, y, z)
        outputs = self.predictor(inputs.to(self.device))
        return _channels(outputs, self.stitching.all_channels).to(self.weights)

    def _make_sums(self, outputs: Tensor) -> None:
        if self.sums is not None:
            return
        # Laid out in memory as the outputs are, whichever axis they run along first: adding
        # across two layouts takes three times as long.
        order = sorted(range(3), key=lambda axis: -outputs.stride(axis + 2))
        back = [order.index(axis) for axis in range(3)]
        shape = (*self.image.shape[1:3], self.window[2])
        channels, dtype = self._room(outputs, math.prod(shape))
        sums = _zeros((channels, *(shape[axis] for axis in order)), dtype, outputs.device)
        self.weights = self.weights.permute(order).contiguous().permute(back)
        self.sums = sums.permute(0, *(1 + axis for axis in back))  # (K, X, Y, z)

    def _room(self, outputs: Tensor, voxels: int) -> tuple[int, torch.dtype]:
        """Channels and precision of the sums."""
        channels = outputs.shape[1]
        need = 4 * channels * voxels
        exact = channels == 1 or self.stitching.all_channels or outputs.is_cuda
        if exact or need <= MOST_SUMS_BYTES:
            return channels, torch.float32
        gigabytes = f"{need / 1e9:.1f} GB"
        self.stitching.note(f"sums of {channels} classes need {gigabytes} in float32: float16")
        return channels - 1, torch.float16

    def _add(self, columns: list[tuple[int, int]], z: int, outputs: Tensor) -> None:
        assert self.sums is not None
        a, b, _ = self.window
        for (x, y), output in zip(columns, outputs, strict=True):
            place = self.sums[:, x : x + a, y : y + b]
            if self.sums.dtype == torch.float16:
                self._add_margins(place, output, (x, y, z))
            else:
                place.addcmul_(output, self.weights)

    def _add_margins(self, place: Tensor, output: Tensor, start: Size) -> None:
        """Add a window's share of the mean margins, one class after the other."""
        shares = torch.empty_like(self.weights)
        parts = zip(self.factors, self.inverse, start, strict=True)
        x, y, z = ((f * inverse[first : first + len(f)]).float() for f, inverse, first in parts)
        torch.mul(x[:, None, None] * y[:, None], z, out=shares)
        for mean, logits in zip(place, output[1:], strict=True):
            mean += (logits - output[0]).mul_(shares).half()

    def _finished(self, start: int, end: int) -> Iterator[Slab]:
        assert self.sums is not None
        x, y, z = (part.to(self.sums.device, torch.float32) for part in self.inverse)
        plane = x[:, None] * y  # (X, Y)
        count = _planes(self.sums.shape[0] * plane.numel())
        for first in range(start, end, count):
            last = min(first + count, end)
            sums = self.sums[..., first - start : last - start]
            if sums.dtype == torch.float16:
                background = sums.new_zeros((1, *sums.shape[1:]))
                yield Slab(first, torch.cat([background, sums]).float())
                continue
            logits = sums * plane[..., None]
            yield Slab(first, logits.mul_(z[first:last]).to(self.device))

    def _shift(self, planes: int) -> None:
        """Move the sums down by `planes`, in steps that do not overlap themselves."""
        assert self.sums is not None
        kept = self.window[2] - planes
        for first in range(0, kept, planes):
            last = min(first + planes, kept)
            self.sums[..., first:last] = self.sums[..., first + planes : last + planes]
        self.sums[..., max(kept, 0) :] = 0

    def _make_room(self, batch: int, error: torch.OutOfMemoryError) -> int:
        """Ask for less memory, or give up by raising the error."""
        if batch > 1:
            batch = 1
            self.stitching.note("CUDA memory ran out: windows one at a time")
        elif self.weights.is_cuda or self.image.is_cuda:
            self.image, self.weights = self.image.cpu(), self.weights.cpu()
            self.sums = None if self.sums is None else self.sums.cpu()
            self.stitching.note("CUDA memory ran out: windows stitched in the CPU's memory")
        else:
            raise error
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return batch


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # Straight from the kernel: what malloc keeps of a block this size, windows split and waste.
    block = mmap(-1, math.prod(shape) * dtype.itemsize)
    return torch.frombuffer(block, dtype=dtype).view(shape)


def _channels(outputs: Tensor, all_channels: bool) -> Tensor:
    """(B, K, …) as it is accumulated: two classes as their difference, which decides alone."""
    if outputs.shape[1] == 2 and not all_channels:
        return outputs[:, 1:] - outputs[:, :1]
    return outputs


def _planes(plane_values: int) -> int:
    return max(1, SLAB_VALUES // plane_values)


def _cut(slab: Slab, before: Size, shape: torch.Size) -> Iterator[Slab]:
    """The slab without the padding; nothing where all of it is padding."""
    _, sx, sy, sz = shape
    x, y, z = before
    first, last = max(slab.start, z), min(slab.start + slab.logits.shape[-1], z + sz)
    if first < last:
        inner = slab.logits[:, x : x + sx, y : y + sy, first - slab.start : last - slab.start]
        yield Slab(first - z, inner)
