"""Labels that hold organs by name: mask files, SEG and RTSTRUCT, from a folder to a label map."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from attunet3d.core import Array, DataError
from attunet3d.datasets.case import Case
from attunet3d.datasets.case_files import read_case_label, read_image
from attunet3d.datasets.formats import read_data_set
from attunet3d.datasets.manifest import Manifest
from attunet3d.datasets.pair_check import check_pairs
from attunet3d.imaging import Grid, Segmentation
from attunet3d.packaging.dicom_seg import write_dicom_seg
from attunet3d.packaging.rtstruct import write_rtstruct
from attunet3d.packaging.source_series import SourceSeries
from tests.datasets.test_formats import pairs
from tests.imaging.source_series import make_series

SHAPE = (12, 10, 8)
AFFINE = np.diag([-2.0, -2.0, 3.0, 1.0])
LABELS = {0: "background", 1: "liver", 2: "pancreas"}


def save(path: Path, array: Any, affine: Any = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def box(low: int, high: int) -> Array:
    mask = np.zeros(SHAPE, np.uint8)
    mask[low:high, 2:8, 2:6] = 1
    return mask


def case_folder(case: Path, labels: Path | None = None, **organs: Any) -> None:
    """A scan, and a mask of each organ from i to i."""
    save(case / "ct.nii.gz", np.full(SHAPE, 40, np.int16))
    for organ, span in organs.items():
        save((labels or case) / "segmentations" / f"{organ}.nii.gz", box(*span))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four cases in TotalSegmentator's layout; not everything was annotated in all."""
    case_folder(tmp_path / "data" / "s0001", liver=(1, 5), pancreas=(5, 9), spleen=(9, 11))
    case_folder(tmp_path / "data" / "s0002", liver=(1, 4), spleen=(9, 11))
    case_folder(tmp_path / "data" / "s0003", spleen=(9, 11))
    case_folder(tmp_path / "data" / "s0004", liver=(2, 6), pancreas=(4, 8))
    (tmp_path / "data" / "meta.csv").write_text("image_id;age\n")
    return tmp_path / "data"


def label_of(case: Case, labels: Any = LABELS) -> Array:
    return read_case_label(case, read_image(case), labels).array


def by_id(found: Manifest) -> dict[str, Case]:
    return {case.id: case for case in found.training}


