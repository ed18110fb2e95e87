"""`3d_transposed`: a small 3D network with the paper's grid gate and transposed convolutions.

Quirks against the paper: the coefficients have no sigmoid, so they are any number; every gate makes
its own signal, a 1×1×1 block of the coarser features; all three skips are gated; upsampling is a
2×2×2 transposed convolution; the last block's output, after BatchNorm and ReLU, is the answer. In
the published code the BatchNorm of the signal had a wrong width and could not run; here it has the
coarser features' width. 5,879,337 parameters for 1 channel in and 2 out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attunet3d.models.published.blocks import DoubleConv
from attunet3d.models.published.network import PublishedNetwork


class GridGate(nn.Module):
    """Additive attention on the coarser grid, without a sigmoid."""

    def __init__(self, fine: int, coarse: int) -> None:
        super().__init__()
        self.GridGateSignal_generator = nn.Sequential(
            nn.Conv3d(coarse, coarse, 1), nn.BatchNorm3d(coarse), nn.ReLU()
        )
        self.w_x = nn.Conv3d(fine, fine, 2, 2, bias=False)
        self.w_g = nn.Conv3d(coarse, fine, 1)
        self.psi = nn.Conv3d(fine, 1, 1)

    def forward(self, skip: Tensor, coarser: Tensor) -> Tensor:
        """(B, fine, X, Y, Z) and (B, coarse, x, y, z) → coefficients (B, 1, X, Y, Z)."""
        signal = self.GridGateSignal_generator(coarser)
        coefficients = self.psi(F.relu(self.w_x(skip) + self.w_g(signal)))
        return F.interpolate(coefficients, skip.shape[2:], mode="trilinear", align_corners=False)


class UpTransposed(nn.Module):
    """A transposed convolution by 2."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.upsampler = nn.ConvTranspose3d(in_channels, out_channels, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, x, y, z) → (B, out, 2x, 2y, 2z)."""
        return self.upsampler(x)  # type: ignore[no-any-return]


class Transposed3D(PublishedNetwork):
    """encoder.conv1 … conv4; decoder.attn3 … attn1, up3 … up1 and conv3 … conv1."""

    axes = 3
    published_width = 32
    factor = 8

    def __init__(self, in_channels: int, out_channels: int, width: int | None = None) -> None:
        super().__init__(in_channels, out_channels, width)
        widths = [self.width * 2**level for level in range(4)]
        below = [in_channels, *widths]
        self.encoder = nn.ModuleDict(
            {f"conv{n}": DoubleConv(3, below[n - 1], below[n]) for n in range(1, 5)}
        )
        self.decoder = nn.ModuleDict()
        for level in (1, 2, 3):
            fine, coarse = widths[level - 1], widths[level]
            self.decoder[f"attn{level}"] = GridGate(fine, coarse)
            self.decoder[f"up{level}"] = UpTransposed(coarse, fine)
            out = out_channels if level == 1 else fine
            self.decoder[f"conv{level}"] = DoubleConv(3, 2 * fine, out, middle=fine)

    def compute(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """See `PublishedNetwork.compute`."""
        skips = [self.encoder["conv1"](x)]
        for level in (2, 3, 4):
            skips.append(self.encoder[f"conv{level}"](F.max_pool3d(skips[-1], 2)))
        x = skips.pop()
        attention: list[Tensor] = []
        for level in (3, 2, 1):
            skip = skips.pop()
            alpha = self.decoder[f"attn{level}"](skip, x)
            x = torch.cat([alpha * skip, self.decoder[f"up{level}"](x)], 1)
            x = self.decoder[f"conv{level}"](x)
            attention.append(alpha)
        return x, attention[::-1]
