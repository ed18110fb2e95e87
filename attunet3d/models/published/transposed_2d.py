"""`2d_transposed`: `2d_nearest` with transposed convolutions, as a variant of `AttU_Net` has them.

Quirks against `2d_nearest`: upsampling is a 4×4 transposed convolution of stride 2 that keeps the
channels, then a convolution; the third gate's inner width is 64 whatever its channels.
57,162,993 parameters for 3 channels in and 5 out.
"""

from torch import Tensor, nn

from attunet3d.models.published.blocks import conv_norm_relu
from attunet3d.models.published.nearest_2d import Nearest2D


class UpTransposed(nn.Module):
    """A transposed convolution by 2, then a convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, in_channels, 4, 2, 1)
        self.Conv = nn.Sequential(*conv_norm_relu(2, in_channels, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, x, y) → (B, out, 2x, 2y)."""
        return self.Conv(self.up(x))  # type: ignore[no-any-return]


class Transposed2D(Nearest2D):
    """The layers of `Nearest2D`, with other upsampling."""

    def make_upsampling(self, in_channels: int, out_channels: int) -> nn.Module:
        """The step from a level to the next finer one."""
        return UpTransposed(in_channels, out_channels)

    def inner(self, level: int) -> int:
        """Half the skip's channels, and 64 in the third gate."""
        return 64 if level == 3 else super().inner(level)
