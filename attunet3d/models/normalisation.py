"""Normalisation of each image by itself, fast and exact where features lie channels last.

torch normalises features that lie channels last in two ways: InstanceNorm copies them to the other
layout and back, for 1.4 times the training step of BatchNorm; GroupNorm sums in float32 voxel after
voxel, so that at 256³ voxels a normalised value is off by 0.04 of the largest. Here the sums are
taken over short rows in float32 and over the rows in float64. Both classes compute what torch's do,
hold the same weights, and hand over to torch's own where features lie otherwise.

    x (B, C, X, Y, Z)    mean μ and variance σ² of each image and group of channels; ε = 1e-5
    x̂ = (x − μ) / √(σ² + ε)        y = γ x̂ + β

    with r = 1 / √(σ² + ε), g = ∂L/∂y and means over the voxels and channels of a group
    ∂L/∂β = Σ g        ∂L/∂γ = Σ g x̂        ∂L/∂x = r (γ g − mean(γ g) − x̂ mean(γ g x̂))
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SLAB_VALUES = 1 << 20  # at a time: they stay in a core's cache


class InstanceNorm3d(nn.InstanceNorm3d):
    """torch's, for features in any layout.

    Example:
        >>> x = torch.randn(2, 4, 6, 6, 6).to(memory_format=torch.channels_last_3d)
        >>> norm = InstanceNorm3d(4, affine=True)
        >>> torch.allclose(norm(x), nn.functional.instance_norm(x), atol=1e-5)
        True
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, X, Y, Z), each channel of each image normalised."""
        if not _lies_channels_last(x):
            return super().forward(x)
        return _Normalise.apply(x, self.weight, self.bias, self.num_features, self.eps)  # type: ignore[no-any-return,no-untyped-call]


class GroupNorm(nn.GroupNorm):
    """torch's, for features in any layout; on CUDA also for bfloat16 with float32 weights."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, X, Y, Z), each group of channels of each image normalised."""
        if not _lies_channels_last(x):
            return super().forward(x)
        return _Normalise.apply(x, self.weight, self.bias, self.num_groups, self.eps)  # type: ignore[no-any-return,no-untyped-call]


def _lies_channels_last(x: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():
        return False  # a program of torch's own operators, which others can run
    known = x.device.type in ("cpu", "cuda")  # MPS has no float64
    return known and x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> Tensor:
        """(B, C, X, Y, Z) and γ, β of C."""
        count = x[0, 0].numel()
        mean = _group_means(_sum(part for (part,) in _slabs(x)) / count, groups)
        centre = mean[:, None, None].to(_precision(x))
        squares = _sum((part - centre).square_() for (part,) in _slabs(x))
        variance = _group_means(squares / count, groups)
        r = (variance + eps).rsqrt()
        scale = weight * r
        shift = _on_voxels(bias - mean * scale, x)
        y = torch.addcmul(shift, x, _on_voxels(scale, x), out=torch.empty_like(x))
        ctx.save_for_backward(x, weight, mean, r)
        ctx.groups = groups
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, γ and β from that of y, (B, C, X, Y, Z)."""
        x, weight, mean, r = ctx.saved_tensors
        count, groups = x[0, 0].numel(), ctx.groups
        g = g.contiguous(memory_format=torch.channels_last_3d)
        centre = mean[:, None, None].to(_precision(x))
        of_bias = _sum(part for (part,) in _slabs(g))  # Σ g, of each image
        of_weight = _sum((part - centre).mul_(up) for part, up in _slabs(x, g)) * r  # Σ g x̂
        slope = -r.square() * _group_means(weight * of_weight / count, groups)
        shift = -r * _group_means(weight * of_bias / count, groups) - slope * mean
        of_x = torch.addcmul(_on_voxels(shift, x), x, _on_voxels(slope, x))
        of_x.addcmul_(g, _on_voxels(r * weight, x))
        sums = (part.sum(0).to(weight.dtype) for part in (of_weight, of_bias))
        return of_x.to(x.dtype), *sums, None, None


def _precision(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _on_voxels(values: Tensor, x: Tensor) -> Tensor:
    """(B, C), a factor for each channel of `x`: (B, C, 1, 1, 1)."""
    return values.to(_precision(x))[:, :, None, None, None]


def _slabs(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Some planes of each (B, C, X, Y, Z) at a time: (B, planes, Y · Z, C), float32 or float64."""
    b, c, x, y, z = tensors[0].shape
    voxels_first = [tensor.permute(0, 2, 3, 4, 1).reshape(b, x, y * z, c) for tensor in tensors]
    planes = max(1, SLAB_VALUES // (b * c * y * z))
    kind = _precision(tensors[0])
    for start in range(0, x, planes):
        yield tuple(part[:, start : start + planes].to(kind) for part in voxels_first)


def _sum(slabs: Iterator[Tensor]) -> Tensor:
    """Over all voxels of slabs (B, planes, Y · Z, C): (B, C) in float64."""
    sums = [part.sum(2).sum(1, dtype=torch.float64) for part in slabs]
    return torch.stack(sums).sum(0)


def _group_means(values: Tensor, groups: int) -> Tensor:
    """(B, C): the mean over the channels of each channel's group."""
    grouped = values.reshape(len(values), groups, -1)
    return grouped.mean(2, keepdim=True).expand_as(grouped).flatten(1)
