"""Data sets as they are downloaded: the same cases whatever the layout."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from attunet3d.core import DataError
from attunet3d.core.errors import UserError
from attunet3d.datasets.formats import grouped, read_data_set
from attunet3d.datasets.listing import assign_folds, list_cases
from attunet3d.datasets.manifest import Manifest

DECATHLON = {"0": "background", "1": "pancreas"}
NNUNET = {"background": 0, "pancreas": 1}


def touch(folder: Path, *names: Any) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def describe(folder: Path, **values: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(values))
    return folder


def nnunet(folder: Path, *names: Any, **values: Any) -> Path:
    touch(folder, *names)
    facts = {
        "channel_names": {"0": "CT"},
        "labels": NNUNET,
        "numTraining": 9,
        "file_ending": ".nii.gz",
    }
    return describe(folder, **{**facts, **values})


def pairs(found: Manifest, part: str = "training") -> dict[str, tuple[str, str | None]]:
    root = found.root
    return {
        case.id: (
            case.image.relative_to(root).as_posix(),
            case.label and case.label.relative_to(root).as_posix(),
        )
        for case in getattr(found, part)
    }


# --- the Decathlon and data lists ------------------------------------------------------------


def test_decathlon(tmp_path: Path) -> None:
    training = [
        {"image": f"./imagesTr/p_{n:03}.nii.gz", "label": f"./labelsTr/p_{n:03}.nii.gz"}
        for n in (1, 4)
    ]
    describe(tmp_path, name="Pancreas", modality={"0": "CT"}, labels=DECATHLON, training=training,
             test=["./imagesTs/p_002.nii.gz"])  # fmt: skip
    found = read_data_set(tmp_path)
    assert found.name == "Pancreas"
    assert pairs(found) == {
        "p_001": ("imagesTr/p_001.nii.gz", "labelsTr/p_001.nii.gz"),
        "p_004": ("imagesTr/p_004.nii.gz", "labelsTr/p_004.nii.gz"),
    }
    assert pairs(found, "test") == {"p_002": ("imagesTs/p_002.nii.gz", None)}


def test_folds_of_a_data_list_are_kept(tmp_path: Path) -> None:
    training = [
        {"image": f"{name}.nii", "label": f"{name}_l.nii", "fold": n} for n, name in enumerate("ab")
    ]
    describe(tmp_path, labels=DECATHLON, training=training)
    assert [case.fold for case in assign_folds(list_cases(tmp_path), tmp_path).training] == [0, 1]


def test_errors_name_the_folder_and_the_case(tmp_path: Path) -> None:
    describe(tmp_path, labels=DECATHLON, training=[{"image": "../a.nii"}])
    with pytest.raises(DataError, match="training, entry 0: path") as error:
        read_data_set(tmp_path)
    assert str(error.value).startswith(str(tmp_path))


# --- nnU-Net ---------------------------------------------------------------------------------


def test_nnunet_with_channel_suffix(tmp_path: Path) -> None:
    names = ["imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "imagesTs/z_0000.nii.gz"]
    junk = ["imagesTr/._a_0000.nii.gz", "imagesTr/.DS_Store", "labelsTr/notes.txt"]
    found = read_data_set(nnunet(tmp_path, *names, *junk, name="Dataset007"))
    assert pairs(found) == {"a": ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")}
    assert pairs(found, "test") == {"z": ("imagesTs/z_0000.nii.gz", None)}
    assert found.labels == {0: "background", 1: "pancreas"}
    assert (found.name, found.modality) == ("Dataset007", "CT")


def test_nnunet_without_suffix(tmp_path: Path) -> None:
    names = [
        f"{part}/{name}.nii.gz" for part in ("imagesTr", "labelsTr") for name in ("good_0", "b")
    ]
    found = read_data_set(nnunet(tmp_path, *names))
    assert sorted(pairs(found)) == ["b", "good_0"]


def test_numbers_that_look_like_channels_but_belong_to_the_name(tmp_path: Path) -> None:
    names = ["imagesTr/P_0000.nii.gz", "imagesTr/P_0001.nii.gz"]
    names += ["labelsTr/P_0000.nii.gz", "labelsTr/P_0001.nii.gz"]
    assert sorted(pairs(read_data_set(nnunet(tmp_path, *names)))) == ["P_0000", "P_0001"]


def test_missing_partners_become_cases_that_the_check_refuses(tmp_path: Path) -> None:
    names = ["imagesTr/a_0000.nii.gz", "labelsTr/b.nii.gz"]
    found = read_data_set(nnunet(tmp_path, *names))
    assert pairs(found) == {
        "a_0000": ("imagesTr/a_0000.nii.gz", "labelsTr/a_0000.nii.gz"),
        "b": ("imagesTr/b.nii.gz", "labelsTr/b.nii.gz"),
    }


def test_explicit_list_of_newer_nnunet(tmp_path: Path) -> None:
    listed = {"x": {"images": ["raw/x.nrrd"], "label": "seg/x.nrrd"}}
    found = read_data_set(nnunet(tmp_path, dataset=listed))
    assert pairs(found) == {"x": ("raw/x.nrrd", "seg/x.nrrd")}
    with pytest.raises(DataError, match="case 'x': must give images"):
        read_data_set(nnunet(tmp_path, dataset={"x": 3}))
    with pytest.raises(DataError, match=r"case 'x': .*lies outside the folder"):
        read_data_set(nnunet(tmp_path, dataset={"x": {"images": ["/raw/x.nrrd"]}}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"labels": {"background": 0, "whole": [1, 2]}}, "regions_class_order None"),
        ({"channel_names": {"0": "CT", "1": "PET"}}, "several channels"),
        ({"labels": None}, "labels must be names"),
    ],
)
def test_what_nnunet_has_and_we_do_not_is_refused(
    values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        read_data_set(nnunet(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", **values))


def test_second_channel_on_disk_is_refused(tmp_path: Path) -> None:
    names = ["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz"]
    with pytest.raises(DataError, match="case 'a': has several channels"):
        read_data_set(nnunet(tmp_path, *names))


def test_splits_are_honoured_unless_folds_are_asked_for(tmp_path: Path) -> None:
    names = [f"{part}/{name}.nii.gz" for part in ("imagesTr", "labelsTr") for name in "abcd"]
    nnunet(tmp_path, *names)
    parts = ("ad", "b", "c")
    splits = [{"train": sorted(set("abcd") - set(part)), "val": list(part)} for part in parts]
    (tmp_path / "splits_final.json").write_text(json.dumps(splits))
    assert [case.fold for case in assign_folds(list_cases(tmp_path), tmp_path).training] == [
        0,
        1,
        2,
        0,
    ]
    assert {case.fold for case in assign_folds(list_cases(tmp_path), tmp_path, 4).training} == {
        0,
        1,
        2,
        3,
    }
    good = list_cases(tmp_path).changed(lambda case: None if case.id == "a" else case)
    assert [case.fold for case in assign_folds(good, tmp_path).training] == [1, 2, 0]


# --- folders ---------------------------------------------------------------------------------


def save_label(path: Path, *values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros((3, 3, 3), np.uint8)
    array.flat[: len(values)] = values
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)


@pytest.mark.parametrize(
    ("images", "labels"), [("images", "labels"), ("imagesTr", "labelsTr"), ("CT", "Segmentations")]
)
def test_folders_of_images_and_labels(images: str, labels: str, tmp_path: Path) -> None:
    touch(tmp_path, f"{images}/a.nii.gz", f"{images}/b.mha", f"{images}/._a.nii.gz")
    save_label(tmp_path / labels / "a.nii.gz", 1)
    save_label(tmp_path / labels / "b_seg.nii", 3)
    found = read_data_set(tmp_path)
    assert pairs(found) == {
        "a": (f"{images}/a.nii.gz", f"{labels}/a.nii.gz"),
        "b": (f"{images}/b.mha", f"{labels}/b_seg.nii"),
    }
    assert found.labels == {0: "background", 1: "label 1", 3: "label 3"}
    assert found.name == tmp_path.name


def test_names_can_be_given(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.nii.gz", "labels/a.nii.gz")
    found = list_cases(tmp_path, names=["1=pancreas", "2 = tumour"])
    assert found.labels == {0: "background", 1: "pancreas", 2: "tumour"}
    for wrong in (["pancreas"], ["1="], ["=a"], ["1=a", "1=b"], ["x=a"]):
        with pytest.raises(UserError, match="label"):
            list_cases(tmp_path, names=wrong)


def test_labels_that_cannot_be_read_leave_the_others_named(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.nii.gz", "images/b.nii.gz", "labels/a.nii.gz")
    save_label(tmp_path / "labels" / "b.nii.gz", 2)
    assert read_data_set(tmp_path).labels == {0: "background", 2: "label 2"}
    save_label(tmp_path / "labels" / "b.nii.gz", 0)
    with pytest.raises(DataError, match="--label 1=NAME"):
        read_data_set(tmp_path)


def test_dicom_series_are_folders(tmp_path: Path) -> None:
    touch(tmp_path, "images/patient_1/1.dcm", "images/patient_2/1.dcm")
    for number in (1, 2):
        save_label(tmp_path / "labels" / f"patient_{number}.nii.gz", 1)
    assert pairs(read_data_set(tmp_path))["patient_2"][0] == "images/patient_2"


def test_layout_of_the_papers_authors(tmp_path: Path) -> None:
    for part, name in (("train", "a"), ("validation", "b"), ("test", "c")):
        touch(tmp_path, f"{part}/image/{name}.nii.gz")
        save_label(tmp_path / part / "label" / f"{name}.nii.gz", 1)
    found = assign_folds(list_cases(tmp_path), tmp_path)
    assert [list(pairs(found, part)) for part in ("training", "validation", "test")] == [
        ["a"],
        ["b"],
        ["c"],
    ]
    assert found.training[0].fold is None
    assert [case.id for case in found.fold()[1]] == ["b"]


@pytest.mark.parametrize("names", [[], ["images/a.nii.gz"], ["labels/a.nii.gz"], ["a.nii.gz"]])
def test_unknown_layouts_are_refused(names: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"contains neither dataset\.json"):
        read_data_set(touch(tmp_path, *names))


def test_other_refusals(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be the folder"):
        read_data_set(tmp_path / "none")
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    with pytest.raises(DataError, match="labels"):
        read_data_set(tmp_path)
    with pytest.raises(DataError, match="lists no case"):
        read_data_set(tmp_path, {"1": "a"})
    touch(tmp_path, "images/a.nii", "images/a.nii.gz", "labels/a.nii")
    with pytest.raises(DataError, match=r"a.nii and a.nii.gz are the same case"):
        read_data_set(tmp_path, {"1": "a"})


def test_links_of_a_folder_that_the_user_names_are_followed(tmp_path: Path) -> None:
    """As DataLad and git-annex lay a data set; its manifest is read with --root alone."""
    touch(tmp_path, "annex/x1.nii.gz", "annex/labels/a.nii.gz")
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    (data / "images" / "a.nii.gz").symlink_to(tmp_path / "annex" / "x1.nii.gz")
    (data / "labels").symlink_to(tmp_path / "annex" / "labels")
    found = read_data_set(data, {"1": "a"})
    assert found.training[0].image == data.resolve() / "images" / "a.nii.gz"
    assert found.training[0].label == data.resolve() / "labels" / "a.nii.gz"
    found.save(tmp_path / "m.json")
    with pytest.raises(DataError, match="leads out of the root") as caught:
        Manifest.load(tmp_path / "m.json")
    assert caught.value.cure == f"if the folder is your own, follow its links with --root {data}"
    assert Manifest.load(tmp_path / "m.json", root=data) == replace(found, name="data")
    # Two links to one scan are one scan.
    (data / "images" / "b.nii.gz").symlink_to(tmp_path / "annex" / "x1.nii.gz")
    touch(tmp_path, "annex/labels/b.nii.gz")
    with pytest.raises(DataError, match="are the same scan"):
        read_data_set(data, {"1": "a"})


def test_absolute_paths_within_the_folder_are_read_and_others_refused_with_the_cure(
    tmp_path: Path,
) -> None:
    """As some tools write the Decathlon's dataset.json."""
    data, other = tmp_path / "data", tmp_path / "other"
    touch(tmp_path, "data/i/a.nii.gz", "data/l/a.nii.gz", "other/a.nii.gz")
    entry = {"image": str(data / "i" / "a.nii.gz"), "label": "../data/l/a.nii.gz"}
    listed = {"labels": {"1": "liver"}, "training": [entry]}
    (data / "dataset.json").write_text(json.dumps(listed))
    found = read_data_set(data)
    assert found.training[0].image == (data / "i" / "a.nii.gz").resolve()
    assert found.training[0].label == (data / "l" / "a.nii.gz").resolve()
    entry["label"] = str(other / "a.nii.gz")
    (data / "dataset.json").write_text(json.dumps(listed))
    with pytest.raises(DataError, match=r"lies outside the folder .* --root"):
        read_data_set(data)
    found = read_data_set(data, root=tmp_path)
    assert found.root == tmp_path.resolve()
    found.save(tmp_path / "m.json")
    assert json.loads((tmp_path / "m.json").read_text())["training"][0] == {
        "id": "a",
        "image": "data/i/a.nii.gz",
        "label": "other/a.nii.gz",
    }


