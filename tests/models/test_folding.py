"""Convolutions of combined weights compute what the layers that they are made of do."""

import pytest
import torch
from torch import nn

from attunet3d.models.folding import Convolution, affine, block_diagonal, folded, side_by_side


def test_folding_is_convolution_and_normalisation():
    torch.manual_seed(0)
    convolution, norm = nn.Conv3d(3, 4, 3, padding=1), nn.BatchNorm3d(4).eval()
    for values in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(values)
    x = torch.randn(2, 3, 5, 6, 7)
    one = Convolution(folded(convolution, norm), stride=convolution.stride, rectified=True)
    with torch.no_grad():
        wanted = norm(convolution(x)).relu()
        torch.testing.assert_close(one(x), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 9, 8, 7), (1, 3, 4, 4, 4), (3, 2, 6, 6, 6)])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 1, 1), (1, 1, 0), (2, 2, 0), (3, 3, 0)]
)
def test_small_batches_are_convolved_alike(shape, kernel, stride, padding):
    torch.manual_seed(0)
    convolution = nn.Conv3d(shape[1], 5, kernel, stride, padding)
    x = torch.randn(shape)
    with torch.no_grad():
        own, wanted = Convolution(affine(convolution), stride=convolution.stride)(x), convolution(x)
    torch.testing.assert_close(own, wanted, rtol=0, atol=1e-5)


def test_a_block_diagonal_is_each_convolution_of_its_own_channels():
    parts = [nn.Conv3d(2, 1, 1), nn.Conv3d(3, 1, 1)]
    x = torch.randn(1, 5, 4, 4, 4)
    with torch.no_grad():
        wanted = torch.cat([parts[0](x[:, :2]), parts[1](x[:, 2:])], 1)
        torch.testing.assert_close(Convolution(block_diagonal(parts))(x), wanted)


def test_convolutions_side_by_side_are_one_of_all_their_channels():
    parts = [nn.Conv3d(2, 3, 1), nn.Conv3d(2, 3, 1, bias=False)]
    x = torch.randn(1, 2, 4, 4, 4)
    with torch.no_grad():
        wanted = torch.cat([part(x) for part in parts], 1)
        torch.testing.assert_close(Convolution(side_by_side(parts))(x), wanted)
