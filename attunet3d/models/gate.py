"""Additive attention on a grid coarser than the skip it gates (Oktay et al. 2018, section 2.2).

With x the skip (C_x channels), g the gating signal from the coarser level, and * trilinear
resizing:

    q = psi(relu(theta(x) + phi(g)*))                              eq. 1
    alpha = sigmoid(q)                                             eq. 2
    gated = W(alpha* x)

theta is a strided convolution, so attention is computed on the coarser grid; psi gives one value
per voxel, shared by all channels. Source: arXiv:1804.03999. The details that the text leaves open
(inner channels, W, no normalisation before psi) follow the authors' `GridAttentionBlock3D`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attunet3d.core import ModelError
from attunet3d.models.layers import PointBlock, initialise, normaliser, resize


class GridAttentionGate(nn.Module):
    """Weigh a skip by where the gating signal says to look.

    Args:
        skip_channels: C_x.
        gating_channels: C_g.
        inner_channels: C_i, channels in which the two are added; None: C_x, as the authors do.
        stride: How much coarser than the skip the attention is along x, y, z (1 where slices are
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
            given = f"{skip_channels}, {gating_channels}, {inner} and {stride}"
            raise ModelError(f"channels and stride must be positive, got {given}")
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


class GatedSkip(nn.Module):
    """One or two gates on a skip, joined by a 1×1×1 block (the authors' `MultiAttentionBlock`).

    Args:
        gates: The gates, all of this skip.
        activation: Activation after the 1×1×1 convolution.
        norm: Normalisation after it.
    """

    def __init__(self, gates: Sequence[GridAttentionGate], norm: str, activation: str) -> None:
        super().__init__()
        self.gates = nn.ModuleList(gates)
        channels = gates[0].theta.in_channels
        self.combine = PointBlock(len(gates) * channels, channels, norm, activation)

    def forward(self, skip: Tensor, gating: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, X, Y, Z) gated, and the coefficients (B, gates, X, Y, Z)."""
        gated, coefficients = zip(*(gate(skip, gating) for gate in self.gates), strict=True)
        return self.combine(torch.cat(gated, 1)), torch.cat(coefficients, 1)


class PlainSkip(nn.Module):
    """A skip without gates; it has no coefficients."""

    def forward(self, skip: Tensor, gating: Tensor) -> tuple[Tensor, Tensor]:
        """The skip as it is, and coefficients (B, 0, X, Y, Z)."""
        return skip, skip[:, :0]
