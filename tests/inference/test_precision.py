"""bfloat16 is computed where it is wanted, native and, where there is a doubt, held to float32."""

import pytest
import torch

from attunet3d.core import machine
from attunet3d.inference import precision
from attunet3d.inference.precision import Precision, parting

CUDA = torch.device("cuda")


def test_self_test_tells_rounding_from_error():
    exact = torch.randn(1, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    assert parting(exact, exact) is None
    assert "relative error" in parting(exact * 1.1, exact)
    assert "relative error nan" in parting(exact * float("nan"), exact)
    flipped = exact.flip(1) * 0.001  # small values, other classes
    assert "same class in 0.0 %" in parting(flipped, exact * 0.001)


class Networks:
    """Gives its input as logits; in bfloat16 off by `factor` where it has `size` values."""

    def __init__(self, factor=1.0, size=0, most=10**9):
        self.factor, self.size, self.most, self.seen = factor, size, most, []

    def __call__(self, dtype):
        def forward(x):
            if dtype == torch.float32:
                if x.numel() > self.most:
                    raise torch.OutOfMemoryError
                return x
            self.seen.append(tuple(x.shape))
            return x * self.factor if x.numel() >= self.size else x

        return forward


@pytest.fixture(autouse=True)
def native(monkeypatch):
    monkeypatch.setattr(machine, "computes_in_bfloat16", lambda device: True)


def sample(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_auto_is_float32_on_a_cpu_and_bfloat16_on_a_gpu_where_it_holds():
    networks, notes = Networks(), []
    cpu = Precision(networks, "auto", torch.device("cpu"))
    assert cpu.choose(sample(1, 2, 8, 8, 8), notes.append) == torch.float32
    assert Precision(networks, "auto", CUDA).choose(sample(1, 2, 8, 8, 8), notes.append) == (
        torch.bfloat16
    )
    assert networks.seen == [(1, 2, 8, 8, 8)]
    assert notes == []


def test_where_it_parts_float32_is_taken_from_then_on_and_each_record_says_so():
    networks, notes = Networks(factor=-1), []
    held = Precision(networks, "auto", CUDA)
    for _ in range(2):
        assert held.choose(sample(1, 2, 8, 8, 8), notes.append) == torch.float32
    assert len(networks.seen) == 1
    assert len(notes) == 2
    assert all("bfloat16 self-test failed (relative error 2" in text for text in notes)


def test_larger_inputs_are_checked_anew():
    networks, notes = Networks(factor=-1, size=2 * 16**3), []
    held = Precision(networks, "auto", CUDA)
    assert held.choose(sample(1, 2, 8, 8, 8), notes.append) == torch.bfloat16
    assert held.choose(sample(1, 2, 8, 8, 9), notes.append) == torch.bfloat16  # about as large
    assert len(networks.seen) == 1
    assert held.choose(sample(8, 2, 8, 8, 8), notes.append) == torch.float32  # a batch of windows


def test_when_memory_is_short_the_middle_is_checked():
    networks, notes = Networks(most=2 * 8**3), []
    held = Precision(networks, "auto", CUDA)
    assert held.choose(sample(2, 2, 16, 16, 16), notes.append) == torch.bfloat16
    assert networks.seen == [(2, 2, 16, 16, 16), (1, 2, 8, 8, 8)]
    assert [text.split(": ")[1] for text in notes] == ["on the middle of the input"]


def test_when_not_even_that_fits_the_check_is_left_out():
    networks, notes = Networks(most=10), []
    held = Precision(networks, "auto", CUDA)
    assert held.choose(sample(1, 2, 16, 16, 16), notes.append) == torch.bfloat16
    assert notes[-1].endswith("left out")


def test_what_is_asked_for_is_not_checked():
    networks = Networks(factor=-1)
    chosen = Precision(networks, "bfloat16", CUDA).choose(sample(1, 2, 8, 8, 8), print)
    assert chosen == torch.bfloat16
    assert Precision(networks, "float32", CUDA).choose(sample(1, 2, 8, 8, 8), print) == (
        torch.float32
    )
    assert networks.seen == []


def test_without_instructions_it_is_float32_and_said(monkeypatch):
    monkeypatch.setattr(machine, "computes_in_bfloat16", lambda device: False)
    notes = []
    assert Precision(Networks(), "auto", CUDA).choose(sample(1, 2, 4, 4, 4), notes.append) == (
        torch.float32
    )
    assert notes == []
    asked = Precision(Networks(), "bfloat16", CUDA)
    assert asked.choose(sample(1, 2, 4, 4, 4), notes.append) == torch.float32
    assert notes == ["this device has no instructions for bfloat16: float32"]
    assert precision.RECHECK > 1
