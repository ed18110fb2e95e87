"""Five folds of phantoms from one call: killed and resumed, scored unseen, used as one model."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from attunet3d import __main__ as command
from attunet3d.core import Members, command_line
from attunet3d.datasets import Split
from attunet3d.models import load_model
from attunet3d.packaging import bundle, package
from attunet3d.phantoms import write_phantoms

FOLDS = [f"fold{number}" for number in range(5)]
SETTINGS = ["network.channels=[4,8,8]", "network.strides=[[2,2,2],[2,2,2]]", "training.steps=8"]
SETTINGS += ["training.validate_every=4", "training.patch_size=[16,16,16]"]
SETTINGS += ["preprocessing.spacing_mm=[12,12,12]"]


def call(*arguments: object) -> int:
    """Exit status of `attunet3d ARGUMENTS`."""
    return command_line.run(command.dispatch, [str(argument) for argument in arguments])


def train(home: Path, run: Path, *more: object) -> tuple[object, ...]:
    """The arguments of a cross-validation."""
    sets = [part for setting in SETTINGS for part in ("--set", setting)]
    fold = ("--fold", "all", "--device", "cpu")
    return "train", home / "m.json", "demo_cpu", run, *fold, *sets, *more


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six phantoms, two of them of one patient, in five folds; and a cross-validation of them."""
    home = tmp_path_factory.mktemp("folds")
    write_phantoms(home / "data", 6, 1, matrix=32)
    assert call("manifest", home / "data", "--out", home / "m.json", "--folds", 5) == 0
    values = json.loads((home / "m.json").read_text(encoding="utf-8"))
    for case in values["training"][-2:]:
        case |= {"group": "twice", "fold": values["training"][-1]["fold"]}
    for number, case in enumerate(values["training"][:-2]):
        others = sorted(set(range(5)) - {values["training"][-1]["fold"]})
        case["fold"] = others[number]
    (home / "m.json").write_text(json.dumps(values), encoding="utf-8")
    assert call(*train(home, home / "run")) == 0
    return home


def test_every_case_is_predicted_by_the_model_that_has_not_seen_it(home: Path) -> None:
    run, held_out = home / "run", []
    values = json.loads((home / "m.json").read_text(encoding="utf-8"))
    fold_of = {case["id"]: f"fold{case['fold']}" for case in values["training"]}
    for path in (run / "cross_validation" / "predictions").glob("*.json"):
        sidecar = json.loads(path.read_text(encoding="utf-8"))
        fold = run / fold_of[path.stem]
        assert sidecar["model"] == load_model(fold).checksum
        assert sidecar["role_in_training"] == "validation"
        plan = json.loads((fold / "plan.json").read_text(encoding="utf-8"))
        assert path.stem not in plan["split"]["training"]
        held_out.append(path.stem)
    assert sorted(held_out) == sorted(fold_of)
    with (run / "cross_validation" / "scores.csv").open(encoding="utf-8") as file:
        assert sorted(row["case"] for row in csv.DictReader(file)) == sorted(fold_of)
    summary = json.loads((run / "cross_validation" / "summary.json").read_text(encoding="utf-8"))
    assert len(summary["labels"]["1"]["dice"]["mean_ci95"]) == 2
    assert summary["training_remark"] is None
    calibration = (run / "cross_validation" / "calibration.json").read_text(encoding="utf-8")
    assert len(json.loads(calibration)["temperatures"]) == len(list(run.glob("fold?")))
    reasons = json.loads((run / "ensemble.json").read_text(encoding="utf-8"))["post_processing"]
    assert reasons["pancreas"]["patients"] == 5
    low, high = json.loads((run / "ensemble.json").read_text())["label_ranges"]["pancreas"]["ml"]
    assert 0 < low < high


def results(run: Path) -> dict[str, object]:
    """What a cross-validation found, without times."""
    found: dict[str, object] = {name: load_model(run / name).checksum for name in FOLDS}
    for path in sorted((run / "cross_validation" / "predictions").glob("*.nii.gz")):
        found[path.name] = np.asarray(nibabel.load(path).dataobj).tobytes()
    for path in (run / "ensemble.json", run / "cross_validation" / "scores.csv"):
        found[path.name] = path.read_bytes()
    return found


