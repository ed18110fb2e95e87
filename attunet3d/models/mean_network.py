"""Several networks as one: the mean of their logits."""

import math
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from attunet3d.core import Size


class MeanNetwork(nn.Module):
    """The mean output of networks with the same number of classes, in eval mode.

    Args:
        members: The networks.

    Example:
        >>> import torch
        >>> from attunet3d.models import AttentionUNet3D
        >>> one, other = (AttentionUNet3D(1, 2, (2, 4)).eval() for _ in range(2))
        >>> x = torch.rand(1, 1, 4, 4, 4)
        >>> mean = MeanNetwork([one, other]).eval()
        >>> torch.allclose(mean(x), (one(x) + other(x)) / 2)
        True
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.in_channels = cast("int", members[0].in_channels)

    @property
    def divisor(self) -> Size:
        """Sizes that every member takes without padding are multiples of this."""
        x, y, z = (
            math.lcm(*sizes)
            for sizes in zip(*(cast("Size", part.divisor) for part in self.members), strict=True)
        )
        return x, y, z

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, x, y, z) → (B, K, x, y, z)."""
        total: Tensor = self.members[0](x)
        for part in list(self.members)[1:]:
            total = total + part(x)
        return total / len(self.members)
