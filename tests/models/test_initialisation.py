"""Weights drawn by name have the spread that the name says."""

import math

import pytest
import torch
from torch import nn

from attunet3d.core import NetworkConfig
from attunet3d.models import build_network, initialise_by_name

FAN_IN, FAN_OUT = 8 * 27, 32 * 27  # of Conv3d(8, 32, 3)


@pytest.mark.parametrize(
    ("name", "deviation"),
    [
        ("normal", 0.02),
        ("xavier", math.sqrt(2 / (FAN_IN + FAN_OUT))),
        ("kaiming", math.sqrt(2 / FAN_IN)),
        ("orthogonal", 1 / math.sqrt(FAN_IN)),  # 32 orthonormal rows of 216
    ],
)
def test_kernels_are_spread_as_the_name_says_and_biases_are_zero(
    name: str, deviation: float
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv3d(8, 32, 3)
    initialise_by_name(layer, name)
    weight = layer.weight.detach()
    assert float(weight.std()) == pytest.approx(deviation, rel=0.05)
    assert float(weight.mean()) == pytest.approx(0, abs=deviation / 20)
    assert layer.bias is not None
    assert not layer.bias.any()


def test_rows_of_an_orthogonal_kernel_are_orthonormal() -> None:
    layer = nn.Conv2d(4, 8, 3)
    initialise_by_name(layer, "orthogonal")
    rows = layer.weight.detach().flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(8), rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ["attention_unet", "2d_transposed", "3d_same_resolution"])
def test_every_weight_of_a_network_is_drawn_anew_and_default_leaves_it(form: str) -> None:
    network = build_network(
        NetworkConfig.from_dict({"form": form, "width": 2, "channels": (2, 4)}), 1, 2
    )
    before = {name: value.clone() for name, value in network.named_parameters()}
    initialise_by_name(network, "default")
    assert all(torch.equal(before[name], value) for name, value in network.named_parameters())
    for value in network.parameters():
        nn.init.constant_(value, 7.0)
    initialise_by_name(network, "normal")
    assert not any((value == 7).any() for value in network.parameters())
