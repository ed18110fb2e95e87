"""The way back: labels through the network's grid and back again, streamed in any portions."""

import numpy as np
import pytest
import torch

from attunet3d.core import Floats, LabelMap
from attunet3d.imaging.geometry import Grid
from attunet3d.imaging.preprocessing import label_to_network_grid
from attunet3d.imaging.volume import Volume
from attunet3d.inference import chunks
from attunet3d.inference.chunks import ChunkBuilder
from attunet3d.inference.decision import decide, winning_values
from attunet3d.inference.post_processing import PostProcessing
from attunet3d.inference.sliding_window import Slab
from tests.inference.grids import (
    OBLIQUE,
    ORDERS,
    TURNS,
    assembled,
    make_grid,
    reference,
    resampled,
    slabs,
    smooth,
)


def lobulated(grid: Grid) -> LabelMap:
    """A lumpy organ of some 40 mm in the middle of the grid, as a uint8 label."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    x, y, z = np.moveaxis(
        grid.to_world(index) - grid.to_world((np.array(grid.shape) - 1) / 2), -1, 0
    )
    radius = np.sqrt(x**2 + y**2 + z**2) + 1e-9
    lumps = 3 * np.cos(4 * np.arctan2(y, x)) * np.sin(3 * np.arccos(z / radius))
    return np.asfortranarray(radius < 18 + lumps).astype(np.uint8, order="F")


@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS.keys())
def test_ground_truth_comes_home_on_every_axis_order(turn: Floats) -> None:
    for order in ORDERS:
        spacing = np.abs(order).T @ (0.8, 0.8, 2.0)  # thick slices along S, wherever S is
        shape = np.ceil(50 / spacing).astype(int)
        source = make_grid(tuple(shape), spacing, turn, order)
        truth = lobulated(source)
        network = source.oriented("RAS").with_spacing((1.0, 1.0, 1.0))
        classes = label_to_network_grid(Volume(truth, source), network, [0, 1])
        home = decide(slabs(classes[None] - 0.5, 7), network, source, [0, 1])
        dice = 2 * (home & truth).sum() / (home.sum() + truth.sum())
        assert dice > 0.97, order
        assert home.flags.f_contiguous


@pytest.mark.parametrize("order", ORDERS[::6])
@pytest.mark.parametrize("network_shape", [(20, 18, 16), (30, 40, 33), (11, 7, 5)])
def test_agrees_with_float64(order: Floats, network_shape: tuple[int, int, int]) -> None:
    source = make_grid((26, 22, 19), (1.0, 1.2, 1.4), OBLIQUE, order)
    network = source.oriented("RAS").resized(network_shape)
    logits = torch.stack([smooth(network_shape, seed) for seed in range(3)])
    before = logits.clone()
    wanted = reference(logits, network, source)
    found, seen = assembled(resampled(slabs(logits, 4), network, source), source, 3)
    assert (seen == 1).all()
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-4)
    labels = decide(slabs(logits, 4), network, source, [0, 1, 2])
    assert np.mean(labels == wanted.argmax(0)) >= 0.9995
    assert torch.equal(logits, before)


@pytest.mark.parametrize("order", [ORDERS[0], ORDERS[14], ORDERS[37]])
@pytest.mark.parametrize("channels", [1, 3])
def test_portions_do_not_matter_to_the_last_bit(
    order: Floats, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_grid((22, 26, 18), (1.0, 0.9, 1.3), order=order)
    network = source.oriented("RAS").with_spacing((1.6, 1.5, 0.8))
    values = [0, 1] if channels == 1 else [0, 4, 9]
    logits = torch.stack([smooth(network.shape, seed) for seed in range(channels)])
    one_shot = decide([Slab(0, logits)], network, source, values)
    whole, _ = assembled(resampled([Slab(0, logits)], network, source), source, channels)
    assert set(np.unique(one_shot)) == set(values)
    for size, limit in ((1, 10**6), (2, 500), (5, 1), (7, 3000)):
        monkeypatch.setattr(chunks, "TABLE_VALUES", limit)
        monkeypatch.setattr(chunks, "PIECE_VALUES", limit)
        assert np.array_equal(decide(slabs(logits, size), network, source, values), one_shot)
        parts = resampled(slabs(logits, size), network, source)
        assert torch.equal(assembled(parts, source, channels)[0], whole)


def test_labels_are_the_argmax_of_the_resampled_logits() -> None:
    source = make_grid((24, 20, 17), (0.9, 0.9, 2.0), order=ORDERS[5])
    network = source.oriented("RAS").with_spacing((1.4, 1.4, 1.4))
    logits = torch.stack([smooth(network.shape, seed, 1.0) for seed in range(14)])
    values = [0, *range(3, 200, 15)][:14]
    whole, _ = assembled(resampled(slabs(logits, 6), network, source), source, 14)
    labels = decide(slabs(logits, 6), network, source, values)
    assert np.mean(labels == np.array(values)[whole.argmax(0).numpy()]) >= 0.9999
    assert len(np.unique(labels)) == 14


def test_two_logits_are_their_margin() -> None:
    source = make_grid((12, 11, 10), (1.0, 1.0, 1.0))
    network = source.resized((7, 8, 9))
    logits = torch.stack([smooth((7, 8, 9), 1), smooth((7, 8, 9), 2)])
    margin = logits[1:] - logits[:1]
    both = decide(slabs(logits, 3), network, source, [0, 255])
    assert np.array_equal(both, decide(slabs(margin, 3), network, source, [0, 255]))
    assert set(np.unique(both)) == {0, 255}
    learning = logits.clone().requires_grad_()
    assert np.array_equal(both, decide(slabs(learning, 3), network, source, [0, 255]))


def test_ties_go_to_the_lowest_class() -> None:
    grid = make_grid((2, 2, 2), (1.0, 1.0, 1.0))
    logits = torch.zeros(4, 2, 2, 2)
    logits[1:3, 0] = 5.0  # classes 1 and 2 level, above background
    labels = decide([Slab(0, logits)], grid, grid, [0, 10, 20, 30])
    assert (labels[0] == 10).all()
    assert (labels[1] == 0).all()
    assert not decide([Slab(0, torch.zeros(1, 2, 2, 2))], grid, grid, [0, 1]).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_same_grid_is_not_interpolated(dtype: torch.dtype) -> None:
    grid = make_grid((9, 8, 7), (1.0, 1.0, 2.0))
    logits = smooth((3, 9, 8, 7), sigma=0).to(dtype)
    whole, _ = assembled(resampled(slabs(logits, 2), grid, grid), grid, 3)
    assert torch.equal(whole, logits.float())
    labels = decide(slabs(logits, 2), grid, grid, [0, 1, 2])
    assert np.array_equal(labels, logits.float().argmax(0).numpy())


def test_outside_the_networks_grid_is_background() -> None:
    source = make_grid((20, 18, 16), (1.0, 1.0, 1.0), order=ORDERS[9])
    box = (slice(3, 13), slice(0, 9), slice(5, 16))
    network = source.cropped(box).oriented("RAS").with_spacing((1.6, 1.6, 1.6))
    labels = decide(slabs(torch.ones(1, *network.shape), 2), network, source, [0, 6])
    assert (labels[box] == 6).all()
    assert (labels == 6).sum() == 10 * 9 * 11
    for place, _ in resampled(slabs(torch.ones(1, *network.shape), 2), network, source):
        assert all(a.start <= b.start < b.stop <= a.stop for a, b in zip(box, place, strict=True))


def test_grids_apart_have_no_label() -> None:
    source = make_grid((5, 5, 5), (1.0, 1.0, 1.0))
    affine = source.affine.copy()
    affine[:3, 3] += 100
    slab = Slab(0, torch.ones(1, 5, 5, 5))
    assert not decide([slab], Grid((5, 5, 5), affine), source, [0, 1]).any()


def test_largest_component_of_each_label() -> None:
    grid = make_grid((20, 10, 10), (1.0, 1.0, 1.0))
    classes = torch.zeros(20, 10, 10, dtype=torch.long)
    classes[1:5, 1:5, 1:5] = 1
    classes[15:17, 1:3, 1:3] = 1  # an islet of label 1
    classes[8:12, 5:9, 5:9] = 2
    classes[18, 9, 9] = 2
    logits = torch.nn.functional.one_hot(classes, 3).movedim(-1, 0).float()
    labels = decide([Slab(0, logits)], grid, grid, [0, 7, 3])
    before = np.count_nonzero(labels)
    PostProcessing(keep_largest=(3, 7), smallest_ml={}).apply_(labels, grid)
    assert np.bincount(labels.ravel()).tolist() == [1872, 0, 0, 64, 0, 0, 0, 64]
    assert before - np.count_nonzero(labels) == 9
    empty = decide([Slab(0, -torch.ones(1, 20, 10, 10))], grid, grid, [0, 1])
    PostProcessing(keep_largest=(1,), smallest_ml={}).apply_(empty, grid)
    assert not empty.any()


def test_pieces_of_many_classes_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "PIECE_VALUES", 100_000)
    source = make_grid((40, 40, 12), (1.0, 1.0, 1.0))
    network = source.resized((10, 10, 6))
    pieces = resampled(slabs(torch.zeros(118, 10, 10, 6), 6), network, source)
    sizes = [logits.numel() for _, logits in pieces]
    assert max(sizes) <= 100_000
    assert sum(sizes) == 118 * 40 * 40 * 12


@pytest.mark.parametrize(
    ("shift", "wanted"), [(0.0009, [1, 1, 1, 1, 1, 0]), (0.05, [0, 1, 1, 1, 1, 0])]
)
def test_voxels_whose_centres_lie_on_the_outer_face_belong_to_the_grid(
    shift: float, wanted: list[int]
) -> None:
    # The network's voxels reach from -0.5 to 3.5: a centre on the face, up to rounding, is inside.
    network = Grid((4, 1, 1), np.eye(4))
    affine = np.eye(4)
    affine[0, 3] = -0.5 - shift
    source = Grid((6, 1, 1), affine)
    labels = decide([Slab(0, torch.ones(1, 4, 1, 1))], network, source, [0, 1])
    assert labels.ravel().tolist() == wanted


def test_attention_is_resampled_beside_the_logits() -> None:
    source = make_grid((14, 12, 10), (1.0, 1.0, 1.0), order=ORDERS[7])
    network = source.oriented("RAS").resized((8, 7, 6))
    logits, maps = smooth((2, 8, 7, 6)), smooth((3, 8, 7, 6), seed=1)
    builder, pieces = ChunkBuilder(network, source), []
    for start in (0, 2, 4):
        slab = Slab(start, logits[..., start : start + 2], maps[..., start : start + 2])
        for chunk in builder.add(slab):
            assert chunk.logits is None
            assert chunk.attention is not None
            pieces += [(box, part.clone()) for box, part in chunk.resampled(chunk.attention)]
    found, seen = assembled(pieces, source, 3)
    assert (seen == 1).all()
    np.testing.assert_allclose(found.numpy(), reference(maps, network, source), atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_agrees_with_the_cpu() -> None:
    source = make_grid((40, 44, 30), (0.8, 0.8, 1.5), order=ORDERS[11])
    network = source.oriented("RAS").with_spacing((1.5, 1.5, 1.5))
    logits = torch.stack([smooth(network.shape, seed) for seed in range(5)])
    values = [0, 1, 2, 3, 4]
    wanted = decide(slabs(logits, 8), network, source, values)
    assert np.mean(decide(slabs(logits.cuda(), 8), network, source, values) == wanted) > 0.9999


def test_overlapping_regions_overwrite_one_another_in_their_order() -> None:
    """nnU-Net's rule for kidneys: 1 kidney, then 3 masses, then 2 tumours, whatever the logits."""
    grid = Grid((4, 1, 1), np.eye(4))
    logits = torch.tensor([[0.0] * 4, [9, 9, 9, -1], [-1, -1, 1, -1], [-1, 2, 3, -1]])
    slab = Slab(0, logits.reshape(4, 4, 1, 1))
    found = decide([slab], grid, grid, [0, 1, 2, 3], order=(1, 3, 2))
    assert found.ravel().tolist() == [1, 3, 2, 0]
    assert winning_values(logits, [0, 1, 2, 3], (1, 3, 2)).tolist() == [1, 3, 2, 0]
    assert decide([slab], grid, grid, [0, 1, 2, 3]).ravel().tolist() == [1, 1, 1, 0]