def test_chosen_organs_become_labels_and_what_is_missing_was_not_annotated(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = read_data_set(folder, organs=["liver", "pancreas"])
    assert found.labels == LABELS
    cases = by_id(found)
    assert {name: case.annotated for name, case in cases.items()} == {
        "s0001": None,
        "s0002": ("liver",),
        "s0004": None,
    }
    assert "left out, because they have no mask of any label: s0003" in caplog.text
    assert cases["s0001"].image == folder / "s0001" / "ct.nii.gz"
    np.testing.assert_array_equal(label_of(cases["s0001"]), box(1, 5) + 2 * box(5, 9))
    np.testing.assert_array_equal(label_of(cases["s0002"]), box(1, 4))
    assert not [problem for problem in check_pairs(found) if not problem.warning]


def test_where_masks_overlap_the_later_label_counts_and_a_line_says_so(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    case = by_id(read_data_set(folder))["s0004"]
    expected = box(2, 6) + 0
    expected[box(4, 8) > 0] = 2
    np.testing.assert_array_equal(label_of(case), expected)
    assert f"case s0004: {2 * 6 * 4} voxels are in several masks" in caplog.text
    reverse = label_of(case, {1: "pancreas", 2: "liver"})
    assert (reverse[box(2, 6) > 0] == 2).all()


def test_without_a_choice_all_organs_are_labels_in_the_order_of_their_names(folder: Path) -> None:
    found = read_data_set(folder)
    assert found.labels == {0: "background", 1: "liver", 2: "pancreas", 3: "spleen"}
    assert by_id(found)["s0003"].annotated == ("spleen",)
    named = read_data_set(folder, {"4": "spleen"})
    assert named.labels == {0: "background", 4: "spleen"}


def test_scans_and_masks_may_lie_in_two_trees_with_cases_to_test_on(tmp_path: Path) -> None:
    """As PanTS and AbdomenAtlas 2.0 have it, with a label map beside the masks."""
    for part, name in (("Tr", "PanTS_1"), ("Te", "PanTS_2")):
        labels = tmp_path / f"Label{part}" / name
        case_folder(tmp_path / f"Image{part}" / name, labels, liver=(1, 4))
        save(labels / "combined_labels.nii.gz", box(1, 4))
    found = read_data_set(tmp_path)
    assert [case.id for case in found.training + found.test] == ["PanTS_1", "PanTS_2"]
    for case in found.training + found.test:
        np.testing.assert_array_equal(label_of(case, found.labels), box(1, 4))


def test_folders_of_masks_as_infer_writes_them_pair_with_scans(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.nii.gz", np.full(SHAPE, 40, np.int16))
    save(tmp_path / "labels" / "a" / "liver.nii.gz", box(1, 4) * 255)
    found = read_data_set(tmp_path)
    assert pairs(found)["a"] == ("images/a.nii.gz", "labels/a")
    np.testing.assert_array_equal(label_of(found.training[0], found.labels), box(1, 4))


@pytest.mark.parametrize("form", ["seg", "rtstruct"])
def test_dicom_objects_pair_with_their_series(form: str, tmp_path: Path) -> None:
    slices, grid = make_series("oblique")
    series = tmp_path / "images" / "p1"
    series.mkdir(parents=True)
    for number, file in enumerate(slices):
        file.save_as(series / f"{number}.dcm", enforce_file_format=True)
    array = np.zeros(grid.shape, np.uint8)
    array[3:9, 2:8, 1:5], array[10:15, 4:9, 2:4] = 1, 2
    labelled = Segmentation(array, grid, {0: "background", 1: "Liver", 2: "Pancreas"})
    write = write_dicom_seg if form == "seg" else write_rtstruct
    (tmp_path / "labels").mkdir()
    write(tmp_path / "labels" / "p1.dcm", labelled, SourceSeries(tuple(slices)), "1.0")
    (case,) = read_data_set(tmp_path, organs=["pancreas", "liver"]).training
    assert (case.id, case.annotated) == ("p1", None)
    found = label_of(case, {1: "pancreas", 2: "liver"})
    np.testing.assert_array_equal(found, np.array([0, 2, 1])[array])


def test_a_mask_that_is_missing_without_a_word_is_refused(folder: Path) -> None:
    case = replace(by_id(read_data_set(folder))["s0002"], annotated=None)
    with pytest.raises(DataError, match="has no mask of 'pancreas'; it has liver, spleen; correct"):
        label_of(case)


@pytest.mark.parametrize(
    ("array", "affine", "message"),
    [
        (box(1, 4) * 3, AFFINE, "liver.nii.gz: holds the value 3: a mask has 0 and 1"),
        (box(1, 4)[:-1], AFFINE, r"liver.nii.gz: the mask has shape \(11, 10, 8\), its scan"),
        (box(1, 4), Grid(SHAPE, AFFINE).oriented("LAS").affine, "mm off the scan"),
    ],
)
def test_masks_that_are_none_of_this_scan_are_refused(
    array: Any, affine: Any, message: str, folder: Path
) -> None:
    save(folder / "s0001" / "segmentations" / "liver.nii.gz", array, affine)
    found = read_data_set(folder)
    with pytest.raises(DataError, match=message):
        label_of(by_id(found)["s0001"])
    assert [p.case_id for p in check_pairs(found) if not p.warning] == ["s0001"]


def test_organs_that_nobody_annotated_are_refused_with_the_nearest_name(folder: Path) -> None:
    with pytest.raises(DataError, match=r"no case has a mask of 'pancraes'.*pancreas"):
        read_data_set(folder, organs=["pancraes"])
    with pytest.raises(DataError, match="--organs and --label cannot be used together"):
        read_data_set(folder, {"1": "liver"}, organs=["liver"])
    with pytest.raises(DataError, match="organs 'liver' and 'Liver' name the same mask; give it"):
        read_data_set(folder, organs=["liver", "Liver"])


def test_organs_are_not_chosen_from_label_maps(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.nii.gz", np.full(SHAPE, 40, np.int16))
    save(tmp_path / "labels" / "a.nii.gz", box(1, 4))
    with pytest.raises(DataError, match="the label of case 'a' is a label map"):
        read_data_set(tmp_path, organs=["liver"])
