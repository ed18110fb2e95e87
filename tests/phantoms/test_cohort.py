"""Hard phantoms: disease, surgery, phases and artefacts change the scan, the answer stays exact."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from attunet3d.core import Floats, SettingsError
from attunet3d.imaging.geometry import Grid
from attunet3d.phantoms.anatomy import random_anatomy
from attunet3d.phantoms.cohort import EASY, HARD, HARD_ELSEWHERE, Cohort, find_cohort
from attunet3d.phantoms.dataset import make_phantom, write_phantoms
from attunet3d.phantoms.scanner import label_anatomy, scan_anatomy
from attunet3d.phantoms.shapes import Tube
from attunet3d.phantoms.tissue import Anatomy

TUMOURS = Cohort(tumour_share=1.0, tumour_label=True)


def grid_about(
    low: tuple[int, int, int] | Floats, high: tuple[int, int, int] | Floats, spacing_mm: float
) -> Grid:
    low, high = np.asarray(low, float), np.asarray(high, float)
    affine = np.diag([spacing_mm] * 3 + [1.0])
    affine[:3, 3] = low + spacing_mm / 2
    return Grid(tuple(np.ceil((high - low) / spacing_mm).astype(int)), affine)


def grid_of(anatomy: Anatomy, spacing_mm: float) -> Grid:
    reach = anatomy.warp.reach_mm + 2
    low, high = anatomy.pancreas.bounds_mm
    return grid_about(low - reach, high + reach, spacing_mm)


def value_of(anatomy: Anatomy, name: str) -> float:
    return next(tissue.hu for tissue in reversed(anatomy.tissues) if tissue.name == name)


def names_of(anatomy: Anatomy) -> set[str]:
    return {tissue.name for tissue in anatomy.tissues}


@pytest.mark.parametrize(
    "cohort", [TUMOURS, Cohort(resected_share=1.0), Cohort(atrophy_share=1.0)], ids=repr
)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_sick_pancreas_has_the_stated_volume(cohort: Cohort, seed: int) -> None:
    anatomy = random_anatomy(seed, cohort)
    grid = grid_of(anatomy, 1.0)
    label = label_anatomy(anatomy, grid)
    assert (label > 0).sum() * grid.voxel_volume_ml == pytest.approx(anatomy.pancreas_ml, rel=3e-3)
    assert anatomy.pancreas_ml != random_anatomy(seed).pancreas_ml


def test_a_tumour_is_a_part_of_the_pancreas_with_a_label_of_its_own_when_asked_for() -> None:
    for seed in range(4):
        anatomy = random_anatomy(seed, TUMOURS)
        grid = grid_of(anatomy, 2.0)
        label = label_anatomy(anatomy, grid)
        merged = label_anatomy(random_anatomy(seed, replace(TUMOURS, tumour_label=False)), grid)
        assert set(np.unique(label)) == {0, 1, 2}
        np.testing.assert_array_equal(merged, label > 0)


def test_resection_takes_a_part_and_leaves_the_rest_where_it_was() -> None:
    for seed in range(6):
        whole, part = random_anatomy(seed), random_anatomy(seed, Cohort(resected_share=1.0))
        grid = grid_of(whole, 3.0)
        before, after = label_anatomy(whole, grid), label_anatomy(part, grid)
        assert not (after > before).any()
        assert 0.15 < part.pancreas_ml / whole.pancreas_ml < 0.85


def test_a_cut_tube_is_the_tube_between_the_cuts() -> None:
    ends = np.linspace(0.0, 100.0, 1001)
    rod = Tube(2, ends, np.zeros((1001, 2)), np.full((1001, 2), 10.0), np.ones(1001))
    cap = 4 * (1 - 2 / 3)  # ml lost at each cut: a rounded end holds 2/3 of its cylinder
    lost = 2 * np.pi * 100 * cap / 1000
    cut = rod.cut(20, 70)
    assert cut.volume_ml == pytest.approx(np.pi * 100 * 50 / 1000 - lost, rel=2e-3)
    assert cut.bounds_mm[:, 2].tolist() == [20, 70]


def test_removed_organs_are_gone() -> None:
    names = names_of(random_anatomy(0, Cohort(missing_share=1.0)))
    assert not names & {"spleen", "gallbladder"}
    kidneys = [
        t for t in random_anatomy(0, Cohort(missing_share=1.0)).tissues if t.name == "kidney"
    ]
    assert all(kidney.shape.bounds_mm.mean(axis=0)[0] > 0 for kidney in kidneys)  # the right one


def test_phases_order_the_tissues_as_a_radiologist_expects() -> None:
    plain, early, late = (
        random_anatomy(3, Cohort(phases={name: 1.0})) for name in ("none", "arterial", "venous")
    )
    for name in ("aorta", "spleen", "pancreas", "vein"):
        assert value_of(plain, name) < value_of(late, name)
    assert value_of(early, "aorta") > 1.4 * value_of(late, "aorta")
    assert value_of(early, "liver") < value_of(late, "liver")
    assert abs(value_of(plain, "aorta") - value_of(plain, "vein")) < 1
    assert value_of(plain, "rib") == value_of(late, "rib")


def test_ascites_takes_the_place_of_fat() -> None:
    grid = grid_about((-120, -60, -40), (120, 60, 60), 5.0)
    wet = scan_anatomy(random_anatomy(0, Cohort(ascites_share=1.0)), grid, 0)
    dry = scan_anatomy(random_anatomy(0), grid, 0)
    assert (dry < -50).mean() > 3 * (wet < -50).mean()


def test_artefacts_change_the_scan_and_never_the_answer() -> None:
    grid = grid_about((-100, -60, -60), (100, 80, 60), 4.0)
    scan, label = make_phantom(2, grid=grid)
    for changed in (
        Cohort(texture_hu=8.0),
        Cohort(motion_mm=(5.0, 5.0)),
        Cohort(metal_share=1.0),
        Cohort(sharpness=(1.0, 1.0)),
        Cohort(noise_hu=(40.0, 40.0)),
    ):
        other, answer = make_phantom(2, grid=grid, cohort=changed)
        np.testing.assert_array_equal(answer.array, label.array)
        assert np.abs(other.array.astype(float) - scan.array).mean() > 0.5


def test_metal_is_bright_and_makes_streaks_in_its_own_slices_only() -> None:
    grid = grid_about((-150, -100, -110), (150, 100, 110), 4.0)
    metal = Cohort(metal_share=1.0, noise_hu=(0, 0))
    with_metal = scan_anatomy(random_anatomy(1), grid, 1, metal).astype(float)
    change = np.abs(with_metal - scan_anatomy(random_anatomy(1), grid, 1, Cohort(noise_hu=(0, 0))))
    by_slice = change.mean(axis=(0, 1))
    assert with_metal.max() > 1000
    assert by_slice.max() > 10
    assert by_slice.min() < 0.5


def test_the_same_patient_is_seen_by_other_scanners_elsewhere() -> None:
    for seed in range(8):
        here, there = random_anatomy(seed, HARD), random_anatomy(seed, HARD_ELSEWHERE)
        assert here.pancreas_ml == there.pancreas_ml
        assert names_of(here) == names_of(there)


def test_hard_cohorts_hold_every_trouble() -> None:
    patients = [random_anatomy(seed, HARD) for seed in range(60)]
    healthy = [random_anatomy(seed) for seed in range(60)]
    assert 8 < sum("tumour" in names_of(patient) for patient in patients) < 35
    assert 0 < sum("spleen" not in names_of(patient) for patient in patients) < 25
    ratio = [a.pancreas_ml / b.pancreas_ml for a, b in zip(patients, healthy, strict=True)]
    assert min(ratio) < 0.5
    assert max(ratio) > 1.05


def test_easy_phantoms_are_those_without_a_cohort() -> None:
    grid = grid_about((-100, -60, -60), (100, 80, 60), 6.0)
    np.testing.assert_array_equal(
        make_phantom(5, grid=grid, cohort="easy")[0].array, make_phantom(5, grid=grid)[0].array
    )
    assert find_cohort("easy") is EASY


def test_a_data_set_of_tumours_names_both_labels(tmp_path: Path) -> None:
    folder = write_phantoms(tmp_path, 1, matrix=24, cohort=TUMOURS)
    assert '"2": "tumour"' in (folder / "dataset.json").read_text(encoding="utf-8")


def test_an_unknown_cohort_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(SettingsError, match="no cohort 'medium'; choose one of easy, hard"):
        find_cohort("medium")
