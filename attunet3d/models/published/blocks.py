"""Layers that several of the published networks have in common, in 2D and 3D."""

import torch
from torch import Tensor, nn

CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def conv_norm_relu(
    axes: int, in_channels: int, out_channels: int, *, bias: bool = True
) -> list[nn.Module]:
    """A convolution of three voxels per axis, BatchNorm and ReLU, for an `nn.Sequential`."""
    return [
        CONVOLUTION[axes](in_channels, out_channels, 3, padding=1, bias=bias),
        NORM[axes](out_channels),
        nn.ReLU(inplace=True),
    ]


class DoubleConv(nn.Module):
    """Two convolutions, each with BatchNorm and ReLU, under the published name `conv`."""

    def __init__(
        self, axes: int, in_channels: int, out_channels: int, middle: int | None = None
    ) -> None:
        super().__init__()
        middle = middle or out_channels  # channels between the two
        self.conv = nn.Sequential(
            *conv_norm_relu(axes, in_channels, middle), *conv_norm_relu(axes, middle, out_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, …) → (B, out, …)."""
        return self.conv(x)  # type: ignore[no-any-return]


class SameResolutionGate(nn.Module):
    """A gate whose signal has the skip's resolution (the published `Attention_block`).

        alpha = sigmoid(BN(psi(relu(BN(W_g g) + BN(W_x x)))))

    Unlike the paper's grid gate it projects without stride, normalises every projection, and has
    no projection after the product.
    """

    def __init__(self, axes: int, channels: int, inner: int) -> None:
        super().__init__()

        def project(in_channels: int, out_channels: int) -> list[nn.Module]:
            convolution = CONVOLUTION[axes](in_channels, out_channels, 1)
            return [convolution, NORM[axes](out_channels)]

        self.W_g = nn.Sequential(*project(channels, inner))
        self.W_x = nn.Sequential(*project(channels, inner))
        self.psi = nn.Sequential(*project(inner, 1), nn.Sigmoid())

    def forward(self, g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The signal and the skip, both (B, C, …) → the gated skip, and alpha (B, 1, …)."""
        alpha = self.psi(torch.relu(self.W_g(g) + self.W_x(x)))
        return x * alpha, alpha
