"""A folder of scans: bad ones named, done ones left, killed calls finished by the next."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch

from attunet3d.cohort import results
from attunet3d.cohort.call import CohortOptions
from attunet3d.cohort.outcome import Outcome
from attunet3d.cohort.run import segment_cohort
from attunet3d.cohort.scans import find_cases
from attunet3d.core import ModelError, SettingsError, WriteError, command_line, locked_folder
from attunet3d.core.config import Config
from attunet3d.core.errors import DataError
from attunet3d.datasets import Split
from attunet3d.inference.predictor import Predictor
from attunet3d.models import checkpoint as checkpoints
from attunet3d.models.attention_unet import AttentionUNet3D
from attunet3d.models.build import build_network
from attunet3d.pipelines import infer
from tests.imaging.test_dicom import write_series
from tests.known_network import SETTINGS, ThresholdNetwork, ball, checkpoint, write_scan


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Three good scans."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in ("a", "b", "-c"):
        write_scan(folder / f"{name}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network of random weights as `train` saves one."""
    path = tmp_path_factory.mktemp("run") / "model.safetensors"
    torch.manual_seed(0)
    settings = ["network.channels=[2, 4]", *SETTINGS]
    config = Config().with_overrides(settings)
    network = build_network(config.network, 1, 2)
    checkpoints.save_model(path, network.state_dict(), config, {0: "background", 5: "ball"}, {})
    return path


def predictor(*settings: str, **changes: Any) -> Predictor:
    return Predictor([checkpoint(ThresholdNetwork(), **changes)], "cpu", settings)


def segment(scans: Path, out_dir: Path, here: Predictor | None = None, **options: Any) -> Outcome:
    return segment_cohort(here or predictor(), find_cases(scans), out_dir, CohortOptions(**options))


def assert_is_the_ball(folder: Path, case_id: str) -> None:
    image = nibabel.load(folder / f"{case_id}.nii.gz")
    assert np.array_equal(np.asarray(image.dataobj) == 5, ball() == 300)
    content = results.read_sidecar(folder / f"{case_id}.json")
    assert results.intact(results.case_files(folder, case_id), content, [])
    assert content["volumes"]["ball"]["voxels"] == np.count_nonzero(ball())


# --- what is done ----------------------------------------------------------------------------


