"""Every kind of label goes from a manifest to scores, with answers known by hand."""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from attunet3d import __main__ as command
from attunet3d.core import command_line

SIZE = 24
SETTINGS = ["network.channels=[8,16]", "network.strides=[[2,2,2]]", "training.steps=60"]
SETTINGS += ["training.validate_every=60", "training.patch_size=[16,16,16]"]
SETTINGS += ["training.learning_rate=0.02", "preprocessing.spacing_mm=[2,2,2]"]
SETTINGS += ["preprocessing.crop_to_body=false", "augmentation.affine_probability=0"]


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
    for number in range(4):
        image, label = nested(number)
        write(data / "imagesTr" / f"case{number}_0000.nii.gz", image)
        write(data / "labelsTr" / f"case{number}.nii.gz", label)
    about = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz", "numTraining": 4}
    about |= {"labels": {"background": 0, "whole": [1, 2], "mass": 2}}
    about |= {"regions_class_order": [1, 2]}
    (data / "dataset.json").write_text(json.dumps(about))
    scores = trained(tmp_path, data)
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
