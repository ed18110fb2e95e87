"""Scores with known answers, and MONAI's answers where MONAI is right."""

import math
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from monai.metrics import (
    compute_average_surface_distance,
    compute_hausdorff_distance,
    compute_surface_dice,
)

from attunet3d.core import DataError, Mask, Size, Triple
from attunet3d.evaluation import metrics
from attunet3d.evaluation.metrics import score, score_labels
from attunet3d.imaging.geometry import Grid

ANISOTROPIC = (3.0, 1.5, 5.0)
MONAI_WARNS_ITSELF = pytest.mark.filterwarnings(
    "ignore:.*always_return_as_numpy:FutureWarning"  # MONAI 1.6 calls itself in a way it deprecates
)
RATIOS = ("dice", "jaccard", "precision", "recall", "surface_dice")


def grid_of(shape: Size, spacing: Triple = (1.0, 1.0, 1.0)) -> Grid:
    return Grid(shape, np.diag([*spacing, 1.0]))


def ball(shape: Size, spacing: Triple, centre_mm: Sequence[float], radius_mm: float) -> Mask:
    axes = [np.arange(n) * mm - c for n, mm, c in zip(shape, spacing, centre_mm, strict=True)]
    squares = [axis**2 for axis in axes]
    distance = np.sqrt(squares[0][:, None, None] + squares[1][None, :, None] + squares[2])
    return np.asfortranarray(distance <= radius_mm + 1e-9)


def monai_distances(prediction: Mask, reference: Mask, spacing: Triple, tolerance: float) -> Triple:
    one_hot = [torch.from_numpy(np.stack([~m, m])[None].copy()) for m in (prediction, reference)]
    hd95 = compute_hausdorff_distance(*one_hot, percentile=95, spacing=spacing)
    asd = compute_average_surface_distance(*one_hot, symmetric=True, spacing=spacing)
    dice = compute_surface_dice(*one_hot, class_thresholds=[tolerance], spacing=spacing)
    return float(hd95), float(asd), float(dice)


def test_overlap_by_hand() -> None:
    prediction = np.array([1, 1, 1, 0, 0, 0, 0, 0]).reshape(2, 2, 2)
    reference = np.array([0, 1, 1, 1, 1, 1, 0, 0]).reshape(2, 2, 2)
    result = score(prediction, reference, grid_of((2, 2, 2), (10.0, 10.0, 10.0)))
    assert result.dice == 2 * 2 / (3 + 5)
    assert result.jaccard == 2 / 6
    assert result.precision == 2 / 3
    assert result.recall == 2 / 5
    assert result.volume_ml_prediction == pytest.approx(3)
    assert result.volume_ml_reference == pytest.approx(5)
    assert result.volume_difference_ml == pytest.approx(-2)


def test_dice_and_jaccard_are_tied() -> None:
    rng = np.random.default_rng(0)
    p, r = rng.random((2, 9, 8, 7)) < 0.3
    result = score(p, r, grid_of((9, 8, 7)))
    assert result.jaccard == pytest.approx(result.dice / (2 - result.dice))
    assert metrics.dice(p, r) == result.dice
    other = score(r, p, grid_of((9, 8, 7)))
    assert (other.precision, other.recall) == (result.recall, result.precision)
    assert other.hd95_mm == result.hd95_mm


@pytest.mark.parametrize(("axis", "shift"), [(0, 1), (1, 2)])
def test_spheres_3_mm_apart_on_anisotropic_voxels(axis: int, shift: int) -> None:
    shape = (30, 60, 20)
    sphere = ball(shape, ANISOTROPIC, (45, 45, 50), 24)
    moved = np.roll(sphere, shift, axis)
    assert shift * ANISOTROPIC[axis] == 3
    result = score(moved, sphere, grid_of(shape, ANISOTROPIC))
    assert result.hd95_mm == pytest.approx(3)
    assert 0 < result.asd_mm < 3
    assert result.volume_difference_ml == 0


