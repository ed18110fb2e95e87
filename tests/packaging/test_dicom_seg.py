"""DICOM Segmentation objects, read back by pydicom and highdicom, frame by frame."""

from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest

from attunet3d.core import Array, DataError
from attunet3d.imaging import Grid, Segmentation
from attunet3d.packaging.dicom_seg import write_dicom_seg
from attunet3d.packaging.source_series import SourceSeries
from tests.imaging.source_series import DIRECTIONS, LPS_TO_RAS, SHAPE, make_series


def series(slices: Any) -> SourceSeries:
    return SourceSeries(tuple(slices))


LABELS = {0: "background", 2: "pancreas", 5: "kidney_left", 9: "pancreas tumour"}
KINDS = [*DIRECTIONS, "tilted"]


def label_map() -> Array:
    array = np.zeros(SHAPE, np.uint8)
    array[3:9, 2:6, 1:4] = 2
    array[10:17, 8:13, 2:6] = 5
    array[4:6, 3:5, 2:3] = 9
    return array


def segmentation(grid: Grid, array: Any = None) -> Segmentation:
    return Segmentation(label_map() if array is None else array, grid, LABELS)


def voxels_by_position(path: Any, number: Any) -> Array:
    """World positions (RAS mm) of the voxels that a segment of the file covers, by its tags."""
    file = pydicom.dcmread(path)
    frames = file.pixel_array.reshape(-1, file.Rows, file.Columns)
    shared = file.SharedFunctionalGroupsSequence[0]
    found = []
    for frame, groups in zip(frames, file.PerFrameFunctionalGroupsSequence, strict=True):
        if groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber != number:
            continue
        orientation = groups if "PlaneOrientationSequence" in groups else shared
        measures = groups if "PixelMeasuresSequence" in groups else shared
        cosines = orientation.PlaneOrientationSequence[0].ImageOrientationPatient
        along, down = np.array(cosines, float).reshape(2, 3)
        row_mm, column_mm = map(float, measures.PixelMeasuresSequence[0].PixelSpacing)
        origin = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        rows, columns = np.nonzero(frame)
        lps = origin + np.outer(columns * column_mm, along) + np.outer(rows * row_mm, down)
        found.append(lps @ LPS_TO_RAS)
    return np.concatenate(found)


def ordered(points: Any) -> Any:
    return points[np.lexsort(points.round(2).T)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_voxel_lies_where_the_grid_has_it(kind: Any, tmp_path: Path) -> None:
    slices, grid = make_series(kind)
    write_dicom_seg(tmp_path / "seg.dcm", segmentation(grid), series(slices), "1.0")
    for number, value in enumerate((2, 5, 9), 1):
        wanted = grid.to_world(np.argwhere(label_map() == value))
        found = voxels_by_position(tmp_path / "seg.dcm", number)
        np.testing.assert_allclose(ordered(found), ordered(wanted), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_highdicom_gives_the_same_masks_by_source_instance(kind: Any, tmp_path: Path) -> None:
    slices, grid = make_series(kind)
    shuffled = [slices[k] for k in (3, 0, 6, 1, 5, 2, 4)]
    write_dicom_seg(tmp_path / "seg.dcm", segmentation(grid), series(slices), "1.0")
    file = highdicom.seg.segread(tmp_path / "seg.dcm")
    pixels = file.get_pixels_by_source_instance(
        [slice_.SOPInstanceUID for slice_ in shuffled], assert_missing_frames_are_empty=True
    )
    values = np.array([2, 5, 9])
    for frame, k in zip(pixels, (3, 0, 6, 1, 5, 2, 4), strict=True):
        found = (frame * values).sum(-1)  # (row, column)
        np.testing.assert_array_equal(found, label_map()[:, :, k].T)


def test_segments_are_coded_and_refer_to_their_study(tmp_path: Path) -> None:
    slices, grid = make_series("axial")
    write_dicom_seg(tmp_path / "seg.dcm", segmentation(grid), series(slices), "1.0")
    file = pydicom.dcmread(tmp_path / "seg.dcm")
    assert (file.Modality, file.StudyInstanceUID) == ("SEG", slices[0].StudyInstanceUID)
    assert file.FrameOfReferenceUID == slices[0].FrameOfReferenceUID
    assert file.SeriesInstanceUID != slices[0].SeriesInstanceUID
    pancreas, kidney, tumour = file.SegmentSequence
    kind = kidney.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("64033007", "SCT")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert tumour.AnatomicRegionSequence[0].CodeValue == "15776009"
    assert pancreas.SegmentAlgorithmType == "AUTOMATIC"


def test_an_empty_label_map_is_written_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slices, grid = make_series("axial")
    empty = np.zeros(SHAPE, np.uint8)
    write_dicom_seg(tmp_path / "seg.dcm", segmentation(grid, empty), series(slices), "1.0")
    assert not pydicom.dcmread(tmp_path / "seg.dcm").pixel_array.any()
    assert not caplog.records


def test_a_label_map_of_another_series_is_refused(tmp_path: Path) -> None:
    slices, grid = make_series("axial")
    with pytest.raises(DataError, match=r"20×16×7 voxels is not on the series of 20×16×6"):
        write_dicom_seg(tmp_path / "seg.dcm", segmentation(grid), series(slices[:-1]), "1.0")
    assert not list(tmp_path.iterdir())
