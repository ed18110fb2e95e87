"""A cohort on several processes: label maps as of one, whatever is killed, and nothing is lost."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from attunet3d.cohort import CohortCall, Events, ModelOptions, Shard, find_cases, segment_call
from attunet3d.cohort.devices import on_devices
from attunet3d.cohort.dispatch import MOST_ATTEMPTS, Dispatcher
from attunet3d.cohort.outcome import merge_failures
from attunet3d.core import Config, SettingsError, WriteError
from attunet3d.core.lock import locked_folder, locked_part
from attunet3d.imaging import Volume
from attunet3d.inference import Predictor
from attunet3d.models import build_network, save_model
from attunet3d.pipelines import infer
from tests.cohort.conftest import maps
from tests.known_network import ball, write_scan

CASES = [f"case_{number:02}" for number in range(8)]


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    for number, case_id in enumerate(CASES):
        write_scan(folder / f"{case_id}.nii.gz", ball(value=200 + 20 * number))
    (folder / "text.nii.gz").write_text("not a scan")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = ["network.channels=[4, 8]", "preprocessing.spacing_mm=[3, 3, 3]"]
    settings += ["preprocessing.hu_window=[-100, 400]", "preprocessing.mean_hu=50"]
    settings += ["preprocessing.std_hu=100", "inference.window=[16, 16, 16]"]
    config = Config().with_overrides(settings)
    network = build_network(config.network, 1, 2)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(path, network.state_dict(), config, {0: "background", 1: "ball"}, {})
    return path


@pytest.fixture(scope="module")
def alone(scans: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process makes of the scans."""
    out = tmp_path_factory.mktemp("alone")
    assert infer.main([str(model), str(scans), str(out), "--device", "cpu"]) == 1
    return maps(out)


def failures(folder: Path) -> Any:
    return json.loads((folder / "failures.json").read_text(encoding="utf-8"))


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "attunet3d", "infer", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    found = psutil.Process(process.pid).children()
    return [child for child in found if "spawn_main" in " ".join(child.cmdline())]


def test_killed_workers_cost_no_scan_and_change_no_label_map(
    scans: Path, model: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    with start(model, scans, tmp_path, "--device", "cpu,cpu") as process:
        deadline = time.monotonic() + 200
        while len(list(tmp_path.glob("case_*.json"))) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        killed = workers(process)[0]
        killed.send_signal(signal.SIGKILL)
        _, error = process.communicate(timeout=240)
    assert process.returncode == 1, error
    assert "1 failed" in error
    # A scan that was written when its process ended, but not told of, counts as already done.
    counts = re.findall(r"([0-9]+) (?:already )?done[,\n]", error.splitlines()[-1] + "\n")
    assert sum(map(int, counts)) == len(CASES)
    assert set(failures(tmp_path)) == {"text"}
    assert maps(tmp_path) == alone
    assert len(alone) == len(CASES)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]

    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("case_*.json")}
    (tmp_path / "case_03.json").unlink()
    arguments = [str(model), str(scans), str(tmp_path), "--device", "cpu,cpu"]
    assert infer.main(arguments) == 1  # what is missing is done, and no more
    changed = [path.name for path in kept if path.stat().st_mtime_ns != kept[path]]
    assert changed == ["case_03.json"]
    assert maps(tmp_path) == alone


class DeadlyScan(ModelOptions):
    """Loads a model that one scan brings down with its process."""

    def load(self) -> Predictor:
        predictor = super().load()
        read = predictor.read

        def deadly(path: str | Path, series: str | None = None) -> Volume:
            if Path(path).name.startswith("case_05"):
                os.kill(os.getpid(), signal.SIGKILL)
            return read(path, series)

        predictor.read = deadly  # type: ignore[method-assign]
        return predictor


