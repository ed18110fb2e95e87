"""Convolutions made of weights that were combined beforehand, in float64."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attunet3d.core import machine

Affine = tuple[Tensor, Tensor]  # float64 weight (out, in, x, y, z) and bias (out,)


class Convolution(nn.Module):
    """A convolution by given weights, then a ReLU where asked; by oneDNN on CPUs.

    Along an axis of stride 1 the output is as long as the input, padded with zeros; along others
    there is no padding.

    torch itself leaves oneDNN, for a kernel of a quarter of its speed, when a batch of one is small
    (batch · channels · depth · height ≤ 20480): the deep levels, and the first, of one channel.
    """

    def __init__(
        self,
        affine: Affine,
        *,
        stride: Sequence[int] = (1, 1, 1),
        rectified: bool = False,
    ) -> None:
        super().__init__()
        weight, bias = affine
        self.stride, self.rectified = tuple(stride), rectified
        sizes = zip(weight.shape[2:], stride, strict=True)
        self.padding = tuple(kernel // 2 if step == 1 else 0 for kernel, step in sizes)
        self.register_buffer("weight", weight.float())
        self.register_buffer("bias", bias.float())
        self.weight: Tensor
        self.bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, X, Y, Z) → (B, out, X / stride, …)."""
        arguments = (x, self.weight, self.bias)
        onednn = x.device.type == "cpu" and machine.onednn_takes(x.dtype)
        if onednn and not torch.compiler.is_exporting():
            y = torch.mkldnn_convolution(*arguments, self.padding, self.stride, (1, 1, 1), 1)
        else:
            y = F.conv3d(*arguments, self.stride, self.padding)
        return y.relu_() if self.rectified else y


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


def block_diagonal(convolutions: Sequence[nn.Conv3d]) -> Affine:
    """1×1×1 convolutions of inputs side by side as one: [A₁ x₁ + b₁; A₂ x₂ + b₂].

    Dense, though half of it is zeros: libraries are slow at groups of few channels.
    """
    weights, biases = zip(*(affine(part) for part in convolutions), strict=True)
    matrix: Tensor = torch.block_diag(*(weight.flatten(1) for weight in weights))  # type: ignore[no-untyped-call]
    return matrix[:, :, None, None, None], torch.cat(biases)
