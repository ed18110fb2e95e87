"""The manifests that ship: what they promise, and that a download completes them."""

import json
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from attunet3d.core import DataError
from attunet3d.datasets.listing import assign_folds, list_cases
from attunet3d.datasets.manifest import Manifest
from attunet3d.datasets.manifest_template import complete
from attunet3d.phantoms.dataset import write_phantoms
from attunet3d.pipelines import manifest as command

SHIPPED = Path(__file__).parents[2] / "data_manifests"
NAMES = ["phantom", "msd_task07_pancreas", "nih_pancreas_ct"]


def path_of(name: str) -> Path:
    return SHIPPED / f"{name}.json"


def test_the_three_manifests_ship() -> None:
    assert sorted(path.stem for path in SHIPPED.iterdir()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_says_where_from_under_which_licence_and_what_to_do(name: str) -> None:
    values = json.loads(path_of(name).read_text(encoding="utf-8"))
    found = Manifest.load(path_of(name))
    assert found.licence
    assert found.source
    assert found.labels[1] == "pancreas"
    assert found.modality == "CT"
    commands = "\n".join(values["commands"])
    assert f"--template {name} " in commands
    assert "attunet3d train" in commands


@pytest.mark.parametrize("name", NAMES)
def test_none_claims_files_that_may_not_exist(name: str) -> None:
    found = Manifest.load(path_of(name))
    assert found.template
    with pytest.raises(DataError, match="complete it"):
        found.fold(0)


def test_nih_has_80_cases_in_four_folds() -> None:
    cases = Manifest.load(path_of("nih_pancreas_ct")).training
    numbers = sorted(int(case.id.removeprefix("pancreas_")) for case in cases)
    assert numbers == [number for number in range(1, 83) if number not in (25, 70)]
    assert Counter(case.fold for case in cases) == {0: 20, 1: 20, 2: 20, 3: 20}
    assert len({case.patient for case in cases}) == 80


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@pytest.fixture
def nih(tmp_path: Path) -> Path:
    """Empty files that lie as TCIA's download does, the withdrawn cases among them."""
    for number in range(1, 83):
        series = (
            tmp_path / f"manifest-1599/Pancreas-CT/PANCREAS_{number:04}/11-24-2015-x/Pancreas-1"
        )
        touch(series / "1-001.dcm")
        touch(series / "1-002.dcm")
        touch(series / "._1-001.dcm")
        touch(tmp_path / f"TCIA_pancreas_labels-02-05-2017/label{number:04}.nii.gz")
    return tmp_path


def test_nih_download_completes_the_template(nih: Path) -> None:
    found = list_cases(nih, path_of("nih_pancreas_ct"))
    case = found.training[0]
    assert not found.template
    assert case.image.is_dir()
    assert case.image.parent.parent.name == "PANCREAS_0001"
    assert case.label is not None
    assert case.label.name == "label0001.nii.gz"
    assert assign_folds(found, nih) == found  # the template's folds stay
    assert {case.fold for case in assign_folds(found, nih, folds=5).training} == {0, 1, 2, 3, 4}
    assert len(found.fold(3)[0]) == 60


def test_labels_at_the_top_of_the_download_are_found(nih: Path) -> None:
    folder = nih / "TCIA_pancreas_labels-02-05-2017"
    for path in folder.iterdir():
        path.rename(nih / path.name)
    found = complete(path_of("nih_pancreas_ct"), nih).training[0]
    assert found.label is not None
    assert found.label.parent == nih.resolve()


def test_what_the_download_lacks_or_has_twice_is_named(nih: Path) -> None:
    (nih / "TCIA_pancreas_labels-02-05-2017" / "label0007.nii.gz").unlink()
    touch(nih / "again" / "PANCREAS_0003" / "1.dcm")
    with pytest.raises(DataError) as error:
        complete(path_of("nih_pancreas_ct"), nih)
    assert "2 match */PANCREAS_0003/*.dcm, 0 match */label0007.nii.gz" in str(error.value)
    for path in (nih / "TCIA_pancreas_labels-02-05-2017").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="and 76 more; download the missing files"):
        complete(path_of("nih_pancreas_ct"), nih)


def decathlon(folder: Path, training: int = 281, test: int = 139) -> Path:
    lists = {
        "training": [
            {"image": f"./imagesTr/p_{n}.nii.gz", "label": f"./labelsTr/p_{n}.nii.gz"}
            for n in range(training)
        ],
        "test": [f"./imagesTs/t_{n}.nii.gz" for n in range(test)],
    }
    labels = {"0": "background", "1": "pancreas", "2": "cancer"}
    (folder / "dataset.json").write_text(json.dumps({"name": "P", "labels": labels, **lists}))
    return folder


def test_decathlon_download_completes_the_template(tmp_path: Path) -> None:
    found = assign_folds(list_cases(decathlon(tmp_path), path_of("msd_task07_pancreas")), tmp_path)
    assert found.name == "MSD Task07 Pancreas"
    assert found.labels == {0: "background", 1: "pancreas", 2: "cancer"}
    assert str(found) == "281 training cases in 5 folds (57+56+56+56+56), 139 test"


def test_incomplete_decathlon_download_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lists 280 training cases, .* expects 281"):
        complete(path_of("msd_task07_pancreas"), decathlon(tmp_path, training=280))


def test_what_is_no_template_or_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be the folder"):
        complete(path_of("nih_pancreas_ct"), tmp_path / "none")
    done = list_cases(decathlon(tmp_path), path_of("msd_task07_pancreas"))
    done.save(tmp_path / "m.json")
    with pytest.raises(DataError, match="is not a template"):
        complete(tmp_path / "m.json", tmp_path)


def test_phantoms_complete_their_template_and_pass_the_check(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "phantoms", 24, seed=1, matrix=24)
    out = tmp_path / "phantom.json"
    template = ["--template", str(path_of("phantom"))]
    assert command.main([str(tmp_path / "phantoms"), "--out", str(out), *template]) == 0
    found = Manifest.load(out)
    assert str(found) == "20 training cases in 5 folds (4+4+4+4+4), 4 test"
    assert len(found.fold(0)[1]) == 4
    assert list_cases(tmp_path / "phantoms").labels == found.labels


def test_patterns_of_a_users_own_template(tmp_path: Path) -> None:
    for name in ("p1", "p2"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for part in ("ct", "organ"):
            array = np.zeros((3, 3, 3), np.uint8)
            nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "data" / name / f"{part}.nii.gz")
    entries = [
        {"id": name, "image": f"*/{name}/ct.nii.gz", "label": f"*/{name}/organ.nii.gz"}
        for name in ("p1", "p2")
    ]
    values = {"template": True, "labels": {"1": "organ"}, "training": entries}
    (tmp_path / "t.json").write_text(json.dumps(values))
    found = complete(tmp_path / "t.json", tmp_path / "data")
    assert [case.image.parent.name for case in found.training] == ["p1", "p2"]
    assert found.training[1].label is not None
    assert found.training[1].label.name == "organ.nii.gz"
