"""A network rewritten for inference: the same function of its input, computed with less work.

The wiring stays that of `AttentionUNet3D`; its parts are exchanged for equal ones:

    convolution, then BatchNorm       one convolution                            `folded`
    the gates of a skip               one theta, one phi, one psi for all        `FoldedSkip`
    W of each gate, then combine      one 1×1×1 convolution                      `joined`
    heads, upsampling, cat, final     heads with `final` in them, a sum          `fused_heads`
    a sum of upsampled maps           products with small matrices               `upsampled_sum`

InstanceNorm and GroupNorm depend on the image and stay. Weights are combined in float64; in float32
the logits are those of the network up to rounding (1e-6 of the largest). In bfloat16 the weights
are bfloat16 themselves, where autocast would cast them, and much else, at every call.
"""

import copy
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attunet3d import memory_layout, runtime
from attunet3d.gate import GridAttentionGate, resize
from attunet3d.network import AttentionUNet3D, GatedSkip

Affine = tuple[Tensor, Tensor]  # float64 weight (out, in, x, y, z) and bias (out,)


@torch.no_grad()
def accelerated(
    network: AttentionUNet3D, device: torch.device, dtype: torch.dtype
) -> AttentionUNet3D:
    """A network for evaluation only that computes what `network` does in eval mode, faster.

    Args:
        network: Only read; it may go on training.
        device: Where the new network is put.
        dtype: float32 or bfloat16; of the convolutions' weights and all features between them. It
            takes any type; the logits are float32 where deep supervision is fused.
    """
    fast = AcceleratedUNet(network, dtype).eval()
    return fast.to(device, memory_format=fast.layout)  # type: ignore[call-overload,no-any-return]


class AcceleratedUNet(AttentionUNet3D):
    """The parts of a network, rewritten, in the wiring that they came in."""

    def __init__(self, network: AttentionUNet3D, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)  # not the network's own: nothing is built or initialised anew
        self.in_channels, self.out_channels = network.in_channels, network.out_channels
        self.align_corners, self.norm = network.align_corners, network.norm
        self.deep_supervision, self.strides = network.deep_supervision, network.strides
        self.dtype = dtype
        self.layout = memory_layout.fastest(network)
        self.encoder = nn.ModuleList(block(part) for part in network.encoder)
        self.pools = copy.deepcopy(network.pools)
        self.gating = block(network.gating)  # type: ignore[assignment]
        self.skips = nn.ModuleList(
            FoldedSkip(part, self.align_corners) if isinstance(part, GatedSkip) else part
            for part in network.skips
        )
        self.decoder = nn.ModuleList(block(part) for part in network.decoder)
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


class Convolution(nn.Module):
    """A convolution by given weights, then a ReLU where asked; by oneDNN on CPUs.

    torch itself leaves oneDNN, for a kernel of a quarter of its speed, when a batch of one is small
    (batch · channels · depth · height ≤ 20480): the deep levels, and the first, of one channel.
    """

    def __init__(
        self,
        affine: Affine,
        *,
        like: nn.Conv3d | None = None,
        groups: int = 1,
        rectified: bool = False,
    ) -> None:
        super().__init__()
        weight, bias = affine
        self.stride = (1, 1, 1) if like is None else like.stride
        self.padding = (0, 0, 0) if like is None else cast("tuple[int, ...]", like.padding)
        self.groups, self.rectified = groups, rectified
        self.register_buffer("weight", weight.float())
        self.register_buffer("bias", bias.float())
        self.weight: Tensor
        self.bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, X, Y, Z) → (B, out, X / stride, …)."""
        arguments = (x, self.weight, self.bias)
        onednn = x.device.type == "cpu" and runtime.onednn_takes(x.dtype)
        if onednn and not torch.compiler.is_exporting():
            y = torch.mkldnn_convolution(
                *arguments, self.padding, self.stride, (1, 1, 1), self.groups
            )
        else:
            y = F.conv3d(*arguments, self.stride, self.padding, groups=self.groups)
        return y.relu_() if self.rectified else y


class FoldedSkip(nn.Module):
    """The gates of a skip side by side, and what joins them.

    Gates read the same skip x and signal g, so their theta and phi are one convolution each, of all
    gates' channels, and their psi one of as many groups as gates.
    """

    def __init__(self, skip: GatedSkip, align_corners: bool) -> None:
        super().__init__()
        gates = cast("list[GridAttentionGate]", list(skip.gates))
        self.align_corners = align_corners
        thetas = [gate.theta for gate in gates]
        self.theta = Convolution(side_by_side(thetas), like=thetas[0])
        self.phi = Convolution(side_by_side([gate.phi for gate in gates]))
        self.psi = Convolution(side_by_side([gate.psi for gate in gates]), groups=len(gates))
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


class InFloat32(nn.Module):
    """A normalisation that is kept: in float32 as its weights, whatever the features are."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = copy.deepcopy(norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, X, Y, Z) normalised, in the type it came in."""
        normalised: Tensor = self.norm(x.float())
        return normalised.to(x.dtype)


