"""`infer` on a dump of a PACS, to label maps, DICOM Segmentations and a page, by one command."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from attunet3d.cohort import ModelOptions
from attunet3d.core import command_line
from attunet3d.imaging import read_label
from attunet3d.inference import Predictor
from attunet3d.pipelines import evaluate, export, infer, report
from tests.imaging.source_series import make_series
from tests.known_network import ball, checkpoint, write_scan


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network whose label maps are known, whatever model the command names."""
    monkeypatch.setattr(ModelOptions, "load", lambda self: Predictor([checkpoint()], "cpu"))


def write_series(folder: Path, kind: str, *, patient: str, number: int) -> None:
    """A series in which a bright box is foreground."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, slice_ in enumerate(make_series(kind)[0]):
        values = np.zeros((slice_.Rows, slice_.Columns), np.int16) + 1024
        values[4:12, 5:15] += 300 * (1 < k < 6)
        slice_.PixelData, slice_.PatientName = values.tobytes(), patient
        slice_.SeriesNumber = number
        slice_.save_as(folder / f"{number}_{k}.dcm", enforce_file_format=True)


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    """Two patients: one with two series in one folder, one with a series deep down."""
    folder = tmp_path / "dump"
    write_series(folder / "PAT1", "axial", patient="Roe^Ann", number=2)
    write_series(folder / "PAT1", "oblique", patient="Roe^Ann", number=4)
    write_series(folder / "PAT2" / "a" / "b", "tilted", patient="Doe^Jane", number=1)
    (folder / "PAT2" / "notes.txt").write_text("no scan")
    return folder


def call(*arguments: Any) -> int:
    return command_line.run(infer.main, ["model", *map(str, arguments)])


CASES = ["PAT1", "PAT1_2", "PAT2_a_b"]


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_every_series_gets_its_label_map_its_object_and_its_place_on_the_page(
    dump: Path, tmp_path: Path, packed: bool
) -> None:
    source = Path(shutil.make_archive(str(dump), "zip", dump)) if packed else dump
    out = tmp_path / "out"
    assert call(source, out, "--dicom-seg", "--report") == 0
    for case in CASES:
        labels, seg = read_label(out / f"{case}.nii.gz").array, pydicom.dcmread(out / f"{case}.dcm")
        assert np.count_nonzero(labels == 5) == seg.pixel_array.sum() > 100
        assert seg.PatientName == ("Doe^Jane" if case == "PAT2_a_b" else "Roe^Ann")
        assert case in (out / "report.html").read_text(encoding="utf-8")
        sidecar = json.loads((out / f"{case}.json").read_text(encoding="utf-8"))
        alone = case == "PAT2_a_b" and not packed  # where it lies once the command has ended
        assert sidecar["scan"] == ("../dump/PAT2/a/b" if alone else None)
    for path in (*out.glob("*.json"), out / "report.html", out / "statistics.csv"):
        text = path.read_text(encoding="utf-8")
        assert "Roe" not in text
        assert "attunet3d-scans-" not in text
    assert (
        export.main([str(out), str(tmp_path / "rt"), "--format=rtstruct", "--source", str(source)])
        == 0
    )
    assert report.main([str(out), "--scans", str(source)]) == 0


def test_the_same_call_makes_objects_that_are_missing_or_stale_and_no_others(
    dump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert call(dump, out) == 0
    assert not list(out.glob("*.dcm"))
    assert call(dump, out, "--dicom-seg") == 0
    assert "3 already done" in capsys.readouterr().err
    times = {case: (out / f"{case}.dcm").stat().st_mtime_ns for case in CASES}
    (out / "PAT1.json").touch()
    (out / "PAT1_2.dcm").unlink()
    assert call(dump, out, "--dicom-seg") == 0
    new = [case for case in CASES if (out / f"{case}.dcm").stat().st_mtime_ns != times[case]]
    assert new == ["PAT1", "PAT1_2"]


def test_a_scan_that_is_no_series_and_a_name_that_is_taken_fail_by_name(
    dump: Path, tmp_path: Path
) -> None:
    write_scan(dump / "nifti.nii.gz", ball())
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(dump / "PAT1" / "2_0.dcm", out / "PAT1.dcm")
    before = (out / "PAT1.dcm").read_bytes()
    assert call(dump, out, "--dicom-seg") == 1
    failures = json.loads((out / "failures.json").read_text(encoding="utf-8"))
    assert sorted(failures) == ["PAT1", "nifti"]
    assert "leave --dicom-seg out" in failures["nifti"]
    assert "is not a DICOM Segmentation of attunet3d" in failures["PAT1"]
    assert (out / "PAT1.dcm").read_bytes() == before


def test_a_series_is_chosen_among_several(dump: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert call(dump / "PAT1", out, "--series", "4", "--dicom-seg") == 0
    seg, slice_ = pydicom.dcmread(out / "PAT1.dcm"), pydicom.dcmread(dump / "PAT1" / "4_0.dcm")
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == slice_.SeriesInstanceUID
    assert export.main([str(out), str(tmp_path / "seg"), "--format", "dicom-seg"]) == 0


def test_label_maps_of_another_threshold_know_their_series(dump: Path, tmp_path: Path) -> None:
    out, low = tmp_path / "out", tmp_path / "other" / "low"
    assert call(dump / "PAT1", out, "--series", "4", "--save-probabilities") == 0
    assert export.main([str(out), str(low), "--threshold", "0.2"]) == 0
    assert export.main([str(low), str(tmp_path / "seg"), "--format", "dicom-seg"]) == 0
    seg, slice_ = pydicom.dcmread(tmp_path / "seg" / "PAT1.dcm"), dump / "PAT1" / "4_0.dcm"
    wanted = pydicom.dcmread(slice_).SeriesInstanceUID
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == wanted
    assert report.main([str(low)]) == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--dicom-seg", "--orthogonal"], "leave --orthogonal out"),
        (["--report", "--shard", "1/2"], "attunet3d report OUT_DIR"),
    ],
)
def test_flags_that_contradict_each_other_are_refused_first(
    dump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    assert call(dump, tmp_path / "out", *flags) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_evaluate_writes_its_page(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    write_scan(tmp_path / "scans" / "a.nii.gz", ball())
    assert call(tmp_path / "scans", tmp_path / "out") == 0
    arguments = [tmp_path / "out", tmp_path / "out", tmp_path / "scores", "--report"]
    assert evaluate.main(list(map(str, arguments))) == 0
    assert "ball Dice" in (tmp_path / "scores" / "report.html").read_text(encoding="utf-8")
