"""Organs of SEG and RTSTRUCT on a scan's grid: what our export wrote, and contours made by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom import Sequence as Items
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from attunet3d.core import Array, DataError, Floats
from attunet3d.imaging import Grid, Segmentation, open_organ_masks
from attunet3d.packaging.dicom_seg import write_dicom_seg
from attunet3d.packaging.rtstruct import write_rtstruct
from attunet3d.packaging.source_series import SourceSeries
from tests.imaging.source_series import DIRECTIONS, LPS_TO_RAS, SHAPE, make_series

LABELS = {0: "background", 2: "pancreas", 5: "kidney_left", 7: "liver"}
KINDS = [*DIRECTIONS, "tilted"]
WRITERS = {"seg": write_dicom_seg, "rtstruct": write_rtstruct}
GRID = Grid((40, 30, 12), np.diag([-0.5, -0.8, 3.0, 1.0]))


def label_map() -> Array:
    """A ring around another organ, and one that reaches the border; no liver."""
    array = np.zeros(SHAPE, np.uint8)
    array[3:9, 2:6, 1:4] = 2
    array[10:20, 8:14, 2:7] = 5
    array[13:15, 10:12, 2:6] = 2
    return array


def exported(folder: Path, form: str, kind: str) -> tuple[Path, Grid]:
    slices, grid = make_series(kind)
    path = folder / f"{form}.dcm"
    source = SourceSeries(tuple(slices))
    WRITERS[form](path, Segmentation(label_map(), grid, LABELS), source, "1.0")
    return path, grid


def region(number: int, name: str, contours: Any, kind: str = "CLOSED_PLANAR") -> Any:
    """ROI and contours; the points are voxel indices of `GRID`."""
    roi, group = Dataset(), Dataset()
    roi.ROINumber, roi.ROIName = number, name
    group.ReferencedROINumber, group.ContourSequence = number, Items()
    for points in contours:
        contour = Dataset()
        contour.ContourGeometricType = kind
        lps = GRID.to_world(points) @ LPS_TO_RAS
        contour.ContourData = [f"{value:.4f}" for value in lps.ravel()]
        group.ContourSequence.append(contour)
    return roi, group


def structures(path: Path, *regions: Any) -> Path:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
        RTStructureSetStorage,
        generate_uid(),
    )
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    file.SOPClassUID, file.SOPInstanceUID = RTStructureSetStorage, meta.MediaStorageSOPInstanceUID
    file.StructureSetROISequence = Items([roi for roi, _ in regions])
    file.ROIContourSequence = Items([group for _, group in regions])
    file.save_as(path, enforce_file_format=True)
    return path


def square(low: float, high: float, k: float) -> Floats:
    return np.array([[low, low, k], [low, high, k], [high, high, k], [high, low, k]])


def found(path: Path, name: str, grid: Grid = GRID) -> Array:
    masks = open_organ_masks(path)
    assert masks is not None
    return masks.mask(name, grid)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", WRITERS)
def test_what_the_export_wrote_is_read_back_exactly(form: str, kind: str, tmp_path: Path) -> None:
    path, grid = exported(tmp_path, form, kind)
    masks = open_organ_masks(path)
    assert masks is not None
    assert masks.names == ("pancreas", "kidney_left", "liver")
    for value, name in LABELS.items():
        if value:
            np.testing.assert_array_equal(masks.mask(name, grid), label_map() == value)
    assert masks.mask("liver", grid).flags.f_contiguous


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAL", "PIR"])
@pytest.mark.parametrize("form", WRITERS)
def test_a_converted_scan_may_have_its_axes_in_any_order(
    form: str, codes: str, tmp_path: Path
) -> None:
    path, grid = exported(tmp_path, form, "oblique")
    turned = grid.oriented(codes)
    mask = found(path, "Kidney left", turned)
    places = np.argwhere(label_map() == 5)
    expected = np.zeros(turned.shape, bool)
    expected[tuple(np.rint(turned.to_index(grid.to_world(places))).astype(int).T)] = True
    np.testing.assert_array_equal(mask, expected)


def test_an_object_may_lie_in_a_folder_of_its_own(tmp_path: Path) -> None:
    path, grid = exported(tmp_path, "seg", "axial")
    assert found(path.parent, "pancreas", grid).sum() == (label_map() == 2).sum()


def test_fractional_segments_count_from_one_half_on(tmp_path: Path) -> None:
    path, grid = exported(tmp_path, "seg", "axial")
    file = pydicom.dcmread(path)
    frames = file.pixel_array.astype(np.uint8)
    file.SegmentationType, file.MaximumFractionalValue = "FRACTIONAL", 200
    file.BitsAllocated = file.BitsStored = 8
    file.HighBit = 7
    file.PixelData = np.where(frames > 0, 100, 99).astype(np.uint8).tobytes()
    file.save_as(path)
    np.testing.assert_array_equal(found(path, "kidney_left", grid), label_map() == 5)


def test_holes_are_told_by_an_inner_contour_or_a_keyhole(tmp_path: Path) -> None:
    """11×11 less 5×5 voxels in each of two slices, and 2×2 again in the hole of one."""
    inner = [square(4.5, 15.5, 3), square(7.5, 12.5, 3), square(8.5, 10.5, 3)]
    outer, hole = square(4.5, 15.5, 4), square(7.5, 12.5, 4)
    keyhole = np.concatenate([outer, outer[:1], hole, hole[:1]])
    path = structures(tmp_path / "rt.dcm", region(1, "Organ", [*inner, keyhole]))
    mask = found(path, "organ")
    assert (mask[..., 3].sum(), mask[..., 4].sum()) == (11**2 - 5**2 + 2**2, 11**2 - 5**2)
    assert mask.sum() == mask[..., 3:5].sum()


def test_regions_of_one_name_are_one_and_points_are_no_region(tmp_path: Path) -> None:
    regions = [region(1, "GTV 1", [square(1.5, 3.5, 2)]), region(2, "gtv_1", [square(5.5, 6.5, 2)])]
    regions += [region(3, "ISO", [np.array([[4.0, 4.0, 4.0]])], "POINT")]
    path = structures(tmp_path / "rt.dcm", *regions)
    assert found(path, "GTV-1").sum() == 4 + 1
    assert found(path, "iso").sum() == 0


@pytest.mark.parametrize(
    ("contours", "message"),
    [
        ([square(4.5, 15.5, 3.5)], "lies 0.5 slices off the scan's slices; give the scan that"),
        ([square(4.5, 15.5, 12)], "has a contour beyond the scan"),
        ([square(4.5, 15.5, k) for k in (2, 4, 6)], "lie 2 slices of the scan or more apart"),
    ],
)
def test_contours_that_do_not_fit_the_scan_are_refused(
    contours: Any, message: str, tmp_path: Path
) -> None:
    path = structures(tmp_path / "rt.dcm", region(1, "Organ", contours))
    with pytest.raises(DataError, match=message):
        found(path, "Organ")


def test_a_contour_of_half_a_point_is_refused(tmp_path: Path) -> None:
    roi, group = region(1, "Organ", [square(4.5, 15.5, 3)])
    group.ContourSequence[0].ContourData = ["1.5", "2.5"]
    with pytest.raises(DataError, match=r"rt\.dcm: has a damaged contour"):
        found(structures(tmp_path / "rt.dcm", (roi, group)), "Organ")


def test_a_segment_of_another_scan_is_refused(tmp_path: Path) -> None:
    path, grid = exported(tmp_path, "seg", "axial")
    moved, short = grid.affine.copy(), Grid((*SHAPE[:2], 3), grid.affine)
    moved[:3, 3] += 0.3
    with pytest.raises(DataError, match=r"seg\.dcm: its voxels lie up to 0.\d+ voxels off"):
        found(path, "kidney_left", Grid(SHAPE, moved))
    with pytest.raises(DataError, match=r"seg\.dcm: reaches beyond the scan; give the scan"):
        found(path, "kidney_left", short)


@pytest.mark.parametrize("form", WRITERS)
def test_a_file_that_breaks_off_anywhere_is_refused_or_whole(form: str, tmp_path: Path) -> None:
    path, grid = exported(tmp_path, form, "axial")
    whole, refused = path.read_bytes(), 0
    lengths = range(200, len(whole), 311)
    for length in lengths:
        path.write_bytes(whole[:length])
        try:
            assert found(path, "kidney_left", grid).sum() == (label_map() == 5).sum()
        except DataError:
            refused += 1
    assert refused > len(lengths) * 0.9  # what follows the contours is not needed


def test_other_dicom_objects_are_refused(tmp_path: Path) -> None:
    ct = make_series("axial")[0][0]
    ct.save_as(tmp_path / "ct.dcm", enforce_file_format=True)
    assert ct.SOPClassUID == CTImageStorage
    with pytest.raises(DataError, match=r"of another kind \(CT Image Storage\) than SEG and"):
        open_organ_masks(tmp_path / "ct.dcm")
