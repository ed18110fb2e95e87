"""The accuracy benchmark trains like on like, resumes in pieces, and compares case by case."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attunet3d.core import DataError, SettingsError, UserError, command_line
from attunet3d.phantoms import LABELS, write_phantoms
from benchmarks.accuracy import __main__ as command
from benchmarks.accuracy import piece as pieces_module
from benchmarks.accuracy import report
from benchmarks.accuracy.material import MATERIALS, Material, prepare, write_split
from benchmarks.accuracy.outlined_material import CONTRAST, write_patients
from benchmarks.accuracy.piece import Budget, run_piece
from benchmarks.accuracy.recipes import FILE, Recipe, find_recipe

TINY = {
    "network.channels": [2, 4],
    "network.strides": [[2, 2, 2]],
    "preprocessing.spacing_mm": [12, 12, 12],
    "training.patch_size": [16, 16, 16],
    "training.validate_every": 2,
    "inference.mode": "window",
}


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    folder = tmp_path_factory.mktemp("material")
    write_phantoms(folder, 3, 0, matrix=32)
    write_split(folder, 0, LABELS, (["phantom_0000"], ["phantom_0001"], ["phantom_0002"]))
    return Material("tiny", folder, LABELS)


def made(
    recipe: str, seed: int, dice: list[float], organ: str = "pancreas", seconds: float = 60.0
) -> dict[str, Any]:
    """A piece of known scores."""
    other = dict.fromkeys(report.COLUMNS, 0.0)
    cases = {
        f"case_{number}": {organ: {**other, "dice": value, "present": True}}
        for number, value in enumerate(dice)
    }
    return {
        "recipe": {"name": recipe},
        "commit": "abc",
        "seed": seed,
        "steps": 10,
        "seconds": {"train": {"processor": seconds, "clock": seconds}},
        "curve": [{"step": 10, "dice": float(np.mean(dice))}],
        "cases": cases,
    }


def test_every_recipe_can_be_trained_and_differs_from_its_base_where_it_says() -> None:
    import yaml

    for name, entry in yaml.safe_load(FILE.read_text(encoding="utf-8")).items():
        recipe = find_recipe(name)
        assert recipe.system in ("attunet3d", *pieces_module.PEERS)
        assert bool(recipe.preset) == (recipe.system == "attunet3d")
        assert bool(recipe.network) == (recipe.system == "monai")
        assert entry.get("set", {}).items() <= dict(recipe.settings).items()
        if recipe.system == "attunet3d":
            from attunet3d.core import find_config

            sets = [f"{key}={json.dumps(value)}" for key, value in recipe.settings.items()]
            find_config(recipe.preset).with_overrides(sets)


def test_a_recipe_takes_over_what_its_base_says() -> None:
    base, changed = find_recipe("small"), find_recipe("instance")
    assert changed.settings == {**base.settings, "network.norm": "instance"}
    assert changed.preset == base.preset
    with pytest.raises(SettingsError, match="no recipe 'best'; choose of small"):
        find_recipe("best")


def test_a_piece_is_trained_scored_and_not_made_twice(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(name="tiny", system="attunet3d", preset="demo_cpu", settings=TINY)
    file = run_piece(recipe, material, 0, 3, Budget(steps=2), tmp_path)
    piece = json.loads(file.read_text(encoding="utf-8"))
    assert piece["recipe"]["settings"]["training.patch_size"] == [16, 16, 16]
    assert (piece["steps"], piece["seed"]) == (2, 3)
    assert piece["commit"]
    assert piece["machine"]["versions"]["torch"]
    assert piece["seconds"]["train"]["processor"] > 0
    assert [point["step"] for point in piece["curve"]] == [2]
    (reliability,) = tmp_path.glob("trained/*/run/calibration.json")
    assert piece["calibration"] == json.loads(reliability.read_text(encoding="utf-8"))
    scores = piece["cases"]["phantom_0002"]["pancreas"]
    assert set(scores) == {*report.COLUMNS, "present"} - {"volume"}
    assert scores["present"]
    assert 0 <= scores["dice"] <= 1

    monkeypatch.setattr(pieces_module, "_spent", lambda command: pytest.fail("trained again"))
    assert run_piece(recipe, material, 0, 3, Budget(steps=2), tmp_path) == file
    other = Recipe(name="tiny", system="attunet3d", preset="demo_cpu", settings={})
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        run_piece(other, material, 0, 3, Budget(steps=2), tmp_path)


def test_recipes_that_differ_in_the_answer_share_one_training(
    material: Material, tmp_path: Path
) -> None:
    def made_with(**settings: Any) -> Any:
        recipe = Recipe(
            name=next(iter(settings), "plain"),
            system="attunet3d",
            preset="demo_cpu",
            settings=TINY | {f"inference.{name}": value for name, value in settings.items()},
        )
        file = run_piece(recipe, material, 0, 3, Budget(steps=2), tmp_path)
        return json.loads(file.read_text(encoding="utf-8"))

    plain, mirrored = made_with(), made_with(mirror=True)
    assert len(list((tmp_path / "trained").iterdir())) == 1
    assert mirrored["seconds"]["train"] == plain["seconds"]["train"]
    for name in ("plain", "mirror"):
        sidecar = tmp_path / f"runs/tiny_0-{name}-2steps-3/predictions/phantom_0002.json"
        assert f'"mirror": {json.dumps(name == "mirror")}' in sidecar.read_text(encoding="utf-8")
    made_with(overlap=0.25)  # which validation uses too
    assert len(list((tmp_path / "trained").iterdir())) == 2


def test_the_cost_of_a_step_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, more = pieces_module.CALIBRATION_STEPS
    costs = iter([99.0, 10.0, 10.0 + 0.5 * (more - few)])  # the first call fills the cache
    monkeypatch.setattr(pieces_module, "_spent", lambda command: {"processor": next(costs)})
    arguments = find_recipe("small"), tmp_path / "split_0.json", tmp_path / "cost"
    assert pieces_module._step_cost(*arguments) == 0.5
    assert pieces_module._step_cost(*arguments) == 0.5  # another measurement would have no cost


def test_differences_are_paired_by_case() -> None:
    pieces = [
        made("a", 0, [0.1, 0.5, 0.9]),
        made("a", 1, [0.3, 0.7, 0.7]),
        made("b", 0, [0.2, 0.6, 1.0]),
        made("b", 1, [0.4, 0.8, 0.8]),
        made("b", 2, [0.0, 0.0, 0.0]),  # a seed that the other lacks is left out
    ]
    text = report.tables(pieces, "a")
    assert "### pancreas" in text
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line[:2] == "| "}
    assert "| 0.533 ± 0.047 |" in rows["a"]  # means of the seeds 0.5 and 0.567
    assert "| +0.100 (+0.000 … +0.200), 0.250, 3 of 3 |" in rows["b"]


def test_the_interval_of_a_difference_knows_the_seeds() -> None:
    pieces = [made("a", seed, [0.5] * 4) for seed in (0, 1)]
    pieces += [made("b", 0, [0.4] * 4), made("b", 1, [0.8] * 4)]
    assert "| +0.100 (−0.100 … +0.300), " in report.tables(pieces, "a")


def test_volume_and_distance_are_of_cases_that_have_them() -> None:
    piece = made("a", 0, [0.8, 0.0])
    piece["cases"]["case_0"]["pancreas"].update(recall=1.0, hd95_mm=4.0)  # P = 1.5 T
    piece["cases"]["case_1"]["pancreas"].update(hd95_mm=float("nan"))  # nothing was found
    row = report.tables([piece], "a").splitlines()[-1]
    assert "| 4.0 (1 of 2) |" in row
    assert "| 1.500 (1 of 2) |" in row


def test_an_absent_organ_counts_for_false_positives_only() -> None:
    piece = made("a", 0, [0.5, 0.7])
    piece["cases"]["case_1"]["pancreas"].update(present=False, false_positive_ml=4.0)
    assert report.by_organ(piece)["pancreas"] == {"case_0": 0.5}
    assert report.by_organ(piece, "false_positive_ml")["pancreas"]["case_1"] == 4.0


def test_curves_are_drawn(tmp_path: Path) -> None:
    report.curves([made("a", 0, [0.4]), made("b", 0, [0.6])], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000


def test_each_patient_is_tested_by_a_model_of_the_four_others(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in CONTRAST:
        for suffix in ("", "_machine_labels"):
            (data / f"{name}{suffix}.nii.gz").write_bytes(b"")
    splits = write_patients(tmp_path / "patients", data)
    assert [test for _, _, (test,) in splits] == list(CONTRAST)
    material = Material("patients", tmp_path, {})
    for number, parts in enumerate(splits):
        write_split(tmp_path, number, {0: "background"}, parts)
        (tmp_path / f"split_{number}.demo_cpu.plan.json").write_text("{}")
    tested = [json.loads(file.read_text())["test"][0]["id"] for file in material.manifests]
    assert tested == list(CONTRAST)
    for training, validation, test in splits:
        assert sorted([*training, *test]) == sorted(CONTRAST)
        assert not validation


def test_an_unknown_material_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no material 'soft'"):
        prepare("soft", tmp_path)
    with pytest.raises(SettingsError, match="add --data DIR"):
        prepare("anatomy", tmp_path / "x")
    assert "hard" in MATERIALS


@pytest.mark.parametrize("name", ["anatomy", "pancreas", "patients"])
def test_data_without_the_files_of_a_material_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none: must be a folder"):
        prepare(name, tmp_path / "x" / name, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds 0 label maps|lacks cptac_C3N-00249"):
        prepare(name, tmp_path / "x" / name, tmp_path / "empty")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["anatomy", "pancreas"])
def test_a_label_map_that_cannot_be_read_leaves_no_material(name: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number in range(3):
        (data / f"{number}.nii.gz").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"0\.nii\.gz"):
        prepare(name, tmp_path / "x" / name, data)
    assert not (tmp_path / "x" / name).exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["best"], "there is no recipe 'best'"),
        (["small", "--material", "anatomy"], "add --data DIR"),
        (["small", "--material", "patients", "--data", "/none"], "/none: must be a folder"),
        (["small", "--seeds", "0"], "--seeds 0: must be 1 or more"),
        (["small", "--steps", "-1"], "--steps -1: must be 1 or more"),
        (["small", "--steps", "0"], "--steps 0: must be 1 or more"),
        (["small", "--minutes", "-1"], "--minutes -1.0: must be finite, above 0"),
        (["small", "--minutes", "nan"], "--minutes nan: must be finite, above 0"),
    ],
)
def test_wrong_arguments_are_one_line_and_write_nothing(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.run(command.main, [*arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
