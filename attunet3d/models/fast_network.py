"""A network rewritten for inference: the same function of its input, computed with less work.

The wiring stays that of `AttentionUNet3D`; its parts are exchanged for equal ones:

    convolution, then BatchNorm       one convolution                            `folded`
    the gates of a skip               one theta, one phi, one psi for all        `FoldedSkip`
    W of each gate, then combine      one 1×1×1 convolution                      `joined`
    heads, upsampling, cat, final     heads with `final` in them, a sum          `fused_heads`
    a sum of upsampled maps           products with small matrices               `upsampled_sum`
    upsampling, cat, convolution      channels mixed before upsampling        `SplitConvolution`

InstanceNorm and GroupNorm depend on the image and stay. Weights are combined in float64; in float32
the logits are those of the network up to rounding (1e-6 of the largest). In bfloat16 the weights
are bfloat16 themselves, where autocast would cast them, and much else, at every call.
"""

import copy
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from attunet3d.models import memory_layout
from attunet3d.models.attention_unet import AttentionUNet3D, ExpandingBlock, GatedSkip
from attunet3d.models.folding import (
    Affine,
    Convolution,
    affine,
    block_diagonal,
    folded,
    side_by_side,
)
from attunet3d.models.gate import GridAttentionGate, resize
from attunet3d.models.split_convolution import SplitConvolution
from attunet3d.models.upsampling import upsampled_sum


@torch.no_grad()
def accelerated(
    network: AttentionUNet3D, device: torch.device, dtype: torch.dtype, *, split: bool = False
) -> AttentionUNet3D:
    """A network for evaluation only that computes what `network` does in eval mode, faster.

    Args:
        network: Only read; it may go on training.
        device: Where the new network is put.
        dtype: float32 or bfloat16; of the convolutions' weights and all features between them. It
            takes any type; the logits are float32 where deep supervision is fused.
        split: Use `SplitConvolution`, which pays on CPUs in float32.
    """
    fast = AcceleratedUNet(network, dtype, split).eval()
    return fast.to(device, memory_format=fast.layout)  # type: ignore[call-overload,no-any-return]


class AcceleratedUNet(AttentionUNet3D):
    """The parts of a network, rewritten, in the wiring that they came in."""

    def __init__(self, network: AttentionUNet3D, dtype: torch.dtype, split: bool) -> None:
        nn.Module.__init__(self)  # not the network's own: nothing is built or initialised anew
        self.in_channels, self.out_channels = network.in_channels, network.out_channels
        self.align_corners, self.norm = network.align_corners, network.norm
        self.deep_supervision, self.strides = network.deep_supervision, network.strides
        self.dtype = dtype
        self.layout = memory_layout.fastest(network)
        split = split and self.layout == memory_layout.CHANNELS_LAST
        self.encoder = nn.ModuleList(block(part) for part in network.encoder)
        self.pools = copy.deepcopy(network.pools)
        self.gating = block(network.gating)  # type: ignore[assignment]
        self.skips = nn.ModuleList(
            FoldedSkip(part, self.align_corners) if isinstance(part, GatedSkip) else part
            for part in network.skips
        )
        decoder = cast("list[ExpandingBlock]", list(network.decoder))
        levels = reversed(list(pairwise(network.strides)))  # deepest first
        self.decoder = nn.ModuleList(
            FoldedExpansion(part, split and above[0] < below[0])
            for part, (above, below) in zip(decoder, levels, strict=True)
        )
        self.heads = nn.ModuleList(fused_heads(network))
        for part in self.modules():
            if isinstance(part, Convolution):  # normalisations compute in float32 anyway
                part.to(dtype)

    def _padded(self, x: Tensor) -> Tensor:
        return memory_layout.laid_out(super()._padded(x).to(self.dtype), self.layout)

    def _logits(self, decoded: list[Tensor], size: list[int]) -> list[Tensor]:
        if self.deep_supervision != "fused":
            return super()._logits(decoded, size)
        maps = [head(features).float() for head, features in zip(self.heads, decoded, strict=True)]
        return [self._cut(upsampled_sum(maps, self.align_corners), size, 0)]


