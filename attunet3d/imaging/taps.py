"""Linear interpolation along one axis as a short weighted sum (taps: source indices and weights).

Target index t lies at source index p = scale · t + offset = i + w, with i whole and 0 ≤ w < 1; its
value is (1 − w) · v[i] + w · v[i + 1]. Beyond the outermost source centres the border is repeated.

A target voxel at least twice as long as a source voxel takes the mean of m = floor(|scale|) such
samples, spread evenly over its length, instead of one at its centre. Noise and detail finer than
the target grid then average out instead of aliasing. Positions stay exact (a ramp stays the same
ramp), and at a ratio of exactly 2 the two rules agree, so the result is continuous in the ratio.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from attunet3d.core import Range

SNAP_DIGITS = 6  # of positions: products of affines miss whole indices by rounding


@dataclass(frozen=True, eq=False)
class Taps:
    """Which source indices of one axis make each target index, and with what weights.

    Args:
        index: (n, T) source indices of the n target indices.
        weight: (n, T) float32; each row sums to 1.
        length: Source voxels along the axis.
        start: Target index of the first row.
        even: (target size, samples per voxel, reversed) if both grids share their outer faces, so
            that `F.interpolate` applies; otherwise None.
    """

    index: Tensor
    weight: Tensor
    length: int
    start: int = 0
    even: tuple[int, int, bool] | None = None

    def __len__(self) -> int:
        return len(self.index)

    def part(self, start: int, stop: int) -> "Taps":
        """The taps of rows `start` to `stop` - 1."""
        index, weight = self.index[start:stop], self.weight[start:stop]
        return replace(self, index=index, weight=weight, start=self.start + start)

    def touching(self, low: int, high: int) -> Range:
        """Range of the rows that have any weight on source indices `low` to `high` - 1."""
        index, weight = self.index.numpy(), self.weight.numpy()  # small arrays: less overhead
        hit = np.flatnonzero(((index >= low) & (index < high) & (weight > 0)).any(1))
        return (int(hit[0]), int(hit[-1]) + 1) if len(hit) else (0, 0)

    def shifted(self, first: int, length: int) -> "Taps":
        """The same taps when only source voxels `first` to `first + length - 1` are kept."""
        return replace(self, index=self.index - first, length=length, even=None)

    def narrowed(self) -> tuple[Range, "Taps"]:
        """The range of source indices used, and the taps relative to its start."""
        low, high = int(self.index.min()), int(self.index.max()) + 1
        return (low, high), self.shifted(low, high - low)

    @property
    def identical(self) -> bool:
        """Whether the target is the source, voxel by voxel."""
        same = len(self) == self.length and self.index.shape[1] == 1
        return same and bool((self.index[:, 0] == torch.arange(self.length)).all())


def axis_taps(length: int, count: int, scale: float, offset: float, *, mean: bool) -> Taps:
    """Taps of `count` target indices t at source indices scale · t + offset.

    Args:
        length: Source voxels along the axis.
        count: Target voxels along the axis.
        scale: Source voxels per target voxel; negative where the axes have opposite directions.
        offset: Source index of target index 0.
        mean: Average over target voxels of two and more source voxels.

    Example:
        >>> axis_taps(4, 2, 2.0, 0.5, mean=True).index.tolist()
        [[0, 1], [2, 3]]
    """
    samples = max(1, int(abs(scale) + 1e-6)) if mean else 1
    fine = np.arange(count * samples).reshape(count, samples)  # t · m + s
    exact = offset + scale * ((fine + 0.5) / samples - 0.5)
    position = exact.round(SNAP_DIGITS).clip(0, length - 1)  # (n, m)
    low = np.floor(position).astype(np.int64)
    high = np.minimum(low + 1, length - 1)
    share = position - low
    index = np.stack([low, high], -1).reshape(count, -1)  # (n, 2m)
    weight = np.stack([1 - share, share], -1).reshape(count, -1) / samples
    used = (weight > 0).any(0)
    even = None
    for reverse in (False, True):
        aligned = (fine + 0.5) * length / (count * samples) - 0.5
        if np.allclose(exact, aligned[::-1, ::-1] if reverse else aligned, rtol=0, atol=1e-4):
            even = (count, samples, reverse)
    return Taps(
        torch.from_numpy(index[:, used]), torch.from_numpy(weight[:, used]).float(), length, 0, even
    )
