"""Shapes have their known distances and volumes."""

from typing import Any

import numpy as np
import pytest

from attunet3d.core import Float32s, Floats
from attunet3d.phantoms.shapes import Blend, Ellipsoid, Region, Torso, Tube, Warp
from attunet3d.phantoms.tissue import rotation


def points(
    low: tuple[int, int, int] | Floats, high: tuple[int, int, int] | Floats, step: float
) -> tuple[Float32s, Float32s, Float32s]:
    axes = [
        np.arange(a + step / 2, b, step, dtype=np.float32) for a, b in zip(low, high, strict=True)
    ]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    return x, y, z


def measured_ml(
    shape: Any, step: float = 1.0, deform: Warp | None = None, margin: float = 4
) -> float:
    low, high = shape.bounds_mm + np.array([[-margin], [margin]])
    x, y, z = points(low, high, step)
    if deform is not None:
        x, y, z = deform(x, y, z)
    found: float = (shape.distance(x, y, z) < 0).sum() * step**3 / 1000
    return found


def at(shape: Any, *point: Any) -> float:
    return float(shape.distance(*np.array(point, np.float32).reshape(3, 1))[0])


@pytest.mark.parametrize(
    ("point", "distance"),
    [((0, 0, 15), 5), ((3, 0, 9), -0.513), ((0, 10, 0), 0), ((20, 0, 0), 10)],
)
def test_a_sphere_has_its_distances(point: tuple[int, int, int], distance: float) -> None:
    ball = Ellipsoid(np.zeros(3), np.full(3, 10.0))
    assert at(ball, *point) == pytest.approx(distance, abs=1e-3)


def test_a_turned_ellipsoid_keeps_its_volume_and_its_box() -> None:
    turned = Ellipsoid(np.array([5.0, -3, 2]), np.array([30.0, 12, 20]), rotation([0.4, -0.3, 0.8]))
    assert measured_ml(turned) == pytest.approx(4 / 3 * np.pi * 30 * 12 * 20 / 1000, rel=0.003)
    low, high = turned.bounds_mm + np.array([[-9], [9]])
    x, y, z = points(low, high, 1.0)
    inside = turned.distance(x, y, z) < 0
    found = np.stack([axis[inside] for axis in (x, y, z)])
    assert (found.min(axis=1) >= turned.bounds_mm[0]).all()
    np.testing.assert_allclose(found.max(axis=1), turned.bounds_mm[1], atol=1.5)


def test_rotation_turns_about_x_then_y_then_z() -> None:
    quarter = np.pi / 2
    np.testing.assert_allclose(rotation([quarter, 0, 0]) @ [0, 1, 0], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(rotation([0, 0, quarter]) @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(rotation([quarter, 0, quarter]) @ [0, 1, 0], [0, 0, 1], atol=1e-12)
    matrix = rotation([0.3, 0.5, -1.1])
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(matrix) == pytest.approx(1)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_straight_tube_is_a_cylinder_whatever_its_axis(axis: int) -> None:
    ends = np.zeros((2, 3))
    ends[1, axis] = 100
    radii = np.tile([8.0, 12.0], (2, 1))
    tube = Tube(axis, np.array([0.0, 100.0]), np.zeros((2, 2)), radii, np.ones(2))
    assert tube.volume_ml == pytest.approx(np.pi * 8 * 12 * 100 / 1000)
    assert measured_ml(tube) == pytest.approx(tube.volume_ml, rel=0.01)
    inside = np.insert([0.0, 11.5], axis, 50)
    assert at(tube, *inside) < 0 < at(tube, *np.insert([0.0, 12.5], axis, 50))
    assert at(tube, *np.insert([0.0, 0.0], axis, 103)) == pytest.approx(3)


def test_a_curved_tube_has_the_volume_it_claims() -> None:
    knots = [(0, 0, 0), (20, 15, -5), (50, 5, 10), (80, -20, 30)]
    tube = Tube.through(0, knots, [(8, 12), (11, 9), (7, 7), (9, 6)], cap_mm=10)
    assert measured_ml(tube, 0.8) == pytest.approx(tube.volume_ml, rel=0.005)
    assert tube.scaled(1.1).volume_ml == pytest.approx(1.21 * tube.volume_ml)
    assert tube.shrunk(3).volume_ml < 0.5 * tube.volume_ml


def test_knots_may_come_in_any_order_along_the_axis() -> None:
    knots, radii = np.array([(0, 1, 2), (30, 8, 3), (50, 2, 9)]), np.array([(5, 6), (7, 8), (4, 4)])
    forward, backward = Tube.through(0, knots, radii), Tube.through(0, knots[::-1], radii[::-1])
    np.testing.assert_array_equal(forward.centre, backward.centre)
    np.testing.assert_array_equal(forward.radii, backward.radii)


def test_shrinking_a_tube_leaves_a_wall_of_that_thickness() -> None:
    tube = Tube.through(2, [(0, 0, 0), (0, 0, 80)], 15.0)
    lumen = tube.shrunk(4)
    assert at(tube, 0, 12, 40) < 0 < at(lumen, 0, 12, 40)
    assert at(lumen, 0, 10.5, 40) < 0


def test_a_blend_is_larger_than_its_parts_only_near_their_seam() -> None:
    parts = tuple(Ellipsoid(np.array([x, 0.0, 0]), np.full(3, 10.0)) for x in (-8, 8))
    blend = Blend(parts, 6)
    assert at(blend, 0, 7, 0) < min(at(part, 0, 7, 0) for part in parts)
    assert at(blend, -20, 0, 0) == pytest.approx(at(parts[0], -20, 0, 0))
    assert measured_ml(blend, margin=8) == pytest.approx(measured_ml(blend, margin=2), rel=1e-6)


def test_a_region_is_cut_to_the_shape_around_it() -> None:
    ball = Ellipsoid(np.zeros(3), np.full(3, 20.0))
    half = Region(ball.bounds_mm, lambda x, y, z: -y, ball)
    assert measured_ml(half) == pytest.approx(measured_ml(ball) / 2, rel=0.01)
    assert at(half, 0, 5, 0) < 0 < at(half, 0, -5, 0)


def test_a_torso_meets_its_half_widths_and_is_fuller_than_an_ellipse() -> None:
    torso = Torso(160, 110, 0.6)
    x, y = (
        np.array([160, 0, 170, 0.7072 * 160], np.float32),
        np.array([0, 110, 0, 0.7072 * 110], np.float32),
    )
    on_x, on_y, beyond, diagonal = torso.outline(x, y).tolist()
    assert (on_x, on_y) == (pytest.approx(0, abs=1e-3), pytest.approx(0, abs=1e-3))
    assert beyond == pytest.approx(10, abs=1e-3)
    assert diagonal < -5


def test_a_warp_moves_points_and_keeps_every_volume() -> None:
    rng = np.random.default_rng(0)
    waves = rng.uniform(0, 1, (3, 3, 4)) * (3, 0.15, 0.15, 6)
    warp = Warp(waves)
    shape = Ellipsoid(np.zeros(3), np.array([30.0, 20, 25]))
    grid = points((-45,) * 3, (45,) * 3, 1.5)
    moved = warp(*grid)
    shift = np.abs(np.stack(moved) - np.stack(grid)).max()
    assert 1 < shift <= warp.reach_mm + 1e-4
    straight = 4 / 3 * np.pi * 30 * 20 * 25 / 1000
    assert measured_ml(shape, 0.8, warp, margin=warp.reach_mm) == pytest.approx(straight, rel=0.003)
