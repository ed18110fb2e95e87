"""bfloat16 is computed where it is wanted, native and, on a GPU, equal to float32 but rounding."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from attunet3d.core import machine
from attunet3d.inference.precision import choose_precision, deviation

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_self_test_tells_rounding_from_error() -> None:
    exact = torch.randn(1, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    assert deviation(exact, exact) is None
    assert "relative error" in str(deviation(exact * 1.1, exact))
    assert "relative error nan" in str(deviation(exact * float("nan"), exact))


def test_classes_must_agree_even_where_every_logit_is_close() -> None:
    exact = torch.tensor([[0.01, 0.0], [0.0, 0.01]]).repeat(1, 500).reshape(1, 2, 1000)
    exact[0, 0, 0] = 100.0  # against the largest logit the others' errors are tiny
    fast = exact.clone()
    fast[..., 1:2] = exact.flip(1)[..., 1:2]
    assert deviation(fast, exact) is None  # one voxel of a thousand
    fast[..., 1:3] = exact.flip(1)[..., 1:3]
    assert deviation(fast, exact) == "relative error 0.0001, same class in 99.8 % of voxels"


class Passes:
    """Give their input as logits; in bfloat16 times `factor` where its mean is above 0."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor
        self.seen: list[Any] = []

    def __call__(self, dtype: Any) -> Callable[..., Any]:
        def forward(x: Any) -> Any:
            self.seen.append(dtype)
            wrong = dtype == torch.bfloat16 and x.mean() > 0
            return x * self.factor if wrong else x

        return forward


@pytest.fixture(autouse=True)
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "computes_in_bfloat16", lambda device: True)


def sample(shift: float = 1.0) -> torch.Tensor:
    return torch.randn(1, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0)) + shift


def test_auto_is_float32_on_a_cpu_and_bfloat16_on_a_gpu_where_it_holds() -> None:
    notes: list[str]
    passes, notes = Passes(), []
    assert choose_precision("auto", CPU, passes, sample(), notes.append) == torch.float32
    assert passes.seen == []
    assert choose_precision("auto", CUDA, passes, sample(), notes.append) == torch.bfloat16
    assert passes.seen == [torch.bfloat16, torch.float32]
    assert notes == []


def test_a_scan_that_fails_the_self_test_decides_for_itself_alone() -> None:
    notes: list[str]
    passes, notes = Passes(factor=-1), []
    for shift, wanted in ((-1.0, torch.bfloat16), (1.0, torch.float32), (-1.0, torch.bfloat16)):
        found = choose_precision("auto", CUDA, passes, sample(shift), notes.append)
        assert found == wanted
    assert len(notes) == 1
    assert "bfloat16 self-test failed (relative error 2" in notes[0]


def test_what_is_asked_for_is_not_checked() -> None:
    passes = Passes(factor=-1)
    assert choose_precision("bfloat16", CUDA, passes, sample(), print) == torch.bfloat16
    assert choose_precision("float32", CUDA, passes, sample(), print) == torch.float32
    assert passes.seen == []


def test_without_instructions_it_is_float32_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "computes_in_bfloat16", lambda device: False)
    notes: list[str] = []
    assert choose_precision("auto", CUDA, Passes(), sample(), notes.append) == torch.float32
    assert notes == []
    assert choose_precision("bfloat16", CUDA, Passes(), sample(), notes.append) == torch.float32
    assert notes == ["this device does not compute bfloat16 natively: float32"]
