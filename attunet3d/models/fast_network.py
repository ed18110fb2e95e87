"""A network rewritten for inference: the same function of its input, computed with less work.

The wiring stays that of `AttentionUNet3D`; its parts are replaced by equal ones:

    level l   x ─ block ─────────────────────── skip ─► cat ─ block ─ head l ─┐
                  └ pool                                └ up                  final ─► logits
    level l+1         └ block ── gates ◄ g ─── skip ─► cat ─ block ─ head l+1 ┘

    in the network                    here
    block: conv, BatchNorm, ReLU      one convolution                          `rewrite_block`
    gates of a skip                   one theta, one phi, one psi for all      `FusedGates`
    W of each gate, then combine      one 1×1×1 convolution                    `fuse_outputs`
    head l, up, cat, final            heads with `final` in them, then a sum   `fuse_heads`
    sum of upsampled maps             products with small matrices             `upsampling`
    up, cat, conv                     channels mixed before upsampling         `SplitConvolution`

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
from attunet3d.models.attention_unet import AttentionUNet3D
from attunet3d.models.folding import (
    FoldedConvolution,
    WeightAndBias,
    fold_batchnorm,
    rectify_,
    stack_diagonally,
    stack_outputs,
    weight_and_bias,
)
from attunet3d.models.gate import GatedSkip, GridAttentionGate
from attunet3d.models.layers import ResidualBlock, resize
from attunet3d.models.split_convolution import SplitConvolution
from attunet3d.models.upsampling import sum_upsampled


@torch.no_grad()
def rewrite_for_inference(
    network: AttentionUNet3D, device: torch.device, dtype: torch.dtype, *, split: bool = False
) -> AttentionUNet3D:
    """Return a network that computes what `network` does in eval mode, faster.

    Args:
        network: Not modified; it may go on training.
        device: Where the new network is put.
        dtype: float32 or bfloat16, of the convolutions' weights and all features between them. The
            input may have any type; the logits are float32 where deep supervision is fused.
        split: Use `SplitConvolution`, which pays on CPUs in float32.
    """
    fast = InferenceUNet(network, dtype, split).eval()
    return fast.to(device, memory_format=fast.layout)  # type: ignore[call-overload,no-any-return]


class InferenceUNet(AttentionUNet3D):
    """The rewritten parts of a network, in that network's wiring; for evaluation only."""

    def __init__(self, network: AttentionUNet3D, dtype: torch.dtype, split: bool) -> None:
        nn.Module.__init__(self)  # not the parent's: nothing is built or initialised anew
        self.in_channels, self.out_channels = network.in_channels, network.out_channels
        self.align_corners, self.norm = network.align_corners, network.norm
        self.deep_supervision, self.strides = network.deep_supervision, network.strides
        self.dtype = dtype
        self.layout = memory_layout.fastest_layout(network)
        split = split and self.layout == memory_layout.CHANNELS_LAST
        self.encoder = nn.ModuleList(rewrite_level(part) for part in network.encoder)
        self.pools = copy.deepcopy(network.pools)
        self.gating = rewrite_block(network.gating)  # type: ignore[assignment]
        self.skips = nn.ModuleList(
            FusedGates(part, self.align_corners) if isinstance(part, GatedSkip) else part
            for part in network.skips
        )
        levels = reversed(list(pairwise(network.strides)))  # deepest first
        self.decoder = nn.ModuleList(
            DecoderStep(part, self.align_corners, split and above[0] < below[0])
            for part, (above, below) in zip(network.decoder, levels, strict=True)
        )
        self.heads = nn.ModuleList(fuse_heads(network))
        for part in self.modules():
            if isinstance(part, FoldedConvolution):  # normalisations compute in float32 anyway
                part.to(dtype)

    def _pad(self, x: Tensor) -> Tensor:
        return memory_layout.copy_in_layout(super()._pad(x).to(self.dtype), self.layout)

    def _expand(self, block: nn.Module, skip: Tensor, below: Tensor) -> Tensor:
        return block(skip, below)  # type: ignore[no-any-return]

    def _logits(self, decoded: list[Tensor], size: torch.Size) -> list[Tensor]:
        if self.deep_supervision != "fused":
            return super()._logits(decoded, size)
        maps = [head(features).float() for head, features in zip(self.heads, decoded, strict=True)]
        return [self._crop(sum_upsampled(maps, self.align_corners), size, 0)]


class FusedGates(nn.Module):
    """The gates of a skip computed together, and the convolution that joins them.

    Gates read the same skip x and signal g, so their theta and phi are one convolution each, of all
    gates' channels, and their psi is one of a matrix with zeros between gates.
    """

    def __init__(self, skip: GatedSkip, align_corners: bool) -> None:
        super().__init__()
        gates = cast("list[GridAttentionGate]", list(skip.gates))
        self.align_corners = align_corners
        thetas = [gate.theta for gate in gates]
        stride = thetas[0].stride
        self.theta = FoldedConvolution(stack_outputs(thetas), stride=stride, padding=(0, 0, 0))
        self.phi = FoldedConvolution(stack_outputs([gate.phi for gate in gates]))
        self.psi = FoldedConvolution(stack_diagonally([gate.psi for gate in gates]))
        batch = isinstance(skip.combine[1], nn.BatchNorm3d)
        self.w = nn.ModuleList([] if batch else [rewrite_block(gate.w) for gate in gates])
        self.combine: nn.Module
        if batch:
            slope = _negative_slope(skip.combine[2])
            self.combine = FoldedConvolution(fuse_outputs(skip), negative_slope=slope)
        else:
            self.combine = rewrite_block(skip.combine)

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


