"""Normalised surface Dice against the answers of google-deepmind/surface-distance 0.1."""

import numpy as np
import pytest

from attunet3d.core import Mask
from attunet3d.evaluation import metrics, surfels
from attunet3d.evaluation.surfels import normalised_surface_dice
from attunet3d.imaging import Grid


def grid(shape: tuple[int, ...], *spacing: float) -> Grid:
    """Axis-aligned."""
    a, b, c = shape
    return Grid((a, b, c), np.diag([*spacing, 1.0]))


def noise(seed: int) -> tuple[Mask, Mask]:
    """Two masks in which all 256 neighbourhoods occur."""
    rng = np.random.default_rng(seed)
    first = rng.random((9, 8, 7)) < 0.5
    second = rng.random((9, 8, 7)) < 0.05
    return first, second | (first & (rng.random((9, 8, 7)) < 0.1))


def ball(side: int, radius: float) -> Mask:
    """A ball in the middle of a cube."""
    index = np.indices((side,) * 3) - (side - 1) / 2
    return np.asarray((index**2).sum(axis=0) <= radius**2)


def test_the_packages_own_test_answers() -> None:
    """Two single voxels 2 mm apart, and two blocks that differ by a plane 2 mm thick."""
    one, other = np.zeros((2, 100, 100, 100), bool)
    one[50, 60, 70] = other[50, 60, 72] = True
    assert normalised_surface_dice(one, other, grid((100,) * 3, 3, 2, 1), [1]) == [0.5]
    one, other = np.zeros((2, 100, 100, 100), bool)
    one[:50] = other[:51] = True
    found = normalised_surface_dice(one, other, grid((100,) * 3, 2, 1, 1), [1])
    assert found == pytest.approx([0.8361450084979621], abs=1e-12)


@pytest.mark.parametrize("corners", [1, 200, 10**9])
@pytest.mark.parametrize(
    ("seed", "spacing", "answers"),
    [
        (0, (1, 1, 1), [0.617156492, 0.891563497, 0.982318786]),
        (1, (0.7, 1.1, 2.3), [0.5193068, 0.708987775, 0.930089139]),
        (2, (0.5, 0.5, 5), [0.440688553, 0.839681373, 0.974515256]),
    ],
)
def test_noise_gives_the_packages_numbers_however_it_is_cut_into_slabs(
    seed: int,
    spacing: tuple[float, ...],
    answers: list[float],
    corners: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At tolerances of 0, 1 and 2 mm, isotropic and not."""
    monkeypatch.setattr(surfels, "SLAB_CORNERS", corners)
    masks = noise(seed)
    found = normalised_surface_dice(*masks, grid(masks[0].shape, *spacing), [0, 1, 2])
    assert found == pytest.approx(answers, abs=1e-9)
    assert found == pytest.approx(
        normalised_surface_dice(*masks[::-1], grid(masks[0].shape, *spacing), [0, 1, 2])
    )


def test_oblique_and_sheared_grids_are_measured_in_the_patient() -> None:
    """A turned grid changes nothing; a ball resampled onto a sheared grid keeps its answer."""
    masks = noise(1)
    turn = np.array([[0.36, 0.48, -0.8], [-0.8, 0.6, 0.0], [0.48, 0.64, 0.6]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.7, 1.1, 2.3])
    found = normalised_surface_dice(*masks, Grid((9, 8, 7), affine), [0, 1, 2])
    assert found == pytest.approx([0.5193068, 0.708987775, 0.930089139], abs=1e-9)

    sheared = np.diag([0.5, 0.5, 0.5, 1.0])
    sheared[1, 2] = 0.25  # as a gantry tilted by 27 degrees
    answers = []
    for matrix in (np.diag([0.5, 0.5, 0.5, 1.0]), sheared):
        lying = Grid((64, 64, 64), matrix)
        world = lying.to_world(np.moveaxis(np.indices(lying.shape), 0, -1).reshape(-1, 3))
        world = (world - lying.to_world(np.array([[31.5, 31.5, 31.5]]))).reshape(64, 64, 64, 3)
        one, other = (np.linalg.norm(world - [x, 0, 0], axis=-1) <= 8 for x in (0, 2))
        answers.append(normalised_surface_dice(one, other, lying, [1.0])[0])
    # A sphere moved by 2 mm moves by less than 1 mm where |cos| < 1/2: half of its area. Corners
    # half a millimetre apart blur that limit upwards, on either grid.
    assert answers[1] == pytest.approx(answers[0], abs=0.03)
    assert answers == pytest.approx([0.5, 0.5], abs=0.12)


def test_the_area_of_a_plane_is_exact_on_any_grid() -> None:
    """Half-spaces of 7×6 voxels across each axis: area = that of the parallelogram."""
    affine = np.eye(4)
    affine[:3, :3] = [[0.7, 0.1, 0.0], [0.0, 1.1, 0.3], [0.2, 0.0, 2.3]]
    areas = surfels._areas(tuple(map(tuple, affine[:3, :3].tolist())))
    for axis, code in ((0, 0b00001111), (1, 0b00110011), (2, 0b01010101)):
        a, b = (affine[:3, other] for other in range(3) if other != axis)
        assert areas[code] == pytest.approx(np.linalg.norm(np.cross(a, b)))


def test_scores_hold_it_under_its_own_name() -> None:
    """Beside the voxel-counting surface Dice of MONAI; empty masks as everywhere."""
    one, other = np.zeros((2, 100, 100, 100), bool)
    one[50, 60, 70] = other[50, 60, 72] = True
    found = metrics.score(one, other, grid((100,) * 3, 3, 2, 1), 1.0)
    assert (found.nsd_1mm, found.nsd_2mm, found.surface_dice) == (0.5, 1.0, 0.0)
    nothing = np.zeros((100, 100, 100), bool)
    assert metrics.score(nothing, one, grid((100,) * 3, 1, 1, 1)).nsd_2mm == 0
    assert metrics.score(nothing, nothing, grid((100,) * 3, 1, 1, 1)).nsd_2mm == 1
