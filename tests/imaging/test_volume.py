"""Scans and label maps: each way of being wrong has its own message; inputs are found by name."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from attunet3d.core import Array, DataError
from attunet3d.imaging.geometry import Grid
from attunet3d.imaging.scan_check import hounsfield_warnings
from attunet3d.imaging.scan_folder import find_scans, parts_of
from attunet3d.imaging.volume import (
    Segmentation,
    Volume,
    read_label,
    read_volume,
)
from tests.imaging.test_dicom import write_series

AFFINE = np.diag([-1.0, 2.0, 3.0, 1.0])
GRID = Grid((6, 5, 4), AFFINE)


def saved(tmp_path: Path, array: Array, name: str = "a.nii.gz") -> Path:
    nib.save(nib.Nifti1Image(array, AFFINE), tmp_path / name)
    return tmp_path / name


def scan(low: float, high: float) -> Volume:
    array = np.linspace(low, high, 120).reshape(6, 5, 4)
    return Volume(array, GRID)


# --- scans -----------------------------------------------------------------------------------


def test_what_is_no_number_counts_as_air_or_is_refused(tmp_path: Path) -> None:
    array = np.zeros((6, 5, 4), np.float32)
    array[0, 0, 0], array[1, 0, 0] = np.nan, np.inf
    path = saved(tmp_path, array)
    volume = read_volume(path)
    assert volume.array[0, 0, 0] == volume.array[1, 0, 0] == -1024
    assert np.count_nonzero(volume.array) == 2
    assert volume.warnings == ("2 voxels are NaN or infinite; they count as air",)
    assert volume.array.flags.f_contiguous
    with pytest.raises(DataError, match="2 voxels"):
        read_volume(path, nonfinite="refuse")
    with pytest.raises(DataError, match="no voxel is a number"):
        read_volume(saved(tmp_path, np.full((6, 5, 4), np.nan, np.float32)))


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-1000, 1500, None),
        (-1024, 3071, None),
        (0, 1, "between 0 and 1"),
        (0, 255, "between 0 and 255"),
        (0, 4000, "1024 above HU"),
        (-100, 300, "no air"),
        (-1e6, 1e6, "not HU"),
        (-7, -7, "nothing to segment"),
    ],
)
def test_values_that_do_not_look_like_hounsfield_units(
    low: float, high: float, words: str | None
) -> None:
    found = hounsfield_warnings(scan(low, high))
    assert len(found) == (words is not None)
    assert words is None or words in found[0]


def test_a_lone_bright_voxel_is_not_nothing() -> None:
    array = np.full((300, 5, 4), -1000, np.int16)
    array[299, 0, 0] = 700
    assert "nothing" not in str(hounsfield_warnings(Volume(array, Grid(array.shape, AFFINE))))


@pytest.mark.parametrize("ending", ["nrrd", "nhdr", "mha", "mhd"])
def test_other_formats_lie_where_simpleitk_says(tmp_path: Path, ending: str) -> None:
    array = np.arange(120, dtype=np.int16).reshape(4, 5, 6)  # (k, j, i)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing((1.0, 2.0, 3.0))
    image.SetOrigin((10.0, 20.0, 30.0))
    image.SetDirection((0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1))  # oblique
    SimpleITK.WriteImage(image, str(tmp_path / f"a.{ending}"))
    volume = read_volume(tmp_path / f"a.{ending}")
    assert (volume.array == array.T).all()
    assert volume.warnings == ()
    for index in ((0, 0, 0), (5, 0, 0), (5, 4, 3)):
        place = np.array(image.TransformIndexToPhysicalPoint(index)) * (-1, -1, 1)
        assert np.allclose(volume.grid.to_world(np.array(index)), place)


# --- label maps ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_whole_numbers_are_labels_in_any_number_type(tmp_path: Path, dtype: type[Any]) -> None:
    array = (np.arange(120) % 5).reshape(6, 5, 4).astype(dtype)
    label = read_label(saved(tmp_path, array))
    assert label.array.dtype == np.uint8
    assert (label.array == array).all()


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.5, "0.5 is not whole"), (-1, "-1 is negative"), (300, "300 is too high"), (np.nan, "NaN")],
)
def test_each_wrong_label_has_its_message(tmp_path: Path, value: float, words: str) -> None:
    array = np.zeros((6, 5, 4), np.float32)
    array[2, 2, 2] = value
    path = saved(tmp_path, array)
    with pytest.raises(DataError, match=words) as caught:
        read_label(path)
    assert str(path) in str(caught.value)


def test_volume_in_millilitres() -> None:
    array = np.zeros((6, 5, 4), np.uint8)
    array[:2, :5, :1] = 3
    segmentation = Segmentation(array, GRID, {0: "background", 3: "organ"})
    assert segmentation.volume_ml(3) == pytest.approx(10 * 6 / 1000)
    assert segmentation.volume_ml(1) == 0
    array[4, 4, :2] = 4
    whole = Segmentation(array, GRID, {0: "background", 3: "organ", 4: "tumour"}, None, {3: (3, 4)})
    assert whole.volume_ml(3) == pytest.approx(12 * 6 / 1000)
    assert whole.volume_ml(4) == pytest.approx(2 * 6 / 1000)


# --- what a path names -----------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return [name for name, _ in find_scans(folder)]


def test_files_of_a_folder_by_name(tmp_path: Path) -> None:
    for name in ("b.nii.gz", "a.nii", ".hidden.nii.gz", "._a.nii.gz", "notes.txt", "c_0000.nii"):
        (tmp_path / name).touch()
    assert names(tmp_path) == ["a", "b", "c_0000"]
    assert names(tmp_path / "b.nii.gz") == ["b"]


def test_a_pair_is_one_scan_and_a_folder_called_like_a_scan_is_named(tmp_path: Path) -> None:
    for name in ("a.hdr", "a.img", "b.HDR.GZ", "b.img.gz", "notes.img"):
        (tmp_path / name).touch()
    (tmp_path / "c.nii").mkdir()
    (tmp_path / "plain").mkdir()
    assert names(tmp_path) == ["a", "b", "c"]
    with pytest.raises(DataError, match=r"c\.nii: is a directory named like a scan"):
        read_volume(tmp_path / "c.nii")


@pytest.mark.parametrize(("ending", "other"), [("mhd", "raw"), ("nhdr", "raw"), ("hdr", "img")])
def test_voxels_in_a_file_of_their_own_are_part_of_the_scan(
    tmp_path: Path, ending: str, other: str
) -> None:
    image = SimpleITK.GetImageFromArray(np.zeros((4, 5, 6), np.int16))
    SimpleITK.WriteImage(image, str(tmp_path / f"a.{ending}"))
    assert parts_of(tmp_path / f"a.{ending}") == [tmp_path / f"a.{ending}", tmp_path / f"a.{other}"]


def test_a_scan_in_one_file_or_in_a_folder_has_these_parts(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).touch()
    SimpleITK.WriteImage(SimpleITK.Image(6, 5, 4), str(tmp_path / "c.mha"))
    assert parts_of(tmp_path / "c.mha") == [tmp_path / "c.mha"]
    assert parts_of(tmp_path / "none.mhd") == [tmp_path / "none.mhd"]
    assert parts_of(tmp_path) == [tmp_path / name for name in ("a", "b", "c.mha")]


def test_the_channel_is_left_out_where_all_have_it(tmp_path: Path) -> None:
    for name in ("x_0000.nii.gz", "y_0000.nii.gz"):
        (tmp_path / name).touch()
    assert names(tmp_path) == ["x", "y"]


def test_a_folder_without_scan_files_is_one_series(tmp_path: Path) -> None:
    write_series(tmp_path / "series", (0, 0, 2.5))
    assert find_scans(tmp_path / "series") == [("series", tmp_path / "series")]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "README").write_text("no scan")
    with pytest.raises(DataError, match="holds no scan"):
        find_scans(tmp_path / "notes")


def test_series_in_folders_below_are_scans_named_by_their_folders(tmp_path: Path) -> None:
    for place in ("DOE/1/ct", "DOE/2 (late)/ct", "ROE"):
        (tmp_path / place).mkdir(parents=True)
        write_series(tmp_path / place, (0, 0, 2.5), series=str(len(place)))
    for part, skip in (("disc/a", (0, 1, 2)), ("disc/b", (3, 4, 5))):  # one series in two folders
        (tmp_path / part).mkdir(parents=True)
        write_series(tmp_path / part, (0, 0, 2.5), series="99", skip=skip)
    saved(tmp_path, np.zeros((6, 5, 4), np.int16), "case.nii.gz")
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "notes.txt").write_text("no scan")
    found = dict(find_scans(tmp_path))
    assert found == {
        "case": tmp_path / "case.nii.gz",
        "DOE_1_ct": tmp_path / "DOE/1/ct",
        "DOE_2_late_ct": tmp_path / "DOE/2 (late)/ct",
        "ROE": tmp_path / "ROE",
        "disc": tmp_path / "disc",
    }
    assert all(read_volume(path).grid.shape[2] in (4, 6) for path in found.values())


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        find_scans(tmp_path / "none")
    with pytest.raises(DataError, match="holds no scan"):
        find_scans(tmp_path)