def block(layers: nn.Module) -> nn.Module:
    """Convolutions with normalisation and ReLU between them; each rewritten, dropout left out."""
    parts: list[nn.Module] = []
    sequence = list(layers.children())
    for n, layer in enumerate(sequence):
        if not isinstance(layer, nn.Conv3d):
            continue
        norm = sequence[n + 1]
        relu = n + 2 < len(sequence) and isinstance(sequence[n + 2], nn.ReLU)
        if isinstance(norm, nn.BatchNorm3d):
            parts += [Convolution(folded(layer, norm), like=layer, rectified=relu)]
        else:
            parts += [Convolution(affine(layer), like=layer), copy.deepcopy(norm)]
            parts += [nn.ReLU(inplace=True)] if relu else []
    return nn.Sequential(*parts)


def affine(convolution: nn.Module) -> Affine:
    """Weight and bias of a convolution in float64; a bias of zeros where it has none."""
    assert isinstance(convolution, nn.Conv3d)
    weight, bias = convolution.weight.double(), convolution.bias
    return weight, weight.new_zeros(len(weight)) if bias is None else bias.double()


def folded(convolution: nn.Module, norm: nn.Module) -> Affine:
    """BatchNorm in evaluation is affine, so it goes into the convolution before it.

    γ (A x + b - μ) / √(σ² + ε) + β  =  (s A) x + s (b - μ) + β,   s = γ / √(σ² + ε)
    """
    weight, bias = affine(convolution)
    assert isinstance(norm, nn.BatchNorm3d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shifted = scale * (bias - norm.running_mean.double()) + norm.bias.double()
    return weight * scale[:, None, None, None, None], shifted


def side_by_side(convolutions: Sequence[nn.Conv3d]) -> Affine:
    """Convolutions of one input as one: [A₁ x + b₁; A₂ x + b₂] = [A₁; A₂] x + [b₁; b₂]."""
    weights, biases = zip(*(affine(part) for part in convolutions), strict=True)
    return torch.cat(weights), torch.cat(biases)


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


def upsampled_sum(maps: Sequence[Tensor], align_corners: bool) -> Tensor:
    """The first map plus all others, each upsampled trilinearly to the size of the first.

    Trilinear interpolation acts on each axis by itself, and there is a matrix, with two entries a
    row. The matrices of the last axis stand side by side, so that one product adds the maps up:

        Σ_l (P_l ⊗ Q_l ⊗ R_l) m_l  =  [P₁ P₂ …] [(Q₁ ⊗ R₁) m₁; (Q₂ ⊗ R₂) m₂; …]

    Args:
        maps: (B, K, x, y, z) float32, the finest first.
        align_corners: Trilinear convention.
    """
    finest, *coarser = maps
    if not coarser:
        return finest
    batch, classes, *size = finest.shape
    first: list[Tensor] = []
    rest: list[Tensor] = []
    for part in coarser:
        p, q, r = (
            interpolation(n, to, align_corners, part)
            for n, to in zip(part.shape[2:], size, strict=True)
        )
        first.append(p)  # (X, x)
        rest.append(q @ (part @ r.T))  # (B, K, x, Y, Z)
    stacked = torch.cat(rest, 2).reshape(batch, classes, -1, size[1] * size[2])
    return finest + (torch.cat(first, 1) @ stacked).reshape(finest.shape)


def interpolation(length: int, to: int, align_corners: bool, like: Tensor) -> Tensor:
    """The matrix (to, length) of linear interpolation: what it makes of the unit vectors."""
    unit = torch.eye(length, dtype=like.dtype, device=like.device)[None]
    return F.interpolate(unit, to, mode="linear", align_corners=align_corners)[0].T
