"""Where a patch is read from: angles, zooms and bends with known answers, on unequal voxels."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from attunet3d.core import Floats, Size
from attunet3d.core.training_config import AugmentationConfig
from attunet3d.training.placement import Placement, draw, place, rotated
from tests.conftest import present

SPACING = (1.0, 2.0, 3.0)
ALWAYS = AugmentationConfig(affine_probability=1.0, elastic_probability=1.0)


def ball(shape: Size, offset_mm: Sequence[float] | Floats, radius_mm: float = 9.0) -> Tensor:
    """A soft ball (1, X, Y, Z) whose centre lies `offset_mm` from the grid's centre."""
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, SPACING, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1) - offset_mm
    distance = np.linalg.norm(grid, axis=-1)
    return torch.from_numpy(np.clip(1 - (distance / radius_mm) ** 2, 0, None) ** 2).float()[None]


def centre_mm(image: Tensor) -> Floats:
    """Centre of mass (3,) of (1, X, Y, Z), in mm from the grid's centre."""
    weights = image[0].double().numpy()
    shape = weights.shape
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, SPACING, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    centre: Floats = (grid * weights[..., None]).sum((0, 1, 2)) / weights.sum()
    return centre


def ramps(shape: Size) -> Tensor:
    """Each voxel's own indices: (3, X, Y, Z)."""
    return torch.from_numpy(np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))).float()


@pytest.mark.parametrize("angle", [-90.0, -35.0, 20.0, 90.0])
@pytest.mark.parametrize(
    ("axis", "first", "second"), [(0, 1, 2), (1, 2, 0), (2, 0, 1)], ids=["x", "y", "z"]
)
def test_a_point_lands_where_trigonometry_says(
    axis: int, first: int, second: int, angle: float
) -> None:
    x, y, z = (angle if axis == index else 0.0 for index in range(3))
    placement = rotated((61, 41, 31), SPACING, (x, y, z), zoom=1.0)
    offset = np.zeros(3)
    offset[first] = 14.0  # turns from `first` towards `second`, right-handed
    image = ball(placement.source_size, offset)
    moved, _ = place(image, image, placement)
    expected = np.zeros(3)
    expected[first] = 14.0 * math.cos(math.radians(angle))
    expected[second] = 14.0 * math.sin(math.radians(angle))
    assert centre_mm(moved) == pytest.approx(expected, abs=0.15)


def test_turns_about_x_come_first_and_about_z_last() -> None:
    placement = rotated((61, 41, 31), SPACING, (90.0, 0.0, 90.0), zoom=1.0)
    image = ball(placement.source_size, (0.0, 0.0, 12.0))
    moved, _ = place(image, image, placement)  # z → −y about x, then −y → x about z
    assert centre_mm(moved) == pytest.approx((12.0, 0.0, 0.0), abs=0.15)


@pytest.mark.parametrize("zoom", [0.7, 1.4])
def test_zoom_magnifies_in_millimetres(zoom: float) -> None:
    placement = rotated((61, 41, 31), SPACING, (0.0, 0.0, 0.0), zoom=zoom)
    image = ball(placement.source_size, (10.0, -8.0, 6.0))
    moved, _ = place(image, image, placement)
    assert centre_mm(moved) == pytest.approx(np.array((10.0, -8.0, 6.0)) * zoom, abs=0.15)
    assert float(moved.sum() / image.sum()) == pytest.approx(zoom**3, rel=0.05)


def test_source_sizes_of_known_placements() -> None:
    assert rotated((96, 96, 32), (1.0, 1.0, 3.0), (0, 0, 90.0), 1.0).source_size == (96, 96, 32)
    assert rotated((96, 40, 32), (1.0, 1.0, 3.0), (0, 0, 90.0), 1.0).source_size == (40, 96, 32)
    assert rotated((31, 31, 31), (1.0, 1.0, 3.0), (90.0, 0, 0), 1.0).source_size == (31, 91, 11)
    assert rotated((41, 41, 41), SPACING, (0, 0, 0), 2.0).source_size == (21, 21, 21)


