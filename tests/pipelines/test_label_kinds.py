"""Every kind of label goes from a manifest to scores, with answers known by hand."""

import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest

from attunet3d import __main__ as command
from attunet3d.core import command_line

SIZE = 24
SETTINGS = ["network.channels=[8,16]", "network.strides=[[2,2,2]]", "training.steps=60"]
SETTINGS += ["training.validate_every=60", "training.patch_size=[16,16,16]"]
SETTINGS += ["training.learning_rate=0.02", "preprocessing.spacing_mm=[2,2,2]"]
SETTINGS += ["preprocessing.crop_to_body=false", "augmentation.affine_probability=0"]


FROZEN_LABELS, FROZEN_REGIONS = [0.50101833, 0.49519930], [0.74163515, 0.49519930]


def call(*arguments: Any) -> Any:
    """Exit status of `attunet3d ARGUMENTS`."""
    return command_line.run(command.dispatch, [str(argument) for argument in arguments])


def write(path: Any, array: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([2.0, 2.0, 2.0, 1.0])), path)


def nested(number: Any) -> Any:
    """A scan of a block of 60 HU in -20 HU, whose upper half is a mass of 140 HU; and its label."""
    generator = np.random.default_rng(number)
    x, y, z = generator.integers(4, 9, 3)
    label = np.zeros((SIZE,) * 3, np.uint8)
    label[x : x + 10, y : y + 10, z : z + 10] = 1
    label[x : x + 10, y : y + 10, z + 5 : z + 10] = 2
    image = np.array([-20, 60, 140])[label] + generator.normal(0, 8, label.shape)
    return image.astype(np.int16), label


def write_nnunet(data: Path, labels: Any, cases: Any, **more: Any) -> None:
    """A raw data set as nnU-Net's documentation describes it."""
    for number, (image, label) in enumerate(cases):
        write(data / "imagesTr" / f"case{number}_0000.nii.gz", image)
        write(data / "labelsTr" / f"case{number}.nii.gz", label)
    about = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz", "numTraining": len(cases)}
    (data / "dataset.json").write_text(json.dumps(about | {"labels": labels} | more))


def nnunet_dice(reference: Any, prediction: Any, labels: Any, ignore: Any = None) -> list[float]:
    """Dice of each label, or region of several values, by nnU-Net's own evaluation."""
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    found = compute_metrics(str(reference), str(prediction), SimpleITKIO(), labels, ignore)
    return [float(found["metrics"][label]["Dice"]) for label in labels]


