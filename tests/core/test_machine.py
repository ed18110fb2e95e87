"""The machine a run finds itself on."""

import os
import platform
from pathlib import Path
from typing import Any

import pytest
import torch

from attunet3d.core import DeviceError, machine
from attunet3d.core.errors import UserError


def test_without_a_name_the_device_is_cuda_where_there_is_one_else_the_cpu() -> None:
    assert machine.pick_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert machine.pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "meta", "cpu cuda"])
def test_a_name_that_is_not_a_devices_is_refused_with_the_ones_there_are(
    name: str, training: bool
) -> None:
    with pytest.raises(DeviceError) as caught:
        machine.pick_device(name, training=training)
    others = "" if training else ", mps"
    assert "must be one of cpu, cuda, cuda:N" + others in str(caught.value)
    assert caught.value.value == name


def test_training_refuses_an_apple_gpu() -> None:
    with pytest.raises(DeviceError, match=r"--device mps: must be one of cpu, cuda, cuda:N$"):
        machine.pick_device("mps", training=True)


def test_a_device_that_is_not_on_this_machine_is_refused_with_the_cure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    with pytest.raises(DeviceError) as caught:
        machine.pick_device(f"cuda:{count}")
    assert f"this machine has {count} CUDA devices" in str(caught.value)
    assert caught.value.cure == "use --device cpu"
    assert isinstance(caught.value, UserError)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="no Apple GPU that torch can use; use --device cpu"):
        machine.pick_device("mps")


def test_an_apple_gpu_without_the_networks_operators_gives_way_to_the_cpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    if torch.backends.mps.is_built():
        monkeypatch.setattr(machine, "_trouble_with", lambda device: "it lacks an operator")
    assert machine.pick_device("mps") == torch.device("cpu")
    assert "it lacks an operator" in caplog.text
    assert "the CPU is used" in caplog.text


def test_a_device_that_computes_as_the_cpu_does_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine._trouble_with(torch.device("cpu")) is None
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(machine, "_trouble_with", lambda device: None)
    assert machine.pick_device("mps") == torch.device("mps")


def test_a_device_that_computes_other_numbers_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any]
    real, calls = torch.nn.functional.conv3d, []

    def conv3d(*arguments: Any, **options: Any) -> torch.Tensor:  # the first call is the device's
        calls.append(None)
        return real(*arguments, **options) + (len(calls) == 1) * torch.rand(8, 8, 8)

    monkeypatch.setattr(torch.nn.functional, "conv3d", conv3d)
    assert "differ from the CPU's by" in str(machine._trouble_with(torch.device("cpu")))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_is_found_by_its_names() -> None:
    assert machine.pick_device("cuda").type == "cuda"
    assert machine.pick_device("cuda:0").index == 0


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("shape mismatch"), False),
    ],
)
def test_memory_running_out_is_told_from_other_errors(error: RuntimeError, memory: bool) -> None:
    assert machine.ran_out_of_memory(error) == memory


@pytest.mark.parametrize(
    ("processor", "tiles", "native"),
    [
        ("x86_64", True, True),
        ("x86_64", False, False),
        ("AMD64", False, False),
        ("arm64", False, True),
    ],
)
def test_an_x86_processor_computes_in_bfloat16_only_with_matrix_tiles(
    monkeypatch: pytest.MonkeyPatch, processor: str, tiles: bool, native: bool
) -> None:
    monkeypatch.setattr(machine, "onednn_takes", lambda dtype: True)
    monkeypatch.setattr(platform, "machine", lambda: processor)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    assert machine.computes_in_bfloat16(torch.device("cpu")) == native


@pytest.mark.parametrize(("text", "cores"), [("100000 100000", 1), ("max 100000", 64), ("", 64)])
def test_a_quota_of_processor_time_limits_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(64), raising=False)
    (tmp_path / "cpu.max").write_text(text)
    assert machine.usable_cores(tmp_path / "cpu.max") == cores
