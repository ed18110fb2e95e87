"""The positions of windows along an axis, and their weights.

Along each axis there are as few windows as cover it with at least the overlap asked for, spread
evenly. Windows are the tensor product of three lists of starts, and their weights that of three
clamped 1-D Gaussians: the sum of weights at a voxel is n(x, y, z) = n_x(x) · n_y(y) · n_z(z), three
vectors instead of a volume.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attunet3d.core import Size

SIGMA = 1 / 8  # of the window's length, as nnU-Net and MONAI have it
FLOOR = 1e-2  # least weight along one axis: the product stays far above float32's rounding


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