def assert_nnunet_agrees(home: Path, references: Any, labels: Any, ignore: Any = None) -> None:
    """Every Dice in scores.csv is nnU-Net's, where it is installed."""
    if importlib.util.find_spec("nnunetv2") is None:
        return
    with (home / "scores" / "scores.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for case in {row["case"] for row in rows}:
        ours = [float(row["dice"]) for row in rows if row["case"] == case]
        theirs = nnunet_dice(references(case), home / "out" / f"{case}.nii.gz", labels, ignore)
        assert ours == pytest.approx(theirs, abs=1e-6)


def trained(home: Any, data: Any, options: Any = ()) -> Any:
    """Train on a data set, segment its cases, and return the scores of all of them by name."""
    manifest, run, out = home / "m.json", home / "run", home / "out"
    assert call("manifest", data, "--out", manifest, "--folds", 2, *options) == 0
    sets = [part for setting in SETTINGS for part in ("--set", setting)]
    assert call("train", manifest, "demo_cpu", run, "--device", "cpu", *sets) == 0
    assert call("infer", run, manifest, out, "--device", "cpu", "--save-probabilities") == 0
    assert call("evaluate", out, manifest, home / "scores") == 0
    summary = json.loads((home / "scores" / "summary.json").read_text(encoding="utf-8"))
    return {label["name"]: label for label in summary["labels"].values()}


def test_a_nnunet_data_set_with_regions_goes_from_manifest_to_scores(tmp_path: Path) -> None:
    """As nnU-Net's documentation has it: labels that overlap, written one over another."""
    data = tmp_path / "Dataset001_Nested"
    labels = {"background": 0, "whole": [1, 2], "mass": 2}
    write_nnunet(data, labels, [*map(nested, range(4))], regions_class_order=[1, 2])
    scores = trained(tmp_path, data)
    assert_nnunet_agrees(tmp_path, lambda c: data / "labelsTr" / f"{c}.nii.gz", [(1, 2), (2,)])
    assert scores["whole"]["dice"]["mean"] > 0.9
    assert scores["mass"]["dice"]["mean"] > 0.85
    config = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert config["training"]["regions"] == [[1, 2], [2]]
    found = next((tmp_path / "out").glob("case*.nii.gz"))
    sidecar = json.loads(found.with_suffix("").with_suffix(".json").read_text(encoding="utf-8"))
    assert sidecar["activation"] == "sigmoid"
    # The written values are nnU-Net's rule applied to the saved probabilities.
    p = nibabel.load(tmp_path / "out" / "probabilities" / found.name).get_fdata()
    wanted = np.where(p[..., 1] > 0.5, 2, np.where(p[..., 0] > 0.5, 1, 0))
    sure = (np.abs(p - 0.5) > 0.01).all(-1)
    label = np.asarray(nibabel.load(found).dataobj)
    assert (label == wanted)[sure].all()
    assert call("export", tmp_path / "out", tmp_path / "again") == 0
    again = np.asarray(nibabel.load(tmp_path / "again" / found.name).dataobj)
    assert (again == label)[sure].all()
    assert_whole_contains_mass(tmp_path, found.name.removesuffix(".nii.gz"), label)


def assert_whole_contains_mass(home: Path, case: str, label: Any) -> None:
    """Whatever is called "whole" has the voxels of the mass, too: masks, statistics, exports."""
    out = home / "masks"
    assert call("infer", home / "run", home / "m.json", out, "--device", "cpu", "--mask-files") == 0
    mask = np.asarray(nibabel.load(out / case / "whole.nii.gz").dataobj)
    assert np.array_equal(mask, label > 0)
    with (out / "statistics.csv").open(encoding="utf-8") as file:
        rows = {row["label"]: row for row in csv.DictReader(file) if row["case"] == case}
    ml = {name: float(row["volume_ml"]) for name, row in rows.items()}
    wanted = [np.count_nonzero(part) * 0.008 for part in (label > 0, label == 2)]
    assert [ml["whole"], ml["mass"]] == pytest.approx(wanted)
    for folder in (out, home / "again"):
        sidecar = json.loads((folder / f"{case}.json").read_text(encoding="utf-8"))
        assert sidecar["regions"] == {"1": [1, 2], "2": [2]}
        assert sidecar["volumes"]["whole"]["voxels"] == np.count_nonzero(label)
    assert call("export", home / "again", home / "slicer", "--format", "seg-nrrd") == 0
    layers, header = nrrd.read(str(home / "slicer" / f"{case}.seg.nrrd"))
    assert np.array_equal(layers[int(header["Segment0_Layer"])] == 1, label > 0)
    assert np.array_equal(layers[int(header["Segment1_Layer"])] == 2, label == 2)
    data = home / "Dataset001_Nested" / "labelsTr"
    assert call("evaluate", home / "out", data, home / "plain") == 1  # two cases were trained on
    ours, plain = ((home / part / "scores.csv").read_text() for part in ("scores", "plain"))
    assert set(ours.splitlines()) <= set(plain.splitlines())


def test_a_nnunet_data_set_with_an_ignore_label_goes_from_manifest_to_scores(
    tmp_path: Path,
) -> None:
    """Only every third slice was annotated; what lies between counts nowhere."""
    data, cases = tmp_path / "Dataset002_Slices", []
    for number in range(4):
        image, label = nested(number)
        label[:, :, np.arange(SIZE) % 3 > 0] = 3
        cases.append((image, label))
    write_nnunet(data, {"background": 0, "rest": 1, "mass": 2, "ignore": 3}, cases)
    scores = trained(tmp_path, data)
    assert scores["rest"]["dice"]["mean"] > 0.8
    assert scores["mass"]["dice"]["mean"] > 0.8
    assert_nnunet_agrees(tmp_path, lambda c: data / "labelsTr" / f"{c}.nii.gz", [1, 2], 3)


def test_a_folder_of_masks_goes_from_manifest_to_scores(tmp_path: Path) -> None:
    """As TotalSegmentator has it; the masks overlap, and the mass lies over the rest."""
    data, whole = tmp_path / "data", tmp_path / "whole"
    for number in range(4):
        image, label = nested(number)
        write(data / f"s{number}" / "ct.nii.gz", image)
        write(data / f"s{number}" / "segmentations" / "whole.nii.gz", (label > 0).astype(np.uint8))
        write(data / f"s{number}" / "segmentations" / "mass.nii.gz", (label == 2).astype(np.uint8))
        write(whole / f"s{number}.nii.gz", label)
    scores = trained(tmp_path, data, ["--organs", "whole", "mass"])
    assert scores["whole"]["dice"]["mean"] > 0.8
    assert scores["mass"]["dice"]["mean"] > 0.8
    assert_nnunet_agrees(tmp_path, lambda c: whole / f"{c}.nii.gz", [1, 2])


def test_dice_is_that_of_nnunet_with_ignored_voxels_and_regions(tmp_path: Path) -> None:
    """Labels at random; the numbers were computed by nnU-Net 2.8.1 and are computed again."""
    generator = np.random.default_rng(0)
    reference, prediction = generator.integers(0, 4, (2, SIZE, SIZE, SIZE)).astype(np.uint8)
    prediction[prediction == 3] = reference[prediction == 3] % 3
    data = tmp_path / "data"
    labels = {"background": 0, "a": 1, "b": 2, "ignore": 3}
    write_nnunet(data, labels, [(np.zeros_like(reference, np.int16), reference)])
    write(tmp_path / "out" / "case0.nii.gz", prediction)
    regions: Any = {"background": 0, "whole": [1, 2], "b": 2, "ignore": 3}
    for names, parts, frozen in (
        (labels, [1, 2], FROZEN_LABELS),
        (regions, [(1, 2), (2,)], FROZEN_REGIONS),
    ):
        content: Any = {"labels": names, "modality": "CT", "root": str(data)}
        content |= {"regions_class_order": [1, 2]} if names is regions else {}
        case = {"id": "case0", "image": "imagesTr/case0_0000.nii.gz"}
        content["test"] = [case | {"label": "labelsTr/case0.nii.gz"}]
        manifest = tmp_path / "m.json"
        manifest.write_text(json.dumps(content), encoding="utf-8")
        assert call("evaluate", tmp_path / "out", manifest, tmp_path / "scores") == 0
        with (tmp_path / "scores" / "scores.csv").open(encoding="utf-8") as file:
            ours = [float(row["dice"]) for row in csv.DictReader(file)]
        assert ours == pytest.approx(frozen, abs=1e-6)
        assert_nnunet_agrees(tmp_path, lambda c: data / "labelsTr" / f"{c}.nii.gz", parts, 3)


def test_cases_that_were_annotated_in_part_are_scored_for_that_part(tmp_path: Path) -> None:
    data = tmp_path / "data"
    annotated = [["rest"], ["mass"], ["rest"], ["mass"]]
    for number, names in enumerate(annotated):
        image, label = nested(number)
        label[label != (1 if "rest" in names else 2)] = 0
        write(data / "images" / f"case{number}.nii.gz", image)
        write(data / "labels" / f"case{number}.nii.gz", label)
    manifest = tmp_path / "m.json"
    names = ["--label", "1=rest", "--label", "2=mass"]
    assert call("manifest", data, "--out", manifest, "--folds", 2, *names) == 0
    content = json.loads(manifest.read_text(encoding="utf-8"))
    for case in content["training"]:
        case["annotated"] = annotated[int(case["id"][-1])]
    manifest.write_text(json.dumps(content))
    run, out = tmp_path / "run", tmp_path / "out"
    sets = [part for setting in SETTINGS for part in ("--set", setting)]
    assert call("train", manifest, "demo_cpu", run, "--device", "cpu", *sets) == 0
    assert call("infer", run, data / "images", out, "--device", "cpu") == 0
    assert call("evaluate", out, manifest, tmp_path / "scores", "--all") == 0
    summary = json.loads((tmp_path / "scores" / "summary.json").read_text(encoding="utf-8"))
    for label in summary["labels"].values():
        assert label["dice"]["n"] == 2  # of four cases
        assert label["dice"]["mean"] > 0.8
        assert label["empty_reference"] == 0
    manifest.write_text(json.dumps(content).replace('"rest"]', '"liver"]'))
    assert call("train", manifest, "demo_cpu", tmp_path / "other", "--device", "cpu") == 2
