"""Filled polygons are what the rule of an odd number of edges says, voxel by voxel."""

import numpy as np
import pytest
from skimage.measure import points_in_poly

from attunet3d.core import Floats, Mask
from attunet3d.imaging.polygons import fill_polygons

SHAPE = (23, 31)


def by_skimage(polygon: Floats) -> Mask:
    points = np.argwhere(np.ones(SHAPE, bool))
    found: Mask = points_in_poly(points, polygon).reshape(SHAPE)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_polygons_of_any_shape_are_filled_as_another_library_does(seed: int) -> None:
    """Corners at random, inside and outside of the plane: the edges cross each other."""
    rng = np.random.default_rng(seed)
    first, second = (rng.uniform(-6, 36, (count, 2)) for count in (3, 12))
    np.testing.assert_array_equal(fill_polygons([first], SHAPE), by_skimage(first))
    both = by_skimage(first) ^ by_skimage(second)
    np.testing.assert_array_equal(fill_polygons([first, second], SHAPE), both)


def test_a_square_in_a_square_in_a_square_is_a_part_in_a_hole() -> None:
    squares = [
        np.array([[low, low], [low, high], [high, high], [high, low]])
        for low, high in ((1.5, 20.5), (4.5, 15.5), (6.5, 10.5))
    ]
    assert fill_polygons(squares, SHAPE).sum() == 19**2 - 11**2 + 4**2


def test_a_keyhole_through_voxel_centres_cuts_nothing() -> None:
    ring = [(1.5, 1.5), (1.5, 12.5), (12.5, 12.5), (12.5, 1.5)]
    channel = [(12.5, 4.0), (9.5, 4.0)]  # along a row of centres
    hole = [(9.5, 9.5), (4.5, 9.5), (4.5, 3.5), (9.5, 3.5), (9.5, 4.0)]
    polygon = np.array(
        [*ring[:3], channel[0], channel[1], *hole[:-1], channel[1], channel[0], ring[3]]
    )
    assert fill_polygons([polygon], SHAPE).sum() == 11 * 11 - 5 * 6


def test_no_polygon_fills_nothing() -> None:
    assert not fill_polygons([], SHAPE).any()
