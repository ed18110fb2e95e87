"""The rule of doubt fitted on a folder of predictions, and what their references span."""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from attunet3d.cohort.doubt import DoubtRule
from attunet3d.cohort.results import case_files
from attunet3d.datasets import Case, Manifest
from attunet3d.evaluation.doubt_fit import _measured as measured
from attunet3d.evaluation.doubt_fit import doubt_notes
from attunet3d.evaluation.post_processing import choose_post_processing
from attunet3d.imaging.volume import Segmentation, read_label
from tests.known_network import ball_volume, write_scan

CASES = 14


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Balls of 5 to 18 mm; the predictions miss ever more planes and say what they expect."""
    listed = []
    for number in range(CASES):
        name = f"case{number}"
        volume = ball_volume(radius_mm=5 + number)
        write_scan(tmp_path / f"{name}.nii.gz", volume.array)
        truth = np.asfortranarray(volume.array == 300).astype(np.uint8, order="F")
        found = truth.copy(order="F")
        cut = np.flatnonzero(truth.any((0, 1)))
        found[:, :, cut[: len(cut) * number // CASES]] = 0
        both, total = int((truth & found).sum()), int(truth.sum() + found.sum())
        grid, labels = volume.grid, {0: "background", 1: "ball"}
        Segmentation(truth, grid, labels).save(tmp_path / f"{name}_label.nii.gz")
        files = case_files(tmp_path / "out", name)
        files.folder.mkdir(exist_ok=True)
        Segmentation(found, grid, labels).save(files.mask)
        doubt = {
            "expected_dice": 2 * both / total,
            "member_dice": None,
            "largest_piece": 1.0,
            "touches_border": False,
        }
        content = {"labels": {}, "files": {}, "settings": {}, "doubt": {"ball": doubt}}
        files.sidecar.write_text(json.dumps(content))
        listed.append(
            {"id": name, "image": f"{name}.nii.gz", "label": f"{name}_label.nii.gz", "fold": 0}
        )
    values = {
        "name": "balls",
        "labels": {"0": "background", "1": "ball"},
        "modality": "CT",
        "training": listed,
    }
    (tmp_path / "m.json").write_text(json.dumps(values))
    return tmp_path


def test_the_rule_follows_the_true_dice_and_the_ranges_span_the_references(folder: Path) -> None:
    manifest = Manifest.load(folder / "m.json")
    notes = json.loads(json.dumps(doubt_notes(folder / "out", manifest, manifest.training)))
    ranges = notes["label_ranges"]["ball"]
    small, large = (np.count_nonzero(ball_volume(radius_mm=r).array == 300) for r in (5, 18))
    assert ranges["ml"] == pytest.approx([small * 0.008, large * 0.008])
    assert ranges["hu"] == [300, 300]
    rule = DoubtRule.of(notes)
    for number in range(CASES):
        sidecar = json.loads((folder / "out" / f"case{number}.json").read_text())
        entry = sidecar["doubt"]["ball"] | {"voxels": 1}
        assert (rule.word(entry) != "ok") or entry["expected_dice"] > 0.5
    assert rule.weights["agreement"] > 0.8


def test_what_was_not_annotated_counts_nowhere(folder: Path) -> None:
    """The even cases say nothing about the ball, and their references are empty."""
    content = json.loads((folder / "m.json").read_text())
    content["labels"]["2"] = "cyst"
    for case in content["training"][::2]:
        case["annotated"] = ["cyst"]
        label = folder / case["label"]
        empty = read_label(label)
        Segmentation(np.zeros_like(empty.array), empty.grid, {}).save(label)
    (folder / "m.json").write_text(json.dumps(content))
    manifest = Manifest.load(folder / "m.json")
    notes = doubt_notes(folder / "out", manifest, manifest.training)
    smallest = np.count_nonzero(ball_volume(radius_mm=6).array == 300)
    assert notes["label_ranges"]["ball"]["ml"][0] == pytest.approx(smallest * 0.008)
    chosen = choose_post_processing(folder / "out", manifest, manifest.training)
    assert chosen["ball"].patients == CASES // 2
    assert chosen["ball"].dice > 0.5  # it would be half of that with the empty references


def test_voxels_to_ignore_count_neither_as_wrong_nor_as_background(folder: Path) -> None:
    """The planes that the predictions miss are not labelled: what is known is right."""
    content = json.loads((folder / "m.json").read_text())
    content["labels"]["9"] = "ignore"
    whole = []
    for case in content["training"]:
        label = folder / case["label"]
        truth, found = read_label(label), read_label(folder / "out" / f"{case['id']}.nii.gz")
        truth.array[(truth.array == 1) & (found.array == 0)] = 9
        Segmentation(truth.array, truth.grid, {}).save(label)
        if not (truth.array == 9).any():
            whole.append(np.count_nonzero(truth.array) * truth.grid.voxel_volume_ml)
    (folder / "m.json").write_text(json.dumps(content))
    manifest = Manifest.load(folder / "m.json")
    notes = doubt_notes(folder / "out", manifest, manifest.training)
    assert 0 < len(whole) < CASES
    assert notes["label_ranges"]["ball"]["ml"] == pytest.approx((min(whole), max(whole)))
    rows = [measured(folder / "out", manifest, case)[1] for case in manifest.training]
    assert {row["dice"] for entries in rows for row in entries} == {1.0}


def test_few_labels_give_ranges_and_no_rule(folder: Path) -> None:
    manifest = Manifest.load(folder / "m.json")
    notes = doubt_notes(folder / "out", manifest, manifest.training[:5])
    assert set(notes) == {"label_ranges"}


def test_ranges_of_a_region_are_those_of_all_its_values(folder: Path) -> None:
    content = json.loads((folder / "m.json").read_text())
    plain = doubt_notes(folder / "out", *listed(folder, content))["label_ranges"]["ball"]
    for path in folder.glob("*_label.nii.gz"):
        image = nibabel.load(path)
        array = np.asarray(image.dataobj).copy()
        array[:, :, : array.shape[2] // 2] *= 2
        nibabel.save(nibabel.Nifti1Image(array, image.affine, image.header), path)
    content |= {"labels": {"ball": [1, 2], "half": 2}, "regions_class_order": [1, 2]}
    ranges = doubt_notes(folder / "out", *listed(folder, content))["label_ranges"]
    assert ranges["ball"] == plain
    assert ranges["half"]["ml"][1] < plain["ml"][1]


def test_components_of_a_region_are_those_of_all_its_values(folder: Path) -> None:
    """Half of each ball is a mass: the ball is one component, as right as it was before."""
    content = json.loads((folder / "m.json").read_text())
    plain = choose_post_processing(folder / "out", *listed(folder, content))["ball"]
    for case in range(CASES):
        path = folder / "out" / f"case{case}.nii.gz"
        image = nibabel.load(path)
        array = np.asarray(image.dataobj).copy()
        array[:, :, : array.shape[2] // 2] *= 2
        nibabel.save(nibabel.Nifti1Image(array, image.affine, image.header), path)
    content |= {"labels": {"ball": [1, 2], "half": 2}, "regions_class_order": [1, 2]}
    assert choose_post_processing(folder / "out", *listed(folder, content))["ball"] == plain


def listed(folder: Path, content: Any) -> tuple[Manifest, tuple[Case, ...]]:
    """The manifest of `content`, and its cases."""
    (folder / "m.json").write_text(json.dumps(content))
    manifest = Manifest.load(folder / "m.json")
    return manifest, manifest.training