def test_a_killed_cross_validation_resumes_to_the_same_result(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = train(home, home / "killed", "--final", "--cache", home / "run" / "cache")
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(
        [sys.executable, "-m", "attunet3d", *map(str, again), "--quiet"], env=environment
    )
    while not (home / "killed" / "fold1" / "last.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (home / "killed" / "ensemble.json").exists()
    first = (home / "killed" / "fold0" / "summary.json").read_bytes()
    assert call(*again) == 2
    assert "--resume" in capsys.readouterr().err
    assert call(*again, "--resume", "--set", "training.learning_rate=1") == 2
    assert "training.learning_rate is" in capsys.readouterr().err
    assert call(*again, "--resume") == 0
    assert (home / "killed" / "fold0" / "summary.json").read_bytes() == first
    assert results(home / "killed") == results(home / "run")
    plan = json.loads((home / "killed" / "final" / "plan.json").read_text(encoding="utf-8"))
    assert len(plan["split"]["training"]) == 6
    assert plan["split"]["validation"] == []
    assert load_model(home / "killed" / "final").labels == {0: "background", 1: "pancreas"}


def test_the_folder_is_one_model_that_has_seen_every_case(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, scan = home / "run", next((home / "data" / "imagesTr").iterdir())
    folds = [run / name for name in FOLDS]
    chosen = [part for text in Members.of([run]).settings for part in ("--set", text)]
    assert call("infer", run, scan, tmp_path / "one", "--device", "cpu") == 0
    assert call("infer", *folds, scan, tmp_path / "five", "--device", "cpu", *chosen) == 0
    one, five = (nibabel.load(tmp_path / name / scan.name) for name in ("one", "five"))
    assert np.asarray(one.dataobj).any()
    assert np.array_equal(one.dataobj, five.dataobj)
    assert {*Split.of_models([run]).roles.values()} == {"training"}
    capsys.readouterr()
    assert call("infer", run, home / "m.json", tmp_path / "all", "--device", "cpu") == 2
    assert "held out from training: 6 of 6 were seen" in capsys.readouterr().err
    assert call("infer", run, home / "m.json", tmp_path / "all", "--all", "--device", "cpu") == 0
    assert "6 of 6 cases were seen in training" in capsys.readouterr().err
    assert call("info", run) == 0
    assert "the mean of 5 networks" in capsys.readouterr().out


def test_a_packaged_cross_validation_gives_the_label_maps_of_infer(
    home: Path, tmp_path: Path
) -> None:
    chosen = json.loads((home / "run" / "ensemble.json").read_text(encoding="utf-8"))
    chosen["inference"] = {"keep_largest": [], "smallest_ml": {"pancreas": 20.0}}
    run = tmp_path / "run"
    run.mkdir()
    for name in FOLDS:
        (run / name).symlink_to(home / "run" / name)
    (run / "ensemble.json").write_text(json.dumps(chosen), encoding="utf-8")
    out, _ = package(run, tmp_path / "bundle", "bundle")
    parser = ConfigParser()
    parser.read_config(out / bundle.INFERENCE)
    parser["bundle_root"], parser["device"] = str(out), torch.device("cpu")
    before, after = (parser.get_parsed_content(f"{way}processing") for way in ("pre", "post"))
    network, inferer = bundle.bundle_network(out), parser.get_parsed_content("inferer")
    scans = home / "data" / "imagesTr"
    window = ("--set", "inference.mode=window", "--device", "cpu")
    assert call("infer", run, scans, tmp_path / "maps", *window) == 0
    for path in sorted(scans.iterdir()):
        data = before({"image": str(path)})
        with torch.inference_mode():
            data["pred"] = inferer(data["image"][None], network)[0]
        found = after.transforms[0](data)["pred"][0].numpy()
        wanted = np.asarray(nibabel.load(tmp_path / "maps" / path.name).dataobj)
        assert wanted.any()
        assert np.mean(found == wanted) > 0.9999


def test_what_makes_no_cross_validation_is_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*train(home, tmp_path / "none", "--resume")) == 2
    assert "holds no training to resume" in capsys.readouterr().err
    values = json.loads((home / "m.json").read_text(encoding="utf-8"))
    for case in values["training"]:
        case["fold"] = 0
    (home / "one.json").write_text(json.dumps(values), encoding="utf-8")
    arguments = list(train(home, tmp_path / "none"))
    arguments[1] = home / "one.json"
    assert call(*arguments) == 2
    said = capsys.readouterr().err
    assert f"{home / 'one.json'}: --fold all: manifest " in said
    assert "has fewer than two folds" in said
    arguments[1], arguments[3] = home / "m.json", Path(home / "run" / "fold0")
    assert call(*arguments) == 2
    assert "holds a run of one fold" in capsys.readouterr().err
    assert call(*train(home, tmp_path / "none", "--seeds", 2)) == 2
    assert "--seeds goes with one fold" in capsys.readouterr().err
    assert call(*train(home, tmp_path / "none", "--seeds", 0)) == 2
    assert "--seeds goes with one fold" in capsys.readouterr().err


def test_cases_that_fail_are_named_and_the_rest_is_done(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "home"
    for name in ("data", "run"):
        shutil.copytree(home / name, copy / name)
    for path in home.glob("m*.json"):
        shutil.copy(path, copy)
    cases = json.loads((copy / "m.json").read_text(encoding="utf-8"))["training"]
    unreadable, unscored, *others = (case["id"] for case in cases)
    (copy / "data" / "imagesTr" / f"{unreadable}.nii.gz").write_bytes(b"cut")
    (copy / "data" / "labelsTr" / f"{unscored}.nii.gz").write_bytes(b"cut")
    (copy / "run" / "ensemble.json").unlink()
    assert call(*train(copy, copy / "run", "--resume")) == 1
    said = f"2 of 6 cases failed and are in no mean: {unreadable}, {unscored}; failures.json"
    assert said in capsys.readouterr().err
    results = copy / "run" / "cross_validation"
    failures = json.loads((results / "failures.json").read_text(encoding="utf-8"))
    assert f"{unreadable}.nii.gz" in failures[unreadable]
    assert f"{unscored}.nii.gz" in failures[unscored]
    with (results / "scores.csv").open(encoding="utf-8") as file:
        assert sorted(row["case"] for row in csv.DictReader(file)) == sorted(others)
    chosen = json.loads((copy / "run" / "ensemble.json").read_text(encoding="utf-8"))
    assert chosen["members"] == FOLDS


@pytest.mark.parametrize("more", [(), ("--fold", "2"), ("--resume",), ("--seeds", "2")])
def test_no_other_training_begins_in_the_folder_of_a_cross_validation(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    run = tmp_path / "run"
    (run / "fold1").mkdir(parents=True)
    shutil.copy(home / "run" / "fold1" / "config.json", run / "fold1")
    shutil.copy(home / "run" / "ensemble.json", run)
    before = sorted(run.rglob("*"))
    assert call("train", home / "m.json", "demo_cpu", run, "--device", "cpu", *more) == 2
    said = f"{run}: holds a cross-validation (fold1, ensemble.json); name another folder"
    assert said in capsys.readouterr().err
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize("more", [(), ("--fold", "all")])
def test_no_other_training_begins_in_the_folder_of_seeds(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    run = tmp_path / "run"
    for name in ("seed0", "seed1"):
        (run / name).mkdir(parents=True)
        (run / name / "config.json").touch()
    assert call("train", home / "m.json", "demo_cpu", run, "--device", "cpu", *more) == 2
    said = f"{run}: holds trainings of several seeds (seed0, seed1); name another folder"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("hours", ["-1", "0", "nan", "inf"])
def test_hours_are_a_finite_number_above_0(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], hours: str
) -> None:
    for fold in ("0", "all"):
        arguments = (home / "m.json", "demo_cpu", tmp_path / "run", "--fold", fold)
        assert call("train", *arguments, "--hours", hours) == 2
        assert f"--hours {float(hours)}: must be a finite number" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_counts_of_seeds_and_of_further_steps_are_refused_below_their_least(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("train", home / "m.json", "demo_cpu", tmp_path / "run", "--device", "cpu")
    for count in (-1, 0, 1):
        assert call(*arguments, "--seeds", count) == 2
        assert f"--seeds {count}: must be 2 or more" in capsys.readouterr().err
    for count in (-1, 0):
        for resume in ((), ("--resume",)):
            assert call(*arguments, *resume, "--steps-more", count) == 2
            said = f"--steps-more {count}: must be a whole number from 1 upwards"
            assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_seeds_tell_the_spread_of_one_fold(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["0" if part == "all" else part for part in train(home, tmp_path / "seeds")]
    cache = ("--cache", home / "run" / "cache")
    assert call(*arguments, "--set", "training.steps=4", *cache, "--seeds", 2) == 0
    assert "mean ± standard deviation" in capsys.readouterr().out
    found = json.loads((tmp_path / "seeds" / "seeds.json").read_text(encoding="utf-8"))
    dices = found["dice_network_grid"]
    assert list(dices) == ["0", "1"]
    assert found["mean"] == pytest.approx(sum(dices.values()) / 2)
    spread = abs(dices["0"] - dices["1"]) / 2**0.5
    assert found["standard_deviation"] == pytest.approx(spread)
    runs = [load_model(tmp_path / "seeds" / name) for name in ("seed0", "seed1")]
    assert [run.config.training.seed for run in runs] == [0, 1]
    assert runs[0].checksum != runs[1].checksum
