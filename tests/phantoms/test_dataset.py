"""A phantom's answer is exact, its world does not depend on the grid, and it looks like a CT."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage
from scipy.ndimage import binary_erosion, map_coordinates

from attunet3d.core import Floats, LabelMap, WriteError
from attunet3d.imaging import Volume
from attunet3d.imaging.geometry import Grid
from attunet3d.imaging.volume import read_label, read_volume
from attunet3d.phantoms.anatomy import PANCREAS_ML, random_anatomy
from attunet3d.phantoms.cohort import Cohort
from attunet3d.phantoms.dataset import (
    LABELS,
    ORIENTATIONS,
    make_phantom,
    random_grid,
    write_phantoms,
)
from attunet3d.phantoms.scanner import label_anatomy, scan_anatomy
from attunet3d.phantoms.tissue import rotation

SEEDS = (0, 1, 2, 3, 4, 5)


def box_grid(
    spacing_mm: tuple[float, float, float],
    low: tuple[int, int, int] | Floats = (-200, -160, -90),
    high: tuple[int, int, int] | Floats = (200, 140, 100),
) -> Grid:
    """An upright RAS grid over a box of the world."""
    spacing, low, high = (np.array(part, float) for part in (spacing_mm, low, high))
    affine = np.diag([*spacing, 1])
    affine[:3, 3] = low + spacing / 2
    return Grid(tuple(np.rint((high - low) / spacing).astype(int)), affine)


def turned(grid: Grid, degrees: tuple[int, int, int]) -> Grid:
    """The grid turned about its middle."""
    turn = np.eye(4)
    turn[:3, :3] = rotation(np.radians(degrees))
    middle = grid.to_world((np.array(grid.shape) - 1) / 2)
    turn[:3, 3] = middle - turn[:3, :3] @ middle
    return Grid(grid.shape, turn @ grid.affine)


def centre_of_mass(label: LabelMap, grid: Grid) -> Floats:
    found: Floats = grid.to_world(np.argwhere(label)).mean(axis=0)
    return found


@pytest.fixture(scope="module", params=SEEDS)
def phantom(request: pytest.FixtureRequest) -> tuple[int, Volume, Volume]:
    return request.param, *make_phantom(request.param)


def test_same_seed_gives_the_same_bits_and_another_seed_another_patient() -> None:
    grid = random_grid(4, matrix=64)
    scan, label = make_phantom(4, grid=grid)
    again, label_again = make_phantom(4, grid=grid)
    assert scan.array.tobytes() == again.array.tobytes()
    assert label.array.tobytes() == label_again.array.tobytes()
    other, other_label = make_phantom(5, grid=grid)
    assert (other_label.array != label.array).any()
    assert np.abs(other.array.astype(float) - scan.array).mean() > 30


def test_arrays_are_int16_and_uint8_in_the_order_of_a_nifti(
    phantom: tuple[int, Volume, Volume],
) -> None:
    _, scan, label = phantom
    assert scan.array.dtype == np.int16
    assert label.array.dtype == np.uint8
    assert scan.array.shape == label.array.shape == scan.grid.shape == label.grid.shape
    assert scan.array.flags.f_contiguous
    assert label.array.flags.f_contiguous
    assert set(np.unique(label.array)) == {0, 1}


def test_volume_of_the_label_is_the_exact_one_within_two_percent(
    phantom: tuple[int, Volume, Volume],
) -> None:
    seed, _, label = phantom
    exact = random_anatomy(seed).pancreas_ml
    assert PANCREAS_ML[0] <= exact <= PANCREAS_ML[1]
    assert label.array.sum() * label.grid.voxel_volume_ml == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("seed", SEEDS[:3])
def test_volume_on_a_fine_grid_is_the_exact_one_within_a_thousandth(seed: int) -> None:
    anatomy = random_anatomy(seed)
    reach = anatomy.warp.reach_mm + 1
    low, high = anatomy.pancreas.bounds_mm + np.array([[-reach], [reach]])
    fine = box_grid((0.75, 0.75, 0.75), low, high)
    label = label_anatomy(anatomy, fine)
    assert label.sum() * fine.voxel_volume_ml == pytest.approx(anatomy.pancreas_ml, rel=1e-3)


def test_pancreas_is_one_piece_far_from_the_borders_and_inside_the_body(
    phantom: tuple[int, Volume, Volume],
) -> None:
    _, scan, label = phantom
    mask = np.ascontiguousarray(label.array)
    assert ndimage.label(mask)[1] == 1
    index = np.argwhere(mask)
    assert (index.min(axis=0) > 1).all()
    assert (index.max(axis=0) < np.array(mask.shape) - 2).all()
    assert scan.array[mask > 0].min() > -250  # at its edge it mixes with fat, never with air


@pytest.mark.parametrize("codes", ["LPS", "SAR", "AIL", "PIR"])
def test_another_orientation_is_the_same_label_voxel_for_voxel(codes: str) -> None:
    grid = random_grid(2, matrix=80).oriented("RAS")
    anatomy = random_anatomy(2)
    label, other = label_anatomy(anatomy, grid), label_anatomy(anatomy, grid.oriented(codes))
    index = np.argwhere(label)
    there = np.rint(grid.oriented(codes).to_index(grid.to_world(index))).astype(int)
    assert other[tuple(there.T)].mean() > 0.9999  # float32 decides a point on the very surface
    assert abs(int(other.sum()) - len(index)) <= 1


@pytest.mark.parametrize("degrees", [(30, 0, 0), (10, -20, 15)])
def test_an_oblique_grid_shows_the_same_world(degrees: tuple[int, int, int]) -> None:
    straight = box_grid((2, 2, 2), (-120, -80, -80), (100, 80, 80))
    oblique = turned(box_grid((1.6, 1.6, 2.2), (-150, -120, -110), (130, 120, 110)), degrees)
    oblique = oblique.oriented("PSL")
    label, other = (label_anatomy(random_anatomy(3), grid) for grid in (straight, oblique))
    shift = centre_of_mass(label, straight) - centre_of_mass(other, oblique)
    assert np.abs(shift).max() < 0.3  # mm; voxels are 2 mm
    where = oblique.to_index(straight.to_world(np.indices(straight.shape).reshape(3, -1).T))
    soft = map_coordinates(other.astype(np.float32), where.T, order=1)
    mask = soft.reshape(straight.shape) > 0.5
    assert 2 * (mask & (label > 0)).sum() / (mask.sum() + label.sum()) > 0.95


def test_slabs_leave_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = turned(box_grid((5, 5, 6)), (4, 3, -5))
    anatomy = random_anatomy(1)
    whole = label_anatomy(anatomy, grid), scan_anatomy(anatomy, grid, 1)
    monkeypatch.setattr("attunet3d.phantoms.scanner.SLAB_VOXELS", 3 * 80 * 60)
    parts = label_anatomy(anatomy, grid), scan_anatomy(anatomy, grid, 1)
    np.testing.assert_array_equal(parts[0], whole[0])
    assert np.abs(parts[1].astype(int) - whole[1]).max() <= 1  # rounding of equal float32 sums


def test_organs_lie_on_their_sides() -> None:
    """Liver on the patient's right, spleen and stomach left, spine at the back, lungs on top."""
    for seed in SEEDS:
        middle: dict[str, Any] = {}
        for tissue in random_anatomy(seed).tissues:
            middle.setdefault(tissue.name, tissue.shape.bounds_mm.mean(axis=0))
        assert middle["liver"][0] > 30
        assert middle["gallbladder"][0] > 30
        assert middle["spleen"][0] < -80
        assert middle["stomach"][0] < 0
        assert middle["stomach"][1] > middle["spleen"][1]
        assert abs(middle["vertebra"][0]) < 10
        assert middle["vertebra"][1] < -40
        assert middle["lung"][2] > middle["liver"][2] > middle["colon"][2]
        assert middle["cava"][0] > 10 > 0 > middle["aorta"][0]


