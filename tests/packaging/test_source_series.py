"""Series on disk, read by us, and the label map's objects placed on them in the order we read."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from highdicom.seg import segread

from attunet3d.core import DataError
from attunet3d.imaging import Segmentation, read_volume
from attunet3d.packaging.dicom_seg import write_dicom_seg
from attunet3d.packaging.rtstruct import write_rtstruct
from attunet3d.packaging.source_series import SourceSeries
from tests.imaging.source_series import DIRECTIONS, make_series


def write(slices: Any, folder: Path, order: Any) -> Path:
    """The slices as files whose names do not follow their positions."""
    folder.mkdir()
    for name, k in enumerate(order):
        slices[k].save_as(folder / f"{name}.dcm", enforce_file_format=True)
    return folder


@pytest.mark.parametrize("kind", [*DIRECTIONS, "tilted"])
def test_slices_come_in_the_order_of_the_volume(kind: Any, tmp_path: Path) -> None:
    slices, _ = make_series(kind)
    folder = write(slices, tmp_path / "series", (3, 0, 6, 1, 5, 2, 4))
    volume, source = read_volume(folder), SourceSeries.read(folder)
    assert source.size == volume.grid.shape
    for k, dataset in enumerate(source.datasets):
        lps = np.array(dataset.ImagePositionPatient, float)
        np.testing.assert_allclose(volume.grid.to_world((0, 0, k)), lps * [-1, -1, 1], atol=1e-3)


def test_a_label_map_of_the_volume_lands_on_its_slices(tmp_path: Path) -> None:
    slices, _ = make_series("oblique")
    folder = write(slices, tmp_path / "series", (3, 0, 6, 1, 5, 2, 4))
    volume = read_volume(folder)
    array = np.zeros(volume.grid.shape, np.uint8)
    array[4:9, 3:8, 2] = 1
    labelled = Segmentation(array, volume.grid, {0: "background", 1: "liver"})
    write_dicom_seg(tmp_path / "seg.dcm", labelled, SourceSeries.read(folder), "1.0")
    file = segread(tmp_path / "seg.dcm")
    (frame,) = file.PerFrameFunctionalGroupsSequence
    position = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
    np.testing.assert_allclose(volume.grid.to_world((0, 0, 2)), position * [-1, -1, 1], atol=1e-3)


def test_references_name_each_instance(tmp_path: Path) -> None:
    slices, _ = make_series("axial")
    uids = [part.ReferencedSOPInstanceUID for part in SourceSeries(tuple(slices)).references()]
    assert uids == [slice_.SOPInstanceUID for slice_ in slices]


def test_references_to_a_multi_frame_file_number_its_frames(tmp_path: Path) -> None:
    slices, _ = make_series("axial")
    source = SourceSeries((slices[0],), (2, 0, 1))
    assert [part.ReferencedFrameNumber for part in source.references()] == [3, 1, 2]
    assert source.size == (20, 16, 3)


def test_a_label_map_of_another_size_is_refused(tmp_path: Path) -> None:
    slices, _ = make_series("axial")
    with pytest.raises(DataError, match="20×16×8 voxels is not on the series of 20×16×7"):
        SourceSeries(tuple(slices)).require_size((20, 16, 8), tmp_path / "a.dcm")


DCIODVFY = shutil.which("dciodvfy")


@pytest.mark.skipif(DCIODVFY is None, reason="Debian's dicom3tools are not installed")
@pytest.mark.parametrize("emptied", [False, True], ids=["as it was", "emptied UIDs"])
def test_objects_of_a_series_break_no_rule_of_dicom(emptied: bool, tmp_path: Path) -> None:
    slices, _ = make_series("oblique")
    for slice_ in slices if emptied else ():
        for name in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
            setattr(slice_, name, "")
    folder = tmp_path / "series"
    folder.mkdir()
    for k, slice_ in enumerate(slices):
        slice_.preamble = bytes(128)
        pydicom.dcmwrite(folder / f"{k}.dcm", slice_)
    source, volume = SourceSeries.read(folder), read_volume(folder)
    assert len({str(dataset.SOPInstanceUID) for dataset in source.datasets}) == len(slices)
    assert len({str(dataset.StudyInstanceUID) for dataset in source.datasets}) == 1
    array = np.zeros(volume.grid.shape, np.uint8)
    array[4:9, 3:8, 2:5] = 1
    labelled = Segmentation(array, volume.grid, {0: "background", 1: "liver"})
    write_dicom_seg(tmp_path / "seg.dcm", labelled, source, "1.0")
    write_rtstruct(tmp_path / "rt.dcm", labelled, source, "1.0")
    for name in ("seg.dcm", "rt.dcm"):
        done = subprocess.run([str(DCIODVFY), str(tmp_path / name)], capture_output=True)
        said = (done.stdout + done.stderr).decode("utf-8", "replace")
        assert [line for line in said.splitlines() if line.startswith("Error")] == []
