"""The check of pairs and the command `manifest`: every bad case named, every good one kept."""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from attunet3d.core import Array, DataError, Floats, LabelMap, log
from attunet3d.core.errors import UserError
from attunet3d.datasets import label_fit
from attunet3d.datasets.case_files import read_case_label, read_image
from attunet3d.datasets.corrections import fix_flips, without_failures
from attunet3d.datasets.manifest import Manifest
from attunet3d.datasets.pair_check import Problem, check_pairs
from attunet3d.imaging import Volume
from attunet3d.pipelines import manifest as command

SHAPE = (20, 18, 14)
AFFINE = np.array([[2.0, 0, 0, -20], [0, 2, 0, -18], [0, 0, 3, 5], [0, 0, 0, 1]])
LABELS = {"background": 0, "organ": 1}


def organ(number: int = 0) -> tuple[Array, LabelMap]:
    """A lopsided organ in a body in air."""
    label = np.zeros(SHAPE, np.uint8)
    label[4:9, 4:8, 3:6] = 1
    label[4:6, 8:11, 3:4] = 1
    rng = np.random.default_rng(number)
    scan = np.full(SHAPE, -1000.0)
    scan[2:18, 2:16] = 20 + rng.normal(0, 8, (16, 14, SHAPE[2]))
    scan[label == 1] += 80
    return scan.astype(np.int16), label


def save(
    folder: Path,
    name: str,
    scan: Array | None = None,
    label: Array | None = None,
    affine: Floats = AFFINE,
) -> None:
    made = organ(len(name))
    for part, array, where in (
        ("imagesTr", made[0] if scan is None else scan, AFFINE),
        ("labelsTr", made[1] if label is None else label, affine),
    ):
        (folder / part).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, where), folder / part / f"{name}.nii.gz")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three good cases in nnU-Net's layout, without the channel suffix."""
    folder = tmp_path / "data"
    for name in ("good_0", "good_1", "good_2"):
        save(folder, name)
    facts = {"channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(facts))
    return folder


def run(folder: Path, tmp_path: Path, *options: Any) -> tuple[int, Manifest | None]:
    """Exit status, and the manifest where one was written."""
    out = tmp_path / "out" / "m.json"
    with log.messages():
        status = command.main([str(folder), "--out", str(out), *options])
    return status, Manifest.load(out) if out.exists() else None


def moved(millimetres: float) -> Floats:
    affine = AFFINE.copy()
    affine[0, 3] += millimetres
    return affine


def corrupt(folder: Path, which: str, name: str, change: Callable[..., Any]) -> None:
    path = folder / which / f"{name}.nii.gz"
    path.write_bytes(change(path.read_bytes()))


# --- what is said of each kind of case -------------------------------------------------------


def spoil(folder: Path, name: str) -> None:
    """Write a case of the kind that its name says."""
    scan, label = organ()
    other: dict[str, dict[str, Any]] = {
        "shape": {"label": label[:, :, :-1]},
        "shifted": {"affine": moved(5)},
        "rounding": {"affine": moved(1e-5)},
        "fraction": {"label": label * np.float32(0.5)},
        "unknown": {"label": label * np.uint8(7)},
        "negative": {"label": -label.astype(np.int16)},
        "high": {"label": label.astype(np.int16) * 300},
        "empty": {"label": label * np.uint8(0)},
        "float": {"label": label.astype(np.float32)},
        "nan": {"label": np.where(label, np.nan, 0).astype(np.float32)},
        "scan_nan": {"scan": np.where(label, np.nan, scan).astype(np.float32)},
        "air": {"scan": np.full(SHAPE, -1000, np.int16)},
        "scaled": {"scan": ((scan + 1000) / 1200).astype(np.float32)},
        "fourfold": {"scan": np.stack([scan, scan], -1)},
    }
    save(folder, name, **other.get(name, {}))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("shape", "has shape (20, 18, 13), its scan (20, 18, 14)"),
        ("shifted", "displaced by up to 5 mm from the scan"),
        ("fraction", "label value 0.5 is not whole"),
        ("unknown", "has unnamed value 7 (named: 0 background, 1 organ)"),
        ("negative", "label value -1 is negative"),
        ("high", "label value 300 is too high"),
        ("nan", "NaN"),
        ("scan_nan", "voxels are NaN"),
        ("air", "only 0% of the labelled voxels are tissue"),
        ("fourfold", "fourfold.nii.gz"),
    ],
)
def test_bad_cases_are_named_with_the_reason(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, message: str
) -> None:
    spoil(folder, kind)
    status, found = run(folder, tmp_path)
    lines = [line for line in capsys.readouterr().err.splitlines() if f"{kind}: error: " in line]
    assert status == 1
    assert found is not None
    assert [case.id for case in found.training] == ["good_0", "good_1", "good_2"]
    assert len(lines) == 1
    assert message in lines[0]