class FoldedSkip(nn.Module):
    """The gates of a skip side by side, and what joins them.

    Gates read the same skip x and signal g, so their theta and phi are one convolution each, of all
    gates' channels, and their psi one of a matrix with zeros between gates.
    """

    def __init__(self, skip: GatedSkip, align_corners: bool) -> None:
        super().__init__()
        gates = cast("list[GridAttentionGate]", list(skip.gates))
        self.align_corners = align_corners
        thetas = [gate.theta for gate in gates]
        self.theta = Convolution(side_by_side(thetas), stride=thetas[0].stride)
        self.phi = Convolution(side_by_side([gate.phi for gate in gates]))
        self.psi = Convolution(block_diagonal([gate.psi for gate in gates]))
        batch = isinstance(skip.combine[1], nn.BatchNorm3d)
        self.w = nn.ModuleList([] if batch else [block(gate.w) for gate in gates])
        self.combine = Convolution(joined(skip), rectified=True) if batch else block(skip.combine)

    def forward(self, skip: Tensor, gating: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, X, Y, Z) gated, and the coefficients (B, gates, X, Y, Z)."""
        theta = self.theta(skip)  # (B, gates · C_i, x', y', z')
        phi = resize(self.phi(gating), theta, self.align_corners)
        coefficients = torch.sigmoid(self.psi(theta.add_(phi).relu_()))  # (B, gates, x', …)
        # Few channels interpolate faster as planes.
        coefficients = resize(coefficients.contiguous(), skip, self.align_corners)
        gated = [alpha * skip for alpha in coefficients.chunk(coefficients.shape[1], 1)]
        if self.w:
            gated = [w(part) for w, part in zip(self.w, gated, strict=True)]
        return self.combine(torch.cat(gated, 1)), coefficients


class FoldedExpansion(nn.Module):
    """A step of the decoder; `split`: its first convolution as a `SplitConvolution`."""

    def __init__(self, expand: ExpandingBlock, split: bool) -> None:
        super().__init__()
        self.align_corners, self.split = expand.align_corners, split
        first, *rest = block(expand)
        if split:
            convolution = cast("Convolution", first)
            skip_channels = len(convolution.weight)
            first = SplitConvolution(convolution, skip_channels, self.align_corners)
        self.first, self.rest = first, nn.Sequential(*rest)

    def forward(self, skip: Tensor, below: Tensor) -> Tensor:
        """(B, fine, X, Y, Z) and (B, coarse, x, y, z) → (B, fine, X, Y, Z)."""
        if self.split:
            x = self.first(skip, below)
        else:
            x = self.first(torch.cat([skip, resize(below, skip, self.align_corners)], 1))
        return self.rest(x)  # type: ignore[no-any-return]


class GroupNormFloat32(nn.Module):
    """A GroupNorm whose features may be bfloat16: CUDA's takes those of its weights' type only."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = copy.deepcopy(norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, X, Y, Z) normalised, in the type and layout it came in."""
        if not x.is_cuda:
            return self.norm(x)  # type: ignore[no-any-return]
        return self.norm(x.float()).to(x.dtype, memory_format=memory_layout.CHANNELS_LAST)  # type: ignore[no-any-return]


def block(layers: nn.Module) -> nn.Sequential:
    """Convolutions with normalisation and ReLU between them; each rewritten, dropout left out."""
    parts: list[nn.Module] = []
    sequence = list(layers.children())
    for n, layer in enumerate(sequence):
        if not isinstance(layer, nn.Conv3d):
            continue
        norm = sequence[n + 1]
        relu = n + 2 < len(sequence) and isinstance(sequence[n + 2], nn.ReLU)
        if isinstance(norm, nn.BatchNorm3d):
            parts += [Convolution(folded(layer, norm), stride=layer.stride, rectified=relu)]
        else:
            kept = GroupNormFloat32(norm) if isinstance(norm, nn.GroupNorm) else copy.deepcopy(norm)
            parts += [Convolution(affine(layer), stride=layer.stride), kept]
            parts += [nn.ReLU(inplace=True)] if relu else []
    return nn.Sequential(*parts)


def joined(skip: GatedSkip) -> Affine:
    """Between W of gate i and `combine` = [C₁ C₂ …] there is no nonlinearity.

    Σᵢ Cᵢ (Wᵢ yᵢ + wᵢ) + c  =  [C₁W₁ C₂W₂ …] [y₁; y₂; …] + c + Σᵢ Cᵢ wᵢ
    """
    gates = cast("list[GridAttentionGate]", list(skip.gates))
    weight, bias = folded(skip.combine[0], skip.combine[1])
    weights: list[Tensor] = []
    for gate, part in zip(gates, weight.chunk(len(gates), 1), strict=True):
        w, constant = folded(gate.w[0], gate.w[1])
        matrix = part.flatten(1)  # (C, C)
        weights.append((matrix @ w.flatten(1)).reshape(w.shape))
        bias = bias + matrix @ constant
    return torch.cat(weights, 1), bias


def fused_heads(network: AttentionUNet3D) -> list[Convolution]:
    """The heads; where they are fused, with their share F_l of `final` = [F₀ F₁ …] in them.

    Upsampling u_l weighs neighbours by weights that sum to 1: it goes past a 1×1×1 convolution, and
    constants go past it, so that the finest head bears them all.

        Σ_l F_l u_l(H_l x_l + h_l) + f  =  Σ_l u_l(F_l H_l x_l) + f + Σ_l F_l h_l
    """
    heads = [affine(head) for head in network.heads]
    if network.deep_supervision != "fused":
        return [Convolution(head) for head in heads]
    final, constant = affine(network.final)
    weights: list[Tensor] = []
    for (weight, bias), part in zip(heads, final.chunk(len(heads), 1), strict=True):
        matrix = part.flatten(1)  # (classes, classes)
        weights.append((matrix @ weight.flatten(1)).reshape(weight.shape))
        constant = constant + matrix @ bias
    biases = [constant, *(torch.zeros_like(constant) for _ in weights[1:])]
    return [Convolution(pair) for pair in zip(weights, biases, strict=True)]