def test_pancreas_runs_from_the_right_up_to_the_left_and_back() -> None:
    for seed in SEEDS:
        pancreas = random_anatomy(seed).pancreas
        tail, head = pancreas.centre[0], pancreas.centre[-1]  # the curve runs along x
        assert pancreas.at[0] < -60 < 30 < pancreas.at[-1]
        assert tail[1] > head[1] + 20
        assert tail[0] < head[0] - 10
        assert pancreas.centre[:, 0].max() > head[0] + 5  # it arches over the spine


@pytest.mark.parametrize("seed", SEEDS)
def test_contrast_with_the_neighbours_is_low(seed: int) -> None:
    value = {tissue.name: tissue.hu for tissue in reversed(random_anatomy(seed).tissues)}
    assert 8 <= value["liver"] - value["pancreas"] <= 30
    assert 8 <= value["spleen"] - value["pancreas"] <= 30
    assert 5 <= value["pancreas"] - value["duodenum"] <= 30
    assert 8 <= value["pancreas"] - value["jejunum"] <= 60  # wall and filling


def test_the_scanned_contrast_is_that_of_the_anatomy() -> None:
    """Deep inside an organ the scan's mean is the tissue's value and its spread is the noise."""
    grid = box_grid((1.5, 1.5, 1.5), (-110, -80, -60), (130, 60, 80))
    scan, label = make_phantom(0, grid=grid)
    anatomy = random_anatomy(0)
    deep = binary_erosion(label.array > 0, iterations=3)
    found = scan.array[deep]
    assert deep.sum() > 1000
    assert found.mean() == pytest.approx(anatomy.tissues[-1].hu, abs=1.5)
    assert 6 < found.std() < 20