@pytest.mark.parametrize("kind", ["rounding", "float"])
def test_odd_cases_that_are_right_pass_without_a_word(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    spoil(folder, kind)
    status, found = run(folder, tmp_path)
    assert status == 0
    assert found is not None
    assert len(found.training) == 4
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("kind", "message"), [("empty", "nothing is labelled"), ("scaled", "HU")])
def test_warnings_keep_the_case(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, message: str
) -> None:
    spoil(folder, kind)
    options = ["--tissue-hu", "-1024", "3000"]
    status, found = run(folder, tmp_path, *options)
    assert status == 0
    assert found is not None
    assert len(found.training) == 4
    error = capsys.readouterr().err
    assert f"{kind}: warning: " in error
    assert message in error


def test_all_problems_are_said_at_once(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = ("shape", "shifted", "fraction", "unknown", "negative", "nan", "scan_nan", "air")
    for kind in kinds:
        spoil(folder, kind)
    (folder / "labelsTr" / "good_0.nii.gz").unlink()
    (folder / "imagesTr" / "good_1.nii.gz").unlink()
    corrupt(folder, "imagesTr", "good_2", lambda data: data[:-9])
    label = np.full(SHAPE, 9, np.uint8)  # two things wrong with one case
    save(folder, "twice", label=label, affine=moved(3))
    save(folder, "left")
    status, found = run(folder, tmp_path)
    lines = capsys.readouterr().err.splitlines()
    named = [line.split(":")[0] for line in lines if ": error: " in line]
    assert status == 1
    expected = [*kinds, "good_0", "good_1", "good_2", "twice", "twice"]
    assert sorted(named) == sorted(expected)
    failures = json.loads((tmp_path / "out" / "m.failures.json").read_text(encoding="utf-8"))
    assert set(failures) == set(expected)
    assert len(failures["twice"]) == 2
    assert found is not None
    assert [case.id for case in found.training] == ["left"]


def test_bad_cases_are_left_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(folder, "shape")
    status, found = run(folder, tmp_path, "--folds", "3")
    assert status == 1
    assert found is not None
    assert [case.id for case in found.training] == ["good_0", "good_1", "good_2"]
    assert sorted(str(case.fold) for case in found.training) == ["0", "1", "2"]
    assert "3 training cases in 3 folds (1+1+1)" in capsys.readouterr().out
    (folder / "imagesTr" / "shape.nii.gz").unlink()
    (folder / "labelsTr" / "shape.nii.gz").unlink()
    assert run(folder, tmp_path)[0] == 0
    assert not (tmp_path / "out" / "m.failures.json").exists()  # nor the older call's


def test_nothing_is_left(folder: Path, tmp_path: Path) -> None:
    for name in ("good_0", "good_1", "good_2"):
        (folder / "labelsTr" / f"{name}.nii.gz").unlink()
    with pytest.raises(DataError, match="no case is left"):
        run(folder, tmp_path)


def test_training_case_without_label_and_test_case_without(folder: Path) -> None:
    listed = {"name": "x", "labels": {"1": "organ"}}
    image = {"id": "a", "image": "imagesTr/good_0.nii.gz"}
    (folder / "m.json").write_text(json.dumps({**listed, "training": [image]}))
    problems = check_pairs(Manifest.load(folder / "m.json"))
    assert [str(problem) for problem in problems] == [
        "a: error: has no label; give it one or leave it out"
    ]
    (folder / "m.json").write_text(json.dumps({**listed, "test": [image]}))
    assert check_pairs(Manifest.load(folder / "m.json")) == []


def test_label_is_checked_though_the_scan_cannot_be_read(folder: Path) -> None:
    corrupt(folder, "imagesTr", "good_0", lambda data: b"no image")
    save_label = np.full(SHAPE, 9, np.uint8)
    path = folder / "labelsTr" / "good_0.nii.gz"
    nib.save(nib.Nifti1Image(save_label, AFFINE), path)
    (folder / "m.json").write_text(
        json.dumps(
            {
                "labels": {"1": "organ"},
                "training": [
                    {
                        "image": "imagesTr/good_0.nii.gz",
                        "label": "labelsTr/good_0.nii.gz",
                        "label_flip": "i",
                    }
                ],
            }
        )
    )
    texts = [problem.text for problem in check_pairs(Manifest.load(folder / "m.json"))]
    assert len(texts) == 2
    assert "imagesTr/good_0.nii.gz" in texts[0]
    assert "has unnamed value 9" in texts[1]


def test_checksums_are_checked(folder: Path) -> None:
    image = folder / "imagesTr" / "good_0.nii.gz"
    right = hashlib.sha256(image.read_bytes()).hexdigest()
    entry = {"image": "imagesTr/good_0.nii.gz", "label": "labelsTr/good_0.nii.gz"}
    for checksum, count in ((right, 0), (right.upper(), 0), ("0" * 64, 1)):
        values = {"labels": {"1": "o"}, "training": [{**entry, "sha256": {"image": checksum}}]}
        (folder / "m.json").write_text(json.dumps(values))
        problems = check_pairs(Manifest.load(folder / "m.json"))
        assert len(problems) == count
        assert all("SHA-256 begins with" in problem.text for problem in problems)


def test_what_breaks_the_check_of_one_case_is_said_of_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(image: Volume, label: Volume, tissue_hu: tuple[float, float]) -> None:
        raise RuntimeError("odd\nthing")

    monkeypatch.setattr(label_fit, "find_misfit", broken)
    problems = check_pairs(Manifest.load(write_list(folder)))
    assert [problem.case_id for problem in problems] == ["good_0", "good_1", "good_2"]
    assert problems[0].text == "cannot be checked (RuntimeError: odd thing)"


def write_list(folder: Path) -> Path:
    names = ("good_0", "good_1", "good_2")
    training = [
        {"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"} for name in names
    ]
    (folder / "m.json").write_text(json.dumps({"labels": {"1": "organ"}, "training": training}))
    return folder / "m.json"


# --- flips -----------------------------------------------------------------------------------


def flipped(axis: int) -> Floats:
    affine = AFFINE.copy()
    affine[:3, 3] += affine[:3, axis] * (SHAPE[axis] - 1)
    affine[:3, axis] *= -1
    return affine


@pytest.mark.parametrize(
    ("voxels", "affine", "flip"),
    [
        ((1,), AFFINE, "j"),  # mirrored, and the header does not say so
        ((1,), flipped(1), "j"),  # mirrored, and the header says so
        ((), flipped(1), ""),  # not mirrored, but the header says so
        ((0, 1), AFFINE, "ij"),
    ],
)
def test_flips_are_named_and_fixed_on_request_only(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    voxels: tuple[int, ...],
    affine: Floats,
    flip: str,
) -> None:
    label = organ()[1]
    save(folder, "bad", label=np.flip(label, voxels), affine=affine)
    stored = (folder / "labelsTr" / "bad.nii.gz").read_bytes()
    status, found = run(folder, tmp_path)
    error = capsys.readouterr().err
    assert status == 1
    assert found is not None
    assert "bad" not in [case.id for case in found.training]
    assert "bad: error: bad.nii.gz: " in error
    assert "voxel ax" in error
    assert "--fix-flips" in error

    status, found = run(folder, tmp_path, "--fix-flips")
    assert status == 0
    assert "bad: warning: bad.nii.gz: " in capsys.readouterr().err  # never silently
    assert found is not None
    case = next(case for case in found.training if case.id == "bad")
    assert case.label_flip == flip
    assert [case.label_flip for case in found.training if case.id != "bad"] == [None] * 3
    image = read_image(case)
    assert (read_case_label(case, image, found.labels).array == label).all()
    assert read_case_label(case, image, found.labels).grid.matches(image.grid)
    assert check_pairs(found) == []  # the fixed list passes its own check
    assert (folder / "labelsTr" / "bad.nii.gz").read_bytes() == stored


def test_a_wrong_flip_of_the_manifest_is_fixed_on_top_of_it(folder: Path, tmp_path: Path) -> None:
    """One that is read mirrored along j and k but lies as k alone says."""
    label = organ()[1]
    save(folder, "bad", label=np.flip(label, 2))
    entry = {"image": "imagesTr/bad.nii.gz", "label": "labelsTr/bad.nii.gz", "label_flip": "jk"}
    path = folder / "m.json"
    path.write_text(json.dumps({"labels": {"1": "organ"}, "training": [entry]}))
    found = Manifest.load(path)
    fixed, left = fix_flips(found, check_pairs(found))
    assert [case.label_flip for case in fixed.training] == ["k"]
    assert all(problem.warning for problem in left)
    case = fixed.training[0]
    assert (read_case_label(case, read_image(case), found.labels).array == label).all()


def test_what_else_is_wrong_with_a_flipped_case_stays_wrong(folder: Path, tmp_path: Path) -> None:
    save(folder, "bad", label=np.flip(organ()[1], 1) * np.uint8(7))
    status, found = run(folder, tmp_path, "--fix-flips")
    assert status == 1
    assert found is not None
    assert found.training[-1].id == "good_2"


def test_fix_and_leave_out_by_hand(folder: Path) -> None:
    found = Manifest.load(write_list(folder))
    problems = [
        Problem(case_id="good_0", text="mirrored", flip="k"),
        Problem(case_id="good_1", text="torn"),
        Problem(case_id="good_2", text="empty", warning=True),
    ]
    fixed, left = fix_flips(found, problems)
    assert [case.label_flip for case in fixed.training] == ["k", None, None]
    assert left[0] == replace(problems[0], text="mirrored: done", warning=True, flip=None)
    assert left[1:] == problems[1:]
    kept = without_failures(fixed, left)
    assert [case.id for case in kept.training] == ["good_0", "good_2"]


# --- what a person overrules -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("affine", "scan"),
    [(AFFINE, None), (moved(5), None), (flipped(1), None), (AFFINE, np.full(SHAPE, -900.0))],
)
def test_a_case_is_accepted_as_it_is(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    affine: Floats,
    scan: Floats | None,
) -> None:
    """A label that looks mirrored, lies elsewhere or in air stays voxel by voxel on its scan."""
    label = np.flip(organ()[1], 1)
    save(folder, "odd", scan=scan, label=label, affine=affine)
    assert run(folder, tmp_path)[0] == 1
    capsys.readouterr()
    status, found = run(folder, tmp_path, "--fix-flips", "--accept", "odd")
    assert status == 0
    assert "odd: warning: " in (said := capsys.readouterr().err)
    assert "accepted as it is" in said
    assert found is not None
    case = next(case for case in found.training if case.id == "odd")
    assert case.label_flip == ""
    image = read_image(case)
    assert (read_case_label(case, image, found.labels).array == label).all()
    assert read_case_label(case, image, found.labels).grid.matches(image.grid)
    assert [case.label_flip for case in found.training if case.id != "odd"] == [None] * 3


