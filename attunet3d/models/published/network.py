"""What every published network does alike around its own layers: any size in, attention at hand."""

from abc import abstractmethod
from itertools import chain
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from attunet3d.core import ModelError
from attunet3d.models.layers import deepest_values, require_statistics


class PublishedNetwork(nn.Module):
    """A network of the original authors' layers, with the interface of `AttentionUNet3D`.

    Any input size works: what the strides do not divide is repeated at its far ends, and the result
    cut to size. In training `forward` returns a list of one tensor of logits, in evaluation a
    tensor. Subclasses name their layers as the published code does, so that its weights load.

    Args:
        in_channels: Channels of the input.
        out_channels: Classes, background included.
        width: Channels of the finest level; as published by default.

    Attributes:
        axes: Spatial axes of the input, 2 or 3.
        published_width: Channels of the finest level as published.
        factor: Factor between the finest and the coarsest level.
        normalised: Whether it has BatchNorm.

    Raises:
        ModelError: A number is not positive.
    """

    axes: ClassVar[int]
    published_width: ClassVar[int]
    factor: ClassVar[int] = 16
    normalised: ClassVar[bool] = True

    def __init__(self, in_channels: int, out_channels: int, width: int | None = None) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.width = self.published_width if width is None else width
        numbers = (in_channels, out_channels, self.width)
        if min(numbers) < 1:
            raise ModelError(f"channels must be positive, got {numbers}", value=numbers)

    @property
    def strides(self) -> list[tuple[int, ...]]:
        """Factors of each level against the input, finest first."""
        levels = self.factor.bit_length()
        return [(2**level,) * self.axes for level in range(levels)]

    @property
    def divisor(self) -> tuple[int, ...]:
        """Factor of the coarsest level along each axis."""
        return self.strides[-1]

    @abstractmethod
    def compute(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits and the gates' coefficients, finest first, of an input that the strides divide."""

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits: a list of one in training; (B, out, …) in evaluation.

        Args:
            x: (B, in, X, Y) or (B, in, X, Y, Z).

        Raises:
            ModelError: In training, an input too small to be normalised at the deepest level.
        """
        logits, _ = self.forward_with_attention(x)
        return [logits] if self.training else logits

    def forward_with_attention(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, out, …), and coefficients (B, 1, …) per gate, finest first."""
        size = x.shape[2:]
        if self.training and self.normalised:
            values = deepest_values(len(x), size, self.divisor)
            require_statistics(values, "train on larger patches or batches")
        missing = [-length % self.factor for length in size]
        if any(missing):
            ends = chain.from_iterable((0, lack) for lack in reversed(missing))
            x = F.pad(x, tuple(ends), mode="replicate")
        full = x.shape[2]
        logits, attention = self.compute(x)
        return _crop(logits, size, 1), [_crop(a, size, full // a.shape[2]) for a in attention]


def _crop(x: Tensor, size: tuple[int, ...], factor: int) -> Tensor:
    """Cut off what padding added to `x`, of a level by `factor` coarser than an input of `size`."""
    for axis, length in enumerate(size, 2):
        x = x.narrow(axis, 0, -(-length // factor))
    return x