@pytest.mark.parametrize("seed", range(25))
def test_nothing_is_read_beyond_the_region(seed: int) -> None:
    placement = draw(np.random.default_rng(seed), ALWAYS, (24, 17, 12), SPACING)
    size = placement.source_size
    cpu = torch.device("cpu")
    straight = [first + second + third for first, second, third in placement.lines(size, cpu)]
    bend = torch.stack(present(placement.displacements(cpu)), -1)
    index = torch.stack(straight, -1) + bend  # (X, Y, Z, 3)
    assert float(index.min()) > -1e-3
    assert bool((index < torch.tensor(size) - 1 + 1e-3).all())
    assert all((big - small) % 2 == 0 for big, small in zip(size, (24, 17, 12), strict=True))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_image_and_label_move_together(seed: int, axis: int) -> None:
    placement = draw(np.random.default_rng(seed), ALWAYS, (24, 18, 12), SPACING)
    ramp = ramps(placement.source_size)[axis : axis + 1]  # value = voxel index along `axis`
    moved, label = place(ramp, ramp.to(torch.uint8), placement)
    assert label.dtype == torch.uint8
    assert float((moved - label).abs().max()) <= 0.501  # nearest is within half a voxel


@pytest.mark.parametrize("seed", range(5))
def test_a_bend_stays_within_its_millimetres_and_never_folds(seed: int) -> None:
    config = AugmentationConfig(affine_probability=0, elastic_probability=1, elastic_mm=8.0)
    placement = draw(np.random.default_rng(seed), config, (64, 48, 32), SPACING)
    size = placement.source_size
    read, _ = place(ramps(size), torch.zeros(1, *size), placement)
    rest = (torch.tensor(size) - torch.tensor((64, 48, 32))).view(3, 1, 1, 1) / 2
    bend_mm = (read - ramps((64, 48, 32)) - rest) * torch.tensor(SPACING).view(3, 1, 1, 1)
    assert 1.0 < float(bend_mm.abs().max()) <= 8.001
    for axis in range(3):  # source positions grow along their own axis everywhere
        assert float(read[axis].diff(dim=axis).min()) > 0
    kinks = bend_mm[0].diff(dim=0).diff(dim=0).abs().max()  # 1 mm voxels: second derivative
    assert float(kinks) < 0.1


def test_the_identity_reads_the_patch_itself() -> None:
    image, label = torch.rand(1, 9, 8, 7), torch.randint(0, 4, (1, 9, 8, 7), dtype=torch.uint8)
    moved, same = place(image, label, Placement((9, 8, 7), np.eye(3)))
    assert torch.equal(label, same)
    assert torch.allclose(image, moved, atol=1e-5)


def test_beyond_a_region_that_is_too_small_the_border_goes_on() -> None:
    image = torch.full((1, 5, 5, 5), 3.0)
    moved, label = place(image, image, Placement((9, 9, 9), np.eye(3) * 2))
    assert torch.equal(moved, torch.full((1, 9, 9, 9), 3.0))
    assert torch.equal(label, moved)


def test_draws_keep_within_the_settings() -> None:
    config = AugmentationConfig(
        affine_probability=1, rotation_degrees=(0.0, 0.0, 30.0), scale=(0.7, 1.4)
    )
    zooms, turns = [], []
    for seed in range(300):
        placement = draw(np.random.default_rng(seed), config, (8, 8, 8), (1.0, 1.0, 1.0))
        zooms.append(np.linalg.det(placement.matrix) ** (-1 / 3))
        turn = placement.matrix * zooms[-1]
        assert turn[2] == pytest.approx((0, 0, 1))
        turns.append(math.degrees(math.atan2(turn[0, 1], turn[0, 0])))
    assert 0.7 <= min(zooms) < 0.72
    assert 1.37 < max(zooms) <= 1.4
    assert np.median(zooms) == pytest.approx(math.sqrt(0.7 * 1.4), abs=0.05)  # as often smaller
    assert -30 <= min(turns) < -28
    assert 28 < max(turns) <= 30


def test_draws_come_as_often_as_asked() -> None:
    config = AugmentationConfig(affine_probability=0.3, elastic_probability=0.2)
    drawn = [draw(np.random.default_rng(seed), config, (8, 8, 8), SPACING) for seed in range(1000)]
    straight = sum(placement.is_identity for placement in drawn) / 1000
    bent = sum(placement.displacement is not None for placement in drawn) / 1000
    assert straight == pytest.approx(0.7 * 0.8, abs=0.05)
    assert bent == pytest.approx(0.2, abs=0.05)
    never = AugmentationConfig(affine_probability=0)
    assert draw(np.random.default_rng(0), never, (8, 8, 8), SPACING).is_identity
