"""`2d_unnormalised`: a 2D network without normalisation, published in Keras.

Quirks against the paper: no normalisation anywhere; dropout 0.2 between the two convolutions of a
block; nearest upsampling without a convolution; the gates work at the skip's own resolution, on
every skip, with an inner width of a quarter of the upsampled channels; concatenation is
[upsampled, gated skip]. Layers have the names of the summary that the page prints (`conv2d_119` …),
their kernels torch's order (out, in, 3, 3). 7,977,941 parameters for 3 channels in and 1 out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attunet3d.models.published.network import PublishedNetwork

FIRST = 119  # the number of the first layer
LEVELS, DROPOUT = 5, 0.2


class Unnormalised2D(PublishedNetwork):
    """conv2d_119 … 128 down; per level up, three of a gate and two of a block; conv2d_149 last."""

    axes = 2
    published_width = 32
    normalised = False

    def __init__(self, in_channels: int, out_channels: int, width: int | None = None) -> None:
        super().__init__(in_channels, out_channels, width)
        widths = [self.width * 2**level for level in range(LEVELS)]
        shapes: list[tuple[int, int, int]] = []  # in, out, kernel
        below = in_channels
        for here in widths:
            shapes += [(below, here, 3), (here, here, 3)]
            below = here
        for fine, coarse in zip(widths[-2::-1], widths[:0:-1], strict=True):
            inner = max(1, coarse // 4)
            shapes += [(fine, inner, 1), (coarse, inner, 1), (inner, 1, 1)]
            shapes += [(fine + coarse, fine, 3), (fine, fine, 3)]
        shapes += [(self.width, out_channels, 1)]
        for number, (a, b, kernel) in enumerate(shapes, FIRST):
            self.add_module(f"conv2d_{number}", nn.Conv2d(a, b, kernel, padding=kernel // 2))
        self.dropout = nn.Dropout(DROPOUT)

    def compute(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """See `PublishedNetwork.compute`."""
        layers = iter(part for part in self.children() if isinstance(part, nn.Conv2d))

        def block(x: Tensor) -> Tensor:
            x = self.dropout(F.relu(next(layers)(x)))
            return F.relu(next(layers)(x))

        skips: list[Tensor] = []
        for _ in range(LEVELS - 1):
            skips.append(block(x))
            x = F.max_pool2d(skips[-1], 2)
        x = block(x)
        attention: list[Tensor] = []
        for skip in reversed(skips):
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            projected = next(layers)(skip) + next(layers)(x)
            alpha = torch.sigmoid(next(layers)(F.relu(projected)))
            x = block(torch.cat([x, alpha * skip], 1))
            attention.append(alpha)
        return next(layers)(x), attention[::-1]
