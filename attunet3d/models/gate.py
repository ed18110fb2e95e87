"""Additive attention on a grid coarser than the skip it gates (Oktay et al. 2018, section 2.2).

With x the skip (C_x channels), g the gating signal from the coarser level, and * trilinear
resizing:

    q = psi(relu(theta(x) + phi(g)*))                              eq. 1
    alpha = sigmoid(q)                                             eq. 2
    gated = W(alpha* x)

theta is a strided convolution, so attention is computed on the coarser grid; psi gives one value
a voxel, shared by all channels. Source: arXiv:1804.03999; the details that the text leaves open
(inner channels, W, no normalisation before psi) as in the authors' `GridAttentionBlock3D`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attunet3d.core import ModelError


def normaliser(norm: str, channels: int) -> nn.Module:
    """The normalisation called `norm`: "batch", "instance" or "group".

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
        return nn.InstanceNorm3d(channels, affine=True)
    if norm == "group":
        groups = max(n for n in range(1, max(1, channels // 8) + 1) if channels % n == 0)
        return nn.GroupNorm(groups, channels)
    raise ModelError(f"norm must be batch, instance or group, got {norm!r}")


def initialise(module: nn.Module) -> None:
    """He initialisation of kernels, normalisation weights from N(1, 0.02): the authors' start.

    For `Module.apply`; convolutions' biases keep torch's own start.
    """
    if getattr(getattr(module, "weight", None), "is_meta", False):
        return  # to be loaded; drawing from N on "meta" makes torch import its compiler, for 1 s
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_normal_(module.weight)
    elif isinstance(module, nn.BatchNorm3d | nn.InstanceNorm3d | nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


class GridAttentionGate(nn.Module):
    """Weigh a skip by where the gating signal says to look.

    Args:
        skip_channels: C_x.
        gating_channels: C_g.
        inner_channels: Channels in which the two are added; None: C_x, as the authors have it.
        stride: How much coarser than the skip attention is along x, y, z (1 where slices are
            thick).
        norm: Normalisation after W.
        align_corners: Trilinear convention; True for weights of torch 0.3.
        bias: Initial bias of psi; None: torch's own; 3.0 opens the gate.

    Example:
        >>> gate = GridAttentionGate(skip_channels=8, gating_channels=16).eval()
        >>> skip, gating = torch.rand(1, 8, 12, 12, 6), torch.rand(1, 16, 6, 6, 3)
        >>> gated, coefficients = gate(skip, gating)
        >>> tuple(gated.shape), tuple(coefficients.shape)
        ((1, 8, 12, 12, 6), (1, 1, 12, 12, 6))
    """

    def __init__(
        self,
        skip_channels: int,
        gating_channels: int,
        inner_channels: int | None = None,
        *,
        stride: tuple[int, int, int] = (2, 2, 2),
        norm: str = "batch",
        align_corners: bool = False,
        bias: float | None = None,
    ) -> None:
        super().__init__()
        inner = inner_channels or skip_channels
        if min(skip_channels, gating_channels, inner) < 1 or min(stride) < 1:
            raise ModelError(
                f"channels and stride must be positive, got {skip_channels}, {gating_channels},"
                f" {inner} and {stride}"
            )
        self.align_corners = align_corners
        self.theta = nn.Conv3d(skip_channels, inner, stride, stride, bias=False)
        self.phi = nn.Conv3d(gating_channels, inner, 1)
        self.psi = nn.Conv3d(inner, 1, 1)
        self.w = nn.Sequential(
            nn.Conv3d(skip_channels, skip_channels, 1), normaliser(norm, skip_channels)
        )
        self.apply(initialise)
        if bias is not None:
            nn.init.constant_(self.psi.bias, bias)  # type: ignore[arg-type]

    def forward(self, skip: Tensor, gating: Tensor) -> tuple[Tensor, Tensor]:
        """Gate the skip.

        Args:
            skip: (B, C_x, X, Y, Z), no axis shorter than the stride.
            gating: (B, C_g, x, y, z), any size; the same field of view as the skip.

        Returns:
            The gated skip (B, C_x, X, Y, Z), and the coefficients in [0, 1] (B, 1, X, Y, Z).
        """
        theta = self.theta(skip)  # (B, C_i, x', y', z')
        phi = resize(self.phi(gating), theta, self.align_corners)  # (B, C_i, x', y', z')
        coefficients = torch.sigmoid(self.psi(F.relu(theta + phi)))  # (B, 1, x', y', z')
        coefficients = resize(coefficients, skip, self.align_corners)  # (B, 1, X, Y, Z)
        return self.w(coefficients * skip), coefficients


def resize(x: Tensor, like: Tensor, align_corners: bool) -> Tensor:
    """`x` (B, C, …) resized trilinearly to the size of `like`."""
    size = [like.shape[2], like.shape[3], like.shape[4]]
    if [x.shape[2], x.shape[3], x.shape[4]] == size:
        return x
    return F.interpolate(x, size, mode="trilinear", align_corners=align_corners)
