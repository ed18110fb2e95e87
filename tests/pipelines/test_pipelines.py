"""The commands, called as a person calls them, on phantoms."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from attunet3d import __main__ as command
from attunet3d import __version__
from attunet3d.core import Config, command_line, locked_folder, version_text
from attunet3d.models import load_model
from attunet3d.models.checkpoint import load_state
from attunet3d.phantoms.dataset import write_phantoms
from attunet3d.training import run_folder, run_report
from attunet3d.training.run_log import read_rows
from tests.known_network import write_scan

FAST = ["network.channels=[4,8,8]", "network.strides=[[2,2,2],[2,2,2]]", "training.steps=4"]
FAST += ["training.validate_every=2", "training.patch_size=[16,16,16]"]
FAST += ["preprocessing.spacing_mm=[8,8,8]"]


def call(*arguments: Any) -> int:
    """Exit status of `attunet3d ARGUMENTS`."""
    return command_line.run(command.dispatch, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms, a manifest, a run, predictions and scores."""
    home = tmp_path_factory.mktemp("road")
    write_phantoms(home / "data", 3, 1, matrix=48)
    assert call("manifest", home / "data", "--out", home / "m.json", "--folds", 3) == 0
    sets = [part for setting in FAST for part in ("--set", setting)]
    assert call("train", home / "m.json", "demo_cpu", home / "run", "--device", "cpu", *sets) == 0
    scans = home / "data" / "imagesTr"
    options = ["--save-probabilities", "--save-attention", "--device", "cpu"]
    assert call("infer", home / "run", scans, home / "out", *options) == 0
    assert call("evaluate", home / "out", home / "data" / "labelsTr", home / "scores") == 0
    return home


def test_a_run_folder_holds_what_it_should(road: Path) -> None:
    files = {path.name for path in (road / "run").iterdir()}
    wanted = {"config.json", "plan.json", "model.safetensors", "last.pt", "metrics.csv"}
    assert wanted | {"curves.png", "summary.json", "validation"} <= files
    assert any("tfevents" in name for name in files)
    assert [row["step"] for row in read_rows(road / "run" / "metrics.csv")] == ["2", "4"]
    assert (road / "m.demo_cpu.plan.json").is_file()
    summary = json.loads((road / "run" / "summary.json").read_text(encoding="utf-8"))
    assert summary["steps"] == 4
    assert len(list((road / "run" / "validation").glob("*.png"))) == 1


def test_a_finished_model_is_calibrated_and_knows_the_volumes_of_its_training(road: Path) -> None:
    notes = load_model(road / "run").notes
    text = (road / "run" / "calibration.json").read_text(encoding="utf-8")
    assert json.loads(text)["temperature"] == notes["temperature"] > 0
    low, high = notes["label_ranges"]["pancreas"]["ml"]
    assert 20 < low <= high < 200  # the phantoms' pancreases
    assert (road / "run" / "calibration.png").is_file()


def test_label_maps_lie_on_their_scans_bit_for_bit(road: Path) -> None:
    for path in (road / "data" / "imagesTr").glob("*.nii.gz"):
        scan, found = nibabel.load(path), nibabel.load(road / "out" / path.name)
        assert found.shape == scan.shape
        assert found.get_data_dtype() == np.uint8
        for field in ("srow_x", "srow_y", "srow_z", "pixdim", "quatern_b", "qoffset_x"):
            assert found.header[field].tobytes() == scan.header[field].tobytes()
        assert int(found.header["sform_code"]) == int(scan.header["sform_code"])
        sidecar = json.loads(
            (road / "out" / path.name.replace(".nii.gz", ".json")).read_text(encoding="utf-8")
        )
        assert sidecar["labels"]["1"] == "pancreas"


def test_probabilities_attention_and_scores_are_written(road: Path) -> None:
    assert len(list((road / "out" / "probabilities").glob("*.nii.gz"))) == 3
    assert len(list((road / "out" / "attention").glob("*.nii.gz"))) == 3
    assert (road / "scores" / "scores.csv").is_file()
    summary = json.loads((road / "scores" / "summary.json").read_text(encoding="utf-8"))
    assert "pancreas" in json.dumps(summary)


def test_export_gives_the_label_maps_again(road: Path, tmp_path: Path) -> None:
    assert call("export", road / "out", tmp_path / "again") == 0
    for path in (road / "out").glob("*.nii.gz"):
        ours = np.asarray(nibabel.load(tmp_path / "again" / path.name).dataobj)
        assert np.mean(ours == np.asarray(nibabel.load(path).dataobj)) > 0.995