@pytest.mark.parametrize(
    ("channel", "refused"),
    [
        ("CT", False),
        ("contrast-enhanced CT", False),
        ("CT (from PET/CT)", False),
        ("zscore", False),
        ("T2", True),
        ("MRI", True),
        ("MR-FLAIR", True),
        ("PET", True),
    ],
)
def test_other_modalities_than_ct_are_refused_by_name(
    tmp_path: Path, channel: str, refused: bool
) -> None:
    for values in (
        {"channel_names": {"0": channel}, "labels": {"background": 0, "a": 1}},
        {"modality": {"0": channel}, "labels": {"1": "a"}, "training": ["imagesTr/a.nii.gz"]},
    ):
        touch(tmp_path, "imagesTr/a.nii.gz", "labelsTr/a.nii.gz")
        (tmp_path / "dataset.json").write_text(json.dumps(values))
        if refused:
            with pytest.raises(DataError, match="only CT is supported"):
                read_data_set(tmp_path)
        else:
            assert read_data_set(tmp_path).modality == channel


def test_a_label_name_that_is_given_replaces_that_name_only(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a.nii.gz", "labelsTr/a.nii.gz")
    values = {"file_ending": ".nii.gz", "labels": {"background": 0, "liver": 1, "tumour": 2}}
    (tmp_path / "dataset.json").write_text(json.dumps(values))
    found = list_cases(tmp_path, names=["1=Leber"])
    assert found.labels == {0: "background", 1: "Leber", 2: "tumour"}
    with pytest.raises(DataError, match="is the name of two values"):
        list_cases(tmp_path, names=["1=tumour"])


# --- patients --------------------------------------------------------------------------------


def test_patients_are_found_in_the_ids(tmp_path: Path) -> None:
    names = [f"p{n}_{phase}" for n in range(4) for phase in ("early", "late")]
    touch(tmp_path, *[f"{part}/{name}.nii.gz" for part in ("images", "labels") for name in names])
    found = list_cases(tmp_path, names=["1=liver"], group="^(p[0-9])_")
    assert [case.group for case in found.training[:3]] == ["p0", "p0", "p1"]
    assigned = assign_folds(found, tmp_path, folds=2)
    assert str(assigned) == "8 training cases in 2 folds (4+4)"
    assert list_cases(tmp_path, names=["1=liver"], group="p[0-9]").training[0].group == "p0"
    with pytest.raises(DataError, match="5 folds"):
        assign_folds(found, tmp_path, folds=5)
    with pytest.raises(DataError, match="not a regular expression"):
        grouped(found, "(")
    with pytest.raises(DataError, match="does not match case 'p0_early'"):
        grouped(found, "x")
