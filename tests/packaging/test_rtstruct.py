"""RT Structure Sets, read back by pydicom; `test_dicom_organs.py` fills the contours again."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from attunet3d.core import Array, DataError
from attunet3d.imaging import Grid, Segmentation
from attunet3d.packaging.rtstruct import write_rtstruct
from attunet3d.packaging.source_series import SourceSeries
from tests.imaging.source_series import DIRECTIONS, LPS_TO_RAS, SHAPE, make_series


def series_of(slices: Any) -> SourceSeries:
    return SourceSeries(tuple(slices))


def labelled(grid: Grid) -> Segmentation:
    return Segmentation(label_map(), grid, LABELS)


LABELS = {0: "background", 2: "pancreas", 5: "kidney_left", 7: "liver"}


def label_map() -> Array:
    array = np.zeros(SHAPE, np.uint8)
    array[3:9, 2:6, 1:4] = 2
    array[10:18, 8:14, 2:6] = 5
    array[13:15, 10:12, 2:6] = 2  # a hole in the kidney
    return array


@pytest.mark.parametrize("kind", [*DIRECTIONS, "tilted"])
def test_every_contour_lies_on_the_slice_that_it_refers_to(kind: Any, tmp_path: Path) -> None:
    slices, grid = make_series(kind)
    write_rtstruct(tmp_path / "rt.dcm", labelled(grid), series_of(slices), "1.0")
    uids = [slice_.SOPInstanceUID for slice_ in slices]
    for contours in pydicom.dcmread(tmp_path / "rt.dcm").ROIContourSequence:
        for contour in contours.get("ContourSequence", []):
            points = np.array(contour.ContourData, float).reshape(-1, 3) @ LPS_TO_RAS
            k = uids.index(contour.ContourImageSequence[0].ReferencedSOPInstanceUID)
            np.testing.assert_allclose(grid.to_index(points)[:, 2], k, atol=2e-3)


def test_a_label_without_voxels_is_listed_without_contours(tmp_path: Path) -> None:
    slices, grid = make_series("axial")
    write_rtstruct(tmp_path / "rt.dcm", labelled(grid), series_of(slices), "1.0")
    file = pydicom.dcmread(tmp_path / "rt.dcm")
    assert [region.ROIName for region in file.StructureSetROISequence][2] == "liver"
    assert "ContourSequence" not in file.ROIContourSequence[2]


def test_it_refers_to_the_series_and_keeps_the_study(tmp_path: Path) -> None:
    slices, grid = make_series("axial")
    write_rtstruct(tmp_path / "rt.dcm", labelled(grid), series_of(slices), "1.0")
    file = pydicom.dcmread(tmp_path / "rt.dcm")
    frame = file.ReferencedFrameOfReferenceSequence[0]
    assert frame.FrameOfReferenceUID == slices[0].FrameOfReferenceUID
    series = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert series.SeriesInstanceUID == slices[0].SeriesInstanceUID
    assert len(series.ContourImageSequence) == SHAPE[2]
    assert (file.StudyInstanceUID, file.Modality) == (slices[0].StudyInstanceUID, "RTSTRUCT")


def test_another_number_of_slices_is_refused(tmp_path: Path) -> None:
    slices, grid = make_series("axial")
    with pytest.raises(DataError, match="is not on the series of 20×16×6"):
        write_rtstruct(tmp_path / "rt.dcm", labelled(grid), series_of(slices[1:]), "1.0")
