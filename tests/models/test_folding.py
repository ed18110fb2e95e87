"""Convolutions of combined weights compute what the layers that they are made of do."""

import pytest
import torch
from torch import nn

from attunet3d.models.folding import (
    FoldedConvolution,
    fold_batchnorm,
    stack_diagonally,
    stack_outputs,
    weight_and_bias,
)
from tests.conftest import present


def test_folding_is_convolution_and_normalisation() -> None:
    torch.manual_seed(0)
    convolution, norm = nn.Conv3d(3, 4, 3, padding=1), nn.BatchNorm3d(4).eval()
    for values in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(present(values))
    x = torch.randn(2, 3, 5, 6, 7)
    one = FoldedConvolution(fold_batchnorm(convolution, norm), negative_slope=0.0)
    with torch.no_grad():
        wanted = norm(convolution(x)).relu()
        torch.testing.assert_close(one(x), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 9, 8, 7), (1, 3, 4, 4, 4), (3, 2, 6, 6, 6)])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 1, 1), (1, 1, 0), (2, 2, 0), (3, 3, 0), (3, 2, 1)]
)
def test_small_batches_are_convolved_alike(
    shape: tuple[int, ...], kernel: int, stride: int, padding: int
) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv3d(shape[1], 5, kernel, stride, padding)
    x = torch.randn(shape)
    with torch.no_grad():
        wanted = convolution(x)
        weights = weight_and_bias(convolution)
        own = FoldedConvolution(weights, stride=convolution.stride, padding=(padding,) * 3)(x)
    torch.testing.assert_close(own, wanted, rtol=0, atol=1e-5)


def test_a_block_diagonal_is_each_convolution_of_its_own_channels() -> None:
    parts = [nn.Conv3d(2, 1, 1), nn.Conv3d(3, 1, 1)]
    x = torch.randn(1, 5, 4, 4, 4)
    with torch.no_grad():
        wanted = torch.cat([parts[0](x[:, :2]), parts[1](x[:, 2:])], 1)
        torch.testing.assert_close(FoldedConvolution(stack_diagonally(parts))(x), wanted)


def test_stacked_convolutions_are_one_of_all_their_channels() -> None:
    parts = [nn.Conv3d(2, 3, 1), nn.Conv3d(2, 3, 1, bias=False)]
    x = torch.randn(1, 2, 4, 4, 4)
    with torch.no_grad():
        wanted = torch.cat([part(x) for part in parts], 1)
        torch.testing.assert_close(FoldedConvolution(stack_outputs(parts))(x), wanted)


@pytest.mark.parametrize("slope", [0.0, 0.01])
def test_a_leaky_relu_follows_the_convolution(slope: float) -> None:
    convolution, x = nn.Conv3d(2, 3, 3, padding=1), torch.randn(1, 2, 5, 6, 7)
    with torch.no_grad():
        wanted = nn.functional.leaky_relu(convolution(x), slope)
        got = FoldedConvolution(weight_and_bias(convolution), negative_slope=slope)(x)
        torch.testing.assert_close(got, wanted)
