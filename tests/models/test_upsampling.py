"""Upsampling by matrices is trilinear interpolation."""

import pytest
import torch
from torch import nn

from attunet3d.models.upsampling import interpolation_matrix, sum_upsampled


def test_interpolation_is_a_matrix_of_rows_that_sum_to_one() -> None:
    like = torch.zeros(1)
    matrix = interpolation_matrix(2, 4, False, like)
    assert matrix.tolist() == [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    assert torch.allclose(interpolation_matrix(5, 13, True, like).sum(1), torch.ones(13))


@pytest.mark.parametrize("align_corners", [False, True])
def test_a_sum_of_upsampled_maps_is_that_of_interpolation(align_corners: bool) -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, 3, *size) for size in [(9, 8, 10), (5, 4, 10), (3, 1, 2)]]
    wanted = maps[0] + sum(
        nn.functional.interpolate(
            part, maps[0].shape[2:], mode="trilinear", align_corners=align_corners
        )
        for part in maps[1:]
    )
    torch.testing.assert_close(sum_upsampled(maps, align_corners), wanted)
    assert sum_upsampled(maps[:1], align_corners) is maps[0]
