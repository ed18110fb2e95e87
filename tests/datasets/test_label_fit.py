"""Where a label lies: headers, tissue and edges, on grids and organs whose answer is known."""

from dataclasses import replace

import numpy as np
import pytest

from attunet3d.datasets.label_fit import FLIPS, find_misfit, fit_mirrored, header_flip, name_flip
from attunet3d.imaging.geometry import Grid
from attunet3d.imaging.volume import Volume
from attunet3d.phantoms.dataset import make_phantom, random_grid

AFFINE = np.array([[-0.8, 0, 0, 100], [0, -0.8, 0, 90], [0, 0, 2.5, -40], [0, 0, 0, 1.0]])
SHAPE = (24, 20, 16)
GRID = Grid(SHAPE, AFFINE)


def mirrored_grid(flip: str, grid: Grid = GRID) -> Grid:
    change = np.eye(4)
    for axis in map("ijk".index, flip):
        change[axis, axis], change[axis, 3] = -1, grid.shape[axis] - 1
    return Grid(grid.shape, grid.affine @ change)


def turned(volume: Volume, flip: str, grid: Grid | None = None) -> Volume:
    array = np.asfortranarray(np.flip(volume.array, tuple(map("ijk".index, flip))))
    return replace(volume, array=array, grid=grid or volume.grid)


def organ(hu: int = 60, background: int = -80, noise: int = 10) -> tuple[Volume, Volume]:
    """A lopsided organ in fat."""
    label = np.zeros(SHAPE, np.uint8, order="F")
    label[3:9, 4:8, 2:6] = 1
    label[3:5, 8:12, 2:4] = 2
    rng = np.random.default_rng(0)
    scan = np.where(label, hu, background) + rng.normal(0, noise, SHAPE)
    return Volume(np.asfortranarray(scan.astype(np.int16)), GRID), Volume(label, GRID)


@pytest.mark.parametrize("flip", FLIPS)
def test_headers_tell_the_flip(flip: str) -> None:
    assert header_flip(GRID, mirrored_grid(flip)) == flip


def test_headers_that_tell_nothing() -> None:
    moved = AFFINE.copy()
    moved[0, 3] += 0.01
    assert header_flip(GRID, Grid(SHAPE, moved)) is None
    moved[0, 3] = AFFINE[0, 3] + 1e-5
    assert header_flip(GRID, Grid(SHAPE, moved)) == ""


def test_a_right_label_passes() -> None:
    assert find_misfit(*organ()) is None


@pytest.mark.parametrize("flip", FLIPS[1:])
def test_mirrored_voxels_are_seen_at_the_edges(flip: str) -> None:
    scan, label = organ(background=0)  # all of it is soft tissue
    verdict = find_misfit(scan, turned(label, flip))
    assert verdict is not None
    assert (verdict.flip, verdict.warning) == (flip, False)
    assert name_flip(GRID, flip) in verdict.text
    assert "--fix-flips" in verdict.text


@pytest.mark.parametrize("flip", FLIPS[1:])
def test_mirrored_header_over_mirrored_voxels(flip: str) -> None:
    scan, label = organ()
    verdict = find_misfit(scan, turned(label, flip, mirrored_grid(flip)))
    assert verdict is not None
    assert verdict.flip == flip
    assert "header is mirrored" in verdict.text


@pytest.mark.parametrize("flip", FLIPS[1:])
def test_mirrored_header_over_voxels_that_fit(flip: str) -> None:
    scan, label = organ()
    verdict = find_misfit(scan, replace(label, grid=mirrored_grid(flip)))
    assert verdict is not None
    assert verdict.flip == ""
    assert "as they are stored" in verdict.text


def test_lost_origin_is_found_by_the_image_only() -> None:
    scan, label = organ()
    lost = mirrored_grid("j").affine.copy()
    lost[:3, 3] = 0
    verdict = find_misfit(scan, turned(label, "j", Grid(SHAPE, lost)))
    assert verdict is not None
    assert verdict.flip == "j"
    assert "another origin" in verdict.text
    empty = Volume(np.zeros(SHAPE, np.uint8, order="F"), Grid(SHAPE, lost))
    found = find_misfit(scan, empty)
    assert found is not None
    assert found.flip is None


