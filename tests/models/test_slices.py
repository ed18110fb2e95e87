"""A 2D network over a volume sees each slice with its neighbours."""

import pytest
import torch

from attunet3d.models import slices as module
from attunet3d.models.published.forms import published_network
from attunet3d.models.slices import SliceNetwork


def network(slices: int = 3, channels: int = 1) -> SliceNetwork:
    torch.manual_seed(0)
    inner = published_network("2d_unnormalised", slices * channels, 2, width=4)
    return SliceNetwork(inner, slices).eval()


@pytest.mark.parametrize("slices", [1, 3, 5])
def test_logits_of_a_slice_are_the_2d_networks_of_its_neighbourhood(slices: int) -> None:
    made, x = network(slices), torch.randn(2, 1, 16, 32, 4)
    with torch.no_grad():
        volume = made(x)
        for z in range(4):
            near = [min(max(z + step, 0), 3) for step in range(-(slices // 2), slices // 2 + 1)]
            wanted = made.network(x[:, 0, :, :, near].movedim(-1, 1))
            torch.testing.assert_close(volume[..., z], wanted)


def test_each_channel_brings_its_own_neighbours() -> None:
    made, x = network(3, channels=2), torch.randn(1, 2, 16, 16, 3)
    with torch.no_grad():
        wanted = made.network(torch.cat([x[:, 0].movedim(-1, 1), x[:, 1].movedim(-1, 1)], 1))
        torch.testing.assert_close(made(x)[..., 1], wanted)


def test_chunks_bound_the_batch_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made, x = network(), torch.randn(1, 1, 16, 16, 7)
    batches: list[int] = []
    last = made.network.get_submodule("conv2d_119")
    last.register_forward_hook(lambda _, given, __: batches.append(len(given[0])))
    with torch.no_grad():
        whole, maps = made.forward_with_attention(x)
        monkeypatch.setattr(module, "CHUNK_PIXELS", 3 * 16 * 16)
        parts, part_maps = made.forward_with_attention(x)
    assert batches == [7, 3, 3, 1]
    torch.testing.assert_close(parts, whole)
    for part, wanted in zip(part_maps, maps, strict=True):
        torch.testing.assert_close(part, wanted)


def test_training_takes_all_slices_as_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_PIXELS", 1)
    made = network().train()
    (logits,) = made(torch.randn(2, 1, 16, 16, 3))
    assert logits.shape == (2, 2, 16, 16, 3)
    assert made.divisor == (16, 16, 1)
