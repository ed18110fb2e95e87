"""Folders of label maps in other programs' forms, by the command as a user calls it."""

import importlib
import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
import trimesh

from attunet3d.cohort import segment_cohort
from attunet3d.core import DependencyError
from attunet3d.imaging import read_label
from attunet3d.inference import Predictor
from attunet3d.packaging import label_maps
from attunet3d.pipelines import export
from tests.imaging.source_series import make_series
from tests.known_network import checkpoint, write_scan


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """Results of `infer` on a scan with a ball and on a copy of it."""
    scans = [(name, write_scan(tmp_path / f"{name}.nii.gz")) for name in ("a", "b")]
    assert not segment_cohort(Predictor([checkpoint()]), scans, tmp_path / "out").failures
    return tmp_path / "out"


@pytest.fixture
def dicom(tmp_path: Path) -> tuple[Path, Path]:
    """Results of `infer` on a tilted series, and the series' folder."""
    slices, _ = make_series("tilted")
    folder = tmp_path / "series"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k, slice_ in enumerate(slices):
        values = rng.integers(0, 2000, (slice_.Rows, slice_.Columns)).astype(np.int16)
        slice_.PixelData = values.tobytes()
        slice_.save_as(folder / f"{(k * 3) % 7}.dcm", enforce_file_format=True)
    scans = [("series", folder)]
    assert not segment_cohort(Predictor([checkpoint()]), scans, tmp_path / "out").failures
    return tmp_path / "out", folder


def test_seg_nrrd_files_hold_the_label_maps(predictions: Path, tmp_path: Path) -> None:
    assert export.main([str(predictions), str(tmp_path / "nrrd"), "--format", "seg-nrrd"]) == 0
    for case in "ab":
        image = SimpleITK.ReadImage(str(tmp_path / "nrrd" / f"{case}.seg.nrrd"))
        ours = read_label(predictions / f"{case}.nii.gz").array
        np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image).T, ours)
    assert "5 ball" in (tmp_path / "nrrd" / "labels.ctbl").read_text()
    assert '"ball"' in (tmp_path / "nrrd" / "itk_snap_labels.txt").read_text()


@pytest.mark.parametrize("ending", ["stl", "ply", "glb"])
def test_meshes_lie_in_a_folder_for_each_case(
    predictions: Path, tmp_path: Path, ending: str
) -> None:
    form = "mesh" if ending == "stl" else f"mesh-{ending}"
    assert export.main([str(predictions), str(tmp_path / "meshes"), "--format", form]) == 0
    mesh = trimesh.load(tmp_path / "meshes" / "a" / f"ball.{ending}", force="mesh")
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 12**3, rel=0.1)


def test_dicom_objects_refer_to_their_series(dicom: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, series = dicom
    arguments = [str(predictions), str(tmp_path / "seg"), "--source", str(series)]
    assert export.main([*arguments, "--format", "dicom-seg"]) == 0
    seg = pydicom.dcmread(tmp_path / "seg" / "series.dcm")
    assert seg.pixel_array.sum() == np.count_nonzero(
        read_label(predictions / "series.nii.gz").array
    )
    arguments[1] = str(tmp_path / "rt")
    assert export.main([*arguments, "--format", "rtstruct"]) == 0
    structures = pydicom.dcmread(tmp_path / "rt" / "series.dcm")
    assert [region.ROIName for region in structures.StructureSetROISequence] == ["ball"]


def test_without_a_source_the_series_is_where_the_sidecar_says(
    predictions: Path, dicom: tuple[Path, Path], tmp_path: Path
) -> None:
    arguments = [str(dicom[0]), str(tmp_path / "seg"), "--format", "dicom-seg"]
    assert export.main(arguments) == 1
    failures = json.loads((tmp_path / "seg" / "failures.json").read_text())
    assert sorted(failures) == ["a", "b"]
    assert "was not made from a DICOM series" in failures["a"]
    assert (tmp_path / "seg" / "series.dcm").is_file()


def test_a_case_without_its_series_fails_by_name(
    predictions: Path, dicom: tuple[Path, Path], tmp_path: Path
) -> None:
    _, series = dicom
    arguments = [str(predictions), str(tmp_path / "seg"), "--source", str(series)]
    assert export.main([*arguments, "--format", "dicom-seg"]) == 1
    failures = json.loads((tmp_path / "seg" / "failures.json").read_text())
    assert "no series called 'a'" in failures["a"]


def test_what_is_there_is_replaced_only_on_request(predictions: Path, tmp_path: Path) -> None:
    arguments = [str(predictions), str(tmp_path / "nrrd"), "--format", "seg-nrrd"]
    assert export.main(arguments) == 0
    assert export.main(arguments) == 1
    assert "add --overwrite" in (tmp_path / "nrrd" / "failures.json").read_text()
    assert export.main([*arguments, "--overwrite"]) == 0


def test_thresholds_do_not_go_with_other_forms(
    predictions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(predictions), str(tmp_path / "a"), "--format", "mesh", "--threshold", "0.3"]
    with pytest.raises(SystemExit):
        export.main(arguments)
    assert "as they are" in capsys.readouterr().err


def test_a_missing_package_is_named_with_its_cure(
    predictions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'highdicom'", name="highdicom")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(DependencyError, match=r'needs highdicom; pip install "attunet3d\[dicom\]"'):
        label_maps.convert_label_maps(predictions, tmp_path / "x", "dicom-seg", tmp_path)