def test_a_run_is_not_overwritten_and_a_finished_one_resumes_to_its_end(
    road: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = ["train", road / "m.json", "demo_cpu", road / "run", "--device", "cpu"]
    assert call(*again) == 2
    assert "--resume" in capsys.readouterr().err
    before = (road / "run" / "model.safetensors").read_bytes()
    assert call(*again, "--resume") == 2  # the preset's channels are not this run's
    assert "network.channels" in capsys.readouterr().err
    again[2] = road / "run" / "config.json"
    assert call(*again, "--resume", "--fold", "1") == 2
    assert "other training or validation cases" in capsys.readouterr().err
    assert call(*again, "--resume", "--set", "training.learning_rate=1") == 2
    assert "training.learning_rate is" in capsys.readouterr().err
    # How many threads prepare batches is the machine's affair, and changes nothing.
    assert call(*again, "--resume", "--set", "training.workers=2") == 0
    assert (road / "run" / "model.safetensors").read_bytes() == before


def test_two_folds_of_a_data_set_make_an_ensemble(road: Path, tmp_path: Path) -> None:
    """The plan looks at all cases, so that the folds' models see the same grid and values."""
    settings = [*FAST[:-1], "training.steps=2"]  # the spacing is planned, too
    for preset in ("demo_cpu", "oktay2018"):
        sets = [part for setting in settings for part in ("--set", setting)]
        sets += ["--set", "preprocessing.spacing_mm=[8,8,8]"] if preset == "oktay2018" else []
        runs = [tmp_path / f"{preset}_{fold}" for fold in (0, 1)]
        for fold, run in enumerate(runs):
            call_: tuple[Any, ...] = (
                "train",
                road / "m.json",
                preset,
                run,
                "--fold",
                fold,
                "--device",
                "cpu",
            )
            call_ += ("--plan", tmp_path / f"{preset}.json")
            assert call(*call_, *sets, "--set", "preprocessing.hu_window=[-100,200]") == 0
        out = tmp_path / preset
        scans = road / "data" / "imagesTr"
        assert call("infer", *runs, next(scans.iterdir()), out, "--device", "cpu") == 0


def test_the_plan_of_a_data_set_is_that_of_all_its_folds_whatever_memory_is_free(
    road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = [part for setting in FAST for part in ("--set", setting)]
    train = ("train", road / "m.json", "pancreas_ct", "--device", "cpu", *sets)
    train += ("--set", "training.patch_size=", "--plan", tmp_path / "p.json")
    configs = []
    for fold, free in enumerate((6, 9, 30)):
        monkeypatch.setattr(run_folder, "available_bytes", lambda device, free=free: free * 10**9)
        memory = ("--memory", "8GB") if fold == 0 else ()  # the first states it for all
        assert call(*train[:3], tmp_path / str(fold), *train[3:], "--fold", fold, *memory) == 0
        configs.append((tmp_path / str(fold) / "config.json").read_bytes())
    assert configs[0] == configs[1] == configs[2]
    capsys.readouterr()
    other = (*train[:3], tmp_path / "other", *train[3:])
    assert call(*other, "--memory", "0.68GB") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "training.patch_size ([" in error
    assert not (tmp_path / "other" / "config.json").exists()
    assert call(*other, "--set", "preprocessing.hu_window=[-100,200]") == 2
    assert "preprocessing.hu_window (" in capsys.readouterr().err


def test_the_plan_command_shows_the_plan_that_training_takes(
    road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plan.yaml"
    plan = ("plan", road / "m.json", "demo_cpu", "--out", out, "--device", "cpu")
    assert call(*plan, "--memory", "2GB") == 0
    shown = capsys.readouterr().out
    assert "2 GB of memory" in shown
    assert "preprocessing.mean_hu" in shown
    before = out.read_bytes()
    assert call(*plan) == 0  # the memory stated first holds
    assert capsys.readouterr().out == shown
    assert out.read_bytes() == before
    assert call(*plan, "--memory", "two") == 2
    assert "write it as 24GB" in capsys.readouterr().err
    out.write_text("{}")
    assert call(*plan) == 2
    assert "cannot be read as a plan" in capsys.readouterr().err


def test_a_plan_for_other_cases_is_refused(
    road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = json.loads((road / "m.json").read_text(encoding="utf-8"))
    listed["training"] = listed["training"][:2]
    (road / "fewer.json").write_text(json.dumps(listed))
    plan = ("plan", road / "fewer.json", "demo_cpu", "--device", "cpu")
    assert call(*plan, "--out", road / "m.demo_cpu.plan.json") == 2
    assert "was made for other cases (1 differ" in capsys.readouterr().err


def test_too_little_memory_is_said_before_a_run_begins(
    road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "available_bytes", lambda device: 5 * 10**9)
    train = ("train", road / "m.json", "oktay2018", tmp_path / "run", "--device", "cpu")
    assert call(*train) == 2
    error = capsys.readouterr().err
    assert "GB of memory, and cpu has 5.0 GB free" in error
    assert "training.patch_size" in error
    assert not (tmp_path / "run" / "config.json").exists()


def test_resume_without_a_run_and_settings_that_may_not_change_are_errors(
    road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ("train", road / "m.json", "demo_cpu", tmp_path / "typo", "--device", "cpu")
    assert call(*train, "--resume") == 2
    assert "holds no run to resume" in capsys.readouterr().err
    assert not (tmp_path / "typo").exists()
    again = ["train", road / "m.json", road / "run" / "config.json", road / "run"]
    again += ["--device", "cpu", "--resume"]
    assert call(*again, "--set", "training.ignore_index=") == 0  # as it is
    assert call(*again, "--set", "network.gate_bias=3") == 2
    assert "network.gate_bias is None in this run, not 3" in capsys.readouterr().err


def test_a_run_that_another_process_trains_is_left_alone(
    road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(road / "run", tmp_path / "run")
    again = ("train", road / "m.json", tmp_path / "run" / "config.json", tmp_path / "run")
    with locked_folder(tmp_path / "run", "train"):
        assert call(*again, "--device", "cpu", "--resume", "--steps-more", 2) == 2
    assert "is in use by process" in capsys.readouterr().err
    before = (road / "run" / "metrics.csv").read_bytes()
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == before


def test_a_stop_after_the_last_step_says_how_to_go_on(
    road: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stopped(*_: object) -> None:
        raise SystemExit(143)  # as SIGTERM does

    shutil.copytree(road / "run", tmp_path / "run")
    again = ("train", road / "m.json", tmp_path / "run" / "config.json", tmp_path / "run")
    monkeypatch.setattr(run_report, "finish", stopped)
    assert call(*again, "--device", "cpu", "--resume") == 143
    assert "the same command with --resume goes on" in capsys.readouterr().err


def test_a_finished_run_trains_longer(road: Path, tmp_path: Path) -> None:
    shutil.copytree(road / "run", tmp_path / "run")
    again = ("train", road / "m.json", tmp_path / "run" / "config.json", tmp_path / "run")
    assert call(*again, "--device", "cpu", "--steps-more", 2) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert summary["steps"] == 6
    config = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert config["training"]["steps"] == 6


def test_training_starts_from_the_weights_and_logits_of_another_model(
    road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [part for setting in FAST for part in ("--set", setting)]
    train = ("train", road / "m.json", "demo_cpu", tmp_path / "run", "--device", "cpu", *sets)
    plan = ("--plan", tmp_path / "plan.json")
    assert call(*train, *plan, "--init", road / "run", "--set", "training.steps=1") == 0
    error = capsys.readouterr().err
    assert "heads of background, pancreas" in error
    assert "not taken" not in error
    config = Config.load(tmp_path / "run" / "config.json")
    assert config.training.learning_rate == pytest.approx(5e-3)
    assert config.training.taken_rate == 0.5
    old = load_model(road / "run").network
    new = load_state(tmp_path / "run" / "last.pt")[0]["network"]
    # The last layer is left out: each finished model has it divided by a temperature of its own.
    names = [name for name, _ in old.named_parameters() if not name.startswith("final.")]
    pairs = [(old.get_parameter(name), new[name]) for name in names]
    assert all(float((a - b).abs().max()) < 3e-3 for a, b in pairs)  # one step away
    assert any(float((a - b).abs().max()) > 0 for a, b in pairs)
    first = read_rows(tmp_path / "run" / "metrics.csv")[0]
    summary = json.loads((road / "run" / "summary.json").read_text(encoding="utf-8"))
    assert first["step"] == "0"  # the model that it started from
    assert float(first["dice_pancreas"] or 0) == pytest.approx(
        summary["best_dice_network_grid"], abs=1e-3
    )


def test_an_organ_is_added_to_a_model_that_keeps_its_own(
    road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((road / "m.json").read_text(encoding="utf-8"))
    content["labels"] = {"1": "lesion"}
    content["root"] = str(road / content["root"])
    manifest = tmp_path / "m.json"
    manifest.write_text(json.dumps(content), encoding="utf-8")
    train = ("train", manifest, "demo_cpu", tmp_path / "run", "--device", "cpu")
    sets = ("--set", "training.steps=1", "--set", "training.patch_size=[16,16,16]")
    assert call(*train, *sets, "--keep-labels") == 2
    assert "--keep-labels goes with --init; name the model by it" in capsys.readouterr().err
    assert call(*train, *sets, "--freeze", "encoder") == 2
    assert "--freeze goes with --init; name the model by it" in capsys.readouterr().err
    assert call(*train, *sets, "--set", "inference.keep_largest=[nix]") == 2
    assert "inference.keep_largest must be a label of the model, got 'nix'" in (
        capsys.readouterr().err
    )
    flags = ("--init", road / "run", "--keep-labels", "--freeze", "encoder")
    assert call(*train, *sets, *flags) == 0
    old, new = (load_model(folder) for folder in (road / "run", tmp_path / "run"))
    assert new.labels == {0: "background", 1: "lesion", 2: "pancreas"}
    assert new.config.network == old.config.network
    assert new.config.preprocessing == old.config.preprocessing
    states = old.network.state_dict(), new.network.state_dict()
    assert all(torch.equal(states[1][name], states[0][name]) for name in states[0] if "enc" in name)
    taught = list((tmp_path / "run" / "taught").iterdir())
    assert len(taught) == 2  # of three cases, one validates


def test_labels_with_a_side_switch_left_right_flips_off(
    road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = json.loads((road / "m.json").read_text(encoding="utf-8"))
    listed["labels"]["1"] = "left kidney"
    (road / "sided.json").write_text(json.dumps(listed))
    sets = [part for setting in FAST for part in ("--set", setting)]
    sets += ["--set", "augmentation.flip_axes=[0,1]"]
    train = ("train", road / "sided.json", "demo_cpu", tmp_path / "run", "--device", "cpu", *sets)
    assert call(*train) == 0
    assert "'left kidney'" in capsys.readouterr().err
    config = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert config["augmentation"]["flip_axes"] == [1]
    assert call(*train, "--resume") == 0


def test_cases_of_a_fold_are_segmented_and_scored_alike(road: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    infer = ("infer", road / "run", road / "m.json", out, "--device", "cpu")
    assert call(*infer, "--fold", 1) == 0
    (found,) = out.glob("*.nii.gz")
    held = json.loads((road / "m.json").read_text(encoding="utf-8"))["training"]
    assert [case["id"] for case in held if case["fold"] == 1] == [found.name[: -len(".nii.gz")]]
    assert call("evaluate", out, road / "m.json", tmp_path / "scores", "--fold", 1) == 0
    assert call("infer", road / "run", found, tmp_path / "x", "--fold", 1) == 2


def test_nobody_is_scored_on_what_the_model_learned_from_unasked(
    road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default infer and evaluate take the run's validation case of a manifest without tests."""
    split = json.loads((road / "run" / "plan.json").read_text(encoding="utf-8"))["split"]
    out, scores = tmp_path / "out", tmp_path / "scores"
    infer = ("infer", road / "run", road / "m.json", out, "--device", "cpu")
    assert call(*infer) == 0
    assert [path.name for path in out.glob("*.nii.gz")] == [f"{split['validation'][0]}.nii.gz"]
    assert call("evaluate", out, road / "m.json", scores) == 0
    summary = json.loads((scores / "summary.json").read_text(encoding="utf-8"))
    assert (summary["scored"], summary["seen_in_training"]) == (1, [])
    assert "seen in training" not in capsys.readouterr().err
    assert call(*infer, "--all") == 0
    assert "2 of 3 cases were seen in training" in capsys.readouterr().err
    assert call("evaluate", out, road / "m.json", scores) == 0  # still the validation case alone
    assert call("evaluate", out, road / "m.json", scores, "--all") == 0
    assert "2 of 3 cases were seen in training" in capsys.readouterr().err
    summary = json.loads((scores / "summary.json").read_text(encoding="utf-8"))
    assert (summary["scored"], summary["seen_in_training"]) == (3, sorted(split["training"]))


def test_validation_cases_without_foreground_end_well(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "data", 2, 1, matrix=32)
    label = sorted((tmp_path / "data" / "labelsTr").iterdir())[0]
    image = nibabel.load(label)
    empty = np.zeros(image.shape, np.uint8)
    nibabel.save(nibabel.Nifti1Image(empty, image.affine, image.header), label)
    assert call("manifest", tmp_path / "data", "--out", tmp_path / "m.json", "--folds", 2) == 0
    cases = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))["training"]
    name = label.name[: -len(".nii.gz")]
    (fold,) = [case["fold"] for case in cases if case["id"] == name]
    sets = [part for setting in FAST for part in ("--set", setting)]
    run = ("train", tmp_path / "m.json", "demo_cpu", tmp_path / "run", "--device", "cpu")
    assert call(*run, "--fold", fold, *sets) == 0
    assert (tmp_path / "run" / "summary.json").is_file()
    assert list((tmp_path / "run" / "validation").glob("*.png"))


def test_a_written_configuration_is_one_to_read(road: Path, tmp_path: Path) -> None:
    config = road / "run" / "config.json"
    assert call("train", road / "m.json", config, tmp_path / "run", "--device", "cpu") == 0
    assert (tmp_path / "run" / "config.json").read_bytes() == config.read_bytes()
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (
        road / "run" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "no command 'trian'"),
        (["train", "missing.json", "demo_cpu", "run"], "missing.json"),
        (["infer", "missing", "scan.nii.gz", "out"], "scan.nii.gz: no such file"),
        (["evaluate", "missing", "missing", "out"], "missing"),
    ],
)
def test_a_wrong_call_is_one_line_and_status_2(
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", [None, *command.COMMANDS])
def test_help_comes_without_torch(name: str | None) -> None:
    arguments = ["--help"] if name is None else [name, "--help"]
    code = (
        "import sys\nfrom attunet3d.__main__ import main\n"
        f"sys.argv[1:] = {arguments}\nstatus = main()\n"
        "assert 'torch' not in sys.modules and 'monai' not in sys.modules\nsys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    assert "usage: attunet3d" in done.stdout


def test_a_missing_model_is_told_with_what_a_model_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz")
    assert call("infer", tmp_path / "missing", scan, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "a model is" in error


def test_version_and_the_status_of_a_wrong_call(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "attunet3d", "--version"], capture_output=True, text=True
    )
    assert done.stdout == f"{version_text()}\n"
    assert done.stdout.splitlines()[0] == f"attunet3d {__version__}"
    command = [sys.executable, "-m", "attunet3d", "evaluate", "a", "b", "c"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("attunet3d: error: ")


def test_labels_without_a_name_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_phantoms(tmp_path / "data", 2, 1, matrix=32)
    (tmp_path / "data" / "dataset.json").unlink()
    call("manifest", tmp_path / "data", "--out", tmp_path / "m.json")
    assert "warning: no name for label 1; give one with --label 1=NAME\n" in capsys.readouterr().err
    call("manifest", tmp_path / "data", "--out", tmp_path / "n.json", "--label", "1=pancreas")
    assert "no name" not in capsys.readouterr().err


def test_an_ignored_label_is_honoured_from_the_manifest_to_the_scores(tmp_path: Path) -> None:
    """Voxels that nobody labelled are in no loss and in no score; the model does not know them."""
    write_phantoms(tmp_path / "data", 2, 1, matrix=32)
    for path in (tmp_path / "data" / "labelsTr").iterdir():
        image = nibabel.load(path)
        array = np.asarray(image.dataobj).copy()
        array[: array.shape[0] // 2][array[: array.shape[0] // 2] == 0] = 9
        nibabel.save(nibabel.Nifti1Image(array, image.affine, image.header), path)
    about = json.loads((tmp_path / "data" / "dataset.json").read_text(encoding="utf-8"))
    about["labels"]["9"] = "ignore"
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(about))
    manifest, run, out = tmp_path / "m.json", tmp_path / "run", tmp_path / "out"
    assert call("manifest", tmp_path / "data", "--out", manifest) == 0
    sets = [part for setting in FAST for part in ("--set", setting)]
    assert call("train", manifest, "demo_cpu", run, "--device", "cpu", *sets) == 0
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    assert config["training"]["ignore_index"] == 9
    assert call("infer", run, manifest, out, "--device", "cpu") == 0
    sidecar = json.loads(next(out.glob("phantom*.json")).read_text(encoding="utf-8"))
    assert "ignore" not in sidecar["labels"].values()
    assert call("evaluate", out, manifest, tmp_path / "scores") == 0
    summary = json.loads((tmp_path / "scores" / "summary.json").read_text(encoding="utf-8"))
    assert "9" not in summary["labels"]
    assert 9 not in summary["values_taken_as_background"]