class DecoderStep(nn.Module):
    """Upsampling, concatenation and a block; `split`: its first convolution is split in two."""

    def __init__(self, block: nn.Module, align_corners: bool, split: bool) -> None:
        super().__init__()
        self.align_corners, self.split = align_corners, split
        first, *rest = rewrite_block(block)
        if split:
            convolution = cast("FoldedConvolution", first)
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


class FoldedResidualBlock(nn.Module):
    """A `ResidualBlock` of rewritten parts."""

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.first, self.second = rewrite_block(block.first), rewrite_block(block.second)
        pools = [copy.deepcopy(m) for m in block.shortcut if isinstance(m, nn.AvgPool3d)]
        self.shortcut = nn.Sequential(*pools, *rewrite_block(block.shortcut))
        self.negative_slope = _negative_slope(block.activation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, X, Y, Z) → (B, C_out, X / stride, …)."""
        return rectify_(self.second(self.first(x)).add_(self.shortcut(x)), self.negative_slope)


def rewrite_level(level: nn.Module) -> nn.Module:
    """Rewrite a level of the encoder: a block, or several in a row."""
    if isinstance(level, ResidualBlock):
        return FoldedResidualBlock(level)
    if any(isinstance(part, nn.Conv3d) for part in level.children()):
        return rewrite_block(level)
    return nn.Sequential(*(rewrite_level(part) for part in level.children()))


def rewrite_block(layers: nn.Module) -> nn.Sequential:
    """Rewrite convolutions, each with normalisation and perhaps activation; leave dropout out."""
    parts: list[nn.Module] = []
    sequence = list(layers.children())
    for n, layer in enumerate(sequence):
        if not isinstance(layer, nn.Conv3d):
            continue
        norm = sequence[n + 1]
        after = sequence[n + 2] if n + 2 < len(sequence) else None
        slope = _negative_slope(after)
        where = {"stride": layer.stride, "padding": layer.padding}
        if isinstance(norm, nn.BatchNorm3d):
            weights = fold_batchnorm(layer, norm)
            parts += [FoldedConvolution(weights, **where, negative_slope=slope)]  # type: ignore[arg-type]
        else:
            parts += [FoldedConvolution(weight_and_bias(layer), **where), copy.deepcopy(norm)]  # type: ignore[arg-type]
            parts += [] if after is None or slope is None else [copy.deepcopy(after)]
    return nn.Sequential(*parts)


def _negative_slope(activation: nn.Module | None) -> float | None:
    if isinstance(activation, nn.ReLU):
        return 0.0
    return activation.negative_slope if isinstance(activation, nn.LeakyReLU) else None


def fuse_outputs(skip: GatedSkip) -> WeightAndBias:
    """Between W of gate i and `combine` = [C₁ C₂ …] there is no nonlinearity.

    Σᵢ Cᵢ (Wᵢ yᵢ + wᵢ) + c  =  [C₁W₁ C₂W₂ …] [y₁; y₂; …] + c + Σᵢ Cᵢ wᵢ
    """
    gates = cast("list[GridAttentionGate]", list(skip.gates))
    weight, bias = fold_batchnorm(skip.combine[0], skip.combine[1])
    weights: list[Tensor] = []
    for gate, part in zip(gates, weight.chunk(len(gates), 1), strict=True):
        w, constant = fold_batchnorm(gate.w[0], gate.w[1])
        matrix = part.flatten(1)  # (C, C)
        weights.append((matrix @ w.flatten(1)).reshape(w.shape))
        bias = bias + matrix @ constant
    return torch.cat(weights, 1), bias


def fuse_heads(network: AttentionUNet3D) -> list[FoldedConvolution]:
    """The heads; where they are fused, with their share F_l of `final` = [F₀ F₁ …] in them.

    The weights of upsampling u_l sum to 1 at each voxel, so it commutes with a 1×1×1 convolution
    and keeps constants; the finest head takes all of them.

        Σ_l F_l u_l(H_l x_l + h_l) + f  =  Σ_l u_l(F_l H_l x_l) + f + Σ_l F_l h_l
    """
    heads = [weight_and_bias(head) for head in network.heads]
    if network.deep_supervision != "fused":
        return [FoldedConvolution(head) for head in heads]
    final, constant = weight_and_bias(network.final)
    weights: list[Tensor] = []
    for (weight, bias), part in zip(heads, final.chunk(len(heads), 1), strict=True):
        matrix = part.flatten(1)  # (classes, classes)
        weights.append((matrix @ weight.flatten(1)).reshape(weight.shape))
        constant = constant + matrix @ bias
    biases = [constant, *(torch.zeros_like(constant) for _ in weights[1:])]
    return [FoldedConvolution(pair) for pair in zip(weights, biases, strict=True)]
