"""A start from another model begins where that one's training ended."""

from pathlib import Path
from typing import Any

import pytest
import torch

from attunet3d.core import Config
from attunet3d.models import build_network
from attunet3d.models.checkpoint import save_model
from attunet3d.training.calibration import divide_logits_
from attunet3d.training.initial_weights import take_weights
from attunet3d.training.step import TrainingStep

LABELS = {0: "background", 1: "pancreas"}


@pytest.mark.parametrize("deep_supervision", ["fused", "per-scale", "none"])
@pytest.mark.parametrize("temperature", [2.5, 1, 0, "warm", None])
def test_logits_are_those_before_the_temperature(
    deep_supervision: str, temperature: Any, tmp_path: Path
) -> None:
    settings = ["network.channels=[4, 8]", f"network.deep_supervision={deep_supervision}"]
    settings += ["training.patch_size=[8, 8, 8]", "training.batch_size=1"]
    config = Config().with_overrides(settings)
    old = build_network(config.network, 1, 2).eval()
    update = TrainingStep(config, 2, torch.device("cpu"))
    x = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        wanted = old(x)
        divide_logits_(old, 2.5 if temperature == 2.5 else 1)
        notes = {} if temperature is None else {"temperature": temperature}
        save_model(tmp_path / "a.safetensors", old.state_dict(), config, LABELS, notes)
        assert take_weights(update, LABELS, tmp_path / "a.safetensors") == (1,)
        torch.testing.assert_close(update.network.eval()(x), wanted)
    (group,) = update.optimiser.param_groups
    assert group["factor"] == 0.5  # nothing is new
