"""A cohort on Ray: label maps as of one process, whatever is killed, and nothing is lost."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from attunet3d.cohort.ray_engine import Place, workers
from attunet3d.core import DeviceError, SettingsError
from attunet3d.pipelines import infer
from tests.cohort.conftest import maps, write_and_segment

CASES = 8
ENVIRONMENT = {
    **os.environ,
    "RAY_ADDRESS": "",
    "RAY_AUTH_MODE": "disabled",
    "RAY_worker_niceness": "0",  # else 15: beside busy processes its actors hardly run,
    "RAY_worker_register_timeout_seconds": "900",  # and are started anew every minute
}
needs_ray = pytest.mark.skipif(
    not Path(sys.executable).with_name("ray").exists(), reason="the extra [ray] is not installed"
)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, dict[str, bytes]]:
    """A model, scans of which one cannot be read, and what one process makes of them."""
    folder = write_and_segment(tmp_path_factory.mktemp("ray"), CASES)
    return str(folder / "model.safetensors"), str(folder / "scans"), maps(folder / "alone")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of this machine that runs already."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray = str(Path(sys.executable).with_name("ray"))
    start = [ray, "start", "--head", "--block", "--num-cpus", "2", "--include-dashboard", "false"]
    start += ["--port", str(port), "--disable-usage-stats"]
    null = subprocess.DEVNULL
    with subprocess.Popen(start, stdout=null, stderr=null, env=ENVIRONMENT) as process:
        deadline = time.monotonic() + 900
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield f"127.0.0.1:{port}"
        process.send_signal(signal.SIGTERM)


def start(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "attunet3d", "infer", *arguments, "--engine", "ray"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8", env=ENVIRONMENT)


KILLED_ONCE = """
import json, os, signal, sys
from pathlib import Path
from attunet3d.cohort import CohortCall, ModelOptions, find_cases, segment_call
from attunet3d.cohort.ray_engine import on_ray

model, scans, out = sys.argv[1:]

class KilledOnce(ModelOptions):
    def load(self):
        predictor = super().load()
        read = predictor.read

        def killed_once(path, series=None):
            if Path(path).name.startswith("scan_3"):
                try:
                    os.mkdir(out + "_killed")
                    os.kill(os.getpid(), signal.SIGKILL)
                except FileExistsError:
                    pass
            return read(path, series)

        predictor.read = killed_once
        return predictor

call = CohortCall(cases=find_cases(Path(scans)), out_dir=Path(out))
outcome = segment_call(call, on_ray(KilledOnce(models=[model], device="cpu,cpu"), call, None))
print(json.dumps([outcome.done, outcome.skipped, sorted(outcome.failures)]))
"""


@needs_ray
def test_an_actor_that_is_killed_in_a_scan_costs_none_and_changes_no_label_map(
    material: tuple[str, str, dict[str, bytes]], tmp_path: Path
) -> None:
    model, scans, alone = material
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED_ONCE, model, scans, str(out)]
    ended = subprocess.run(
        command, capture_output=True, encoding="utf-8", env=ENVIRONMENT, timeout=900
    )
    assert ended.returncode == 0, ended.stderr
    assert Path(f"{out}_killed").exists()
    done, skipped, failed = json.loads(ended.stdout.splitlines()[-1])
    # A scan that was written when its actor ended, but not told of, counts as already done.
    assert sorted(done + skipped) == [f"scan_{number}" for number in range(CASES)]
    assert "scan_3" in done
    assert failed == ["text"]
    assert maps(out) == alone


@needs_ray
def test_a_clusters_address_is_joined_and_only_what_is_missing_is_done(
    material: tuple[str, str, dict[str, bytes]], cluster: str, tmp_path: Path
) -> None:
    model, scans, alone = material
    assert infer.main([model, scans, str(tmp_path), "--device", "cpu"]) == 1
    (tmp_path / "scan_3.json").unlink()
    with start(model, scans, str(tmp_path), "--device", "cpu", "--address", cluster) as process:
        _, error = process.communicate(timeout=900)
    assert f"1 done, {CASES - 1} already done, 1 failed" in error
    assert maps(tmp_path) == alone


@needs_ray
def test_a_cluster_that_is_not_there_is_told_in_one_line(
    material: tuple[str, str, dict[str, bytes]], tmp_path: Path
) -> None:
    with start(*material[:2], str(tmp_path), "--address", "127.0.0.1:1") as process:
        _, error = process.communicate(timeout=900)
    assert process.returncode == 2
    assert "no Ray cluster" in error
    assert len(error.splitlines()) == 1


def test_an_address_goes_with_ray_only(
    material: tuple[str, str, dict[str, bytes]], tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="--address goes with --engine ray; add that"):
        infer.main([*material[:2], str(tmp_path), "--address", "127.0.0.1:1"])


def test_workers_are_one_per_gpu_or_one_per_machine_or_as_many_as_named() -> None:
    gpus, cpus = [{"CPU": 16.0, "GPU": 4.0}] * 2, [{"CPU": 4.0}] * 3
    assert workers(None, gpus) == workers("cuda", gpus) == [Place("cuda", 4, 4)] * 8
    assert workers("cuda,cuda", gpus) == [Place("cuda", 4, 4)] * 2
    assert workers(None, cpus) == workers("cpu", cpus) == [Place("cpu", 4, 1)] * 3
    assert workers("cpu," * 11 + "cpu", cpus) == [Place("cpu", 1, 4)] * 12
    assert workers("cpu," * 7 + "cpu", cpus[:1]) == [Place("cpu", 0.5, 8)] * 8
    with pytest.raises(SettingsError, match="Ray chooses the GPU"):
        workers("cuda:0,cuda:1", gpus)
    with pytest.raises(DeviceError, match="has no GPU"):
        workers("cuda", cpus)
