"""2D networks over scans: answers that depend on the slice, known by hand."""

from collections.abc import Callable

import nibabel
import numpy as np
import pytest
import torch
from torch import Tensor

from attunet3d.core import Array, Floats, NetworkConfig
from attunet3d.imaging.geometry import Grid
from attunet3d.imaging.volume import Volume
from attunet3d.inference import slice_passes
from attunet3d.inference.predictor import Predictor
from attunet3d.inference.slice_passes import SlicePasses
from attunet3d.inference.sliding_window import Slab
from attunet3d.models import build_network
from attunet3d.models.published.network import PublishedNetwork
from attunet3d.models.slices import SliceNetwork
from tests.known_network import AFFINE, checkpoint

SHAPE = (20, 18, 22)
TURN = np.array([[0.8, -0.6, 0, 0], [0.48, 0.64, -0.6, 0], [0.36, 0.48, 0.8, 0], [0, 0, 0, 1]])
OBLIQUE = TURN @ AFFINE


class OfChannels(PublishedNetwork):
    """Logits (0, a function of the channels, which are the slices that are seen)."""

    axes, published_width = 2, 1

    def __init__(self, slices: int, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__(slices, 2)
        self.answer = answer

    def compute(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        logit = self.answer(x)[:, None]
        return torch.cat([torch.zeros_like(logit), logit], 1), [torch.sigmoid(logit)]


def predictor(slices: int, answer: Callable[[Tensor], Tensor], *settings: str) -> Predictor:
    network = SliceNetwork(OfChannels(slices, answer), slices)
    form = ["network.form=2d_nearest", f"network.slices={slices}", *settings]
    return Predictor([checkpoint(network, *form)], "cpu")


def scan(of_slice: Callable[[Array], Array], affine: Floats = AFFINE, codes: str = "") -> Volume:
    """Values that depend on the slice number k alone, stored in any order of axes."""
    values = np.broadcast_to(of_slice(np.arange(SHAPE[2])), SHAPE).astype(np.int16)
    volume = Volume(np.asfortranarray(values), Grid(SHAPE, affine))
    return oriented(volume, codes) if codes else volume


def oriented(volume: Volume, codes: str) -> Volume:
    """The same voxels with axes in another order and direction."""
    image = nibabel.Nifti1Image(volume.array, volume.grid.affine)
    now = nibabel.io_orientation(image.affine)
    turn = nibabel.orientations.ornt_transform(now, nibabel.orientations.axcodes2ornt(codes))
    turned = image.as_reoriented(turn)
    array = np.asfortranarray(turned.dataobj)
    return Volume(array, Grid(array.shape, turned.affine))


def slices_labelled(found: Volume) -> list[int]:
    """Numbers of the slices that are labelled, each of them as a whole, from the feet up."""
    labels = oriented(found, "RAS").array == 5
    assert np.array_equal(labels, np.broadcast_to(labels[:1, :1], labels.shape))
    return [int(k) for k in labels[0, 0].nonzero()[0]]


@pytest.mark.parametrize("codes", ["", "PIR", "SAL"])
@pytest.mark.parametrize("affine", [AFFINE, OBLIQUE], ids=["straight", "oblique"])
def test_the_answer_of_a_slice_lands_on_that_slice(affine: Floats, codes: str) -> None:
    """The scan's value is 20 HU times its slice number; the network labels what is above 190."""
    volume = scan(lambda k: 20 * k, affine, codes)
    found = predictor(3, lambda x: x[:, 1] - 1.9).predict(volume)
    assert found.grid == volume.grid
    assert slices_labelled(Volume(found.array, found.grid)) == list(range(10, 22))


@pytest.mark.parametrize(("slices", "wanted"), [(1, []), (3, [7, 8]), (5, [6, 7, 8, 9])])
def test_slices_see_their_neighbours_across_the_batches(
    slices: int, wanted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network labels a slice where its last channel is above its first: around the jump."""
    monkeypatch.setattr(slice_passes, "SLAB_VALUES", 1)  # 8 or 16 slices at once, or 1
    volume = scan(lambda k: np.where(k >= 8, 300, 0))
    found = predictor(slices, lambda x: x[:, -1] - x[:, 0] - 1).predict(volume)
    assert slices_labelled(Volume(found.array, found.grid)) == wanted


def test_a_scan_goes_through_in_whole_slices_unless_windows_are_asked_for() -> None:
    volume = scan(lambda k: 20 * k)
    for setting, mode in (("auto", "whole"), ("whole", "whole"), ("window", "window")):
        made = predictor(3, lambda x: x[:, 1] - 1.9, f"inference.mode={setting}")
        prediction = made.segment(volume, attention=True, probabilities=True)
        assert prediction.record.mode == mode
        assert prediction.attention is not None
        assert prediction.probabilities is not None
        # one gate, whose coefficient here is the probability
        np.testing.assert_allclose(prediction.attention, prediction.probabilities, atol=1e-5)


@pytest.mark.parametrize("form", ["2d_nearest", "2d_transposed", "2d_unnormalised"])
@pytest.mark.parametrize("slices", [1, 3, 5])
def test_batches_of_slices_give_the_logits_of_the_whole_volume(
    form: str, slices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slice_passes, "SLAB_VALUES", 1)
    torch.manual_seed(0)
    config = NetworkConfig.from_dict({"form": form, "slices": slices, "width": 2})
    network = build_network(config, 1, 3).eval()
    image = torch.randn(1, 32, 16, 37)
    passes = SlicePasses.of([network], 3)
    assert passes is not None
    depths: list[int] = []

    def forward(x: Tensor) -> Tensor:
        depths.append(x.shape[-1])
        logits = network(x)
        assert isinstance(logits, Tensor)
        return logits

    slabs: list[Slab] = list(passes.slabs(image, forward, divisor=(16, 16, 1)))
    with torch.no_grad():
        whole = network(image[None])
    assert isinstance(whole, Tensor)
    torch.testing.assert_close(torch.cat([slab.logits for slab in slabs], -1), whole[0])
    assert [slab.start for slab in slabs] == list(range(0, 37, passes.planes(image)))
    assert max(depths) == passes.planes(image) + 2 * passes.neighbours  # whatever the depth
    assert passes.slab_bytes(image) == passes.slab_bytes(image.repeat(1, 1, 1, 9))
    assert passes.voxels(image) <= max(image.numel(), 2**18)


def test_other_networks_are_not_taken_for_networks_of_slices() -> None:
    flat, solid = (
        build_network(NetworkConfig.from_dict({"form": form, "width": 2}), 1, 2)
        for form in ("2d_nearest", "3d_transposed")
    )
    assert SlicePasses.of([flat, solid], 2) is None
    assert SlicePasses.of([flat, flat], 2) == SlicePasses(1, 2)
