"""Manifests: what the file says is what the cases are, and what it must not say is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attunet3d.core import DataError, LabelMap
from attunet3d.core.errors import UserError
from attunet3d.datasets.case import Case
from attunet3d.datasets.case_files import read_case_label, read_image
from attunet3d.datasets.manifest import Manifest

LABELS = {"0": "background", "1": "pancreas"}


def entry(name: str, **facts: Any) -> dict[str, Any]:
    return {"id": name, "image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz", **facts}


def content(**values: Any) -> dict[str, Any]:
    return {"name": "test", "labels": LABELS, "training": [entry("a"), entry("b")], **values}


def load(
    tmp_path: Path, values: dict[str, Any] | str | None = None, root: Path | None = None
) -> Manifest:
    path = tmp_path / "m.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values or content()))
    return Manifest.load(path, root)


def ids(cases: tuple[Case, ...]) -> list[str]:
    return [case.id for case in cases]


# --- reading and writing ---------------------------------------------------------------------


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    checks = {"image": "0" * 64}
    training = [
        entry("a", fold=0, group="p1", label_flip="j", sha256=checks),
        entry("b", fold=1, group="p2", label_flip=""),
    ]
    facts = {"modality": "CT", "licence": "CC0", "source": "here"}
    lists = {
        "training": training,
        "validation": [entry("v")],
        "test": [{"id": "t", "image": "t.nii"}],
    }
    first = load(tmp_path, content(**facts, **lists))
    case = first.training[0]
    assert (case.fold, case.group, case.label_flip, case.sha256) == (0, "p1", "j", checks)
    assert case.image == (tmp_path / "images" / "a.nii.gz").resolve()
    assert first.training[1].label_flip == ""
    assert first.test[0].label is None
    (tmp_path / "deep").mkdir()
    first.save(tmp_path / "deep" / "m.json")
    assert Manifest.load(tmp_path / "deep" / "m.json") == first


def test_saved_paths_are_relative_and_survive_a_move(tmp_path: Path) -> None:
    data = tmp_path / "one" / "data"
    data.mkdir(parents=True)
    load(data).save(tmp_path / "one" / "lists" / "m.json")
    text = (tmp_path / "one" / "lists" / "m.json").read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    assert json.loads(text)["root"] == "../data"
    (tmp_path / "one").rename(tmp_path / "two")
    moved = Manifest.load(tmp_path / "two" / "lists" / "m.json")
    assert moved.training[0].image == (tmp_path / "two/data/images/a.nii.gz").resolve()


def test_root_of_the_caller_wins(tmp_path: Path) -> None:
    values = content(root="elsewhere")
    assert load(tmp_path, values).root == (tmp_path / "elsewhere").resolve()
    assert load(tmp_path, values, root=tmp_path / "here").root == (tmp_path / "here").resolve()


def test_decathlon_description_is_a_manifest(tmp_path: Path) -> None:
    values = {
        "name": "Pancreas",
        "description": "…",
        "reference": "somewhere",
        "licence": "CC-BY-SA 4.0",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "pancreas", "2": "cancer"},
        "numTraining": 1,
        "training": [
            {"image": "./imagesTr/p_0000.nii.gz", "label": "./labelsTr/p_0000.nii.gz"},
            {"image": "./imagesTr/._p_0000.nii.gz", "label": "./labelsTr/._p_0000.nii.gz"},
        ],
        "test": ["./imagesTs/q_001.nii.gz", "./imagesTs/._q_001.nii.gz"],
    }
    found = load(tmp_path, values)
    assert ids(found.training) == ["p_0000"]
    assert ids(found.test) == ["q_001"]
    assert (found.modality, found.source) == ("CT", "somewhere")
    assert found.labels == {0: "background", 1: "pancreas", 2: "cancer"}


def test_monai_data_list_is_a_manifest(tmp_path: Path) -> None:
    training = [{"image": ["i/p_0000.nii"], "label": "l/p.nii", "fold": 2, "box": [1, 2]}]
    values = {"labels": {"liver": 1}, "training": training, "testing": [{"image": "i/q.nii"}]}
    found = load(tmp_path, values)
    assert (ids(found.training), ids(found.test), found.name) == (["p"], ["q"], "m")
    assert found.training[0].fold == 2
    assert found.labels == {0: "background", 1: "liver"}


def test_byte_order_mark_is_no_trouble(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(content()).encode())
    assert len(Manifest.load(tmp_path / "m.json").training) == 2


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": 3}, "training: must be a list"),
        ({"training": [7]}, "entry 0: must give id and image"),
        ({"training": [{"id": "a"}]}, "case 'a': has no image"),
        ({"training": [entry("a", image=["x.nii", "y.nii"])]}, "case 'a': .*several channels"),
        ({"training": [entry("a", image=7)]}, "case 'a': path '7'"),
        ({"training": [entry("a", image="../x.nii")]}, "case 'a': path '../x.nii': must be rel"),
        ({"training": [entry("a", label="/etc/passwd")]}, "case 'a': path '/etc/passwd'"),
        ({"training": [entry("a/b")]}, "case 'a/b': id 'a/b': must be a plain file name"),
        ({"training": [{"image": "CON.nii"}]}, "training, entry 0: id 'CON'"),
        ({"training": [entry("a"), entry("A")]}, "cases 'a' and 'A': have the same name"),
        ({"test": [entry("a")]}, "cases 'a' and 'a': have the same name"),
        ({"test": [entry("x", image="images/a.nii.gz")]}, "cases 'a' and 'x': are the same scan"),
        ({"training": [entry("a", fold=-1)]}, "case 'a': fold -1"),
        ({"training": [entry("a", fold=True)]}, "case 'a': fold True"),
        ({"training": [entry("a", fold=1.5)]}, "case 'a': fold 1.5"),
        ({"training": [entry("a", group=["p"])]}, "case 'a': group"),
        ({"training": [entry("a", label_flip="x")]}, "case 'a': label_flip 'x'"),
        ({"training": [entry("a", label_flip="ji")]}, "case 'a': label_flip 'ji'"),
        ({"training": [entry("a", sha256="abc")]}, "case 'a': sha256"),
        ({"labels": {}}, "labels must be names"),
        ({"labels": ["liver"]}, "labels must be names"),
        ({"labels": {"0": "background"}}, "one besides the background"),
        ({"labels": {"1": "a", "2": "a"}}, "labels: 'a' is the name of two values"),
        ({"labels": {"a": 1, "b": 1}}, "value 1 has two names"),
        ({"labels": {"256": "a"}}, "label 'a': value '256'"),
        ({"labels": {"a": -1}}, "label 'a': value '-1'"),
        ({"labels": {"a": 1.5}}, "label 'a': value '1.5'"),
        ({"labels": {"a": True}}, "label 'a': value 'True'"),
        ({"labels": {"\u0661": "a"}}, "label 'a': value"),
        ({"labels": {"background": 0, "whole": [1, 2]}}, "regions_class_order None: must be"),
        ({"labels": {"whole": [1, 2]}, "regions_class_order": [1, 2]}, "each of the 1 regions"),
        ({"labels": {"whole": []}, "regions_class_order": [1]}, "region 'whole': must have"),
        ({"labels": {"a": 1, "ignore": 1}}, "value 1 has two names"),
        ({"labels": {"2": "ignore"}}, "one besides the background"),
        ({"training": [entry("a", annotated="liver")]}, "case 'a': annotated 'liver'"),
        ({"training": [entry("a", annotated=[])]}, "case 'a': annotated"),
        ({"modality": {"0": "CT", "1": "PET"}}, "several channels are not supported"),
        ({"root": 7}, "root '7'"),
        ({"root": "a\nb"}, "root"),
        ({"channel_names": {"0": "CT"}}, "dataset.json of nnU-Net"),
    ],
)
def test_broken_rules_are_named_with_file_and_case(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message) as error:
        load(tmp_path, content(**change))
    assert str(error.value).startswith(str(tmp_path / "m.json"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as JSON"),
        ("[]", "must be an object"),
        ("{", "cannot be read as JSON"),
        ('{"labels": {"1": "a", "1": "b"}}', "duplicate key '1'"),
        ('{"fold": NaN}', "NaN is not a JSON number"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("9" * 5000, "cannot be read as JSON"),
    ],
)
def test_what_is_no_json_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path, text)


def test_missing_and_huge_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"none\.json: no such manifest; check the path, or make"):
        Manifest.load(tmp_path / "none.json")
    with pytest.raises(UserError, match="directory"):
        Manifest.load(tmp_path)
    (tmp_path / "m.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        Manifest.load(tmp_path / "m.json")


@pytest.mark.parametrize(
    ("name", "text"), [("c.yaml", "training:\n  steps: 9\n"), ("config.json", '{"training": {}}')]
)
def test_a_configuration_in_a_manifests_place_is_noticed(
    tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match="give MANIFEST first, then CONFIG") as caught:
        Manifest.load(tmp_path / name)
    assert caught.value.path is not None


def test_a_moved_manifest_asks_for_its_root(tmp_path: Path) -> None:
    entry = {"id": "a", "image": "images/a.nii.gz", "label": "labels/a.nii.gz"}
    (tmp_path / "m.json").write_text(json.dumps({"labels": {"1": "x"}, "training": [entry]}))
    found = Manifest.load(tmp_path / "m.json")  # its files need not be there to be looked at
    with pytest.raises(
        DataError, match=r"none of its 1 scans exists, such as .*a.nii.gz"
    ) as caught:
        found.require_files()
    assert "with --root" in str(caught.value.cure)
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "images" / "a.nii.gz").touch()
    assert Manifest.load(tmp_path / "m.json", tmp_path / "data").require_files().training


def test_links_out_of_the_root_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images").symlink_to(tmp_path)
    with pytest.raises(DataError, match=r"case 'a': .*leads out of the root"):
        load(tmp_path / "data")


@given(st.binary(max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_a_manifest_or_a_clear_word(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.json").write_bytes(data)
    with pytest.raises(UserError):
        Manifest.load(tmp_path / "m.json")


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
)
KEYS = st.sampled_from(["id", "image", "label", "fold", "group", "label_flip", "sha256", "0", "1"])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5)
)


@given(
    st.fixed_dictionaries(
        {"labels": st.just(LABELS) | VALUES, "training": st.lists(VALUES, max_size=3) | VALUES},
        optional={"test": VALUES, "root": VALUES, "modality": VALUES, "name": VALUES},
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_any_values_are_a_manifest_or_a_clear_word(tmp_path: Path, values: dict[str, Any]) -> None:
    (tmp_path / "m.json").write_text(json.dumps(values))
    try:
        found = Manifest.load(tmp_path / "m.json")
    except UserError:
        return
    assert all(case.image.is_relative_to(found.root) for case in found.training)
    found.save(tmp_path / "again.json")
    assert Manifest.load(tmp_path / "again.json") == found


# --- folds -----------------------------------------------------------------------------------


def listed(tmp_path: Path, training: list[dict[str, Any]], **rest: Any) -> Manifest:
    return load(tmp_path, content(training=training, **rest))


def test_folds_of_the_file(tmp_path: Path) -> None:
    cases = [entry(name, fold=fold) for name, fold in (("a", 1), ("b", 2), ("c", 1), ("d", 2))]
    found = listed(tmp_path, cases)
    training, validation = found.fold(2)
    assert (ids(training), ids(validation)) == (["a", "c"], ["b", "d"])
    assert found.fold() == found.fold(1)
    with pytest.raises(DataError, match=r"--fold 0: .* has folds 1, 2"):
        found.fold(0)


def test_cases_in_no_fold_always_train(tmp_path: Path) -> None:
    cases = [entry("a", fold=0), entry("b", fold=1), entry("c")]
    assert ids(listed(tmp_path, cases).fold(0)[0]) == ["b", "c"]


def test_validation_list_is_used(tmp_path: Path) -> None:
    training, validation = listed(tmp_path, [entry("a")], validation=[entry("v")]).fold()
    assert (ids(training), ids(validation)) == (["a"], ["v"])


def test_without_folds_one_patient_in_five_is_held_out(tmp_path: Path) -> None:
    cases = [entry(f"{n}{x}", group=str(n)) for n in range(10) for x in "xy"]
    found = listed(tmp_path, cases)
    training, validation = found.fold()
    assert len(validation) == 4
    assert not {case.group for case in training} & {case.group for case in validation}
    assert sorted(ids((*training, *validation))) == sorted(ids(found.training))
    assert found.fold() == (training, validation)
    with pytest.raises(DataError, match="has no folds"):
        found.fold(0)


def test_one_patient_trains_without_validation(tmp_path: Path) -> None:
    found = listed(tmp_path, [entry("a", group="p"), entry("b", group="p")])
    assert found.fold() == (found.training, ())
    assert found.with_new_folds().fold() == (found.training, ())


def test_nothing_to_train_on_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no case to train on"):
        listed(tmp_path, []).fold()
    with pytest.raises(DataError, match="no case to train on"):
        listed(tmp_path, [entry("a", fold=0)]).fold(0)


def test_template_must_be_completed_first(tmp_path: Path) -> None:
    found = listed(tmp_path, [entry("a", image="*/a.nii")], template=True)
    with pytest.raises(DataError, match="is a template; complete it"):
        found.fold()


@pytest.mark.parametrize(
    ("training", "rest"),
    [
        ([entry("a", group="p", fold=0), entry("b", group="p", fold=1)], {}),
        ([entry("a", group="p", fold=0), entry("b", group="p")], {}),
        ([entry("a", group="p")], {"validation": [entry("b", group="p")]}),
        ([entry("a", group="p")], {"test": [entry("b", group="p")]}),
        ([entry("a", group=7, fold=0), entry("b", group="7", fold=1)], {}),
    ],
)
def test_a_patient_is_never_in_two_places(
    training: list[dict[str, Any]], rest: dict[str, list[dict[str, str]]], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"'b': .* case 'a' of the same patient"):
        listed(tmp_path, training, **rest)


def test_assigned_folds_keep_patients_whole(tmp_path: Path) -> None:
    cases = [entry(f"{n}{x}", group=f"p{n}") for n in range(7) for x in "xy"]
    found = listed(tmp_path, cases)
    assigned = found.with_new_folds(seed=5)
    assert assigned == found.with_new_folds(seed=5)
    assert str(assigned) == "14 training cases in 5 folds (4+4+2+2+2)"
    assert str(found) == "14 training cases"
    validating = [case.id for fold in range(5) for case in assigned.fold(fold)[1]]
    assert sorted(validating) == sorted(ids(found.training))
    assert {case.fold for case in found.with_new_folds(3).training} == {0, 1, 2}


def test_changed_leaves_out_and_alters(tmp_path: Path) -> None:
    found = load(tmp_path, content(test=[entry("t")]))
    less = found.changed(
        lambda case: None if case.id == "a" else replace(case, group="x" + case.id)
    )
    assert ids(less.training) == ["b"]
    assert less.test[0].group == "xt"


# --- reading the files -----------------------------------------------------------------------


@pytest.fixture
def scan(tmp_path: Path) -> tuple[Case, LabelMap]:
    """A scan in LPS and a label whose header is another's."""
    rng = np.random.default_rng(0)
    scan = rng.integers(-100, 100, (5, 6, 7)).astype(np.int16)
    label = rng.integers(0, 2, (5, 6, 7)).astype(np.uint8)
    nib.save(nib.Nifti1Image(scan, np.diag([-1.0, -1, 2, 1])), tmp_path / "scan.nii")
    nib.save(nib.Nifti1Image(label, np.diag([-1.0, 1, 2, 1])), tmp_path / "label.nii")
    return Case(id="a", image=tmp_path / "scan.nii", label=tmp_path / "label.nii"), label


