"""`attunet3d doctor`: what it finds in order, and what it warns of with which cure."""

import shutil
from pathlib import Path

import psutil
import pytest
import torch
from packaging.requirements import Requirement
from torch import Tensor, nn

from attunet3d import diagnosis
from attunet3d.diagnosis import Finding, diagnose, try_device
from attunet3d.pipelines import doctor

CPU = torch.device("cpu")


def findings(what: str) -> list[Finding]:
    return [finding for finding in diagnose() if finding.what == what]


def test_every_part_has_its_line() -> None:
    found = [finding.what for finding in diagnose()]
    parts = ["Python", "torch", "monai", "libraries", "extras", "CPU", "threads", "memory", "disk"]
    assert found[:9] == parts
    assert "try cpu" in found


@pytest.mark.parametrize(("cure", "status"), [(None, 0), ("free some", 1)])
def test_the_status_tells_whether_anything_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cure: str | None,
    status: int,
) -> None:
    findings = [Finding("Python", "3.12"), Finding("disk", "1 GB free", cure)]
    monkeypatch.setattr(diagnosis, "diagnose", lambda: iter(findings))
    assert doctor.main([]) == status
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ok      Python    3.12"
    assert lines[1].startswith("warning " if cure else "ok ")
    assert lines[1].endswith("1 GB free; free some" if cure else "1 GB free")


def test_this_machine_computes_right() -> None:
    assert try_device(CPU).cure is None


@pytest.mark.parametrize("factor", [-1.0, 1.05])
def test_a_device_that_computes_wrong_is_warned_of(factor: float) -> None:
    found = try_device(CPU, lambda network, image: network(image) * factor)
    assert found.cure is not None
    assert "relative error" in found.found


def test_a_device_that_lacks_an_operator_is_warned_of() -> None:
    def run(network: nn.Module, image: Tensor) -> Tensor:
        raise NotImplementedError("no conv3d\nhere")

    found = try_device(torch.device("cuda", 0), run)
    assert "no conv3d here" in found.found
    assert "--device cpu" in str(found.cure)


@pytest.mark.parametrize(
    ("threads", "cores", "cure"),
    [(64, 4, "set OMP_NUM_THREADS=4"), (1, 16, "unset OMP_NUM_THREADS"), (16, 16, None)],
)
def test_threads_should_be_as_many_as_cores(
    monkeypatch: pytest.MonkeyPatch, threads: int, cores: int, cure: str | None
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(diagnosis, "usable_cores", lambda: cores)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 16)
    (found,) = findings("threads")
    assert found.cure is None if cure is None else cure in str(found.cure)


def test_little_memory_and_a_full_disk_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "machine_total_bytes", lambda: 4 * 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("U", (), {"free": 10**9}))
    assert findings("memory")[0].cure is not None
    assert "1.0 GB free" in findings("disk")[0].found
    assert findings("disk")[0].cure is not None


def test_a_driver_without_a_fitting_torch_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "version"
    path.write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12\nGCC version: 12\n"
    )
    assert diagnosis._driver(path) == "535.183.01"
    assert diagnosis._driver(tmp_path / "none") is None
    monkeypatch.setattr(diagnosis, "_driver", lambda: "535.183.01")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for build, cure in ((None, "install a CUDA build of torch"), ("13.0", "update the driver")):
        monkeypatch.setattr(diagnosis, "cuda_of_torch", lambda build=build: build)
        (found,) = findings("GPU")
        assert str(found.cure).startswith(cure)


def test_libraries_too_old_and_missing_extras_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["numpy>=99", "torch>=2", 'nothing-such>=1; extra == "dicom"', 'pip; extra == "mesh"']
    monkeypatch.setattr(diagnosis, "_requirements", lambda: list(map(Requirement, asked)))
    assert findings("libraries")[0].found.startswith("numpy ")
    (found,) = findings("extras")
    assert found.found == 'installed: mesh; to add others: pip install "attunet3d[dicom]"'
    assert found.cure is None