def test_accepting_needs_the_case_and_forgives_nothing_else(folder: Path, tmp_path: Path) -> None:
    spoil(folder, "shape")
    assert run(folder, tmp_path, "--accept", "shape")[0] == 1
    with pytest.raises(DataError, match="--accept x: no such case"):
        run(folder, tmp_path, "--accept", "x")


@pytest.mark.parametrize("hu", [500, 1500])
def test_contrast_filled_vessels_and_bones_are_kept_without_a_word(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], hu: int
) -> None:
    scan, label = organ()
    scan[label == 1] = hu
    save(folder, "bright", scan=scan, label=label)
    assert run(folder, tmp_path)[0] == 0
    assert capsys.readouterr().err == ""


# --- what is not there, or something else ----------------------------------------------------


def test_a_file_of_another_ending_beside_a_missing_one_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = {"image": "imagesTr/good_0.nii", "label": "labelsTr/good_0.nii.gz"}
    values = {"labels": {"1": "organ"}, "training": [entry]}
    (folder / "dataset.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match="no case is left"):
        run(folder, tmp_path)
    said = capsys.readouterr().err
    assert "good_0.nii: no such file; good_0.nii.gz exists: correct the name" in said


def test_a_link_whose_file_was_not_fetched_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "imagesTr" / "good_0.nii.gz").unlink()
    (folder / "imagesTr" / "good_0.nii.gz").symlink_to(tmp_path / "annex")
    assert run(folder, tmp_path)[0] == 1
    assert "is a link to a file that does not exist; fetch it (git annex" in capsys.readouterr().err