def test_label_is_read_as_it_is_without_a_flip(scan: tuple[Case, LabelMap]) -> None:
    case, label = scan
    read = read_case_label(case, read_image(case), {1: "pancreas"})
    assert (read.array == label).all()
    assert read.grid.axis_codes == "LAS"


@pytest.mark.parametrize(("flip", "axes"), [("", ()), ("j", (1,)), ("ik", (0, 2))])
def test_flip_turns_voxels_and_takes_the_scans_grid(
    scan: tuple[Case, LabelMap], flip: str, axes: tuple[int, ...]
) -> None:
    case, label = scan
    image = read_image(case)
    assert case.label is not None
    before = case.label.read_bytes()
    read = read_case_label(replace(case, label_flip=flip), image, {1: "pancreas"})
    assert (read.array == np.flip(label, axes)).all()
    assert read.array.flags.f_contiguous
    assert read.grid.matches(image.grid)
    assert case.label.read_bytes() == before


def test_flip_of_another_shape_and_no_label_are_refused(
    scan: tuple[Case, LabelMap], tmp_path: Path
) -> None:
    case, label = scan
    nib.save(nib.Nifti1Image(label[:4], np.eye(4)), tmp_path / "label.nii")
    with pytest.raises(DataError, match=r"case a: label.nii has shape \(4, 6, 7\)"):
        read_case_label(replace(case, label_flip="i"), read_image(case), {1: "pancreas"})
    with pytest.raises(DataError, match="case a: has no label"):
        read_case_label(replace(case, label=None), read_image(case), {1: "pancreas"})


def test_scan_with_nan_is_refused_for_training(tmp_path: Path) -> None:
    scan = np.zeros((3, 3, 3), np.float32)
    scan[1, 1, 1] = np.nan
    nib.save(nib.Nifti1Image(scan, np.eye(4)), tmp_path / "nan.nii")
    with pytest.raises(UserError, match="NaN"):
        read_image(Case(id="a", image=Path(tmp_path / "nan.nii")))
