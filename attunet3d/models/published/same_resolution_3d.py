"""`3d_same_resolution`: a 3D network with the gates of `AttU_Net` and three convolutions per level.

Quirks against the paper: convolutions have no bias; an encoder level has three of them, a decoder
level two; upsampling is a 4×4×4 transposed convolution with BatchNorm and ReLU; the gates work at
the skip's own resolution, on every skip; concatenation is [upsampled, gated skip].
139,048,236 parameters for 1 channel in and 2 out.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attunet3d.models.published.blocks import SameResolutionGate, conv_norm_relu
from attunet3d.models.published.network import PublishedNetwork


class Level(nn.Module):
    """Layers in a row, under the name that the published code gives them."""

    def __init__(self, name: str, *layers: nn.Module) -> None:
        super().__init__()
        self.add_module(name, nn.Sequential(*layers))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, …) → (B, out, …)."""
        (layers,) = self.children()
        return layers(x)  # type: ignore[no-any-return]


def convolutions(*channels: int) -> list[nn.Module]:
    """Convolutions without bias, each with BatchNorm and ReLU, from one width to the next."""
    return [layer for pair in pairwise(channels) for layer in conv_norm_relu(3, *pair, bias=False)]


def upsampling(in_channels: int, out_channels: int) -> list[nn.Module]:
    """A transposed convolution by 2 with BatchNorm and ReLU."""
    convolution = nn.ConvTranspose3d(in_channels, out_channels, 4, 2, 1)
    return [convolution, nn.BatchNorm3d(out_channels), nn.ReLU(inplace=True)]


class SameResolution3D(PublishedNetwork):
    """encoder1 … encoder4, center, decoder4 … decoder2 and final; att4 … att1 on the skips."""

    axes = 3
    published_width = 64

    def __init__(self, in_channels: int, out_channels: int, width: int | None = None) -> None:
        super().__init__(in_channels, out_channels, width)
        a, b, c, d, e = (self.width * 2**level for level in range(5))
        for level, (below, here) in enumerate(((in_channels, a), (a, b), (b, c), (c, d)), 1):
            layers = convolutions(below, here, here, here)
            self.add_module(f"encoder{level}", Level("encoder_block", *layers))
        self.center = Level("center_block", *convolutions(d, e, e), *upsampling(e, d))
        for level, (here, fine) in ((4, (d, c)), (3, (c, b)), (2, (b, a))):
            layers = [*convolutions(2 * here, here, here), *upsampling(here, fine)]
            self.add_module(f"decoder{level}", Level("decoder_block", *layers))
        head = nn.Conv3d(a, out_channels, 1, bias=False)
        self.final = Level("final_block", *convolutions(2 * a, a, a), head)
        for level, channels in ((4, d), (3, c), (2, b), (1, a)):
            gate = SameResolutionGate(3, channels, max(1, channels // 2))
            self.add_module(f"att{level}", gate)

    def compute(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """See `PublishedNetwork.compute`."""
        parts = dict(self.named_children())
        skips: list[Tensor] = []
        for level in range(1, 5):
            skips.append(parts[f"encoder{level}"](x))
            x = F.max_pool3d(skips[-1], 2)
        x = self.center(x)  # upsampled to the deepest skip
        attention: list[Tensor] = []
        for level in (4, 3, 2, 1):
            gated, alpha = parts[f"att{level}"](x, skips.pop())
            x = parts[f"decoder{level}" if level > 1 else "final"](torch.cat([x, gated], 1))
            attention.append(alpha)
        return x, attention[::-1]
