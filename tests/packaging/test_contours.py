"""Outlines of random masks, filled again, and outlines known by hand."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from attunet3d.imaging.polygons import fill_polygons
from attunet3d.packaging.contours import outlines


@pytest.mark.parametrize("seed", range(20))
def test_filling_gives_the_mask_again(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = gaussian_filter(rng.normal(size=(41, 37)), rng.uniform(0.3, 3)) > 0
    np.testing.assert_array_equal(fill_polygons(outlines(mask), mask.shape), mask)


def test_rings_in_rings_are_filled_right() -> None:
    x, y = np.indices((60, 60)) - 30
    radius = np.hypot(x, y)
    mask = (radius < 28) & (radius > 20) | (radius < 14) & (radius > 8) | (radius < 4)
    polygons = outlines(mask)
    assert len(polygons) == 3  # two rings with a keyhole each, and the disc in the middle
    np.testing.assert_array_equal(fill_polygons(polygons, mask.shape), mask)


def test_many_holes_of_one_part_share_its_polygon() -> None:
    mask = np.ones((30, 30), bool)
    mask[5:25:4, 5:25:4] = False
    polygons = outlines(mask)
    assert len(polygons) == 1
    np.testing.assert_array_equal(fill_polygons(polygons, mask.shape), mask)


def test_a_rectangle_has_eight_corners_halfway_between_voxels() -> None:
    mask = np.zeros((8, 9), bool)
    mask[2:5, 3:8] = True
    (polygon,) = outlines(mask)
    assert {tuple(point) for point in polygon.tolist()} == {
        *((1.5, 3.0), (1.5, 7.0), (4.5, 3.0), (4.5, 7.0)),
        *((2.0, 2.5), (4.0, 2.5), (2.0, 7.5), (4.0, 7.5)),
    }


def test_voxels_that_touch_at_a_corner_are_apart() -> None:
    assert len(outlines(np.eye(2, dtype=bool))) == 2


def test_nothing_has_no_outline() -> None:
    assert outlines(np.zeros((4, 4), bool)) == []
