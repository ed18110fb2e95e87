"""True anatomy: directions follow from the organs, the answer from the outlines."""

from pathlib import Path

import numpy as np
import pytest

from attunet3d.core import DataError
from attunet3d.imaging import Volume, write_nifti
from attunet3d.imaging.geometry import Grid
from attunet3d.phantoms.cohort import Cohort
from attunet3d.phantoms.dataset import make_phantom
from attunet3d.phantoms.filling import fill_outlines
from attunet3d.phantoms.outlines import (
    Outlines,
    coarsened,
    directions,
    pancreas_directions,
    read_outlines,
    turned,
)

NAMES = {
    1: "spleen",
    2: "pancreas",
    3: "left kidney",
    4: "gallbladder",
    5: "oesophagus",
    6: "liver",
    7: "stomach",
    8: "duodenum",
}
BALLS = {  # middle (mm, RAS, from the middle of the box) and half axes of an organ
    6: ((75, 5, 45), (65, 75, 60)),
    1: ((-105, -40, 45), (22, 40, 42)),
    3: ((-66, -52, -16), (24, 22, 45)),
    7: ((-45, 35, 40), (34, 32, 40)),
    4: ((60, 62, -22), (12, 14, 20)),
    8: ((45, 0, -24), (13, 13, 26)),
    5: ((-4, -18, 88), (9, 9, 20)),
    2: ((-10, 8, 2), (55, 12, 13)),
}
QUIET = Cohort(noise_hu=(0, 0), blur_mm=(0.01, 0.01))
STEP_MM = 3.0


def patient() -> Outlines:
    """Ellipsoids in the places of the organs, on an upright RAS grid."""
    shape = (124, 94, 84)
    grid = Grid(shape, np.diag([STEP_MM] * 3 + [1.0]))
    middle = (np.array(shape) - 1) * STEP_MM / 2
    points = np.moveaxis(np.indices(shape), 0, -1) * STEP_MM - middle
    array = np.zeros(shape, np.uint8)
    for value, (centre, radii) in BALLS.items():
        array[(((points - centre) / radii) ** 2).sum(axis=-1) < 1] = value
    return Outlines(array, grid, NAMES)


@pytest.fixture(scope="module")
def filled() -> tuple[Volume, Volume]:
    return fill_outlines(patient(), 0, cohort=QUIET, spacing_mm=(STEP_MM,) * 3)


@pytest.mark.parametrize("flips", [(), (0,), (1,), (2,), (0, 1), (0, 2), (0, 1, 2)])
def test_directions_are_found_whatever_way_the_array_is_stored(
    tmp_path: Path, flips: tuple[int, ...]
) -> None:
    upright = patient()
    stored = np.asfortranarray(np.flip(upright.array, flips))
    write_nifti(tmp_path / "label.nii.gz", stored, None, upright.grid)
    found = read_outlines(tmp_path / "label.nii.gz", NAMES)
    np.testing.assert_array_equal(found.array, upright.array)
    assert found.grid.axis_codes == "RAS"


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, -1)])
def test_the_shape_of_many_pancreases_tells_the_directions_of_their_source(
    signs: tuple[int, int, int],
) -> None:
    points = []
    affine = np.diag([4.0, 4, 4, 1])
    affine[:3, 3] = -140, -120, -110
    for seed in range(6):  # of the phantoms' own pancreases, stored in another way
        _, label = make_phantom(seed, grid=Grid((60, 60, 60), affine))
        points.append(label.grid.to_world(np.argwhere(label.array)) * signs)
    assert pancreas_directions(points) == signs


