"""The gate is the paper's: attention on a coarser grid, one coefficient per voxel."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attunet3d import GridAttentionGate
from attunet3d.core import ModelError, Size
from attunet3d.models.gate import GatedSkip
from attunet3d.models.layers import normaliser
from tests.conftest import present


def gate_and_inputs(**options: Any) -> tuple[GridAttentionGate, Tensor, Tensor]:
    torch.manual_seed(0)
    gate = GridAttentionGate(4, 6, **options).eval()
    return gate, torch.randn(2, 4, 8, 6, 10), torch.randn(2, 6, 4, 3, 5)


def test_zero_weights_of_psi_give_coefficients_of_one_half() -> None:
    gate, skip, gating = gate_and_inputs()
    for weight in gate.psi.parameters():
        torch.nn.init.zeros_(weight)
    _, coefficients = gate(skip, gating)
    assert torch.equal(coefficients, torch.full((2, 1, 8, 6, 10), 0.5))


def test_equations_1_and_2_written_out() -> None:
    gate, skip, gating = gate_and_inputs()
    theta = F.conv3d(skip, gate.theta.weight, stride=2)
    phi = F.conv3d(gating, gate.phi.weight, gate.phi.bias)
    q = F.conv3d(F.relu(theta + phi), gate.psi.weight, gate.psi.bias)
    alpha = F.interpolate(torch.sigmoid(q), scale_factor=2, mode="trilinear")
    gated, coefficients = gate(skip, gating)
    assert torch.allclose(coefficients, alpha, atol=1e-6)
    assert torch.allclose(gated, gate.w(alpha * skip), atol=1e-6)


def test_coefficients_are_shares_and_an_open_gate_passes_nearly_all() -> None:
    gate, skip, gating = gate_and_inputs()
    _, coefficients = gate(skip, gating)
    assert coefficients.min() > 0
    assert coefficients.max() < 1
    wide, skip, gating = gate_and_inputs(bias=3.0)
    torch.nn.init.zeros_(wide.psi.weight)
    _, coefficients = wide(skip, gating)
    assert torch.allclose(coefficients, torch.tensor(3.0).sigmoid())


def test_theta_has_no_bias_and_strides_as_asked() -> None:
    gate, skip, _ = gate_and_inputs(stride=(2, 2, 1))
    assert gate.theta.bias is None
    assert gate.theta(skip).shape[2:] == (4, 3, 10)


@pytest.mark.parametrize("size", [(8, 6, 10), (9, 7, 5), (2, 2, 2), (3, 8, 2)])
def test_any_size_of_skip_and_gating(size: Size) -> None:
    gate, _, gating = gate_and_inputs()
    gated, coefficients = gate(torch.randn(2, 4, *size), gating)
    assert gated.shape == (2, 4, *size)
    assert coefficients.shape == (2, 1, *size)


def test_gradients_reach_both_inputs() -> None:
    gate, skip, gating = gate_and_inputs()
    gated, _ = gate(skip.requires_grad_(), gating.requires_grad_())
    gated.square().sum().backward()
    assert present(skip.grad).abs().sum() > 0
    assert present(gating.grad).abs().sum() > 0


def test_inner_channels_are_those_of_the_skip_unless_given() -> None:
    assert GridAttentionGate(4, 6).theta.out_channels == 4
    assert GridAttentionGate(4, 6, 3).psi.in_channels == 3


def test_groups_divide_the_channels() -> None:
    assert normaliser("group", 32).num_groups == 4
    assert normaliser("group", 12).num_groups == 1
    assert normaliser("group", 5).num_groups == 1
    assert normaliser("group", 320).num_groups == 40  # 8 each


def test_attention_of_thick_slices_is_computed_plane_by_plane() -> None:
    gate, skip, _ = gate_and_inputs(stride=(2, 2, 1))
    gating = torch.randn(2, 6, 4, 3, 10)
    _, coefficients = gate(skip, gating)
    _, alone = gate(skip[..., 4:5], gating[..., 4:5])
    assert torch.allclose(coefficients[..., 4:5], alone, atol=1e-6)


def test_the_gating_signal_decides_where_to_look() -> None:
    gate, skip, _ = gate_and_inputs()
    torch.nn.init.zeros_(gate.theta.weight)
    torch.nn.init.ones_(gate.phi.weight)
    torch.nn.init.ones_(gate.psi.weight)
    gating = torch.zeros(2, 6, 4, 3, 5)
    gating[:, :, 1, 1, 2] = 1.0
    _, coefficients = gate(skip, gating)
    peak = coefficients[0, 0].flatten().argmax().item()
    assert peak in [(i * 6 + j) * 10 + k for i in (2, 3) for j in (2, 3) for k in (4, 5)]


@pytest.mark.parametrize("align_corners", [True, False])
def test_corners_of_the_coefficients_follow_the_convention(align_corners: bool) -> None:
    gate, skip, gating = gate_and_inputs(align_corners=align_corners)
    _, coefficients = gate(skip, gating)
    theta = F.conv3d(skip, gate.theta.weight, stride=2)
    coarse = torch.sigmoid(gate.psi(F.relu(theta + gate.phi(gating))))
    # both put the coarse corner into the fine corner; they part on the voxel beside it
    assert torch.allclose(coefficients[..., 0, 0, 0], coarse[..., 0, 0, 0], atol=1e-6)
    share = 3 / 7 if align_corners else 1 / 4  # of 8 voxels onto 4
    first, second = coarse[..., 0, 0, 0], coarse[..., 1, 0, 0]
    wanted = first + share * (second - first)
    assert torch.allclose(coefficients[..., 1, 0, 0], wanted, atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: normaliser("layer", 4),
        lambda: GridAttentionGate(0, 4),
        lambda: GridAttentionGate(4, 4, stride=(0, 2, 2)),
    ],
)
def test_wrong_arguments_are_named(make: Callable[[], object]) -> None:
    with pytest.raises(ModelError, match="must be"):
        make()


def test_one_channel_is_enough_and_none_is_refused() -> None:
    gated, _ = GridAttentionGate(1, 1, stride=(1, 1, 1)).eval()(
        torch.ones(1, 1, 2, 2, 2), torch.ones(1, 1, 2, 2, 2)
    )
    assert gated.shape == (1, 1, 2, 2, 2)
    for channels in ((0, 6, 4), (4, 0, 4), (4, 6, -1)):
        with pytest.raises(ModelError, match="must be positive"):
            GridAttentionGate(*channels)


@pytest.mark.parametrize("count", [1, 2])
def test_gates_of_a_skip_are_joined_by_a_block(count: int) -> None:
    _, skip, gating = gate_and_inputs()
    gates = [GridAttentionGate(4, 6) for _ in range(count)]
    joined = GatedSkip(gates, "batch", "relu").eval()
    gated, coefficients = joined(skip, gating)
    parts = [gate(skip, gating) for gate in gates]
    assert torch.equal(gated, joined.combine(torch.cat([part for part, _ in parts], 1)))
    assert gated.shape == skip.shape
    assert coefficients.shape == (2, count, 8, 6, 10)
    for number, (_, alone) in enumerate(parts):
        assert torch.equal(coefficients[:, number], alone[:, 0])
