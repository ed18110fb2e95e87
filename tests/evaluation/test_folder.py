"""A folder of label maps against its references: numbers by hand, failures by name."""

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import nibabel
import numpy as np
import pytest

from attunet3d.core import DataError, Floats, LabelMap, Size
from attunet3d.core.errors import UserError
from attunet3d.evaluation import metrics, scores
from attunet3d.evaluation.folder import evaluate
from attunet3d.evaluation.scores import Summary, completed, statistics
from attunet3d.evaluation.statistics import bootstrap_interval
from attunet3d.imaging.geometry import Grid
from attunet3d.pipelines import evaluate as pipeline

SHAPE = (6, 5, 4)
AFFINE = np.diag([-2.0, 2.0, 5.0, 1.0])


def write(
    folder: Path,
    case: str,
    voxels: Mapping[Size, int] = MappingProxyType({}),
    affine: Floats = AFFINE,
    shape: Size = SHAPE,
) -> None:
    """Write a label map; `voxels` maps (i, j, k) to values."""
    folder.mkdir(parents=True, exist_ok=True)
    array = np.zeros(shape, np.uint8)
    for index, value in voxels.items():
        array[index] = value
    nibabel.save(nibabel.Nifti1Image(array, affine), folder / f"{case}.nii.gz")


def rows_of(out_dir: Path) -> list[dict[str, str]]:
    with open(out_dir / "scores.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Case a: half right. Case b: label 2 missed, label 1 right. Case c: both maps empty."""
    predictions, reference = tmp_path / "predictions", tmp_path / "reference"
    write(predictions, "a", {(1, 1, 1): 1, (2, 1, 1): 1, (3, 3, 3): 2})
    write(reference, "a", {(2, 1, 1): 1, (3, 1, 1): 1, (3, 3, 3): 2})
    write(predictions, "b", {(1, 1, 1): 1})
    write(reference, "b", {(1, 1, 1): 1, (4, 4, 3): 2})
    write(predictions, "c")
    write(reference, "c")
    return predictions, reference, tmp_path / "out"


def test_scores_by_hand(folders: tuple[Path, Path, Path]) -> None:
    summary = evaluate(*folders)
    assert summary.failures == {}
    assert list(summary.scores) == ["a", "b", "c"]
    assert summary.values(1, "dice") == [0.5, 1, 1]
    assert summary.values(2, "dice") == [1, 0, 1]
    assert summary.values(1, "hd95_mm")[:2] == pytest.approx([1.9, 0])  # percentiles of 0 and 2 mm
    assert summary.values(1, "volume_ml_reference") == pytest.approx([0.04, 0.02, 0])


def test_csv_has_a_row_for_each_case_and_label(folders: tuple[Path, Path, Path]) -> None:
    evaluate(*folders)
    rows = rows_of(folders[2])
    assert [(row["case"], row["label"]) for row in rows] == [
        (case, value) for case in "abc" for value in "12"
    ]
    assert list(rows[0]) == list(scores.COLUMNS)
    assert (rows[0]["dice"], rows[0]["hd95_mm"], rows[0]["name"]) == ("0.5", "1.9", "label 1")
    missed = rows[3]
    assert (missed["dice"], missed["hd95_mm"], missed["empty_prediction"]) == ("0", "", "1")
    assert missed["empty_reference"] == "0"


def test_summary_counts_what_is_empty(folders: tuple[Path, Path, Path]) -> None:
    evaluate(*folders)
    content = json.loads((folders[2] / "summary.json").read_text(encoding="utf-8"))
    assert (content["cases"], content["scored"], content["failed"]) == (3, 3, [])
    second = content["labels"]["2"]
    assert second["dice"] == {
        "n": 3,
        "mean": pytest.approx(2 / 3),
        "std": pytest.approx(math.sqrt(1 / 3)),
        "median": 1,
        "min": 0,
        "max": 1,
        "mean_ci95": [0, 1],  # 1 of 27 resamples has only zeros, 8 only ones
    }
    counts = [second[f"empty_{part}"] for part in ("prediction", "reference", "both")]
    assert counts == [2, 1, 1]
    assert second["hd95_mm"]["n"] == 1
    assert second["missing"] == 0
    assert content["surface_dice_tolerance_mm"] == metrics.TOLERANCE_MM
    assert {"attunet3d", "numpy", "python"} <= set(content["versions"])
    assert (folders[2] / "boxplot.png").read_bytes().startswith(b"\x89PNG")
    assert not (folders[2] / "failures.json").exists()


def test_undefined_values_are_null_in_json(tmp_path: Path) -> None:
    write(tmp_path / "p", "a")
    write(tmp_path / "r", "a", {(0, 0, 0): 3})
    evaluate(tmp_path / "p", tmp_path / "r", tmp_path / "out")
    label = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["labels"][
        "3"
    ]
    assert label["hd95_mm"] == {
        "n": 0,
        "mean": None,
        "std": None,
        "median": None,
        "min": None,
        "max": None,
        "mean_ci95": None,
    }
    assert label["dice"]["std"] is None  # of one case


def test_bad_cases_fail_by_name_and_the_others_are_done(
    folders: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    predictions, reference, out = folders
    write(reference, "missing", {(1, 1, 1): 1})
    moved = AFFINE.copy()
    moved[1, 3] = 0.002
    write(predictions, "moved", affine=moved)
    write(reference, "moved")
    write(predictions, "larger", shape=(7, 5, 4))
    write(reference, "larger")
    write(reference, "torn")
    (predictions / "torn.nii.gz").write_bytes((reference / "torn.nii.gz").read_bytes()[:-20])
    summary = evaluate(predictions, reference, out)
    assert list(summary.scores) == ["a", "b", "c"]
    failures = json.loads((out / "failures.json").read_text(encoding="utf-8"))
    assert sorted(failures) == ["larger", "missing", "moved", "torn"]
    assert "prediction is missing" in failures["missing"]
    assert "lies up to 0.002 mm" in failures["moved"]
    assert "has (7, 5, 4) voxels, its reference (6, 5, 4)" in failures["larger"]
    assert "torn.nii.gz" in failures["torn"]
    content = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert content["failed"] == sorted(failures)
    assert content["labels"]["1"]["missing"] == 4
    assert content["labels"]["1"]["dice"]["n"] == 3


def test_grids_may_differ_by_rounding(folders: tuple[Path, Path, Path]) -> None:
    predictions, reference, out = folders
    nearly = AFFINE.copy()
    nearly[1, 3] = 0.0005
    write(predictions, "c", affine=nearly)
    assert evaluate(predictions, reference, out).failures == {}


def test_two_files_of_one_case_are_refused(folders: tuple[Path, Path, Path]) -> None:
    predictions, reference, out = folders
    (predictions / "a.nii").write_bytes((predictions / "a.nii.gz").read_bytes())
    failures = evaluate(predictions, reference, out).failures
    assert list(failures) == ["a"]
    assert "of one name" in failures["a"]


def test_predictions_without_a_reference_are_told(folders: tuple[Path, Path, Path]) -> None:
    predictions, reference, out = folders
    write(predictions, "extra")
    summary = evaluate(predictions, reference, out)
    assert summary.without_reference == ("extra",)
    assert summary.failures == {}
    assert "predictions without a reference: 1" in summary.table()


def sidecar(folder: Path, case: str, labels: dict[str, str], role: str | None = None) -> None:
    content: dict[str, Any] = {"case": case, "labels": labels, "files": {}, "settings": {}}
    content["role_in_training"] = role
    (folder / f"{case}.json").write_text(json.dumps(content))


def test_sidecars_name_the_labels(folders: tuple[Path, Path, Path]) -> None:
    predictions, reference, out = folders
    sidecar(predictions, "a", {"0": "background", "1": "pancreas"})
    (predictions / "other.json").write_text("[]")
    summary = evaluate(predictions, reference, out)
    assert summary.labels == {1: "pancreas"}
    assert summary.other_values == (2,)
    assert "values taken as background: 2" in summary.table()
    assert {row["name"] for row in rows_of(out)} == {"pancreas"}


def test_one_value_of_two_names_is_refused(folders: tuple[Path, Path, Path]) -> None:
    predictions, reference, out = folders
    sidecar(predictions, "a", {"1": "pancreas"})
    sidecar(predictions, "b", {"1": "liver"})
    with pytest.raises(DataError, match="'pancreas' and 'liver'"):
        evaluate(predictions, reference, out)


def manifest_of(tmp_path: Path, **lists: list[tuple[str, int | None, bool]]) -> Path:
    labels = {"0": "background", "1": "pancreas", "2": "tumour"}
    content: dict[str, Any] = {"name": "test", "labels": labels, "modality": "CT"}
    for name, cases in lists.items():
        content[name] = [
            {"id": case, "image": f"images/{case}.nii.gz", "fold": fold}
            | ({"label": f"reference/{case}.nii.gz"} if labelled else {})
            for case, fold, labelled in cases
        ]
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(content))
    return path


def test_a_manifest_gives_cases_and_names(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    predictions, _, out = folders
    path = manifest_of(tmp_path, training=[("a", 0, True), ("b", 1, True)])
    summary = evaluate(predictions, path, out, everything=True)
    assert list(summary.scores) == ["a", "b"]
    assert summary.labels == {1: "pancreas", 2: "tumour"}
    assert summary.without_reference == ("c",)
    assert "2 of 2 cases may have been seen in training" in summary.table()
    assert list(evaluate(predictions, path, out, fold=1).scores) == ["b"]
    labelled = manifest_of(tmp_path, training=[("a", 0, True)], test=[("c", None, True)])
    assert list(evaluate(predictions, labelled, out).scores) == ["c"]  # as `infer` does
    bare = manifest_of(tmp_path, training=[("a", 0, True)], test=[("c", None, False)])
    with pytest.raises(DataError, match="no labelled case is known to be held out"):
        evaluate(predictions, bare, out)


def test_cases_seen_in_training_are_told_by_the_sidecars(
    folders: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    predictions, reference, out = folders
    for case, role in (("a", "training"), ("b", "validation"), ("c", "none")):
        sidecar(predictions, case, {"1": "pancreas", "2": "tumour"}, role)
    summary = evaluate(predictions, reference, out)
    assert summary.seen_in_training == ("a",)
    remark = "1 of 3 cases were seen in training, which inflates the scores: a"
    assert remark in summary.table()
    content = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert (content["seen_in_training"], content["training_remark"]) == (["a"], remark)
    path = manifest_of(tmp_path, training=[(case, 0, True) for case in "abc"])
    assert list(evaluate(predictions, path, out).scores) == ["b"]


def test_a_manifests_paths_begin_at_the_root_that_is_given(
    folders: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    predictions, _, out = folders
    path = manifest_of(tmp_path, training=[("a", 0, True)])
    moved = tmp_path / "elsewhere" / "manifest.json"
    moved.parent.mkdir()
    path.rename(moved)
    assert list(evaluate(predictions, moved, out, root=tmp_path, everything=True).scores) == ["a"]
    assert list(evaluate(predictions, moved, out, everything=True).failures) == ["a"]


def test_a_manifest_and_sidecars_must_agree(
    folders: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    predictions, _, out = folders
    path = manifest_of(tmp_path, training=[("a", 0, True)])
    sidecar(predictions, "a", {"1": "Pancreas"}, "validation")
    assert evaluate(predictions, path, out).labels[1] == "pancreas"
    sidecar(predictions, "a", {"1": "liver"}, "validation")
    with pytest.raises(DataError, match="'pancreas' and 'liver'"):
        evaluate(predictions, path, out)


def test_wrong_calls_are_refused(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    predictions, reference, out = folders
    with pytest.raises(DataError, match="choose another folder"):
        evaluate(predictions, reference, predictions)
    for more in ({"fold": 0}, {"root": tmp_path}, {"everything": True}):
        with pytest.raises(DataError, match="is not a manifest; --fold, --all and --root go"):
            evaluate(predictions, reference, out, **more)
    with pytest.raises(DataError, match="must be 0 or more"):
        evaluate(predictions, reference, out, tolerance_mm=-1.0)
    with pytest.raises(DataError, match="must be a folder"):
        evaluate(predictions / "a.nii.gz", reference, out)
    with pytest.raises(UserError):
        evaluate(predictions, tmp_path / "nowhere", out)
    path = manifest_of(tmp_path, training=[("a", 0, False)])
    with pytest.raises(DataError, match="has no labelled case"):
        evaluate(predictions, path, out)
    assert not out.exists()


def test_swapped_folders_are_noticed_by_the_sidecars(folders: tuple[Path, Path, Path]) -> None:
    predictions, reference, out = folders
    sidecar(predictions, "a", {"1": "pancreas"})
    with pytest.raises(DataError, match="give PREDICTIONS first, then REFERENCE") as caught:
        evaluate(reference, predictions, out)
    assert caught.value.path == predictions
    sidecar(reference, "b", {"1": "pancreas"})  # two models' answers against each other
    assert evaluate(reference, predictions, out).failures == {}


def test_intervals_rest_on_patients_not_on_cases(
    folders: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """Three scans of one patient with the same result are as sure as one."""
    predictions, _, out = folders
    path = manifest_of(tmp_path, training=[(case, None, True) for case in "abc"])
    content = json.loads(path.read_text())
    for case, patient in zip(content["training"], "xyy", strict=True):
        case["group"] = patient
    path.write_text(json.dumps(content))
    summary = evaluate(predictions, path, out, everything=True)
    low, high = bootstrap_interval([0.5, 1, 1], ["x", "y", "y"])
    assert summary.intervals[1]["dice"] == pytest.approx((float(low), float(high)))
    assert f"{low:.3f}–{high:.3f}" in summary.table()


def test_progress_moves_within_a_case(
    folders: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single case tells of itself more than once, and ends at one."""
    told: list[float] = []
    monkeypatch.setattr(metrics, "POINTS", 1)
    one, other = np.zeros((2, 9, 9, 9), np.uint8)
    one[2:5, 2:5, 2:5], other[3:6, 2:5, 2:5], one[8, 8, 8] = 1, 1, 2
    metrics.score_labels(one, other, Grid((9, 9, 9), np.eye(4)), done=told.append)
    assert told == sorted(told)
    assert len(told) > 50
    assert told[-1] == pytest.approx(1)


def test_when_every_case_failed_there_is_a_summary_and_no_figure(
    folders: tuple[Path, Path, Path],
) -> None:
    predictions, reference, out = folders
    evaluate(predictions, reference, out)
    for path in reference.iterdir():
        path.rename(path.with_name("x" + path.name))
    summary = evaluate(predictions, reference, out)
    assert sorted(summary.failures) == ["xa", "xb", "xc"]
    assert not (out / "boxplot.png").exists()  # nor the older call's
    assert json.loads((out / "summary.json").read_text(encoding="utf-8"))["scored"] == 0
    assert "3 of 3 cases failed" in summary.table()


def test_the_command_prints_a_table_and_its_exit_status_tells_of_failures(
    folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    predictions, _, out = folders
    assert pipeline.main([str(folder) for folder in folders]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["label", "cases", "Dice"]
    assert lines[1].startswith("label 1      3  0.833 ± 0.289")
    assert len({len(line) for line in lines[:3]}) == 1
    (predictions / "b.nii.gz").unlink()
    arguments = [*map(str, folders), "--tolerance-mm", "3"]
    assert pipeline.main(arguments) == 1
    printed = capsys.readouterr().out
    assert "surface Dice at 3 mm" in printed
    assert "1 of 3 cases failed and are in no mean:\n  b: its prediction is missing" in printed
    assert json.loads((out / "failures.json").read_text(encoding="utf-8")).keys() == {"b"}


def test_tolerance_reaches_surface_dice(folders: tuple[Path, Path, Path]) -> None:
    loose, strict = (evaluate(*folders, tolerance_mm=mm) for mm in (2.0, 1.0))
    assert loose.values(1, "surface_dice")[0] == 1
    assert strict.values(1, "surface_dice")[0] == 0.5


def test_statistics_leave_out_what_is_undefined() -> None:
    assert statistics([math.nan, 4.0, 1.0, 1.0])["mean"] == 2
    assert statistics([math.nan, 4.0, 1.0, 1.0])["std"] == pytest.approx(math.sqrt(3))
    assert statistics([]) == statistics([math.nan])


def test_a_label_in_neither_map_is_rightly_absent() -> None:
    mask = np.ones((1, 1, 1))
    found = {"a": {1: metrics.score(mask, mask, Grid((1, 1, 1), np.eye(4)))}, "b": {}}
    summary = Summary(labels={1: "x"}, scores=completed(found, {1: "x"}))
    assert summary.values(1, "dice") == [1, 1]
    assert summary.values(1, "empty_reference") == [0, 1]


def test_an_unforeseen_error_fails_its_case_only(
    folders: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    score_labels = metrics.score_labels

    def out_of_memory(prediction: LabelMap, *others: Any, **named: Any) -> Any:
        if (prediction == 2).any():  # case a
            raise MemoryError
        return score_labels(prediction, *others, **named)

    monkeypatch.setattr(metrics, "score_labels", out_of_memory)
    summary = evaluate(*folders)
    assert list(summary.scores) == ["b", "c"]
    assert "out of memory" in summary.failures["a"]


def test_ignored_voxels_count_nowhere_and_regions_are_scored_whole(
    folders: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """Voxel (2,1,1) of the reference is unknown; then whole = 1 or 2, and part = 2 alone."""
    predictions, reference, out = folders
    write(predictions, "a", {(1, 1, 1): 1, (2, 1, 1): 1, (3, 1, 1): 2})
    write(reference, "a", {(1, 1, 1): 1, (2, 1, 1): 3, (3, 1, 1): 1})
    path = manifest_of(tmp_path, training=[("a", None, True)])
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"labels": {"1": "organ", "2": "tumour", "3": "ignore"}}))
    summary = evaluate(predictions, path, out, everything=True)
    assert summary.values(1, "dice") == pytest.approx([2 / 3])  # 1 of 1 and 2 voxels
    assert summary.values(1, "volume_ml_prediction") == pytest.approx([0.02])
    assert summary.values(2, "dice") == [0]
    labels = {"whole": [1, 2], "tumour": 2, "ignore": 3}
    regions = {"labels": labels, "regions_class_order": [1, 2]}
    path.write_text(json.dumps(content | regions))
    summary = evaluate(predictions, path, out, everything=True)
    assert summary.labels == {1: "whole", 2: "tumour"}
    assert (summary.values(1, "dice"), summary.values(2, "dice")) == ([1], [0])


def test_regions_of_the_predictions_are_scored_whole_where_a_folder_is_the_reference(
    folders: tuple[Path, Path, Path],
) -> None:
    predictions, reference, out = folders
    labels = {"0": "background", "1": "whole", "2": "mass"}
    content: Any = {"labels": labels, "regions": {"1": [1, 2]}, "files": {}, "settings": {}}
    for case in "abc":
        (predictions / f"{case}.json").write_text(json.dumps(content))
    summary = evaluate(predictions, reference, out)
    assert summary.values(1, "volume_ml_reference") == pytest.approx([0.06, 0.04, 0])
    assert summary.values(2, "volume_ml_reference") == pytest.approx([0.02, 0.02, 0])
    assert summary.values(1, "dice") == pytest.approx([2 * 2 / 6, 2 / 3, 1])
    del content["regions"]
    (predictions / "c.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"label 1 is made up of \(1,\) and of \(1, 2\)"):
        evaluate(predictions, reference, out)
