"""Layouts change where values lie, never what they are."""

import pytest
import torch
from torch import Tensor, nn

from attunet3d.models import memory_layout
from attunet3d.models.attention_unet import AttentionUNet3D
from attunet3d.models.memory_layout import CHANNELS_LAST, CONTIGUOUS
from tests.conftest import present


def lay_out(network: nn.Module, layout: torch.memory_format) -> None:
    """As `network.to(memory_format=layout)`, which torch's types lack."""
    for weight in network.parameters():
        if weight.ndim == 5:
            weight.data = weight.data.contiguous(memory_format=layout)


def gradients(layout: torch.memory_format | None = None, dense: bool = False) -> list[Tensor]:
    """Of every weight of a small network after one backward pass."""
    torch.manual_seed(0)
    network = AttentionUNet3D(channels=(4, 8, 8)).double()
    x = torch.randn(2, 1, 8, 8, 8, dtype=torch.double)
    if layout is not None:
        lay_out(network, layout)
        x = memory_layout.copy_in_layout(x, layout)
        if dense:
            memory_layout.keep_gradients_dense(network, layout)
    network(x)[0].square().sum().backward()
    return [present(weight.grad) for weight in network.parameters()]


@pytest.mark.parametrize("layout", [CHANNELS_LAST, CONTIGUOUS])
def test_dense_gradients_are_the_gradients(layout: torch.memory_format) -> None:
    for got, wanted in zip(gradients(layout, dense=True), gradients(), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("dense", [False, True])
def test_parts_of_a_concatenation_get_dense_gradients(dense: bool) -> None:
    seen: list[Tensor] = []
    parts = [torch.randn(1, 3, 4, 4, 4, requires_grad=True) for _ in range(2)]
    doubled = [part.to(memory_format=CHANNELS_LAST) * 2 for part in parts]
    for part in doubled:
        part.register_hook(seen.append)
    convolution = nn.Conv3d(6, 2, 1)
    lay_out(convolution, CHANNELS_LAST)
    if dense:
        memory_layout.keep_gradients_dense(convolution, CHANNELS_LAST)
    convolution(torch.cat(doubled, 1)).sum().backward()
    assert [part.is_contiguous(memory_format=CHANNELS_LAST) for part in seen] == [dense, dense]


def test_one_channel_is_laid_out_so_that_the_next_layer_follows() -> None:
    convolution = nn.Conv3d(1, 4, 3, padding=1)
    lay_out(convolution, CHANNELS_LAST)
    x = torch.randn(2, 1, 8, 8, 8)
    with torch.no_grad():
        y = convolution(memory_layout.copy_in_layout(x, CHANNELS_LAST))
    assert y.is_contiguous(memory_format=CHANNELS_LAST)
    assert torch.equal(memory_layout.copy_in_layout(x, CHANNELS_LAST), x)


def test_every_normalisation_takes_channels_last() -> None:
    for norm in ("batch", "group", "instance"):
        network = AttentionUNet3D(channels=(4, 8), norm=norm)
        assert memory_layout.fastest_layout(network) == CHANNELS_LAST