def test_a_scan_that_kills_its_process_thrice_fails_and_the_others_are_done(
    scans: Path, model: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    call = CohortCall(cases=find_cases(scans), out_dir=tmp_path)
    outcome = segment_call(call, on_devices(DeadlyScan(models=[str(model)]), call, ["cpu", "cpu"]))
    assert set(outcome.failures) == {"case_05", "text"}
    assert "ended 3 times" in outcome.failures["case_05"]
    assert maps(tmp_path) == {name: alone[name] for name in alone if name != "case_05.nii.gz"}


def test_an_error_of_the_model_ends_the_call(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("none")
    with start(tmp_path / "model.safetensors", scans, tmp_path / "out", "--device", "cpu,cpu") as p:
        _, error = p.communicate(timeout=200)
    assert p.returncode == 2
    assert "model.safetensors" in error
    assert "Traceback" not in error


def test_shards_share_a_folder_and_give_what_one_call_gives(
    scans: Path, model: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    for number in (1, 2, 3):
        arguments = [str(model), str(scans), str(tmp_path), "--device", "cpu"]
        status = infer.main([*arguments, "--shard", f"{number}/3"])
        assert status == int(Shard(number, 3).has("text"))
    assert maps(tmp_path) == alone
    assert set(failures(tmp_path)) == {"text"}


# --- the rules, without processes --------------------------------------------------------------


def test_every_case_is_in_one_shard() -> None:
    ids = [f"patient {number}" for number in range(500)]
    for count in (1, 2, 7):
        parts = [Shard(number + 1, count) for number in range(count)]
        owners = [[part.has(case_id) for part in parts] for case_id in ids]
        assert all(sum(each) == 1 for each in owners)
        sizes = np.sum(owners, 0)
        assert sizes.min() > 0.7 * 500 / count
    assert Shard(1, 5).has("Case") == Shard(1, 5).has("case")


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "-1/2", "1/2/3", ""])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="must be I/N"):
        Shard.parse(text)


def test_parts_of_one_division_are_held_side_by_side_and_no_others(tmp_path: Path) -> None:
    with locked_part(tmp_path, "infer", "1-of-2"), locked_part(tmp_path, "infer", "2-of-2"):
        for part in ("1-of-2", "1-of-3"):
            with pytest.raises(WriteError, match="in use by"), locked_part(tmp_path, "x", part):
                pass
        with pytest.raises(WriteError, match="in use by"), locked_folder(tmp_path, "infer"):
            pass
    with locked_folder(tmp_path, "infer"):
        pass
    (tmp_path / ".attunet3d.part-1-of-4.lock").touch()  # of a call that was killed
    with locked_part(tmp_path, "infer", "1-of-3") as brief, brief():
        pass
    assert list(tmp_path.iterdir()) == []


def test_failures_of_shards_are_kept_together(tmp_path: Path) -> None:
    merge_failures(tmp_path, ["a", "b"], {"a": "torn"})
    merge_failures(tmp_path, ["c"], {"c": "empty"})
    assert failures(tmp_path) == {"a": "torn", "c": "empty"}
    merge_failures(tmp_path, ["a", "b"], {})
    assert failures(tmp_path) == {"c": "empty"}


class Heard(Events):
    def __init__(self) -> None:
        self.failures: dict[str, str] = {}

    def failed(self, case_id: str, reason: str) -> None:
        self.failures[case_id] = reason


def test_a_scan_that_kills_its_workers_fails_at_last_and_its_neighbours_do_not() -> None:
    """Workers hold three scans at once and die whenever "bad" is among them."""
    names = ["a", "b", "bad", "c", "d", "e", "f"]
    heard, done = Heard(), []
    dispatcher = Dispatcher({name: [Path(name)] for name in names}, heard)
    deaths = 0
    for number in range(30):
        worker, held = f"worker {number}", list[str]()
        while len(held) < 3 and (item := dispatcher.take(worker, idle=not held)):
            held.append(item[0])
        if "bad" in held:
            deaths += 1
            dispatcher.lost(worker)
            continue
        for name in held:
            dispatcher.settled(worker, name)
            done.append(name)
    assert sorted(done) == sorted(set(names) - {"bad"})
    assert set(heard.failures) == {"bad"}
    assert deaths == MOST_ATTEMPTS
    assert dispatcher.finished
