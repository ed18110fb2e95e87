"""InstanceNorm and GroupNorm of features that lie channels last: torch's values, and exact ones."""

import pytest
import torch
from torch import Tensor, nn

from attunet3d.models import normalisation
from attunet3d.models.normalisation import GroupNorm, InstanceNorm3d

CHANNELS_LAST = torch.channels_last_3d


def norms(groups: int, channels: int = 6) -> tuple[nn.Module, nn.Module]:
    """Ours and torch's, with the same drawn weights."""
    if groups == channels:
        pair = InstanceNorm3d(channels, affine=True), nn.InstanceNorm3d(channels, affine=True)
    else:
        pair = GroupNorm(groups, channels), nn.GroupNorm(groups, channels)  # type: ignore[assignment]
    torch.manual_seed(3)
    nn.init.normal_(pair[0].weight, 1, 0.5)
    nn.init.normal_(pair[0].bias)
    pair[1].load_state_dict(pair[0].state_dict())
    return pair


def drawn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=dtype)
    return (3 * x + 20).to(memory_format=CHANNELS_LAST)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("slab", [1, 700, 1 << 20])
def test_values_and_gradients_are_torchs(
    groups: int, slab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(normalisation, "SLAB_VALUES", slab)
    ours, theirs = (norm.double() for norm in norms(groups))
    found = []
    for norm, layout in ((ours, CHANNELS_LAST), (theirs, torch.contiguous_format)):
        x = drawn(2, 6, 5, 4, 7).contiguous(memory_format=layout).requires_grad_()
        y = norm(x)
        assert y.is_contiguous(memory_format=layout)
        (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum().backward()
        found.append((y, x.grad, norm.weight.grad, norm.bias.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("groups", [2, 6])
def test_the_gradients_are_those_of_finite_differences(groups: int) -> None:
    norm, _ = norms(groups)
    norm.double()
    assert torch.autograd.gradcheck(norm, (drawn(2, 6, 2, 3, 2).requires_grad_(),))


@pytest.mark.parametrize("groups", [2, 6])
def test_sums_over_many_voxels_stay_exact(groups: int) -> None:
    ours, theirs = norms(groups)
    x = drawn(1, 6, 96, 96, 96, dtype=torch.float32)
    with torch.inference_mode():
        exact = theirs.double()(x.double().contiguous())
        assert (ours(x) - exact).abs().max() < 1e-5  # torch's GroupNorm: 0.01 in this layout


@pytest.mark.parametrize("groups", [2, 6])
def test_bfloat16_features_keep_their_type_beside_float32_weights(groups: int) -> None:
    ours, theirs = norms(groups)
    x = drawn(2, 6, 8, 8, 8, dtype=torch.bfloat16).requires_grad_()
    y = ours(x)
    y.sum().backward()
    assert y.dtype == torch.bfloat16 == x.grad.dtype  # type: ignore[union-attr]
    assert y.is_contiguous(memory_format=CHANNELS_LAST)
    torch.testing.assert_close(y.float(), theirs(x.detach().float()), rtol=0.01, atol=0.02)


def test_another_layout_is_left_to_torch() -> None:
    ours, theirs = norms(6)
    x = torch.randn(2, 6, 4, 5, 6)
    assert torch.equal(ours(x), theirs(x))


def test_an_exported_program_holds_torchs_operators_only() -> None:
    norm, theirs = norms(6)
    x = torch.randn(1, 6, 4, 5, 6).to(memory_format=CHANNELS_LAST)
    program = torch.export.export(norm.eval(), (x,))
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert any("instance_norm" in name for name in names), names
    torch.testing.assert_close(program.module()(x), theirs(x))
