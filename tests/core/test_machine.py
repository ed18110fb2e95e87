"""The machine a run finds itself on."""

import random
import re

import numpy as np
import pytest
import torch

from attunet3d.core import DeviceError, machine
from attunet3d.core.errors import UserError


def test_without_a_name_the_device_is_cuda_where_there_is_one_else_the_cpu():
    assert machine.pick_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert machine.pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "mps", "meta", "cpu cuda"])
def test_a_name_that_is_no_device_is_refused_with_the_ones_there_are(name):
    with pytest.raises(DeviceError) as caught:
        machine.pick_device(name)
    assert str(caught.value) == " ".join(f"--device {name}: must be cpu, cuda or cuda:N".split())


def test_a_device_that_is_not_on_this_machine_is_refused_with_the_cure():
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    name = f"cuda:{count}"
    with pytest.raises(DeviceError) as caught:
        machine.pick_device(name)
    message = str(caught.value)
    assert message == f"--device {name}: this machine has {count} CUDA devices; use --device cpu"
    assert isinstance(caught.value, UserError)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_is_found_by_its_names():
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
def test_memory_running_out_is_told_from_other_errors(error, memory):
    assert machine.ran_out_of_memory(error) == memory


def draws():
    return random.random(), np.random.rand(), torch.rand(2).tolist()


@pytest.mark.parametrize("seed", [0, 7, 2**32 + 5])
def test_one_seed_rules_python_numpy_and_torch(seed):
    machine.seed_everything(seed)
    first = draws()
    machine.seed_everything(seed)
    assert draws() == first
    machine.seed_everything(seed + 1)
    assert all(a != b for a, b in zip(draws(), first, strict=True))


def test_versions_name_what_computes_the_numbers():
    found = machine.versions()
    assert set(found) == {"python", "attunet3d", "torch", "monai", "numpy", "nibabel", "SimpleITK"}
    assert found["torch"] == torch.__version__
    assert found["numpy"] == np.__version__
    assert all(re.match(r"\d+\.\d+", version) for version in found.values())


def test_what_is_not_installed_is_called_absent(monkeypatch):
    real = machine.metadata.version

    def version(name):
        if name == "monai":
            raise machine.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(machine.metadata, "version", version)
    found = machine.versions()
    assert found["monai"] == "absent"
    assert found["numpy"] == np.__version__
