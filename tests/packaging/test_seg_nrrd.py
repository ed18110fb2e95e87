"""Slicer's segmentation files, read by SimpleITK and pynrrd; colour tables by their own rules."""

from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import pytest
import SimpleITK

from attunet3d.imaging import Grid, Segmentation
from attunet3d.packaging.seg_nrrd import itk_snap_labels, slicer_colours, write_seg_nrrd
from tests.imaging.source_series import DIRECTIONS, LPS_TO_RAS, make_series

LABELS = {0: "background", 2: "pancreas", 5: "kidney_left", 7: "liver"}


def segmentation(kind: Any) -> Segmentation:
    _, grid = make_series(kind)
    array = np.zeros(grid.shape, np.uint8, order="F")
    array[3:9, 2:6, 1:4] = 2
    array[10:18, 8:14, 2:6] = 5
    return Segmentation(array, grid, LABELS)


@pytest.mark.parametrize("kind", DIRECTIONS)
def test_simpleitk_reads_the_same_values_at_the_same_places(kind: Any, tmp_path: Path) -> None:
    ours = segmentation(kind)
    write_seg_nrrd(tmp_path / "a.seg.nrrd", ours)
    image = SimpleITK.ReadImage(str(tmp_path / "a.seg.nrrd"))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image).T, ours.array)
    for index in ((0, 0, 0), (19, 15, 6), (4, 9, 2)):
        there = LPS_TO_RAS @ np.array(image.TransformIndexToPhysicalPoint(index))
        np.testing.assert_allclose(there, ours.grid.to_world(index), atol=1e-6)


def test_a_sheared_grid_is_kept(tmp_path: Path) -> None:
    ours = segmentation("tilted")
    write_seg_nrrd(tmp_path / "a.seg.nrrd", ours)
    array, header = nrrd.read(str(tmp_path / "a.seg.nrrd"))
    np.testing.assert_array_equal(array, ours.array)
    affine = LPS_TO_RAS @ header["space directions"].T
    np.testing.assert_allclose(affine, ours.grid.affine[:3, :3], atol=1e-9)


def test_segments_have_names_colours_extents_and_terms(tmp_path: Path) -> None:
    write_seg_nrrd(tmp_path / "a.seg.nrrd", segmentation("axial"))
    header = nrrd.read_header(str(tmp_path / "a.seg.nrrd"))
    assert (header["Segment1_Name"], header["Segment1_LabelValue"]) == ("kidney_left", "5")
    assert header["Segment1_Extent"] == "10 17 8 13 2 5"
    assert header["Segment2_Extent"] == "0 -1 0 -1 0 -1"
    assert len([float(part) for part in header["Segment0_Color"].split()]) == 3
    entry = header["Segment1_Tags"].removeprefix("TerminologyEntry:").rstrip("|").split("~")
    assert len(entry) == 7
    assert entry[2:4] == ["SCT^64033007^Kidney", "SCT^7771000^Left"]


def test_every_label_has_a_line_in_both_tables() -> None:
    table = [line.split() for line in slicer_colours(LABELS).splitlines()[1:]]
    assert [(int(row[0]), row[1]) for row in table] == sorted(LABELS.items())
    assert len({tuple(row[2:5]) for row in table}) == len(LABELS)
    rows = [line.split(None, 7) for line in itk_snap_labels(LABELS).splitlines()]
    assert [(int(row[0]), row[7].strip('"')) for row in rows] == sorted(LABELS.items())
    assert all(len(row) == 8 for row in rows)


def test_a_grid_of_its_own_is_written(tmp_path: Path) -> None:
    grid = Grid((3, 4, 5), np.diag([2.0, 3.0, 4.0, 1.0]))
    array = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    write_seg_nrrd(tmp_path / "a.seg.nrrd", Segmentation(array, grid, {}))
    np.testing.assert_array_equal(nrrd.read(str(tmp_path / "a.seg.nrrd"))[0], array)
