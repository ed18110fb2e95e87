"""Prepared cases: made once, made again when anything changes, whole or not there at all."""

import dataclasses
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from attunet3d.core import DataError, FileError, SettingsError
from attunet3d.core.config import Config
from attunet3d.core.model_config import PreprocessingConfig
from attunet3d.core.training_config import TrainingConfig
from attunet3d.datasets.case import Case
from attunet3d.training import cache
from attunet3d.training.cache import Recipe, build_cache, prepare, report_unused
from attunet3d.training.cached_case import ARRAYS, foreground_voxels, load_case
from tests.conftest import present

LABELS = {0: "background", 3: "liver", 7: "pancreas"}
SPACING = (1.5, 1.5, 3.0)
PREPROCESSING = PreprocessingConfig(
    spacing_mm=SPACING, hu_window=(-100.0, 300.0), mean_hu=50.0, std_hu=100.0, crop_to_body=False
)
CONFIG = Config(preprocessing=PREPROCESSING)


def write_case(folder: Path, name: str, seed: int = 0) -> Case:
    """A scan in LPS with one block of each label; the liver block has 40 HU, the other 90."""
    folder.mkdir(exist_ok=True)
    image = np.random.default_rng(seed).integers(-1000, 20, (30, 26, 20)).astype(np.int16)
    label = np.zeros(image.shape, np.uint8)
    label[4:16, 5:20, 4:12] = 3
    label[20:26, 8:14, 12:18] = 7
    image[label == 3], image[label == 7] = 40, 90
    affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
    affine[:3, 3] = (30.0, 20.0, -10.0)
    for part, array in (("image", image), ("label", label)):
        nib.save(nib.Nifti1Image(array, affine), folder / f"{name}_{part}.nii.gz")
    return Case(
        id=name, image=folder / f"{name}_image.nii.gz", label=folder / f"{name}_label.nii.gz",
        fold=None, group=None,
    )  # fmt: skip


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    return [write_case(tmp_path / "data", name, seed) for seed, name in enumerate(("one", "two"))]


def folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def changes(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def test_what_is_stored_is_the_case_on_the_networks_grid(cases: list[Case], tmp_path: Path) -> None:
    first, second = build_cache(cases, LABELS, CONFIG, tmp_path / "cache")
    assert (first.id, second.id) == ("one", "two")
    assert first.shape == (30, 26, 20)
    image, label = first.image(), first.label()
    assert image.dtype == np.float16
    assert label.dtype == np.uint8
    assert isinstance(image, np.memmap)
    assert not image.flags.writeable
    assert image.flags.c_contiguous
    assert label.flags.c_contiguous
    source = np.asarray(nib.load(cases[0].label).dataobj)[::-1, ::-1]  # LPS to RAS
    assert np.array_equal(label, np.select([source == 3, source == 7], [1, 2], 0))
    assert np.unique(image[label == 1]) == pytest.approx([(40 - 50) / 100], abs=1e-3)
    assert np.unique(image[label == 2]) == pytest.approx([(90 - 50) / 100], abs=1e-3)
    assert first.air == pytest.approx((-100 - 50) / 100)  # the window's lowest
    assert float(image.min()) == pytest.approx(first.air, abs=1e-3)


def test_foreground_lists_voxels_of_each_class(cases: list[Case], tmp_path: Path) -> None:
    (case, _) = build_cache(cases, LABELS, CONFIG, tmp_path / "cache")
    assert case.classes == (1, 2)
    assert case.starts == (0, 0, 12 * 15 * 8, 12 * 15 * 8 + 6 * 6 * 6)
    points, label = case.foreground(), case.label()
    assert points.dtype == np.int32
    for index in (1, 2):
        rows = points[case.starts[index] : case.starts[index + 1]]
        assert (label[tuple(rows.T)] == index).all()
        assert len(np.unique(rows, axis=0)) == len(rows)


def test_large_classes_are_sampled_evenly_and_always_alike() -> None:
    label = np.zeros((60, 60, 60), np.uint8)
    label[:50] = 1
    label[55, 3, 4] = 4
    points, starts = foreground_voxels(label, 5)
    assert starts == [0, 0, 10_000, 10_000, 10_000, 10_001]
    assert points[-1].tolist() == [55, 3, 4]
    assert len(np.unique(points, axis=0)) == len(points)
    assert points[:-1].mean(axis=0) == pytest.approx((24.5, 29.5, 29.5), abs=0.8)
    assert np.array_equal(points, foreground_voxels(label, 5)[0])


def test_a_scan_normalised_by_itself_has_its_lowest_value_as_air(
    cases: list[Case], tmp_path: Path
) -> None:
    own = dataclasses.replace(PREPROCESSING, normalisation="volume")
    (case, _) = build_cache(cases, LABELS, Config(preprocessing=own), tmp_path / "cache")
    assert case.air == pytest.approx(float(case.image().min()), abs=2e-3)
    assert float(case.image().astype(np.float64).mean()) == pytest.approx(0, abs=1e-3)


def test_a_second_call_reads_nothing_anew(cases: list[Case], tmp_path: Path) -> None:
    first = build_cache(cases, LABELS, CONFIG, tmp_path / "cache")
    before = changes(tmp_path / "cache")
    assert build_cache(cases, LABELS, CONFIG, tmp_path / "cache") == first
    assert changes(tmp_path / "cache") == before


@pytest.mark.parametrize(
    "change",
    [
        {"spacing_mm": (2.0, 2.0, 3.0)},
        {"hu_window": (-200.0, 300.0)},
        {"mean_hu": 51.0},
        {"normalisation": "volume"},
        {"crop_to_body": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_plan_gets_its_own_folder(
    cases: list[Case], tmp_path: Path, change: dict[str, Any]
) -> None:
    recipe = Recipe(PREPROCESSING, (0, 3, 7))
    other = Recipe(dataclasses.replace(PREPROCESSING, **change), (0, 3, 7))
    assert recipe.folder_name(cases[0]) != other.folder_name(cases[0])


def test_changed_files_labels_or_code_get_their_own_folder(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(PREPROCESSING, (0, 3, 7))
    names = [recipe.folder_name(cases[0]), Recipe(PREPROCESSING, (0, 3)).folder_name(cases[0])]
    names.append(Recipe(PREPROCESSING, (0, 3, 7), 255).folder_name(cases[0]))
    label = present(cases[0].label)
    stamp = label.stat().st_mtime_ns + 1
    os.utime(label, ns=(stamp, stamp))
    names.append(recipe.folder_name(cases[0]))
    cases[0].image.write_bytes(cases[0].image.read_bytes() + b"0")
    names.append(recipe.folder_name(cases[0]))
    moved = label.rename(tmp_path / "moved.nii.gz")
    names.append(recipe.folder_name(dataclasses.replace(cases[0], label=moved)))
    monkeypatch.setattr(cache, "CACHE_VERSION", cache.CACHE_VERSION + 1)
    names.append(recipe.folder_name(dataclasses.replace(cases[0], label=moved)))
    assert len(set(names)) == len(names)


def test_a_change_of_voxels_beside_their_header_gets_its_own_folder(
    cases: list[Case], tmp_path: Path
) -> None:
    SimpleITK.WriteImage(SimpleITK.ReadImage(cases[0].image), tmp_path / "one.mhd")
    case = dataclasses.replace(cases[0], image=tmp_path / "one.mhd")
    recipe = Recipe(PREPROCESSING, (0, 3, 7))
    before = recipe.folder_name(case)
    (tmp_path / "one.raw").write_bytes(b"0" + (tmp_path / "one.raw").read_bytes())
    assert recipe.folder_name(case) != before
    (tmp_path / "one.raw").unlink()
    with pytest.raises(DataError, match=r"case one: .*one\.mhd: its voxels must be"):
        recipe.folder_name(case)


@pytest.mark.parametrize("flip", ["i", "k", "ijk"])
def test_a_label_whose_flip_was_fixed_gets_its_own_folder(cases: list[Case], flip: str) -> None:
    """Else a label that was corrected would be served from the cache made before."""
    recipe = Recipe(PREPROCESSING, (0, 3, 7))
    fixed = dataclasses.replace(cases[0], label_flip=flip)
    assert recipe.folder_name(fixed) != recipe.folder_name(cases[0])


def test_prepared_cases_of_other_settings_are_reported(
    cases: list[Case], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    folder = tmp_path / "cache"
    used = build_cache(cases, LABELS, CONFIG, folder)
    report_unused(folder, used)
    assert not caplog.records
    report_unused(folder, used[:1])
    assert f"{len(used) - 1} prepared cases (0.0 GB) are of other settings" in caplog.text


def test_a_new_plan_is_prepared_beside_the_old_one(cases: list[Case], tmp_path: Path) -> None:
    old = build_cache(cases, LABELS, CONFIG, tmp_path / "cache")
    coarse = dataclasses.replace(PREPROCESSING, spacing_mm=(3.0, 3.0, 3.0))
    new = build_cache(cases, LABELS, Config(preprocessing=coarse), tmp_path / "cache")
    assert new[0].shape == (15, 13, 20)
    assert build_cache(cases, LABELS, CONFIG, tmp_path / "cache") == old
    assert len(folders(tmp_path / "cache")) == 4


def damage(folder: Path, how: str) -> None:
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    if how == "cut":
        os.truncate(folder / "image.npy", 1000)
    elif how == "missing":
        (folder / "label.npy").unlink()
    elif how == "torn meta":
        (folder / "meta.json").write_text('{"shape": [30')
    elif how == "odd meta":
        (folder / "meta.json").write_text("[1, 2]")
    elif how == "other shape":
        (folder / "meta.json").write_text(json.dumps(meta | {"shape": [26, 30, 20]}))
    elif how == "other type":
        np.save(folder / "label.npy", np.zeros((15, 26, 20), np.uint16))
    else:
        shutil.rmtree(folder)
        folder.mkdir()


@pytest.mark.parametrize(
    "how", ["cut", "missing", "torn meta", "odd meta", "other shape", "other type", "empty"]
)
def test_damage_is_noticed_and_mended(cases: list[Case], tmp_path: Path, how: str) -> None:
    first = build_cache(cases, LABELS, CONFIG, tmp_path / "cache")
    whole = first[0].image().copy()
    damage(first[0].folder, how)
    assert load_case("one", first[0].folder) is None
    assert build_cache(cases, LABELS, CONFIG, tmp_path / "cache") == first
    assert np.array_equal(first[0].image(), whole)
    assert len(folders(tmp_path / "cache")) == 2  # nothing is left of the repair


def test_no_pickle_is_ever_loaded(cases: list[Case], tmp_path: Path) -> None:
    (case, _) = build_cache(cases, LABELS, CONFIG, tmp_path / "cache")
    np.save(case.folder / "image.npy", np.array([{"run": "me"}], dtype=object), allow_pickle=True)
    with pytest.raises(FileError, match=r"case one: .*image.npy cannot be read"):
        case.image()


def test_an_interrupted_build_leaves_nothing_that_counts(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            build_cache(cases, LABELS, CONFIG, tmp_path / "cache")
    assert folders(tmp_path / "cache") == []
    left = tmp_path / "cache" / ".building-long-ago"
    left.mkdir()
    os.utime(left, (time.time() - 2 * cache.ABANDONED_SECONDS,) * 2)
    (tmp_path / "cache" / ".building-now").mkdir()
    build_cache(cases, LABELS, CONFIG, tmp_path / "cache")
    assert folders(tmp_path / "cache")[0] == ".building-now"
    assert len(folders(tmp_path / "cache")) == 3


def test_a_builder_that_comes_second_takes_what_is_there(cases: list[Case], tmp_path: Path) -> None:
    recipe = Recipe(PREPROCESSING, (0, 3, 7))
    root = tmp_path / "cache"
    root.mkdir()
    first = prepare(cases[0], recipe, root)
    before = changes(root)
    assert prepare(cases[0], recipe, root) == first
    assert changes(root) == before


def test_builders_at_the_same_time_agree(cases: list[Case], tmp_path: Path) -> None:
    root = tmp_path / "cache"
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(build_cache, cases, LABELS, CONFIG, root) for _ in range(4)]
        results = [job.result() for job in jobs]
    assert all(result == results[0] for result in results)
    assert len(folders(root)) == 2
    before = changes(root)
    build_cache(cases, LABELS, CONFIG, root)
    assert changes(root) == before


def test_cases_side_by_side_are_what_each_is_alone(cases: list[Case], tmp_path: Path) -> None:
    alone = [build_cache([case], LABELS, CONFIG, tmp_path / "alone")[0] for case in cases]
    cases.append(dataclasses.replace(cases[0], id="gone", image=tmp_path / "absent.nii.gz"))
    cases.append(dataclasses.replace(cases[1], id="torn", image=present(cases[0].label)))
    cases[3].image.write_bytes(b"no scan")
    with pytest.raises(FileError, match=r"case gone: .*absent.*; case torn: "):
        build_cache(cases[1:], LABELS, CONFIG, tmp_path / "many")
    (second,) = build_cache(cases[1:2], LABELS, CONFIG, tmp_path / "many")
    assert np.array_equal(second.image(), alone[1].image())
    assert np.array_equal(second.foreground(), alone[1].foreground())


def test_all_cases_that_fail_are_named_in_one_line(cases: list[Case], tmp_path: Path) -> None:
    unlabelled = dataclasses.replace(cases[0], id="unlabelled", label=None)
    shifted = write_case(tmp_path / "data", "shifted")
    moved = nib.load(shifted.label)
    affine = moved.affine.copy()
    affine[2, 3] += 3.0
    nib.save(nib.Nifti1Image(np.asarray(moved.dataobj), affine), shifted.label)
    with pytest.raises(FileError) as caught:
        build_cache([unlabelled, cases[1], shifted], LABELS, CONFIG, tmp_path / "cache")
    message = str(caught.value)
    assert "case unlabelled: has no label" in message
    assert "case shifted: " in message
    assert "does not lie on the image's grid" in message
    assert "\n" not in message
    assert len(folders(tmp_path / "cache")) == 1  # the good one is kept for the next call


def test_ignored_voxels_keep_their_value_and_are_no_class(
    cases: list[Case], tmp_path: Path
) -> None:
    label = nib.load(cases[0].label)
    array = np.asarray(label.dataobj).copy()
    array[0:3] = 255
    nib.save(nib.Nifti1Image(array, label.affine), cases[0].label)
    config = Config(
        preprocessing=PREPROCESSING, training=TrainingConfig(loss="ce", ignore_index=255)
    )
    (case,) = build_cache(cases[:1], LABELS | {255: "ignore"}, config, tmp_path / "cache")
    assert np.unique(case.label()).tolist() == [0, 1, 2, 255]
    assert (case.label()[-3:] == 255).all()
    assert case.classes == (1, 2)
    clash = Config(preprocessing=PREPROCESSING, training=TrainingConfig(loss="ce", ignore_index=1))
    with pytest.raises(SettingsError, match="ignore_index 1: is also the index of a class"):
        build_cache(cases, LABELS, clash, tmp_path / "cache")


def test_a_case_without_foreground_is_a_case(cases: list[Case], tmp_path: Path) -> None:
    label = nib.load(cases[0].label)
    nib.save(nib.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), cases[0].label)
    first = build_cache(cases, LABELS, CONFIG, tmp_path / "cache")
    assert first[0].classes == ()
    assert first[0].foreground().shape == (0, 3)
    assert build_cache(cases, LABELS, CONFIG, tmp_path / "cache") == first


def test_odd_ids_stay_inside_the_folder(cases: list[Case], tmp_path: Path) -> None:
    odd = dataclasses.replace(cases[0], id="../über/..\\a b")
    (case,) = build_cache([odd], LABELS, CONFIG, tmp_path / "cache")
    assert case.folder.parent == (tmp_path / "cache").resolve()
    assert all((case.folder / name).is_file() for name in ARRAYS)


def test_background_is_sampled_where_voxels_are_ignored_only() -> None:
    label = np.zeros((2, 2, 3), np.uint8)
    label[0, 0] = 1
    assert foreground_voxels(label, 2, 9)[1] == [0, 0, 3]
    label[1] = 9
    points, starts = foreground_voxels(label, 2, 9)
    assert starts == [0, 3, 6]
    assert (label[tuple(points[:3].T)] == 0).all()


def test_a_scribble_thinner_than_a_voxel_of_the_network_is_not_background(tmp_path: Path) -> None:
    """Around it nothing is known: what is not ignored there is the scribble's."""
    array = np.full((16, 16, 16), 9, np.uint8)
    array[8, 8] = 1
    array[2, 2] = 0
    image = np.zeros(array.shape, np.int16)
    for name, values in (("image", image), ("label", array)):
        nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / f"{name}.nii.gz")
    case = Case(id="a", image=tmp_path / "image.nii.gz", label=tmp_path / "label.nii.gz")
    preprocessing = dataclasses.replace(PREPROCESSING, spacing_mm=(0.8,) * 3, crop_to_body=False)
    config = Config(preprocessing=preprocessing, training=TrainingConfig(loss="ce", ignore_index=9))
    (found,) = build_cache([case], {0: "background", 1: "organ"}, config, tmp_path / "cache")
    label = found.label()
    near = {tuple(voxel[:2]) for voxel in np.argwhere(label == 0)}
    assert near
    assert all(max(voxel) * 0.8 < 4 for voxel in near)
    assert (label == 1).any()


def test_regions_are_not_learned_from_masks_by_name(cases: list[Case], tmp_path: Path) -> None:
    folder = tmp_path / "masks"
    folder.mkdir()
    assert cases[0].label is not None
    shutil.copy(cases[0].label, folder)
    settings = ["training.regions=[[3], [7]]", "inference.regions_class_order=[3, 7]"]
    case = dataclasses.replace(cases[0], label=folder)
    with pytest.raises(DataError, match=r"case .*: overlapping regions cannot be learned from"):
        build_cache([case], LABELS, CONFIG.with_overrides(settings), tmp_path / "cache")
