"""Written cases read back as they were; saved probabilities give label maps by the rule."""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from attunet3d.cohort import results
from attunet3d.cohort.export import Rule, choose_labels, export_labels
from attunet3d.cohort.results import case_files
from attunet3d.core import Array, DataError, Float32s, LabelMap, SettingsError, command_line
from attunet3d.imaging.maps import MapReader
from attunet3d.inference.predictor import Predictor
from attunet3d.inference.record import Prediction
from attunet3d.pipelines import export as pipeline
from tests.known_network import (
    AFFINE,
    NESTED,
    REGIONS,
    NestedNetwork,
    ThresholdNetwork,
    ball,
    checkpoint,
    nested,
    write_predicted,
    write_scan,
)


def predicted(
    folder: Path, threshold: float = 1.0, array: Array | None = None, case_id: str = "case"
) -> Prediction:
    """An output folder of `infer --save-probabilities` with one case; the mask in it."""
    folder.mkdir(exist_ok=True)
    scan = write_scan(folder.parent / f"{case_id}.nii.gz", array)
    predictor = Predictor([checkpoint(ThresholdNetwork(threshold))], "cpu")
    volume = predictor.read(scan)
    kinds = ["probabilities", "attention"]
    write_predicted(case_files(folder, case_id), predictor, volume, kinds)
    return predictor.segment(volume, probabilities=True, attention=True)


def mask(folder: Path, case_id: str = "case") -> LabelMap:
    return np.asarray(nibabel.load(folder / f"{case_id}.nii.gz").dataobj)


def graded() -> Array:
    """0, 40, 80, 120 … HU from voxel to voxel, of many probabilities."""
    return np.asfortranarray((np.arange(ball().size) % 10 * 40).reshape(ball().shape)).astype("i2")


# --- writing ---------------------------------------------------------------------------------


def test_written_case_reads_back(tmp_path: Path) -> None:
    prediction = predicted(tmp_path / "out")
    files = case_files(tmp_path / "out", "case")
    assert np.array_equal(mask(tmp_path / "out"), prediction.segmentation.array)
    for path, array in (
        (files.maps("probabilities"), prediction.probabilities),
        (files.maps("attention"), prediction.attention),
    ):
        image = nibabel.load(path)
        assert np.array_equal(image.affine, AFFINE)
        assert array is not None
        stored = np.asarray(image.dataobj).reshape(array.shape, order="F")
        assert np.allclose(stored, array, atol=0.003)
    content = results.read_sidecar(files.sidecar)
    wanted = [files.mask, *(files.maps(kind) for kind in results.KINDS)]
    assert results.intact(files, content, wanted)
    assert content["seconds"]["writing"] > 0
    assert not list(tmp_path.glob("out/**/.*"))  # no temporary file is left


def test_sidecar_is_not_written_when_the_mask_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "case.nii.gz").mkdir()  # in the mask's way
    with pytest.raises((DataError, OSError, ValueError)):
        predicted(tmp_path / "out")
    assert not (tmp_path / "out" / "case.json").exists()


# --- the rule --------------------------------------------------------------------------------


def test_choice_by_hand() -> None:
    liver = np.array([0.5, 0.2, 0.45, 0.3, 0.0], np.float32)
    spleen = np.array([0.1, 0.3, 0.45, 0.3, 0.0], np.float32)
    organs = np.stack([liver, spleen])
    #      background  0.4  0.5  0.1   0.4  1.0
    assert choose_labels(organs, [2, 9], [None, None]).tolist() == [2, 0, 2, 0, 0]
    assert choose_labels(organs, [2, 9], [None, 0.3]).tolist() == [2, 9, 2, 9, 0]
    assert choose_labels(organs, [2, 9], [0.3, 0.3]).tolist() == [2, 9, 2, 2, 0]


@given(arrays.arrays(np.float32, (3, 20), elements=st.floats(-9, 9, width=32)))
def test_choice_without_thresholds_is_the_arg_max(logits: Array) -> None:
    shifted = np.exp(logits.astype(np.float64) - logits.max(0))
    probabilities = shifted / shifted.sum(0)
    top = np.sort(probabilities, axis=0)
    clear = top[-1] - top[-2] > 1e-5
    found = choose_labels(probabilities[1:].astype(np.float32), [1, 2], [None, None])
    assert np.array_equal(found[clear], probabilities.argmax(0)[clear])


def test_thresholds_are_read_and_checked() -> None:
    rule = Rule.parse(["0.3", "liver=0.6"])
    assert rule.for_labels({0: "background", 3: "liver", 1: "spleen"}) == [0.3, 0.6]
    assert Rule.parse([]).for_labels({0: "background", 1: "spleen"}) == [None]
    for text in ("x", "liver=", "liver=a"):
        with pytest.raises(SettingsError, match=r"write NAME=0\.3"):
            Rule.parse([text])
    for text in ("0", "1.5", "-1", "nan", "liver=0"):
        with pytest.raises(SettingsError, match=f"^--threshold {text}: must be .* 1; write"):
            Rule.parse([text])
    with pytest.raises(SettingsError, match="no such label; the labels are liver"):
        Rule.parse(["lever=0.5"]).for_labels({0: "background", 1: "liver"})


