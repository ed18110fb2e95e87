"""Grids lie where the table of known answers says, and changes of grid keep world positions."""

from itertools import permutations, product
from typing import Any

import numpy as np
import pytest

from attunet3d.core import DataError, Floats
from attunet3d.imaging.geometry import LPS_TO_RAS, AxisMap, Grid, axis_map

SHAPE = (5, 4, 3)
ORDERS = [
    "".join(pair[flip] for pair, flip in zip(axes, flips, strict=True))
    for axes in permutations(("RL", "AP", "SI"))
    for flips in product((0, 1), repeat=3)
]
COS, SIN = np.cos(np.radians(30)), np.sin(np.radians(30))
AFFINES = {  # name: rows, spacing in mm, voxel volume in ml, codes, world of voxel (1, 2, 1)
    "identity": (np.eye(4), (1, 1, 1), 0.001, "RAS", (1, 2, 1)),
    "flipped": (
        [[-2, 0, 0, 10], [0, -2, 0, 20], [0, 0, 2, 30], [0, 0, 0, 1]],
        (2, 2, 2),
        0.008,
        "LPS",
        (8, 16, 32),
    ),
    "permuted": (
        [[0, 0, 1, 0], [2, 0, 0, 5], [0, -3, 0, 9], [0, 0, 0, 1]],
        (2, 3, 1),
        0.006,
        "AIR",
        (1, 7, 3),
    ),
    "anisotropic": (np.diag([0.7, 0.7, 5, 1]), (0.7, 0.7, 5), 0.00245, "RAS", (0.7, 1.4, 5)),
    "oblique": (  # 30 degrees about x, 2 mm voxels
        [[2, 0, 0, 0], [0, 2 * COS, -2 * SIN, 0], [0, 2 * SIN, 2 * COS, 0], [0, 0, 0, 1]],
        (2, 2, 2),
        0.008,
        "RAS",
        (2, 4 * COS - 2 * SIN, 4 * SIN + 2 * COS),
    ),
    "sheared": (  # a tilted gantry: slices slide 1 mm along y; the volume is that of the box
        [[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 3, 0], [0, 0, 0, 1]],
        (1, 1, np.sqrt(10)),
        0.003,
        "RAS",
        (1, 3, 3),
    ),
}


@pytest.fixture(params=AFFINES)
def grid(request: pytest.FixtureRequest) -> Grid:
    return Grid(SHAPE, np.array(AFFINES[request.param][0], float))


@pytest.mark.parametrize("name", AFFINES)
def test_a_grid_lies_where_its_affine_says(name: str) -> None:
    rows, spacing, volume_ml, codes, world = AFFINES[name]
    grid = Grid(SHAPE, np.array(rows, float))
    assert grid.spacing_mm == pytest.approx(spacing)
    assert grid.voxel_volume_ml == pytest.approx(volume_ml)
    assert grid.axis_codes == codes
    np.testing.assert_allclose(grid.to_world([1, 2, 1]), world, atol=1e-12)
    np.testing.assert_allclose(grid.to_index(world), [1, 2, 1], atol=1e-12)


def test_world_and_index_take_any_number_of_points(grid: Grid) -> None:
    index = np.random.default_rng(0).uniform(-3, 9, (4, 2, 3))
    assert grid.to_world(index).shape == (4, 2, 3)
    np.testing.assert_allclose(grid.to_index(grid.to_world(index)), index, atol=1e-12)


def test_corners_are_the_centres_of_the_corner_voxels() -> None:
    corners = Grid(SHAPE, np.diag([2.0, 3, 4, 1])).corners_mm()
    assert corners.shape == (8, 3)
    assert sorted(map(tuple, corners)) == sorted(product((0, 8), (0, 9), (0, 8)))


def test_a_grid_keeps_its_own_read_only_affine_and_whole_sizes() -> None:
    affine = np.eye(4)
    shape: Any = (np.int64(2), 3.0, 4)
    grid = Grid(shape, affine)
    affine[0, 3] = 99
    assert grid.affine[0, 3] == 0
    assert all(type(size) is int for size in grid.shape)
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 2


