"""Slices follow the radiological convention, whatever the voxel axes of the scan."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from nibabel import orientations

from attunet3d.core import DataError
from attunet3d.evaluation import slices
from attunet3d.evaluation.slices import Slice, View, radiological_views
from attunet3d.imaging.geometry import Grid
from attunet3d.imaging.volume import Volume

PAIRS = (("R", "L"), ("A", "P"), ("S", "I"))
ALL_CODES = [
    "".join(codes) for order in itertools.permutations(PAIRS) for codes in itertools.product(*order)
]
SHAPE, SPACING = (11, 9, 7), (1.0, 2.0, 5.0)  # of the scan in RAS


def scan_with(mark_mm: Sequence[float], codes: str = "RAS") -> Volume:
    """A scan of zeros with a 1 at a place in the patient, stored with other voxel axes."""
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = -5, -8, -15  # the middle of the scan is the world's origin
    grid = Grid(SHAPE, affine)
    array = np.zeros(SHAPE, np.int16)
    array[tuple(grid.to_index(mark_mm).round().astype(int))] = 1
    change = orientations.ornt_transform(
        orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(codes)
    )
    return Volume(orientations.apply_orientation(array, change), grid.oriented(codes))


def radiological_view(scan: Volume) -> View:
    (view,) = radiological_views(scan)
    return view


def marked(plane: str, scan: Volume) -> tuple[float, float]:
    """Where the marked pixel lies in a slice, in mm right of and below the slice's middle."""
    view = radiological_view(scan)
    index = np.argwhere(view.array)[0][slices.PLANES[plane]]
    piece = view.cut(plane, int(index))
    row, column = np.argwhere(piece.pixels)[0]
    width, height = pixel_mm(piece)
    left, right, bottom, top = piece.extent_mm
    x, y = left + (column + 0.5) * width, top + (row + 0.5) * height
    return x - (left + right) / 2, y - (top + bottom) / 2


def pixel_mm(piece: Slice) -> tuple[float, float]:
    """Width and height of a slice's pixels."""
    (rows, columns), (left, right, bottom, top) = piece.pixels.shape, piece.extent_mm
    return (right - left) / columns, (bottom - top) / rows


@pytest.mark.parametrize("codes", ALL_CODES)
def test_sides_of_the_patient_in_all_48_axis_orders(codes: str) -> None:
    scan = scan_with([4, 6, 10], codes)  # right, anterior, superior of the middle
    assert marked("axial", scan) == (-4, -6)  # right on the left, anterior up
    assert marked("coronal", scan) == (-4, -10)  # right on the left, superior up
    assert marked("sagittal", scan) == (-6, -10)  # anterior on the left, superior up


def test_there_are_48_axis_orders() -> None:
    assert len(set(ALL_CODES)) == 48


def test_pixels_have_their_size_in_mm() -> None:
    view = radiological_view(scan_with([0, 0, 0]))
    assert view.spacing_mm == SPACING
    coronal = view.cut("coronal", 4)
    assert coronal.pixels.shape == (7, 11)
    assert pixel_mm(coronal) == (1.0, 5.0)
    assert coronal.extent_mm == (0.0, 11.0, 35.0, 0.0)


def test_a_cut_box_keeps_its_place() -> None:
    view = radiological_view(scan_with([4, 6, 10]))
    box = (slice(1, 5), slice(0, 4), slice(0, 3))
    part, whole = (view.cut("axial", 1, here) for here in (box, None))
    assert part.extent_mm == (1.0, 5.0, 8.0, 0.0)
    np.testing.assert_array_equal(part.pixels, whole.pixels[0:4, 1:5])


def test_hanging_copies_nothing() -> None:
    scan = scan_with([0, 0, 0], "ASL")
    assert np.shares_memory(radiological_view(scan).array, scan.array)


def test_oblique_scans_hang_along_the_nearest_axes() -> None:
    tilt = np.deg2rad(20)
    rotation = np.array(
        [[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]]
    )
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([-1.0, 2.0, 3.0])
    view = radiological_view(Volume(np.zeros((4, 5, 6)), Grid((4, 5, 6), affine)))
    assert view.array.shape == (4, 5, 6)
    assert view.spacing_mm == pytest.approx((1, 2, 3))


def test_middle_is_the_centre_of_mass() -> None:
    mask = np.zeros((9, 9, 9), bool)
    mask[2:5, 3:8, 4] = True
    assert slices.middle(mask) == (3, 5, 4)


def test_middle_of_two_apart_lies_in_one_of_them() -> None:
    mask = np.zeros((20, 5, 5), bool)
    mask[[1, 2, 3, 17], 2, 2] = True  # the centre of mass, 5.75, is in neither
    assert slices.middle(mask) == (3, 2, 2)


def test_middle_and_frame_of_nothing_are_those_of_the_scan() -> None:
    empty = np.zeros((8, 6, 4), bool)
    assert slices.middle(empty) == (4, 3, 2)
    assert slices.frame(empty, (1, 1, 1), 50) == (slice(0, 8), slice(0, 6), slice(0, 4))


def test_frame_holds_all_masks_with_a_margin_in_mm() -> None:
    masks = np.zeros((2, 30, 30, 30), bool)
    masks[0, 10, 10, 10] = masks[1, 12, 20, 29] = True
    box = slices.frame(masks[0] | masks[1], (1.0, 2.0, 5.0), 10)
    assert box == (slice(0, 23), slice(5, 26), slice(8, 30))


def test_grids_that_differ_are_refused() -> None:
    scan, other = scan_with([0, 0, 0]), scan_with([0, 0, 0])
    moved = np.array(other.grid.affine)
    moved[2, 3] += 0.1
    with pytest.raises(DataError, match="different grids"):
        radiological_views(scan, Volume(other.array, Grid(SHAPE, moved)))
    with pytest.raises(DataError, match="must have the grid's"):
        radiological_views(Volume(np.zeros((1, 1, 1)), scan.grid))