# --- export ----------------------------------------------------------------------------------


def test_no_rule_gives_the_mask_that_infer_wrote(tmp_path: Path) -> None:
    predicted(tmp_path / "in", array=graded())
    outcome = export_labels([tmp_path / "in"], tmp_path / "out", Rule())
    assert outcome.done == ["case"]
    assert np.array_equal(mask(tmp_path / "out"), mask(tmp_path / "in"))
    before, after = (nibabel.load(tmp_path / name / "case.nii.gz") for name in ("in", "out"))
    assert before.header["srow_x"].tobytes() == after.header["srow_x"].tobytes()


def test_threshold_takes_what_reaches_it(tmp_path: Path) -> None:
    predicted(tmp_path / "in", array=graded())
    export_labels([tmp_path / "in"], tmp_path / "out", Rule.parse(["ball=0.3"]))
    sigmoid = 1 / (1 + np.exp(1 - graded() / 100.0))
    assert np.array_equal(mask(tmp_path / "out") == 5, sigmoid >= 0.3)
    content = json.loads((tmp_path / "out" / "case.json").read_text(encoding="utf-8"))
    assert content["settings"] == {"thresholds": {"ball": 0.3}, "keep_largest": []}
    assert content["volumes"]["ball"]["voxels"] == np.count_nonzero(sigmoid >= 0.3)