SINGULAR = np.diag([1.0, 1, 0, 1])
FLAT = np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("shape", "affine", "message"),
    [
        ((5, 4), np.eye(4), r"shape \(5, 4\): a grid has three axes of at least one voxel"),
        ((5, 0, 3), np.eye(4), r"shape \(5, 0, 3\)"),
        (SHAPE, np.eye(3), "4×4 finite numbers; correct the header"),
        (SHAPE, np.full((4, 4), np.nan), "4×4 finite numbers"),
        (SHAPE, np.diag([np.inf, 1, 1, 1]), "4×4 finite numbers"),
        (SHAPE, SINGULAR, r"singular \(spacings \[1.0, 1.0, 0.0\] mm\).*correct the header"),
        (SHAPE, FLAT, "three independent directions"),
    ],
)
def test_a_grid_that_lies_nowhere_is_refused_with_the_cure(
    shape: Any, affine: Floats, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        Grid(shape, affine)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spacing", [1e-6, 1e6])
def test_very_small_and_very_large_voxels_are_no_error(spacing: float) -> None:
    assert Grid(SHAPE, np.diag([spacing] * 3 + [1])).spacing_mm[0] == pytest.approx(spacing)


def test_grids_match_within_a_thousandth_of_a_millimetre_at_every_corner(grid: Grid) -> None:
    def moved(by_mm: float) -> Grid:
        affine = grid.affine.copy()
        affine[0, 3] += by_mm
        return Grid(grid.shape, affine)

    assert grid.matches(grid)
    assert grid.distance_mm(moved(0.25)) == pytest.approx(0.25)
    assert grid.matches(moved(9e-4))
    assert not grid.matches(moved(2e-3))
    assert grid.matches(moved(0.4), tolerance_mm=0.5)
    assert not grid.matches(grid.resized((5, 4, 4)))


def test_a_small_turn_shows_at_the_far_corner() -> None:
    turned = np.array([[1, -1e-3, 0, 0], [1e-3, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    grid = Grid((512, 1, 1), np.eye(4))
    assert grid.distance_mm(Grid((512, 1, 1), turned)) == pytest.approx(0.511)
    assert not grid.matches(Grid((512, 1, 1), turned))


def test_cropping_keeps_the_world_of_every_voxel(grid: Grid) -> None:
    cropped = grid.cropped((slice(1, 4), slice(2, 4), slice(0, 1)))
    assert cropped.shape == (3, 2, 1)
    np.testing.assert_allclose(cropped.to_world([1, 1, 0]), grid.to_world([2, 3, 0]), atol=1e-12)
    np.testing.assert_array_equal(cropped.affine[:3, :3], grid.affine[:3, :3])


@pytest.mark.parametrize("codes", ORDERS)
def test_every_one_of_the_48_orders_comes_and_goes(codes: str) -> None:
    grid = Grid(SHAPE, np.array(AFFINES["anisotropic"][0], float))
    turned = grid.oriented(codes)
    assert turned.axis_codes == codes
    assert turned.voxel_volume_ml == pytest.approx(grid.voxel_volume_ml)
    assert turned.oriented("RAS").matches(grid, tolerance_mm=1e-9)
    corners, there = (sorted(map(tuple, g.corners_mm().round(9) + 0.0)) for g in (grid, turned))
    np.testing.assert_allclose(corners, there, atol=1e-9)


@pytest.mark.parametrize("codes", ORDERS)
def test_the_axis_map_says_where_every_voxel_of_the_other_order_lies(codes: str) -> None:
    array = np.arange(60).reshape(SHAPE)
    grid = Grid(SHAPE, np.array(AFFINES["oblique"][0], float))
    target = grid.oriented(codes)
    way = axis_map(grid, target)
    index = np.indices(target.shape)
    there = [index[0]] * 3
    for axis in range(3):
        there[way.order[axis]] = np.rint(way.scale[axis] * index[axis] + way.offset[axis])
    moved = array[tuple(part.astype(int) for part in there)]
    backwards = tuple(axis for axis in range(3) if way.scale[axis] < 0)
    flipped = np.flip(moved, backwards).transpose(np.argsort(way.order))
    np.testing.assert_array_equal(flipped, array)  # flips and order alone undo the change


def test_orienting_an_oblique_grid_does_not_straighten_it() -> None:
    grid = Grid(SHAPE, np.array(AFFINES["oblique"][0], float))
    assert grid.oriented("RAS").matches(grid)
    assert grid.oriented("LPS").axis_codes == "LPS"
    np.testing.assert_allclose(grid.oriented("LPS").spacing_mm, grid.spacing_mm)


def outer_corners(grid: Grid) -> Floats:
    low, high = np.full(3, -0.5), np.array(grid.shape) - 0.5
    return grid.to_world([np.where(pick, high, low) for pick in product((0, 1), repeat=3)])


@pytest.mark.parametrize("shape", [(5, 4, 3), (10, 8, 6), (3, 7, 1), (1, 1, 1)])
def test_resizing_keeps_the_outer_faces(grid: Grid, shape: tuple[int, int, int]) -> None:
    resized = grid.resized(shape)
    assert resized.shape == shape
    np.testing.assert_allclose(outer_corners(resized), outer_corners(grid), atol=1e-9)
    assert resized.resized(grid.shape).matches(grid, tolerance_mm=1e-9)


def test_the_first_centre_moves_by_half_of_ratio_less_one() -> None:
    resized = Grid((8, 8, 8), np.eye(4)).resized((4, 8, 16))
    np.testing.assert_allclose(resized.to_world([0, 0, 0]), [0.5, 0, -0.25])
    assert resized.spacing_mm == (2, 1, 0.5)


@pytest.mark.parametrize(
    ("spacing", "shape"),
    [((2, 2, 2), (50, 40, 150)), ((1.5, 1.5, 3), (67, 53, 100)), ((500, 500, 500), (1, 1, 1))],
)
def test_a_spacing_gives_the_nearest_whole_number_of_voxels(
    spacing: tuple[float, float, int], shape: tuple[int, int, int]
) -> None:
    grid = Grid((100, 80, 60), np.diag([1.0, 1, 5, 1]))
    assert grid.with_spacing(spacing).shape == shape
    np.testing.assert_allclose(outer_corners(grid.with_spacing(spacing)), outer_corners(grid))


def test_axis_map_of_a_crop_and_of_a_finer_grid() -> None:
    grid = Grid((8, 8, 8), np.diag([2.0, 2, 2, 1]))
    crop = axis_map(grid, grid.cropped((slice(3, 6), slice(0, 8), slice(1, 2))))
    assert crop == AxisMap((0, 1, 2), (1, 1, 1), (3, 0, 1))
    finer = axis_map(grid, grid.resized((16, 8, 4)))
    assert finer == AxisMap((0, 1, 2), (0.5, 1, 2), (-0.25, 0, 0.5))
    assert min(finer.scale) > 0


def test_axis_map_there_and_back_is_the_identity(grid: Grid) -> None:
    other = grid.oriented("SLP").resized((9, 2, 6))
    there, back = axis_map(grid, other), axis_map(other, grid)
    for axis in range(3):
        far = there.order[axis]
        assert back.order[far] == axis
        assert there.scale[axis] * back.scale[far] == pytest.approx(1)
        start = there.scale[axis] * back.offset[far] + there.offset[axis]
        assert start == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", ["oblique", "sheared"])
def test_grids_that_are_not_parallel_are_refused(name: str) -> None:
    slanted = Grid(SHAPE, np.array(AFFINES[name][0], float))
    with pytest.raises(DataError, match="not parallel; resample one of them"):
        axis_map(Grid(SHAPE, np.eye(4)), slanted)


def test_rounding_of_a_header_is_no_slant() -> None:
    affine = np.array(AFFINES["oblique"][0]).astype(np.float32).astype(float)
    straight = Grid((512, 512, 200), np.array(AFFINES["oblique"][0], float))
    assert axis_map(straight, Grid((512, 512, 200), affine)).order == (0, 1, 2)


def test_dicoms_first_two_axes_run_against_ours() -> None:
    np.testing.assert_array_equal(LPS_TO_RAS @ [1, 2, 3], [-1, -2, 3])