def test_a_pancreas_alone_is_drawn_among_a_phantoms_organs() -> None:
    whole = patient()
    alone = Outlines((whole.array == 2).astype(np.uint8), whole.grid, {1: "pancreas"})
    scan, label = fill_outlines(alone, 0, cohort=QUIET, spacing_mm=(STEP_MM,) * 3)
    inside = label.array == 1
    assert abs(inside.sum() * STEP_MM**3 / 1000 - 4 / 3 * np.pi * 5.5 * 1.2 * 1.3) < 2  # ml
    assert 40 < np.median(scan.array[inside]) < 140
    body = scan.array > -150
    assert body.sum() > 20 * inside.sum(), "a body of fat, muscle and other organs around it"
    twice = turned(turned(alone, (-1, 1, -1)), (-1, 1, -1))
    np.testing.assert_array_equal(twice.array, alone.array)


def test_organs_that_tell_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="needs liver and spleen to find axis 0"):
        directions({"pancreas": np.zeros(3)})
    level = {name: np.zeros(3) for name in NAMES.values()}
    with pytest.raises(DataError, match="0 mm apart along axis 0, too close"):
        directions(level)


def test_a_block_of_voxels_holds_the_mean_of_them() -> None:
    upright = patient()
    shares, grid = coarsened(upright, (2, 2, 3))
    assert grid.spacing_mm == (6.0, 6.0, 9.0)
    np.testing.assert_allclose(grid.to_world([0, 0, 0]), [1.5, 1.5, 3.0])
    for row, value in enumerate(NAMES):
        voxels = shares[row].sum() * 12
        assert voxels == pytest.approx((upright.array == value).sum())


def test_the_answer_is_the_outline(filled: tuple[Volume, Volume]) -> None:
    scan, label = filled
    upright = patient()
    first = np.rint(upright.grid.to_index(label.grid.to_world([0, 0, 0]))).astype(int)
    end = first + label.array.shape
    there = upright.array[first[0] : end[0], first[1] : end[1], first[2] : end[2]]
    np.testing.assert_array_equal(label.array, there)
    assert scan.grid.matches(label.grid)
    assert scan.array.dtype == np.int16
    assert label.array.dtype == np.uint8
    for value in NAMES:
        if value != 5:  # the oesophagus is cut where the scan ends
            assert (label.array == value).sum() == (upright.array == value).sum()


def test_organs_hold_tissue_and_lie_in_a_body_in_air(filled: tuple[Volume, Volume]) -> None:
    scan, label = filled
    median = {name: np.median(scan.array[label.array == v]) for v, name in NAMES.items()}
    assert 80 < median["pancreas"] < 120
    assert median["liver"] > median["pancreas"] > median["gallbladder"]
    assert median["left kidney"] > 115
    assert (scan.array[label.array == 7] < -800).any()  # gas in the stomach
    assert np.median(scan.array[:2]) < -950
    assert (scan.array > 250).any()  # bone
    fat = scan.array[(label.array == 0) & (scan.array > -130) & (scan.array < -70)]
    assert len(fat) > 0.05 * scan.array.size


def test_lungs_lie_above_the_liver_and_no_gas_in_it(filled: tuple[Volume, Volume]) -> None:
    scan, label = filled
    liver = label.array == 6
    top = np.argwhere(liver)[:, 2].max()
    column = scan.array[tuple(np.argwhere(liver[:, :, top]).mean(axis=0).astype(int))]
    assert column[top + 4] < -600
    assert scan.array[liver].min() > -300


def test_phases_and_seeds_change_the_tissue_and_not_the_answer(
    filled: tuple[Volume, Volume],
) -> None:
    scan, label = filled
    plain = Cohort(noise_hu=(0, 0), blur_mm=(0.01, 0.01), phases={"none": 1.0})
    other, answer = fill_outlines(patient(), 1, cohort=plain, spacing_mm=(STEP_MM,) * 3)
    np.testing.assert_array_equal(answer.array, label.array)
    kidney = label.array == 3
    assert np.median(other.array[kidney]) < 50 < np.median(scan.array[kidney])
    again, _ = fill_outlines(patient(), 0, cohort=QUIET, spacing_mm=(STEP_MM,) * 3)
    np.testing.assert_array_equal(again.array, scan.array)