@pytest.mark.parametrize("positive", [False, True])
def test_swapped_scans_and_labels_are_suspected(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], positive: bool
) -> None:
    scan, label = organ()
    scan = np.clip(scan + 100, 0, 255) if positive else scan
    save(folder, "swapped", scan=label.astype(np.int16), label=scan)
    assert run(folder, tmp_path)[0] == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "swapped: error" in line]
    assert any("is this the scan, and the image the label map?" in line for line in lines)
    assert all(len(line) < 300 for line in lines)


def test_a_scan_that_is_no_ct_is_told_so_and_not_of_tissue(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(folder, "mr", scan=organ()[0] + 1000)
    assert run(folder, tmp_path)[0] == 1
    line = next(x for x in capsys.readouterr().err.splitlines() if "mr: error" in x)
    assert "only CT is supported: is it MR?" in line
    assert "tissue" not in line


def test_labels_without_names_take_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("imagesTr", "labelsTr"):
        (folder / part).rename(folder / part[:-2])
    (folder / "dataset.json").unlink()
    label = organ()[1]
    label[4:9, 4:8, 3:6][:, 1] = 2
    nib.save(nib.Nifti1Image(label, AFFINE), folder / "labels" / "good_0.nii.gz")
    assert run(folder, tmp_path)[0] == 0
    said = capsys.readouterr().err.splitlines()
    assert said == ["attunet3d: warning: no name for label 1, 2; give one with --label 1=NAME"]


def test_single_slices_and_small_cubes_are_warned_of(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan, label = organ()
    thin = scan[:, :, 4:5], label[:, :, 4:5]
    save(folder, "slice", scan=thin[0], label=thin[1])
    cube = scan[3:11, 3:11, 2:10], label[3:11, 3:11, 2:10]
    save(folder, "cube", scan=cube[0], label=cube[1])
    run(folder, tmp_path)
    said = capsys.readouterr().err
    assert "slice.nii.gz: has a single slice; a 3D network needs the slices around it" in said
    assert "cube.nii.gz: covers only 16 × 16 × 24 mm; that is not enough" in said


# --- the command -----------------------------------------------------------------------------


def test_folds_and_seed(folder: Path, tmp_path: Path) -> None:
    for number in range(7):
        save(folder, f"more_{number}")
    status, found = run(folder, tmp_path)
    assert status == 0
    assert str(found) == "10 training cases in 5 folds (2+2+2+2+2)"
    again = run(folder, tmp_path, "--folds", "5")[1]
    other = run(folder, tmp_path, "--seed", "1")[1]
    assert again == found != other
    with pytest.raises(UserError, match="11 folds"):
        run(folder, tmp_path, "--folds", "11")


def test_data_set_is_left_alone(folder: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    run(folder, tmp_path, "--fix-flips")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("span", [["300", "-200"], ["1"], ["1", "2", "3"], ["0", "0"]])
def test_wrong_range_of_tissue(folder: Path, tmp_path: Path, span: list[str]) -> None:
    with pytest.raises(DataError, match="--tissue-hu"):
        run(folder, tmp_path, "--tissue-hu", *span)


def test_output_that_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file"):
        command.main([str(folder), "--out", str(tmp_path / "file" / "m.json")])


def test_help_needs_no_torch() -> None:
    import subprocess

    code = (
        "import sys\nfrom attunet3d.pipelines import manifest\n"
        "try:\n    manifest.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'monai', 'SimpleITK') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True
    )
    assert "--fix-flips" in done.stdout
    assert done.stdout.endswith("[]\n")
