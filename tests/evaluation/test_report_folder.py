"""The report of folders that `infer` and `evaluate` wrote, by the command and in a browser."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from playwright.sync_api import Page

from attunet3d.cohort.call import CohortOptions
from attunet3d.cohort.run import segment_cohort
from attunet3d.cohort.scans import find_cases
from attunet3d.core import DataError, UserError
from attunet3d.evaluation import write_folder_report
from attunet3d.evaluation.folder import evaluate
from attunet3d.inference.predictor import Predictor
from attunet3d.pipelines import report
from tests.evaluation.conftest import coloured, content, in_browser, pixels, show_a_case
from tests.known_network import AFFINE, ball, checkpoint, write_scan

RADII = {"small": 8.0, "middle": 10.0, "large": 12.0}  # mm, of the ball in each scan


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `scans`, `predictions` of them with attention maps, and `references`."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "scans").mkdir()
    (folder / "references").mkdir()
    for name, radius in RADII.items():
        write_scan(folder / "scans" / f"{name}.nii.gz", ball(radius_mm=radius))
        label = (ball(radius_mm=10.0) > 100).astype(np.uint8) * 5  # right for "middle" alone
        nibabel.save(nibabel.Nifti1Image(label, AFFINE), folder / "references" / f"{name}.nii.gz")
    cases = find_cases(folder / "scans")
    options = CohortOptions(attention=True)
    segment_cohort(Predictor([checkpoint()]), cases, folder / "predictions", options)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return shutil.copytree(made, tmp_path / "made")


def payloads(path: Path) -> list[Any]:
    text = path.read_text(encoding="utf-8")
    found = re.findall(r'<script id="case-\d+" type="application/json">(.*)</script>', text)
    return [json.loads(part) for part in found]


def change_sidecar(folder: Path, name: str, **entries: Any) -> None:
    path = folder / "predictions" / f"{name}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_volumes_of_the_sidecars_fill_the_table_and_scans_are_found_by_them(folder: Path) -> None:
    outcome = write_folder_report(folder / "predictions")
    page = folder / "predictions" / "report.html"
    shown = content(page)
    assert sorted(outcome.done) == sorted(RADII)
    assert shown["columns"] == ["ball ml", "ball expected Dice"]
    assert shown["labels"] == {"5": "ball"}
    for row in shown["cases"]:
        sidecar = json.loads((folder / "predictions" / f"{row['id']}.json").read_text())
        expected = sidecar["doubt"]["ball"]["expected_dice"]
        assert row["values"] == [sidecar["volumes"]["ball"]["ml"], expected]
    for case in payloads(page):
        assert [layer["name"] for layer in case["layers"]] == ["prediction"]
        assert len(case["attention"]["gates"]) == 2


def test_doubt_sorts_the_cases_and_marks_what_to_look_at(folder: Path) -> None:
    doubt = {"large": ("ok", 0.70), "middle": ("look", 0.90), "small": ("look", 0.60)}
    for name, (word, expected) in doubt.items():
        entry = {"word": word, "expected_dice": expected}
        change_sidecar(folder, name, doubt={"ball": entry})
    write_folder_report(folder / "predictions")
    shown = content(folder / "predictions" / "report.html")
    assert [row["id"] for row in shown["cases"]] == ["small", "middle", "large"]
    assert shown["columns"] == ["ball ml", "ball expected Dice"]
    assert [row["look"] for row in shown["cases"]] == [[1], [1], []]
    assert shown["cases"][0]["facts"].startswith("ball: look; ")


def test_cases_with_warnings_come_first_where_nothing_tells_doubt(folder: Path) -> None:
    for name in RADII:
        warnings = ["the scan is cut"] if name == "small" else []
        change_sidecar(folder, name, warnings=warnings, doubt={})
    write_folder_report(folder / "predictions")
    rows = content(folder / "predictions" / "report.html")["cases"]
    assert [row["id"] for row in rows] == ["small", "large", "middle"]
    assert rows[0]["warnings"] == ["the scan is cut"]


def test_scores_are_sorted_by_dice_with_both_label_maps(folder: Path) -> None:
    evaluate(folder / "predictions", folder / "references", folder / "scores")
    write_folder_report(folder / "scores")
    shown = content(folder / "scores" / "report.html")
    dice = [row["values"][0] for row in shown["cases"]]
    assert dice == sorted(dice)
    assert shown["cases"][-1]["id"] == "middle"
    assert shown["columns"] == ["ball Dice", "ball NSD 2 mm", "ball HD95 mm", "ball Δ ml"]
    for case in payloads(folder / "scores" / "report.html"):
        assert [layer["name"] for layer in case["layers"]] == ["prediction", "reference"]


def test_a_reliability_diagram_beside_the_scores_is_on_the_page(folder: Path) -> None:
    evaluate(folder / "predictions", folder / "references", folder / "scores")
    write_folder_report(folder / "scores")
    page = folder / "scores" / "report.html"
    assert "Reliability diagram" not in page.read_text(encoding="utf-8")
    (folder / "scores" / "calibration.png").write_bytes(b"pixels")
    write_folder_report(folder / "scores")
    assert 'src="data:image/png;base64,cGl4ZWxz" alt="Reliab' in page.read_text(encoding="utf-8")


def test_references_of_a_manifest_are_found_and_intervals_are_over_its_patients(
    folder: Path,
) -> None:
    cases = [
        {
            "id": name,
            "image": f"scans/{name}.nii.gz",
            "label": f"references/{name}.nii.gz",
            "group": "one patient",
        }
        for name in RADII
    ]
    labels = {"0": "background", "5": "ball"}
    values = {"name": "balls", "labels": labels, "root": ".", "test": cases}
    (folder / "m.json").write_text(json.dumps(values))
    for path in (folder / "predictions").glob("*.json"):
        path.unlink()  # other programs' label maps: the manifest tells the scans
    evaluate(folder / "predictions", folder / "m.json", folder / "scores")
    assert sorted(write_folder_report(folder / "scores").done) == sorted(RADII)
    shown = content(folder / "scores" / "report.html")
    assert shown["statistics"][0][:2] == ["ball Dice", "3"]
    assert shown["statistics"][0][3] == "–"  # no interval from one patient


def test_a_moved_scan_is_named_and_found_again_by_its_folder(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "moved").mkdir()
    (folder / "scans" / "large.nii.gz").rename(folder / "moved" / "large.nii.gz")
    out = folder / "predictions"
    assert report.main([str(out)]) == 1
    assert "2 done, 1 failed" in capsys.readouterr().err
    assert report.main([str(out), "--scans", str(folder / "moved")]) == 0
    assert {row["id"] for row in content(out / "report.html")["cases"]} == set(RADII)


def test_another_scan_than_the_segmented_one_is_refused(folder: Path) -> None:
    other = np.diag([3.0, 3.0, 3.0, 1.0])
    for name in RADII:
        write_scan(folder / "scans" / f"{name}.nii.gz", affine=other)
    with pytest.raises(DataError, match=r"no case of it can be shown; name .* --scans"):
        write_folder_report(folder / "predictions")
    assert not (folder / "predictions" / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("scores.csv", "a,b\n1,2\n"),
        ("scores.csv", "case,label\n"),
        ("summary.json", "{}"),
        ("summary.json", '{"labels": {"1": 3}}'),
    ],
)
def test_what_evaluate_did_not_write_is_one_line(folder: Path, name: str, text: str) -> None:
    evaluate(folder / "predictions", folder / "references", folder / "scores")
    (folder / "scores" / name).write_text(text)
    with pytest.raises(UserError, match=r"scores"):
        write_folder_report(folder / "scores")


def test_a_case_with_damaged_attention_maps_is_named_and_the_others_are_shown(folder: Path) -> None:
    path = folder / "predictions" / "attention" / "large.nii.gz"
    path.write_bytes(path.read_bytes()[:200])
    outcome = write_folder_report(folder / "predictions")
    assert sorted(outcome.done) == ["middle", "small"]
    assert "the attention maps cannot be read" in outcome.failures["large"]


def test_a_folder_of_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither sidecars of `infer` nor scores of `evaluate`"):
        report.main([str(tmp_path)])


@in_browser
def test_the_commands_page_opens_the_worst_case_with_prediction_and_reference(
    folder: Path, tab: Page
) -> None:
    evaluate(folder / "predictions", folder / "references", folder / "scores")
    page = folder / "page.html"
    assert report.main([str(folder / "scores"), "--out", str(page)]) == 0
    show_a_case(tab, page)
    worst = tab.locator("#cases tbody button").first.inner_text()
    assert tab.inner_text("#viewer-heading") == worst != "middle"
    prediction = pixels(tab, "canvas-axial")
    assert coloured(prediction) > 0.01
    tab.locator("select[aria-label='labels of']").select_option(label="reference")
    assert (pixels(tab, "canvas-axial") != prediction).any()
    tab.locator("select[aria-label=attention]").select_option(label="gate 1")
    assert coloured(pixels(tab, "canvas-axial")) > 0.01
