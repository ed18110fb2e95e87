"""`2d_nearest`: the 2D network known as `AttU_Net` (LeeJunHyun/Image_Segmentation and its copies).

Quirks against the paper: it is 2D; upsampling is nearest and then convolved; the gates work at the
skip's own resolution, on every skip, with the upsampled features as their signal. The published
forward ends in a sigmoid; here it ends in the logits before it.
34,878,638 parameters for 3 channels in and 2 out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attunet3d.models.published.blocks import DoubleConv, SameResolutionGate, conv_norm_relu
from attunet3d.models.published.network import PublishedNetwork

LEVELS = range(2, 6)  # the published numbers of levels below the finest


class UpNearest(nn.Module):
    """Nearest upsampling by 2, then a convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = nn.Sequential(
            nn.Upsample(scale_factor=2), *conv_norm_relu(2, in_channels, out_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, x, y) → (B, out, 2x, 2y)."""
        return self.up(x)  # type: ignore[no-any-return]


class Nearest2D(PublishedNetwork):
    """Conv1 … Conv5 down; Up5 … Up2, Att5 … Att2 and Up_conv5 … Up_conv2 up; then Conv_1x1."""

    axes = 2
    published_width = 64

    def __init__(self, in_channels: int, out_channels: int, width: int | None = None) -> None:
        super().__init__(in_channels, out_channels, width)
        self.Conv1 = DoubleConv(2, in_channels, self.width)
        for level in LEVELS:
            fine, coarse = self.width * 2 ** (level - 2), self.width * 2 ** (level - 1)
            self.add_module(f"Conv{level}", DoubleConv(2, fine, coarse))
        for level in reversed(LEVELS):
            fine, coarse = self.width * 2 ** (level - 2), self.width * 2 ** (level - 1)
            self.add_module(f"Up{level}", self.make_upsampling(coarse, fine))
            self.add_module(f"Att{level}", SameResolutionGate(2, fine, self.inner(level)))
            self.add_module(f"Up_conv{level}", DoubleConv(2, coarse, fine))
        self.Conv_1x1 = nn.Conv2d(self.width, out_channels, 1)

    def make_upsampling(self, in_channels: int, out_channels: int) -> nn.Module:
        """The step from a level to the next finer one."""
        return UpNearest(in_channels, out_channels)

    def inner(self, level: int) -> int:
        """Channels in which a gate adds the signal and the skip: half the skip's."""
        return max(1, (self.width << (level - 2)) // 2)

    def compute(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """See `PublishedNetwork.compute`."""
        parts = dict(self.named_children())
        skips = [self.Conv1(x)]  # level l: (B, width · 2^(l - 1), X / 2^(l - 1), …)
        for level in LEVELS:
            skips.append(parts[f"Conv{level}"](F.max_pool2d(skips[-1], 2)))
        x = skips.pop()
        attention: list[Tensor] = []
        for level in reversed(LEVELS):
            x = parts[f"Up{level}"](x)
            gated, alpha = parts[f"Att{level}"](x, skips.pop())
            x = parts[f"Up_conv{level}"](torch.cat([gated, x], 1))
            attention.append(alpha)
        return self.Conv_1x1(x), attention[::-1]