def test_noise_is_grained_within_a_slice_and_air_is_minus_1000() -> None:
    grid = box_grid((2, 2, 4), (-205, 136, -80), (205, 190, 80))  # in front of the patient
    scan, label = make_phantom(0, grid=grid)
    air = scan.array.astype(float)
    assert not label.array.any()
    assert air.mean() == pytest.approx(-1000, abs=1.5)
    assert air.min() >= -1024
    noise = air - air.mean()
    along = [
        (np.take(noise, range(1, n), a) * np.take(noise, range(n - 1), a)).mean() / noise.var()
        for a, n in enumerate(noise.shape)
    ]
    assert along[0] > 0.3
    assert along[1] > 0.3
    assert abs(along[2]) < 0.05


def test_thick_slices_average_what_thin_ones_show() -> None:
    anatomy = random_anatomy(0)
    thin, thick = box_grid((3, 3, 1), high=(200, 140, 90)), box_grid((3, 3, 6), high=(200, 140, 90))
    averaged = scan_anatomy(anatomy, thin, 0).reshape(*thick.shape[:2], -1, 6).mean(axis=3)
    difference = scan_anatomy(anatomy, thick, 0) - averaged
    assert abs(difference.mean()) < 1
    assert np.quantile(np.abs(difference), 0.9) < 40


def test_a_grid_beside_the_patient_is_air_and_has_no_label() -> None:
    far = box_grid((8, 8, 8), (900, 900, -60), (980, 980, 20))
    scan, label = make_phantom(0, grid=far)
    assert not label.array.any()
    assert scan.array.max() < -900


def test_random_grids_vary_and_cover_the_organ() -> None:
    grids = [random_grid(seed, matrix=48) for seed in range(80)]
    assert {grid.axis_codes for grid in grids} == set(ORIENTATIONS)
    thickness = [min(grid.spacing_mm) for grid in grids]
    assert min(thickness) < 2.3
    assert max(thickness) > 3.5
    for grid in grids:
        direction = grid.oriented().affine[:3, :3] / grid.oriented().spacing_mm
        assert 0.98 < np.diag(direction).min() < 1 - 1e-6  # slightly oblique
        assert 190 < grid.oriented().shape[2] * grid.oriented().spacing_mm[2] < 240


def test_random_grid_keeps_to_its_arguments() -> None:
    straight = Cohort(slice_mm=(1, 1), oblique_degrees=0)
    grid = random_grid(1, matrix=512, slices=200, cohort=straight).oriented()
    assert grid.shape == (512, 512, 200)
    np.testing.assert_allclose(grid.affine[:3, :3], np.diag(grid.spacing_mm), atol=1e-12)
    assert 0.7 < grid.spacing_mm[0] == grid.spacing_mm[1] < 0.86
    assert grid.spacing_mm[2] == pytest.approx(1)


def test_a_written_data_set_reads_back_as_it_was_made(tmp_path: Path) -> None:
    folder = write_phantoms(tmp_path / "a" / "phantoms", 2, seed=11, matrix=48)
    listing = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    assert listing["labels"] == {"0": "background", "1": "pancreas"}
    assert listing["modality"] == {"0": "CT"}
    assert listing["name"]
    assert listing["licence"]
    assert listing["numTraining"] == len(listing["training"]) == 2
    for seed, pair in zip((11, 12), listing["training"], strict=True):
        scan, label = make_phantom(seed, grid=random_grid(seed, matrix=48))
        read, truth = read_volume(folder / pair["image"]), read_label(folder / pair["label"])
        np.testing.assert_array_equal(read.array, scan.array)
        np.testing.assert_array_equal(truth.array, label.array)
        assert read.grid.matches(scan.grid)
        assert truth.grid.matches(read.grid)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"dataset.json"} | {
        pair[part].removeprefix("./") for pair in listing["training"] for part in pair
    }


def test_a_file_in_the_way_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(WriteError, match="taken"):
        write_phantoms(tmp_path / "taken", 1, matrix=16)


def test_labels_are_named() -> None:
    assert LABELS == {0: "background", 1: "pancreas"}