def test_every_scan_is_done_and_told_of(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = segment(scans, tmp_path / "out")
    assert sorted(outcome.done) == ["-c", "a", "b"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [f"{name}{ending}" for name in ("-c", "a", "b") for ending in (".json", ".nii.gz")]
        + ["statistics.csv"]
    )
    for name in outcome.done:
        assert_is_the_ball(tmp_path / "out", name)
    content = results.read_sidecar(tmp_path / "out" / "a.json")
    assert len(content["scan_checksum"]) == 64
    stages = {"reading", "preprocessing", "network", "decision", "doubt", "maps", "writing"}
    assert set(content["seconds"]) == stages
    assert "\r" not in capsys.readouterr().err  # no bar where there is no terminal


def test_second_call_repeats_nothing(scans: Path, tmp_path: Path) -> None:
    segment(scans, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    outcome = segment(scans, tmp_path / "out")
    assert (outcome.done, sorted(outcome.skipped)) == ([], ["-c", "a", "b"])
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert len(segment(scans, tmp_path / "out", overwrite=True).done) == 3


def test_what_is_torn_or_missing_is_done_again(scans: Path, tmp_path: Path) -> None:
    segment(scans, tmp_path / "out")
    (tmp_path / "out" / "a.json").unlink()
    (tmp_path / "out" / "b.nii.gz").write_bytes(b"half")
    outcome = segment(scans, tmp_path / "out")
    assert (sorted(outcome.done), outcome.skipped) == (["a", "b"], ["-c"])
    assert_is_the_ball(tmp_path / "out", "b")


def test_maps_asked_for_later_are_made(scans: Path, tmp_path: Path) -> None:
    segment(scans, tmp_path / "out")
    outcome = segment(scans, tmp_path / "out", probabilities=True, attention=True)
    assert len(outcome.done) == 3
    for kind in ("probabilities", "attention"):
        assert len(list((tmp_path / "out" / kind).iterdir())) == 3
    assert len(segment(scans, tmp_path / "out").skipped) == 3  # masks alone are there, too


def test_results_of_another_model_or_setting_or_scan_are_kept(scans: Path, tmp_path: Path) -> None:
    segment(scans, tmp_path / "out")
    outcome = segment(scans, tmp_path / "out", predictor(checksum="0" * 64))
    assert set(outcome.failures) == {"a", "b", "-c"}
    assert "another model" in outcome.failures["a"]
    outcome = segment(scans, tmp_path / "out", predictor("inference.overlap=0.25"))
    assert "made with other settings" in outcome.failures["a"]
    noise = np.random.default_rng(0).integers(0, 90, ball().shape).astype(np.int16)
    write_scan(scans / "a.nii.gz", noise)
    outcome = segment(scans, tmp_path / "out")
    assert list(outcome.failures) == ["a"]
    assert "made with another scan" in outcome.failures["a"]


def test_two_calls_into_one_folder_are_kept_apart(scans: Path, tmp_path: Path) -> None:
    refused = pytest.raises(WriteError, match="is in use by process")
    with locked_folder(tmp_path / "out", "infer"), refused:
        segment(scans, tmp_path / "out")
    assert len(segment(scans, tmp_path / "out").done) == 3


def test_a_scan_that_changes_while_it_is_read_is_not_filed_under_another_checksum(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = predictor()
    read = here.read

    def read_and_change(path: Any, series: Any = None) -> Any:
        volume = read(path)
        if path.name == "a.nii.gz":
            write_scan(path, ball(value=250))
        return volume

    monkeypatch.setattr(here, "read", read_and_change)
    outcome = segment(scans, tmp_path / "out", here)
    assert "changed while it was read; run the call again" in outcome.failures["a"]
    assert sorted(outcome.done) == ["-c", "b"]


def test_attention_maps_of_a_model_without_gates_are_refused_once_for_all_scans(
    scans: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = AttentionUNet3D(channels=(2, 4), gate="none").eval()
    member = checkpoint(network, "network.channels=[2, 4]", "network.gate=none")
    with pytest.raises(ModelError, match="no attention gates"):
        segment(scans, tmp_path / "out", Predictor([member], "cpu"), attention=True)
    assert not (tmp_path / "out").exists()


def test_maps_of_a_scan_that_fails_leave_nothing_behind(scans: Path, tmp_path: Path) -> None:
    class Failing(ThresholdNetwork):
        def forward(self, x: Any) -> Any:
            if self.calls > 3:
                raise ZeroDivisionError("a bug")
            return super().forward(x)

    here = Predictor([checkpoint(Failing())], "cpu")
    outcome = segment(scans, tmp_path / "out", here, probabilities=True, attention=True)
    assert len(outcome.failures) == 3
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == [
        "failures.json"
    ]


# --- what fails ------------------------------------------------------------------------------


def test_bad_scans_are_named_and_the_others_done(
    scans: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (scans / "torn.nii.gz").write_bytes((scans / "a.nii.gz").read_bytes()[:-200])
    (scans / "text.nii.gz").write_text("not a scan")
    (scans / "gone.nii.gz").symlink_to(tmp_path / "nowhere.nii.gz")
    cases = {**dict(find_cases(scans)), "gone": scans / "gone.nii.gz"}
    outcome = segment_cohort(predictor(), sorted(cases.items()), tmp_path / "out")
    assert sorted(outcome.done) == ["-c", "a", "b"]
    assert set(outcome.failures) == {"torn", "text", "gone"}
    assert (
        json.loads((tmp_path / "out" / "failures.json").read_text(encoding="utf-8"))
        == outcome.failures
    )
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert {vars(record)["case"] for record in errors} == {"torn", "text", "gone"}
    assert all(str(scans) in outcome.failures[name] for name in ("torn", "text", "gone"))


def test_memory_and_bugs_end_one_case_only(scans: Path, tmp_path: Path) -> None:
    class Moody(ThresholdNetwork):
        def forward(self, x: Any) -> Any:
            if float(x.max()) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
            if float(x.max()) > 3:
                raise ZeroDivisionError("a bug")
            return super().forward(x)

    write_scan(scans / "large.nii.gz", ball(value=450))
    write_scan(scans / "odd.nii.gz", ball(value=350))
    here = Predictor([checkpoint(Moody())], "cpu")
    outcome = segment(scans, tmp_path / "out", here)
    assert sorted(outcome.done) == ["-c", "a", "b"]
    assert outcome.failures["large"].startswith("out of memory")
    assert outcome.failures["odd"].startswith("internal error (ZeroDivisionError: a bug)")


def test_two_scans_of_one_name_are_both_refused(scans: Path, tmp_path: Path) -> None:
    write_scan(scans / "a.nii")
    outcome = segment(scans, tmp_path / "out")
    assert sorted(outcome.done) == ["-c", "b"]
    assert "a.nii" in outcome.failures["a"]
    assert "a.nii.gz" in outcome.failures["a"]


def test_a_scan_is_not_overwritten_by_its_result(scans: Path) -> None:
    before = (scans / "a.nii.gz").read_bytes()
    outcome = segment(scans, scans)
    assert outcome.done == []
    assert all("overwritten by its own result" in text for text in outcome.failures.values())
    assert (scans / "a.nii.gz").read_bytes() == before


def test_no_scan_is_overwritten_by_the_result_of_another(scans: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in scans.iterdir()}
    swapped = [("a", scans / "b.nii.gz"), ("b", scans / "a.nii.gz"), ("new", scans / "-c.nii.gz")]
    outcome = segment_cohort(predictor(), swapped, scans)
    assert outcome.done == ["new"]
    assert "overwritten by the result of 'a'" in outcome.failures["a"]
    assert set(outcome.failures) == {"a", "b"}
    assert all(path.read_bytes() == content for path, content in before.items())


def test_no_scan_is_overwritten_by_a_mask_of_a_label(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    scan = write_scan(tmp_path / "a" / "ball.nii.gz")
    before = scan.read_bytes()
    outcome = segment_cohort(
        predictor(), [("a", scan)], tmp_path, CohortOptions(mask_files=True, overwrite=True)
    )
    assert "overwritten by its own result" in outcome.failures["a"]
    assert scan.read_bytes() == before


def test_what_killed_calls_left_half_written_goes(scans: Path, tmp_path: Path) -> None:
    out_dir = tmp_path / "out"
    for folder in (out_dir, *(out_dir / name for name in ("probabilities", "attention", "a"))):
        folder.mkdir()
        (folder / ".writing-0123abcd.a.nii.gz.tmp").write_bytes(b"half")
    segment(scans, out_dir)
    assert not list(out_dir.rglob("*.tmp"))


def test_a_series_is_chosen_and_another_choice_is_not_taken_for_done(tmp_path: Path) -> None:
    for number in ("3", "4"):
        write_series(tmp_path / "in" / "ct", (0, 0, 2.5), series=number, count=9)
    outcome = segment(tmp_path / "in", tmp_path / "out")
    assert "2 CT series" in outcome.failures["ct"]
    assert segment(tmp_path / "in", tmp_path / "out", series="@1").done == ["ct"]
    assert segment(tmp_path / "in", tmp_path / "out", series="@1").skipped == ["ct"]
    outcome = segment(tmp_path / "in", tmp_path / "out", series="@2")
    assert "another series" in outcome.failures["ct"]


def test_label_maps_of_a_tilted_gantry_are_straightened_on_request(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_series(tmp_path / "in", (0, 0.9, 2.5), direction=np.eye(3), count=12)
    assert segment(tmp_path / "in", tmp_path / "sheared").done == ["in"]
    assert segment(tmp_path / "in", tmp_path / "straight", orthogonal=True).done == ["in"]
    codes = {}
    for kind in ("sheared", "straight"):
        header = nibabel.load(tmp_path / kind / "in.nii.gz").header
        codes[kind] = int(header["qform_code"])
        record = json.loads((tmp_path / kind / "in.json").read_text(encoding="utf-8"))
        assert any("ITK" in warning for warning in record["warnings"])
        assert record.get("orthogonal") == (True if kind == "straight" else None)
    assert codes == {"sheared": 0, "straight": 1}
    SimpleITK.ReadImage(tmp_path / "straight" / "in.nii.gz")
    with pytest.raises(SettingsError, match="--orthogonal"):
        CohortOptions(orthogonal=True, attention=True)


def test_pipes_and_folders_in_place_of_files_do_not_stop_it(scans: Path, tmp_path: Path) -> None:
    os.mkfifo(scans / "pipe.nii.gz")
    os.mkfifo(scans / "pipe2.nrrd")
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out" / "a.json")
    cases = [*find_cases(scans), ("folder", tmp_path / "out")]
    outcome = segment_cohort(predictor(), cases, tmp_path / "out")
    assert sorted(outcome.done) == ["-c", "a", "b"]
    assert set(outcome.failures) == {"pipe", "pipe2", "folder"}


def test_an_stderr_that_is_gone_ends_no_cohort(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scans / "text.nii.gz").write_text("not a scan")
    with io.TextIOWrapper(io.FileIO("/dev/full", "w"), write_through=True) as full:
        monkeypatch.setattr(sys, "stderr", full)
        outcome = segment(scans, tmp_path / "out")
        status = command_line.told(tmp_path / "out", outcome)
        monkeypatch.undo()
        with pytest.raises(OSError, match="No space"):
            full.write("x")
    assert (len(outcome.done), list(outcome.failures), status) == (3, ["text"], 1)


def test_label_maps_of_others_are_not_overwritten_unasked(scans: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    labels.mkdir()
    write_scan(labels / "a.nii.gz", (ball() == 0).astype(np.uint8))  # somebody's
    write_scan(labels / "b.nii.gz", np.where(ball() == 300, 5, 0).astype(np.uint8))  # the same
    before = (labels / "a.nii.gz").read_bytes()
    outcome = segment(scans, labels)
    assert (sorted(outcome.done), list(outcome.failures)) == (["-c", "b"], ["a"])
    assert "move it away" in outcome.failures["a"]
    assert (labels / "a.nii.gz").read_bytes() == before
    assert segment(scans, labels, overwrite=True).failures == {}
    assert_is_the_ball(labels, "a")


def test_masks_of_others_are_not_overwritten_unasked(scans: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    for case_id, array in (("a", ball() == 0), ("b", ball() == 300)):  # somebody's, and the same
        (labels / case_id).mkdir(parents=True)
        write_scan(labels / case_id / "ball.nii.gz", array.astype(np.uint8))
    before = (labels / "a" / "ball.nii.gz").read_bytes()
    outcome = segment(scans, labels, mask_files=True)
    assert (sorted(outcome.done), list(outcome.failures)) == (["-c", "b"], ["a"])
    assert "ball.nii.gz: already exists" in outcome.failures["a"]
    assert (labels / "a" / "ball.nii.gz").read_bytes() == before
    assert segment(scans, labels, mask_files=True, overwrite=True).failures == {}
    written = np.asarray(nibabel.load(labels / "a" / "ball.nii.gz").dataobj)
    assert np.array_equal(written, ball() == 300)


def test_what_a_killed_call_began_is_replaced(scans: Path, tmp_path: Path) -> None:
    out_dir = tmp_path / "out"
    out_dir.mkdir()
    write_scan(out_dir / "a.nii.gz", (ball() == 0).astype(np.uint8))
    (out_dir / ".begun-a").touch()
    assert segment(scans, out_dir).failures == {}
    assert_is_the_ball(out_dir, "a")
    (out_dir / ".begun-b").touch()  # killed at its very end
    assert segment(scans, out_dir).done == []
    assert not list(out_dir.glob(".*"))


def test_case_ids_do_not_leave_the_folder(scans: Path, tmp_path: Path) -> None:
    cases = [("../escaped", scans / "a.nii.gz"), ("/tmp/escaped", scans / "a.nii.gz")]
    outcome = segment_cohort(predictor(), cases, tmp_path / "out")
    assert len(outcome.failures) == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["failures.json"]


def test_map_that_cannot_be_written_fails_its_case(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.nii.gz").mkdir()
    outcome = segment(scans, tmp_path / "out")
    assert sorted(outcome.done) == ["-c", "b"]
    assert "a.nii.gz" in outcome.failures["a"]


def test_a_manifest_gives_its_test_cases_or_what_the_model_did_not_see(
    scans: Path, tmp_path: Path
) -> None:
    training = [{"id": "first", "image": "scans/a.nii.gz", "label": "scans/a.nii.gz"}]
    content = {"name": "balls", "labels": {"0": "background", "5": "ball"}, "training": training}
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"--fold K for .* --all for every case"):
        find_cases(path)
    split = Split(roles={"first": "validation"})
    for found in (find_cases(path, everything=True), find_cases(path, split=split)):
        assert [case_id for case_id, _ in found] == ["first"]
    path.write_text(json.dumps({**content, "test": [{"id": "x", "image": "scans/b.nii.gz"}]}))
    assert find_cases(path) == [("x", (scans / "b.nii.gz").resolve())]


def test_what_goes_with_a_manifest_is_refused_without_one(scans: Path) -> None:
    with pytest.raises(DataError, match="is not a manifest") as caught:
        find_cases(scans, fold=0)
    assert caught.value.cure == "--fold, --all and --root go with one"


def test_sidecars_say_whether_the_model_was_trained_on_a_case(
    scans: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    split = Split(roles={"a": "training", "b": "validation"}, rest="none")
    segment_cohort(predictor(), find_cases(scans), tmp_path / "out", split=split)
    said = caplog.text
    assert "1 of 3 cases were seen in training, which inflates the scores: a" in said
    roles = {"a": "training", "b": "validation", "-c": "none"}
    for case_id, role in roles.items():
        sidecar = results.read_sidecar(tmp_path / "out" / f"{case_id}.json")
        assert sidecar["role_in_training"] == role


# --- the command -----------------------------------------------------------------------------


def test_command_writes_label_maps(
    scans: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(model), str(model), str(scans), str(tmp_path / "out"), "--device", "cpu"]
    assert infer.main([*arguments, "--set", "inference.overlap=0.25"]) == 0
    assert "3 done" in capsys.readouterr().err
    content = results.read_sidecar(tmp_path / "out" / "a.json")
    assert content["members"] == 2
    assert content["settings"]["overlap"] == 0.25


def test_the_budget_of_the_command_line_decides_and_the_sidecar_tells(
    scans: Path, model: Path, tmp_path: Path
) -> None:
    scan = str(scans / "a.nii.gz")
    for memory, mode in (("8GB", "whole"), ("0.00001GB", "window")):
        out = tmp_path / memory
        assert infer.main([str(model), scan, str(out), "--memory", memory, "--device", "cpu"]) == 0
        content = results.read_sidecar(out / "a.json")
        assert (content["mode"], content["precision"]) == (mode, "float32")
    wrong = [str(model), scan, str(tmp_path / "out"), "--memory", "much"]
    assert command_line.run(infer.main, wrong) == 2


def test_leading_dash_and_exit_status(
    scans: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scans)
    assert infer.main(["--device", "cpu", "--", str(model), "-c.nii.gz", str(tmp_path / "o")]) == 0
    (scans / "-c.nii.gz").write_bytes(b"")
    assert infer.main([str(model), str(scans), str(tmp_path / "p"), "--device", "cpu"]) == 1
    assert command_line.run(infer.main, [str(model), "nowhere", str(tmp_path / "q")]) == 2


def test_options_may_stand_among_the_paths(scans: Path, model: Path, tmp_path: Path) -> None:
    paths = [str(model), str(model), "--device", "cpu", str(scans), str(tmp_path / "out")]
    assert infer.main(paths) == 0


def test_help_is_quick() -> None:
    begin = time.perf_counter()
    code = "import sys; from attunet3d.pipelines import infer; infer.main(['--help'])"
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True)
    assert done.returncode == 0
    assert b"torch" not in done.stderr
    assert time.perf_counter() - begin < 5


def test_killed_calls_leave_whole_files_and_are_finished(model: Path, tmp_path: Path) -> None:
    scans, out_dir = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    for index in range(12):
        write_scan(scans / f"case_{index:02}.nii.gz")
    command = [sys.executable, "-m", "attunet3d", "infer", str(model), str(scans), str(out_dir)]
    command += ["--device", "cpu", "--save-probabilities"]
    finished = 0
    for wanted in (2, 6):  # sidecars to wait for before the kill
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while len(list(out_dir.glob("case_*.json"))) < wanted and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        for path in out_dir.glob("**/*.nii.gz"):
            np.asarray(nibabel.load(path).dataobj)  # opens, whole
        done = [path for path in out_dir.glob("case_*.json") if results.read_sidecar(path)]
        assert len(done) >= finished
        finished = len(done)
    kept = {path: path.stat().st_mtime_ns for path in out_dir.glob("case_*.json")}
    assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0
    assert len(list(out_dir.glob("case_*.json"))) == 12
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # none was repeated
    assert not Path(out_dir, "failures.json").exists()