def test_empty_label_follows_its_header() -> None:
    scan, label = organ()
    empty = replace(label, array=np.zeros(SHAPE, np.uint8, order="F"))
    assert find_misfit(scan, empty) is None
    found = find_misfit(scan, replace(empty, grid=mirrored_grid("k")))
    assert found is not None
    assert found.flip == "k"


def test_shifted_spaced_and_permuted_labels_are_no_flips() -> None:
    scan, label = organ()
    moved = AFFINE.copy()
    moved[:3, 3] += 5
    verdict = find_misfit(scan, replace(label, grid=Grid(SHAPE, moved)))
    assert verdict is not None
    assert verdict.flip is None
    assert "8.66 mm from the scan; both must have the same grid" in verdict.text
    coarse = find_misfit(scan, replace(label, grid=Grid(SHAPE, AFFINE @ np.diag([2, 1, 1, 1]))))
    assert coarse is not None
    assert coarse.flip is None
    assert "spacing 1.6×0.8×2.5 against 0.8×0.8×2.5" in coarse.text
    other = Grid(SHAPE, AFFINE[:, [1, 0, 2, 3]])
    found = find_misfit(scan, replace(label, grid=other))
    assert found is not None
    assert "axes PLS against LPS" in found.text


def test_label_in_air() -> None:
    verdict = find_misfit(*organ(hu=-900, background=-900))
    assert verdict is not None
    assert (verdict.flip, verdict.warning) == (None, False)
    assert "only 0% of the labelled voxels are tissue (-200 HU and more)" in verdict.text
    assert find_misfit(*organ(hu=-900, background=-1000), tissue_hu=(-1024, 300)) is None


def test_bone_and_contrast_are_tissue_unless_told_otherwise() -> None:
    for hu in (400, 1200, 3000):
        assert find_misfit(*organ(hu=hu, background=hu)) is None
        found = find_misfit(*organ(hu=hu, background=hu), tissue_hu=(-200, 300))
        assert found is not None
        assert "(-200 to 300 HU)" in found.text


def test_gas_in_an_organ_is_a_warning() -> None:
    scan, label = organ()
    scan.array[3:5, 4:8, 2:6] = -900
    verdict = find_misfit(scan, label)
    assert verdict is not None
    assert verdict.warning
    assert "of the labelled voxels are tissue" in verdict.text


def test_shares_and_edges_by_hand() -> None:
    image = np.array([0, 10, 100, 120]).reshape(4, 1, 1)
    label = np.array([0, 0, 1, 1]).reshape(4, 1, 1)
    fits = fit_mirrored(image, label, (0, 110))
    # Clipped to 110: |100 − 10| across the outline, |110 − 100| inside; mirrored 90 and 10, too.
    assert fits[""].edge == pytest.approx(90 / (10 + 5))
    assert fits["i"].edge == pytest.approx(90 / (10 + 5))
    assert (fits[""].share, fits["i"].share) == (0.5, 1.0)
    assert fits["jk"] == fits[""]
    assert fit_mirrored(image, 0 * label) == {}


@pytest.mark.parametrize("seed", range(6))
def test_every_flip_of_a_phantoms_pancreas_is_found(seed: int) -> None:
    scan, label = make_phantom(seed, grid=random_grid(seed, matrix=56))
    assert find_misfit(scan, label) is None
    for flip in FLIPS[1:]:
        found = find_misfit(scan, turned(label, flip))
        assert found is not None
        assert found.flip == flip


def test_names_of_directions() -> None:
    assert name_flip(GRID, "i") == "voxel axis i (left-right)"
    assert name_flip(GRID, "ijk").endswith("i (left-right) and j (front-back) and k (head-foot)")