def test_probabilities_of_several_folders_are_averaged(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, threshold in zip(folders, (0.5, 2.5), strict=True):
        predicted(folder, threshold, array=graded())
    export_labels(folders, tmp_path / "out", Rule())
    mean = sum(1 / (1 + np.exp(t - graded() / 100.0)) for t in (0.5, 2.5)) / 2
    assert np.array_equal(mask(tmp_path / "out") == 5, mean > 0.5)


def test_largest_component(tmp_path: Path) -> None:
    array = ball(radius_mm=8)
    array[0, 0, 0] = 300
    predicted(tmp_path / "in", array=array)
    export_labels([tmp_path / "in"], tmp_path / "out", Rule.parse([], ["ball"]))
    assert np.count_nonzero(mask(tmp_path / "out")) == np.count_nonzero(array) - 1


def test_largest_component_of_a_region(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    predictor = Predictor([checkpoint(NestedNetwork(), *REGIONS, labels=NESTED)], "cpu")
    scan = predictor.read(write_scan(tmp_path / "case.nii.gz", nested()))
    write_predicted(case_files(tmp_path / "in", "case"), predictor, scan, ["probabilities"])
    export_labels([tmp_path / "in"], tmp_path / "out", Rule.parse([], keep_largest=["whole"]))
    wanted = nested() // 300  # 1 the rest, 2 the mass
    wanted[24:26] = 0  # the islet
    assert np.array_equal(mask(tmp_path / "out"), wanted)
    content = json.loads((tmp_path / "out" / "case.json").read_text(encoding="utf-8"))
    assert content["regions"] == {"1": [1, 2], "2": [2]}
    assert content["volumes"]["whole"]["voxels"] == np.count_nonzero(wanted)


def test_damaged_and_missing_probabilities_fail_by_name_and_the_others_are_done(
    tmp_path: Path,
) -> None:
    for case_id in ("good", "torn", "none"):
        predicted(tmp_path / "in", case_id=case_id)
    torn = tmp_path / "in" / "probabilities" / "torn.nii.gz"
    data = bytearray(torn.read_bytes())
    data[len(data) // 2] ^= 1
    torn.write_bytes(data)
    (tmp_path / "in" / "probabilities" / "none.nii.gz").unlink()
    outcome = export_labels([tmp_path / "in"], tmp_path / "out", Rule())
    assert outcome.done == ["good"]
    assert "is not the file" in outcome.failures["torn"]
    assert "--save-probabilities" in outcome.failures["none"]
    assert (
        json.loads((tmp_path / "out" / "failures.json").read_text(encoding="utf-8"))
        == outcome.failures
    )


def test_case_that_one_folder_lacks_fails(tmp_path: Path) -> None:
    predicted(tmp_path / "a")
    predicted(tmp_path / "b", case_id="other")
    outcome = export_labels([tmp_path / "a", tmp_path / "b"], tmp_path / "out", Rule())
    assert set(outcome.failures) == {"case", "other"}


def test_folders_of_other_labels_are_not_averaged(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        predicted(folder)
    sidecar = folders[1] / "case.json"
    sidecar.write_text(sidecar.read_text(encoding="utf-8").replace('"5": "ball"', '"5": "cube"'))
    reason = export_labels(folders, tmp_path / "out", Rule()).failures["case"]
    assert "its labels differ from the first folder's; name folders of models" in reason


def test_json_of_other_programs_is_passed_over(tmp_path: Path) -> None:
    predicted(tmp_path / "in")
    (tmp_path / "in" / "a.json").write_text('{"written by": "another program"}')
    outcome = export_labels([tmp_path / "in"], tmp_path / "out", Rule())
    assert (outcome.done, outcome.failures) == (["case"], {})


def test_wrong_folders_are_refused(tmp_path: Path) -> None:
    predicted(tmp_path / "in")
    with pytest.raises(DataError, match="holds the predictions"):
        export_labels([tmp_path / "in"], tmp_path / "in", Rule())
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no results"):
        export_labels([tmp_path / "empty"], tmp_path / "out", Rule())


def test_what_another_rule_or_other_probabilities_made_is_kept_unless_asked(tmp_path: Path) -> None:
    predicted(tmp_path / "in", array=graded())
    folders, out = [tmp_path / "in"], tmp_path / "out"
    export_labels(folders, out, Rule.parse(["0.2"]))
    before = (out / "case.nii.gz").read_bytes()
    assert export_labels(folders, out, Rule.parse(["0.2"])).skipped == ["case"]
    for rule in (Rule(), Rule.parse(["0.2"], keep_largest=["ball"])):
        assert (
            "was made with other settings; use --over"
            in (export_labels(folders, out, rule).failures["case"])
        )
    predicted(tmp_path / "in", threshold=1.5, array=graded())
    outcome = export_labels(folders, out, Rule.parse(["0.2"]))
    assert "was made with other probabilities; use --over" in outcome.failures["case"]
    assert (out / "case.nii.gz").read_bytes() == before
    assert export_labels(folders, out, Rule.parse(["0.2"]), overwrite=True).done == ["case"]
    assert (out / "case.nii.gz").read_bytes() != before


def test_a_sigmoid_per_label_counts_from_one_half() -> None:
    p = np.array([[0.6, 0.4, 0.55], [0.7, 0.3, 0.2]], np.float32)
    assert choose_labels(p, [1, 2], [None, None], "sigmoid").tolist() == [2, 0, 1]
    assert choose_labels(p, [1, 2], [0.3, None], "sigmoid").tolist() == [2, 1, 1]


def test_no_rule_gives_the_mask_of_a_model_with_a_sigmoid_per_label(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    scan = write_scan(tmp_path / "case.nii.gz", graded())
    predictor = Predictor([checkpoint(ThresholdNetwork(1.5), "training.loss=bce")], "cpu")
    files = case_files(tmp_path / "in", "case")
    write_predicted(files, predictor, predictor.read(scan), ["probabilities"])
    export_labels([tmp_path / "in"], tmp_path / "out", Rule())
    assert np.array_equal(mask(tmp_path / "out"), mask(tmp_path / "in"))
    assert mask(tmp_path / "out").any()


def test_memory_holds_a_plane_of_all_labels_and_not_the_maps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predicted(tmp_path / "in", array=graded())
    shapes: list[Float32s] = []
    plane = MapReader.plane

    def kept(reader: MapReader, k: int) -> Float32s:
        shapes.append(plane(reader, k))
        return shapes[-1]

    monkeypatch.setattr(MapReader, "plane", kept)
    export_labels([tmp_path / "in"], tmp_path / "out", Rule())
    assert {array.shape for array in shapes} == {(1, *ball().shape[:2])}
    assert len(shapes) == ball().shape[2]


def run(*arguments: Any) -> int:
    return command_line.run(pipeline.main, [str(argument) for argument in arguments])


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predicted(tmp_path / "in", array=graded())
    arguments = [tmp_path / "in", tmp_path / "out", "--threshold", "0.9"]
    assert run(*arguments) == 0
    assert "1 done" in capsys.readouterr().err
    (tmp_path / "in" / "probabilities" / "case.nii.gz").unlink()
    assert run(*arguments) == 1
    assert "case: error: " in capsys.readouterr().err


@pytest.mark.parametrize("threshold", ["0", "lever=0.3", "ball=x"])
def test_a_wrong_threshold_is_told_once_as_it_was_typed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], threshold: str
) -> None:
    for case_id in ("a", "b"):
        predicted(tmp_path / "in", case_id=case_id)
    assert run(tmp_path / "in", tmp_path / "out", "--threshold", threshold) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--threshold {threshold.removesuffix('=0.3')}" in line
    assert not (tmp_path / "out").exists()
    arguments = [str(tmp_path / "in"), str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        pipeline.main([*arguments, "--format", "tiff"])
