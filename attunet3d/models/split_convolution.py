"""A 3×3×3 convolution of a skip beside an upsampled map, with fewer multiplications.

    y  =  b + A ∗ skip + C ∗ up(x),        [A C] the weights

Upsampling treats every channel alike and every axis separately, so the kernel may mix channels
before the upsampling along one axis: in the coarse planes, of which there are fewer.

    in the network     x ─ up ─► cat with skip ─ convolution ─► y
    here               x ─ up_yz ─ C_t ─ P ─ S_t ─► + A ∗ skip ─► y

    C ∗ up(x)  =  Σ_t S_t P (C_t ∗ up_yz(x)),        t = -1, 0, 1

C_t is plane t of the kernel, a 1×3×3 convolution; P the matrix of linear interpolation along the
first axis; S_t shifts by t planes and fills with zeros, the convolution's padding. Where the stride
is 2 that halves the multiplications of the upsampled channels, a third of all that the network has,
and neither up(x) nor its concatenation with the skip is ever in memory.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attunet3d.models.folding import FoldedConvolution, rectify_
from attunet3d.models.memory_layout import CHANNELS_LAST
from attunet3d.models.upsampling import interpolation_matrix

ROWS = 16  # per product: few enough to stay in the CPU's cache


class SplitConvolution(nn.Module):
    """The function (skip, x) ↦ `convolution`(cat(skip, up(x))), channels last on a CPU.

    The convolution is 3×3×3, of stride 1; its first `skip_channels` inputs are the skip's.
    """

    def __init__(
        self, convolution: FoldedConvolution, skip_channels: int, align_corners: bool
    ) -> None:
        super().__init__()
        self.align_corners, self.negative_slope = align_corners, convolution.negative_slope
        weight, bias = convolution.weight, convolution.bias
        self.skip = FoldedConvolution((weight[:, :skip_channels], bias))
        planes = torch.split(weight[:, skip_channels:], 1, 2)
        self.planes = nn.ModuleList(
            FoldedConvolution((p, torch.zeros_like(bias)), padding=(0, 1, 1)) for p in planes
        )

    def forward(self, skip: Tensor, below: Tensor) -> Tensor:
        """(B, C, X, Y, Z) and (B, C', x, y, z) → (B, out, X, Y, Z)."""
        total: Tensor = self.skip(skip).contiguous(memory_format=CHANNELS_LAST)
        size = below.shape[2], *skip.shape[3:]  # x, Y, Z
        wide = F.interpolate(below, size, mode="trilinear", align_corners=self.align_corners)
        up = interpolation_matrix(below.shape[2], skip.shape[2], self.align_corners, skip)  # (X, x)
        shifted = F.pad(up, (0, 0, 1, 1)).unfold(0, len(up), 1).transpose(1, 2)  # (3, X, x)
        for matrix, plane in zip(shifted, self.planes, strict=True):
            add_product(as_rows(total), matrix, as_rows(plane(wide)))
        return rectify_(total, self.negative_slope)


def as_rows(x: Tensor) -> Tensor:
    """(B, C, X, Y, Z) as (B, X, Y · Z · C): the same memory where channels are last."""
    return x.permute(0, 2, 3, 4, 1).reshape(x.shape[0], x.shape[2], -1)


def add_product(totals: Tensor, matrix: Tensor, values: Tensor) -> None:
    """Add `matrix` (X, x) times `values` (B, x, N) to `totals` (B, X, N), some rows at a time.

    The matrix is a band matrix; columns of zeros are left out.
    """
    for first in range(0, len(matrix), ROWS):
        rows = matrix[first : first + ROWS]
        used = rows.any(0).nonzero().flatten().tolist()
        if not used:
            continue
        columns = slice(used[0], used[-1] + 1)
        for total, value in zip(totals, values, strict=True):
            total[first : first + ROWS].addmm_(rows[:, columns], value[columns])
