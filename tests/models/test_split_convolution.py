"""A convolution split before upsampling is the convolution of the upsampled map."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attunet3d.core import Size
from attunet3d.models.folding import FoldedConvolution, weight_and_bias
from attunet3d.models.split_convolution import SplitConvolution, add_product, as_rows


def channels_last(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("slope", [None, 0.0, 0.01])
@pytest.mark.parametrize(
    ("coarse", "fine"),
    [
        ((4, 3, 2), (8, 6, 4)),
        ((20, 2, 3), (40, 4, 6)),  # more rows than are made at once
        ((3, 4, 4), (9, 4, 8)),  # strides 3, 1 and 2
        ((3, 2, 2), (5, 4, 3)),  # cut
        ((1, 1, 1), (2, 1, 2)),
    ],
)
def test_it_is_the_convolution_of_the_concatenation(
    coarse: Size, fine: Size, slope: float | None, align_corners: bool
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv3d(3 + 5, 4, 3, padding=1)
    skip, below = channels_last(2, 3, *fine), channels_last(2, 5, *coarse)
    whole = FoldedConvolution(weight_and_bias(layer), negative_slope=slope)
    split = SplitConvolution(whole, 3, align_corners)
    with torch.no_grad():
        up = F.interpolate(below, fine, mode="trilinear", align_corners=align_corners)
        wanted = layer(torch.cat([skip, up], 1))
        got = split(skip, below)
    wanted = wanted if slope is None else F.leaky_relu(wanted, slope)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


def test_it_multiplies_half_as_often_where_the_stride_is_two() -> None:
    whole = FoldedConvolution(weight_and_bias(nn.Conv3d(16 + 32, 16, 3, padding=1)))
    split = SplitConvolution(whole, 16, False)
    counted = []

    def count(layer: FoldedConvolution, _: object, output: Tensor) -> None:
        counted.append(output.numel() * layer.weight[0].numel())

    for layer in (*split.planes, split.skip):
        layer.register_forward_hook(count)
    with torch.no_grad():
        split(channels_last(1, 16, 16, 16, 16), channels_last(1, 32, 8, 8, 8))
    assert sum(counted) == 16**3 * whole.weight.numel() * (16 + 32 / 2) / (16 + 32)


def test_rows_are_views() -> None:
    x = channels_last(2, 3, 4, 5, 6)
    rows = as_rows(x)
    assert rows.shape == (2, 4, 5 * 6 * 3)
    assert rows.data_ptr() == x.data_ptr()


def test_a_band_matrix_is_multiplied_in_pieces_and_zeros_add_nothing() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(50, 30).triu(-2).tril(2)
    matrix[:16] = 0
    values, totals = torch.randn(2, 30, 7), torch.randn(2, 50, 7)
    wanted = totals + matrix @ values
    add_product(totals, matrix, values)
    torch.testing.assert_close(totals, wanted)
