"""Connected parts of masks drawn by hand."""

from typing import Literal

import numpy as np
import pytest

from attunet3d.core import Mask
from attunet3d.imaging.components import drop_small_, extent, keep_largest_, large_components


def parts(order: Literal["C", "F"] = "F") -> Mask:
    """Three parts of 8, 4 and 1 voxels; the last one touches nothing."""
    mask = np.zeros((9, 5, 3), bool, order=order)
    mask[0:2, 0:2, 0:2] = True
    mask[4:8, 0, 0] = True
    mask[8, 4, 2] = True
    found: Mask = mask
    return found


@pytest.mark.parametrize("order", ["F", "C"])
@pytest.mark.parametrize(("share", "voxels"), [(1.0, 8), (0.5, 12), (0.51, 8), (0.1, 13)])
def test_keeps_parts_by_their_share_of_the_largest(
    order: Literal["C", "F"], share: float, voxels: int
) -> None:
    mask = parts(order)
    before = mask.copy()
    kept = large_components(mask, share)
    assert kept.dtype == bool
    assert kept.sum() == voxels
    assert not (kept & ~mask).any()
    assert np.array_equal(mask, before)


def test_corners_connect() -> None:
    mask = np.zeros((4, 4, 4), bool)
    mask[[0, 1, 2], [0, 1, 2], [0, 1, 2]] = True
    mask[0, 3, 3] = True
    assert large_components(mask).sum() == 3


def test_of_equal_parts_one_is_kept() -> None:
    mask = np.zeros((5, 1, 1), bool)
    mask[[0, 4]] = True
    assert large_components(mask).ravel().tolist() == [True, False, False, False, False]


@pytest.mark.parametrize("value", [False, True])
def test_nothing_and_everything_stay(value: bool) -> None:
    mask = np.full((3, 2, 2), value)
    kept = large_components(mask)
    assert np.array_equal(kept, mask)
    assert not np.shares_memory(kept, mask)


def test_each_label_keeps_its_own_largest_part() -> None:
    labels = np.zeros((12, 6, 5), np.uint8, order="F")
    labels[parts().nonzero()] = 7  # 8, 4 and 1 voxels
    labels[9:12, 0:2, 4] = 200
    labels[0, 5, 4] = 200
    other = labels.copy(order="K")
    keep_largest_(labels, [7, 200])
    wanted = np.zeros_like(labels)
    wanted[0:2, 0:2, 0:2] = 7
    wanted[9:12, 0:2, 4] = 200
    assert np.array_equal(labels, wanted)
    keep_largest_(other, [200])
    assert np.count_nonzero(other == 7) == 13  # not asked for
    assert np.count_nonzero(other == 200) == 6
    empty = np.zeros((3, 2, 2), np.uint8, order="F")
    keep_largest_(empty, [1])
    assert not empty.any()


def test_extent_of_one_and_of_all() -> None:
    assert extent(np.array([False, False, True])) == slice(2, 3)
    assert extent(np.array([True, False, True])) == slice(0, 3)


def test_a_region_that_another_cuts_in_two_is_one_part() -> None:
    """As in nnU-Net: components are those of the region, and all of its values are dropped."""
    line = np.array([1, 1, 2, 1, 0, 1, 2, 0, 2, 0, 7], np.uint8)
    regions = {1: (1, 2), 2: (2,)}
    labels = line.copy().reshape(11, 1, 1)
    keep_largest_(labels, [1], regions)
    assert labels.ravel().tolist() == [1, 1, 2, 1, 0, 0, 0, 0, 0, 0, 7]
    labels = line.copy().reshape(11, 1, 1)
    drop_small_(labels, {1: 2}, regions)
    assert labels.ravel().tolist() == [1, 1, 2, 1, 0, 1, 2, 0, 0, 0, 7]
    labels = line.copy().reshape(11, 1, 1)
    keep_largest_(labels, [2, 1], regions)  # whatever the order
    assert labels.ravel().tolist() == [1, 1, 2, 1, 0, 0, 0, 0, 0, 0, 7]
    labels = line.copy().reshape(11, 1, 1)
    keep_largest_(labels, [1])
    assert labels.ravel().tolist() == [1, 1, 2, 0, 0, 0, 2, 0, 2, 0, 7]
