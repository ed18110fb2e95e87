"""A 2D network over a volume: each slice with its neighbours as channels.

    (B, C, X, Y, Z)  →  (B · Z, C · n, X, Y)  →  2D network  →  (B · Z, K, X, Y)  →  (B, K, X, Y, Z)

Slices run along z. The neighbours of slice k are the slices k - n//2 … k + n//2; beyond the ends of
the volume its last slice is repeated. So it is at the ends of a patch, where the scan has others;
in inference `SlicePasses` therefore gives more slices than it takes answers of.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attunet3d.models.published.network import PublishedNetwork

CHUNK_PIXELS = 2**18  # at once in evaluation: a slice of 512 × 512


class SliceNetwork(nn.Module):
    """A 2D network that takes and returns volumes.

    In training all slices are one batch, as BatchNorm needs; in evaluation they are computed in
    chunks, which bounds memory and changes nothing.

    Args:
        network: Takes `slices` times the volume's channels.
        slices: Odd number of neighbouring slices that are seen together.

    Example:
        >>> from attunet3d.models.published.forms import published_network
        >>> network = SliceNetwork(published_network("2d_nearest", 3, 2, width=2), slices=3).eval()
        >>> tuple(network(torch.rand(1, 1, 20, 16, 5)).shape)
        (1, 2, 20, 16, 5)
    """

    def __init__(self, network: PublishedNetwork, slices: int) -> None:
        super().__init__()
        assert slices % 2 == 1
        assert network.in_channels % slices == 0
        self.network, self.slices = network, slices
        self.in_channels = network.in_channels // slices
        self.out_channels = network.out_channels

    @property
    def neighbours(self) -> int:
        """Number of slices that are seen on each side."""
        return self.slices // 2

    @property
    def strides(self) -> list[tuple[int, int, int]]:
        """Factors of each level against the input along x, y, z, finest first."""
        return [(x, y, 1) for x, y in self.network.strides]

    @property
    def divisor(self) -> tuple[int, int, int]:
        """Factor of the coarsest level along x, y, z."""
        return self.strides[-1]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits: a list of one in training; (B, K, X, Y, Z) in evaluation.

        Args:
            x: (B, C, X, Y, Z).
        """
        logits, _ = self.forward_with_attention(x)
        return [logits] if self.training else logits

    def forward_with_attention(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, K, X, Y, Z), and coefficients (B, 1, x, y, Z) per gate, finest first."""
        depth = x.shape[4]
        slices = self._with_neighbours(x)  # (B · Z, C · n, X, Y)
        chunks = [slices]
        if not (self.training or torch.compiler.is_exporting()):
            count = max(1, CHUNK_PIXELS // (x.shape[2] * x.shape[3]))
            chunks = list(torch.split(slices, count))
        parts = [self.network.forward_with_attention(chunk) for chunk in chunks]
        logits = torch.cat([part for part, _ in parts])
        attention = [torch.cat(maps) for maps in zip(*(maps for _, maps in parts), strict=True)]
        return _as_volume(logits, depth), [_as_volume(maps, depth) for maps in attention]

    def _with_neighbours(self, x: Tensor) -> Tensor:
        batch, channels, width, height, depth = x.shape
        n = self.neighbours
        padded = F.pad(x, (n, n, 0, 0, 0, 0), mode="replicate") if n else x
        shifted = [padded[..., k : k + depth] for k in range(self.slices)]
        stacked = torch.stack(shifted, 2)  # (B, C, n, X, Y, Z)
        slices = stacked.permute(0, 5, 1, 2, 3, 4)
        return slices.reshape(batch * depth, channels * self.slices, width, height)


def _as_volume(slices: Tensor, depth: int) -> Tensor:
    """(B · Z, K, X, Y) → (B, K, X, Y, Z)."""
    return slices.reshape(-1, depth, *slices.shape[1:]).permute(0, 2, 3, 4, 1)
