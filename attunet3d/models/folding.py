"""Convolutions whose weights were combined beforehand, in float64.

convolution, BatchNorm      →  one convolution                      `fold_batchnorm`
A₁ and A₂ of one input      →  [A₁; A₂], one convolution            `stack_outputs`
A₁ of x₁ and A₂ of x₂       →  diag(A₁, A₂) of [x₁; x₂]             `stack_diagonally`
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attunet3d.core import machine

WeightAndBias = tuple[Tensor, Tensor]  # float64: (out, in, x, y, z) and (out,)


class FoldedConvolution(nn.Module):
    """A convolution by given weights, then (leaky) ReLU where asked; by oneDNN on CPUs.

    torch itself leaves oneDNN, for a kernel of a quarter of its speed, when a batch of one is small
    (batch · channels · depth · height ≤ 20480): the deep levels, and the first, of one channel.

    Args:
        weights: Kernel and bias.
        stride: Along x, y, z.
        negative_slope: Of the leaky ReLU after it; 0: ReLU; None: no activation.
    """

    def __init__(
        self,
        weights: WeightAndBias,
        *,
        stride: Sequence[int] = (1, 1, 1),
        padding: Sequence[int] | None = None,
        negative_slope: float | None = None,
    ) -> None:
        super().__init__()
        weight, bias = weights
        same = tuple(kernel // 2 for kernel in weight.shape[2:])
        self.stride, self.padding = tuple(stride), same if padding is None else tuple(padding)
        self.negative_slope = negative_slope
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
        return rectify_(y, self.negative_slope)


def rectify_(x: Tensor, negative_slope: float | None) -> Tensor:
    """Apply a leaky ReLU in place; slope 0 is a ReLU, None leaves `x` as it is.

    Example:
        >>> rectify_(torch.tensor([-2.0, 3.0]), 0.5).tolist()
        [-1.0, 3.0]
    """
    if negative_slope is None:
        return x
    return F.leaky_relu_(x, negative_slope) if negative_slope else x.relu_()


def weight_and_bias(convolution: nn.Module) -> WeightAndBias:
    """Return kernel and bias of a convolution in float64; zeros where it has no bias."""
    assert isinstance(convolution, nn.Conv3d)
    weight, bias = convolution.weight.double(), convolution.bias
    return weight, weight.new_zeros(len(weight)) if bias is None else bias.double()


def fold_batchnorm(convolution: nn.Module, norm: nn.Module) -> WeightAndBias:
    """Fold a BatchNorm, which is affine in evaluation, into the convolution before it.

    γ (A x + b - μ) / √(σ² + ε) + β  =  (s A) x + s (b - μ) + β,   s = γ / √(σ² + ε)
    """
    weight, bias = weight_and_bias(convolution)
    assert isinstance(norm, nn.BatchNorm3d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shifted = scale * (bias - norm.running_mean.double()) + norm.bias.double()
    return weight * scale[:, None, None, None, None], shifted


def stack_outputs(convolutions: Sequence[nn.Conv3d]) -> WeightAndBias:
    """Convolutions of one input as one: [A₁ x + b₁; A₂ x + b₂] = [A₁; A₂] x + [b₁; b₂]."""
    weights, biases = zip(*(weight_and_bias(part) for part in convolutions), strict=True)
    return torch.cat(weights), torch.cat(biases)


def stack_diagonally(convolutions: Sequence[nn.Conv3d]) -> WeightAndBias:
    """1×1×1 convolutions of concatenated inputs as one: [A₁ x₁ + b₁; A₂ x₂ + b₂].

    The matrix is dense, though half of it is zeros: libraries are slow at groups of few channels.
    """
    weights, biases = zip(*(weight_and_bias(part) for part in convolutions), strict=True)
    matrix: Tensor = torch.block_diag(*(weight.flatten(1) for weight in weights))
    return matrix[:, :, None, None, None], torch.cat(biases)