def test_spheres_within_one_another_lie_3_mm_apart_everywhere() -> None:
    shape, spacing = (120, 120, 60), (0.5, 0.5, 1.0)
    inner, outer = (ball(shape, spacing, (30, 30, 30), radius) for radius in (20, 23))
    result = score(outer, inner, grid_of(shape, spacing))
    assert result.asd_mm == pytest.approx(3, abs=0.25)
    assert result.hd95_mm == pytest.approx(3, abs=0.5)  # of half a voxel
    assert result.recall == 1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_single_voxels_two_steps_apart(axis: int) -> None:
    masks = np.zeros((2, 5, 5, 5), bool)
    masks[0, 2, 2, 2] = True
    masks[1] = np.roll(masks[0], 2, axis)
    result = score(
        masks[0], masks[1], grid_of((5, 5, 5), ANISOTROPIC), tolerance_mm=2 * ANISOTROPIC[axis]
    )
    assert result.hd95_mm == result.asd_mm == pytest.approx(2 * ANISOTROPIC[axis])
    assert result.surface_dice == 1
    assert result.dice == 0


def test_tolerance_includes_its_own_distance_in_spite_of_rounding() -> None:
    masks = np.zeros((2, 40, 1, 1), bool)
    masks[0, 30] = masks[1, 31] = True
    grid = Grid(
        (40, 1, 1), np.array([[0.7, 0, 0, -512.3], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    )
    assert score(masks[0], masks[1], grid, tolerance_mm=0.7).surface_dice == 1
    assert score(masks[0], masks[1], grid, tolerance_mm=0.69).surface_dice == 0


def test_identical_masks_are_perfect() -> None:
    mask = ball((20, 20, 12), ANISOTROPIC, (30, 15, 30), 13)
    result = score(mask, mask, grid_of(mask.shape, ANISOTROPIC))
    assert [getattr(result, name) for name in RATIOS] == [1] * 5
    assert result.hd95_mm == result.asd_mm == result.volume_difference_ml == 0
    assert not result.empty_prediction
    assert not result.empty_reference


def test_sheared_and_oblique_grids_measure_in_the_patient() -> None:
    masks = np.zeros((2, 6, 6, 6), bool)
    masks[0, 1, 1, 1] = masks[1, 3, 2, 4] = True
    affine = np.eye(4)
    affine[:3, :3] = [[2, 0.5, 0.3], [0.1, 1.5, -0.7], [0, 0.2, 4]]
    expected = np.linalg.norm(affine[:3, :3] @ [2, 1, 3])
    assert score(masks[0], masks[1], Grid((6, 6, 6), affine)).hd95_mm == pytest.approx(expected)


@MONAI_WARNS_ITSELF
@pytest.mark.parametrize("seed", range(4))
def test_distances_agree_with_monai(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape, spacing = (24, 30, 14), tuple(rng.uniform(0.6, 5, 3))
    size = np.array(shape) * spacing
    masks = [
        ball(shape, spacing, size * rng.uniform(0.3, 0.7, 3), size.min() * rng.uniform(0.3, 0.6))
        for _ in range(2)
    ]
    result = score(masks[0], masks[1], grid_of(shape, spacing), tolerance_mm=4.0)
    expected = monai_distances(masks[0], masks[1], spacing, 4.0)
    found = result.hd95_mm, result.asd_mm, result.surface_dice
    assert found == pytest.approx(expected, rel=1e-5)


@MONAI_WARNS_ITSELF
def test_organs_cut_by_the_scan_agree_with_monai() -> None:
    prediction, reference = np.zeros((2, 10, 9, 8), bool)
    prediction[:5, :, 2:] = reference[:6, 3:, :] = True
    result = score(prediction, reference, grid_of((10, 9, 8), ANISOTROPIC))
    expected = monai_distances(prediction, reference, ANISOTROPIC, metrics.TOLERANCE_MM)
    found = result.hd95_mm, result.asd_mm, result.surface_dice
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("prediction", "reference", "ratio"), [(0, 0, 1), (0, 1, 0), (1, 0, 0)])
def test_empty_masks(prediction: int, reference: int, ratio: int) -> None:
    masks = np.zeros((2, 4, 4, 4), np.uint8)
    masks[0, 1, 1, 1], masks[1, 1, 1, 1] = prediction, reference
    result = score(masks[0], masks[1], grid_of((4, 4, 4)))
    assert [getattr(result, name) for name in RATIOS] == [ratio] * 5
    assert math.isnan(result.hd95_mm)
    assert math.isnan(result.asd_mm)
    assert result.empty_prediction == (not prediction)
    assert result.empty_reference == (not reference)


def test_absent_is_the_score_of_two_empty_masks() -> None:
    empty = np.zeros((3, 3, 3), np.uint8)
    assert repr(metrics.absent()) == repr(score(empty, empty, grid_of((3, 3, 3))))


def test_masks_that_touch_nothing_score_nothing() -> None:
    masks = np.zeros((2, 9, 9, 9), bool)
    masks[0, :2], masks[1, 7:] = True, True
    result = score(masks[0], masks[1], grid_of((9, 9, 9)))
    assert [getattr(result, name) for name in RATIOS] == [0] * 5
    assert result.hd95_mm == 7


def test_each_label_of_a_map_scores_as_its_mask_does() -> None:
    rng = np.random.default_rng(3)
    prediction, reference = rng.integers(0, 4, (2, 8, 9, 10)).astype(np.uint8)
    prediction[prediction == 2] = 0
    grid = grid_of((8, 9, 10), ANISOTROPIC)
    scores = score_labels(prediction, reference, grid)
    assert sorted(scores) == [1, 2, 3]
    for value in (1, 3):
        assert scores[value] == score(prediction == value, reference == value, grid)
    assert scores[2].empty_prediction
    assert scores[2].volume_ml_prediction == 0
    assert sorted(score_labels(prediction, reference, grid, [3, 9])) == [3, 9]


def test_memory_order_does_not_matter() -> None:
    rng = np.random.default_rng(4)
    maps = (rng.random((2, 7, 8, 9)) < 0.4).astype(np.uint8)
    grid = grid_of((7, 8, 9), ANISOTROPIC)
    fortran = [np.asfortranarray(part) for part in maps]
    assert score(maps[0], maps[1], grid) == score(fortran[0], fortran[1], grid)


def test_arrays_are_left_alone() -> None:
    maps = np.ones((2, 3, 3, 3), np.uint8)
    maps.flags.writeable = False
    assert score(maps[0], maps[1], grid_of((3, 3, 3))).dice == 1


def test_what_cannot_be_scored_is_refused() -> None:
    mask = np.zeros((3, 3, 3), np.uint8)
    with pytest.raises(DataError, match=r"must both have the grid's shape \(3, 3, 4\)"):
        score(mask, mask, grid_of((3, 3, 4)))
    with pytest.raises(DataError, match="must be 0 or more"):
        score(mask, mask, grid_of((3, 3, 3)), tolerance_mm=-1)
    with pytest.raises(DataError, match="must be 0 or more"):
        score(mask, mask, grid_of((3, 3, 3)), tolerance_mm=math.nan)


def test_metrics_start_without_torch() -> None:
    code = "import sys, attunet3d.evaluation.metrics as _; "
    code += "print('torch' in sys.modules, 'monai' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(("apart_mm", "surface_dice"), [(2.0, 1), (2.5, 0)])
def test_the_tolerance_is_two_millimetres_unless_another_is_given(
    apart_mm: float, surface_dice: int
) -> None:
    masks = np.zeros((2, 3, 3, 3), bool)
    masks[0, 0, 1, 1] = masks[1, 1, 1, 1] = True
    result = score(masks[0], masks[1], grid_of((3, 3, 3), (apart_mm, 1.0, 1.0)))
    assert result.surface_dice == surface_dice


def test_progress_rises_evenly_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "POINTS", 20)
    prediction = np.zeros((12, 12, 12), np.uint8)
    prediction[2:9, 2:9, 2:9] = 1
    shares: list[float] = []
    grid = grid_of((12, 12, 12), (1.0, 1.0, 1.0))
    score_labels(prediction, np.roll(prediction, 1, 0), grid, done=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert np.diff([0, *shares]).max() < 0.5
    assert len(set(shares)) > 10
