"""Layers of the networks: normalisation, activation, blocks of convolutions, resizing.

Shapes: B batch, C channels, X Y Z space (R, A, S).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attunet3d.core import ModelError
from attunet3d.models.normalisation import GroupNorm, InstanceNorm3d

Stride = tuple[int, int, int]
NO_STRIDE: Stride = (1, 1, 1)
LEAKY_SLOPE = 0.01  # as nnU-Net has it


def normaliser(norm: str, channels: int) -> nn.Module:
    """Return the normalisation called `norm`: "batch", "instance" or "group".

    Groups hold 8 channels; where 8 does not divide them, the next larger share that does.

    Example:
        >>> [normaliser("group", channels).num_groups for channels in (4, 16, 20, 33, 320)]
        [1, 2, 2, 3, 40]

    Raises:
        ModelError: There is no such normalisation.
    """
    if norm == "batch":
        return nn.BatchNorm3d(channels)
    if norm == "instance":
        return InstanceNorm3d(channels, affine=True)
    if norm == "group":
        groups = max(n for n in range(1, max(1, channels // 8) + 1) if channels % n == 0)
        return GroupNorm(groups, channels)
    raise ModelError(f"norm must be one of batch, instance, group, got {norm!r}", value=norm)


def deepest_values(images: int, size: Sequence[int], factors: Sequence[int]) -> int:
    """Values per channel of `images` of a `size` together, at the level coarser by `factors`.

    Example:
        >>> deepest_values(2, (32, 16, 9), (16, 16, 16))
        4
    """
    values = images
    for length, factor in zip(size, factors, strict=True):  # torch.compile takes no prod()
        values *= -(-length // factor)
    return values


def require_statistics(values: int, cure: str) -> None:
    """Refuse to train where a normalisation has one value per channel, whose deviation is 0.

    Raises:
        ModelError: It has.
    """
    if values == 1:
        rule = "one value per channel is left at the deepest level, which cannot be normalised"
        raise ModelError(rule, value=values, cure=cure)


def activator(activation: str) -> nn.Module:
    """Return the activation called `activation`: "relu" or "leaky_relu" (slope 0.01).

    Raises:
        ModelError: There is no such activation.
    """
    if activation == "relu":
        return nn.ReLU(inplace=True)
    if activation == "leaky_relu":
        return nn.LeakyReLU(LEAKY_SLOPE, inplace=True)
    rule = f"activation must be one of relu, leaky_relu, got {activation!r}"
    raise ModelError(rule, value=activation)


def initialise(module: nn.Module) -> None:
    """Draw He kernels, and normalisation weights from N(1, 0.02): the authors' start.

    For `Module.apply`. The biases of convolutions keep torch's own initial values.
    """
    if getattr(getattr(module, "weight", None), "is_meta", False):
        return  # weights follow; drawing from N on "meta" makes torch import its compiler, for 1 s
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_normal_(module.weight)
    elif isinstance(module, nn.BatchNorm3d | nn.InstanceNorm3d | nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def resize(x: Tensor, like: Tensor, align_corners: bool) -> Tensor:
    """Resize `x` (B, C, x, y, z) trilinearly to the spatial size of `like`."""
    size = like.shape[2:]
    if x.shape[2:] == size:
        return x
    return F.interpolate(x, size, mode="trilinear", align_corners=align_corners)


class ConvBlock(nn.Sequential):
    """Two 3×3×3 convolutions, each with normalisation and activation; then dropout of channels.

    The first has the stride, along x, y, z; norm and activation are names.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        norm: str = "batch",
        activation: str = "relu",
        dropout: float = 0.0,
        stride: Stride = NO_STRIDE,
    ) -> None:
        super().__init__(
            nn.Conv3d(in_channels, out_channels, 3, stride, padding=1),
            normaliser(norm, out_channels),
            activator(activation),
            nn.Conv3d(out_channels, out_channels, 3, padding=1),
            normaliser(norm, out_channels),
            activator(activation),
            *([nn.Dropout3d(dropout)] if dropout else []),
        )


class AveragePool(nn.AvgPool3d):
    """Average pooling; of bfloat16 in float32, as CPUs have no kernel for it."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, X, Y, Z) → (B, C, X / kernel, …)."""
        if x.dtype != torch.bfloat16:
            return super().forward(x)
        return super().forward(x.float()).to(x.dtype)


class ResidualBlock(nn.Module):
    """Two 3×3×3 convolutions whose result is added to the input (He et al. 2016; nnU-Net ResEnc).

        y = a(norm(conv(a(norm(conv(x))))) + s(x))

    The shortcut s averages over the stride and mixes channels by a 1×1×1 convolution with
    normalisation, where the stride or the number of channels change; else it is the identity.

    Args: as `ConvBlock`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        norm: str = "batch",
        activation: str = "relu",
        dropout: float = 0.0,
        stride: Stride = NO_STRIDE,
    ) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv3d(in_channels, out_channels, 3, stride, padding=1),
            normaliser(norm, out_channels),
            activator(activation),
        )
        self.second = nn.Sequential(
            nn.Conv3d(out_channels, out_channels, 3, padding=1), normaliser(norm, out_channels)
        )
        shortcut: list[nn.Module] = []
        if stride != NO_STRIDE:
            shortcut += [AveragePool(stride)]
        if in_channels != out_channels:
            shortcut += [nn.Conv3d(in_channels, out_channels, 1, bias=False)]
            shortcut += [normaliser(norm, out_channels)]
        self.shortcut = nn.Sequential(*shortcut)
        self.activation = activator(activation)
        self.dropout = nn.Dropout3d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, X, Y, Z) → (B, C_out, X / stride, …)."""
        y = self.second(self.first(x)) + self.shortcut(x)
        return self.dropout(self.activation(y))  # type: ignore[no-any-return]


class PointBlock(nn.Sequential):
    """A 1×1×1 convolution with normalisation and activation."""

    def __init__(self, in_channels: int, out_channels: int, norm: str, activation: str) -> None:
        convolution = nn.Conv3d(in_channels, out_channels, 1)
        super().__init__(convolution, normaliser(norm, out_channels), activator(activation))
