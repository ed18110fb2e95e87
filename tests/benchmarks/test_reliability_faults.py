"""The faults that are injected reach the code that they are meant for."""

from typing import Any

import pytest
import torch
from torch import Tensor

from attunet3d.core import TrainingConfig
from attunet3d.inference import sliding_window
from attunet3d.inference.sliding_window import Stitching, sliding_window_slabs
from attunet3d.training import loss
from benchmarks.reliability import fault_injection


@pytest.mark.parametrize("on_gpu", [True, False])
def test_a_gpu_without_memory_is_believed(on_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    row: Any = sliding_window._Row
    for name in ("_predict", "__init__"):
        monkeypatch.setattr(row, name, getattr(row, name))  # so that they are put back
    fault_injection.run_out_of_memory([1], on_gpu)
    notes: list[str] = []
    image = torch.rand(1, 6, 6, 6)

    def stitched() -> Tensor:
        options = Stitching(note=notes.append)
        slabs = sliding_window_slabs(image, lambda x: 2 * x, window=(4, 4, 4), stitching=options)
        return torch.cat([slab.logits for slab in slabs], -1)

    if on_gpu:
        torch.testing.assert_close(stitched(), 2 * image)
        assert notes == ["CUDA memory ran out: windows stitched in the CPU's memory"]
    else:
        with pytest.raises(torch.OutOfMemoryError, match="simulated"):
            stitched()


def test_one_call_of_the_loss_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "build_loss", loss.build_loss)
    fault_injection.lose_the_number(1)
    criterion = loss.build_loss(TrainingConfig(loss="ce"), 2)
    logits, label = torch.zeros(1, 2, 3, 3, 3), torch.zeros(1, 1, 3, 3, 3, dtype=torch.long)
    values = [float(criterion(logits, label)) for _ in range(3)]
    assert [value == value for value in values] == [True, False, True]
    assert len(criterion.latest) == 1
