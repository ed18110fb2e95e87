"""The network rewritten for inference computes what the network does, whatever its variant."""

import copy
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attunet3d.core import DependencyError, DeviceError, SettingsError, Size
from attunet3d.core.config import Config
from attunet3d.inference.forward_pass import make_forward_pass
from attunet3d.inference.openvino import compiled
from attunet3d.inference.predictor import Predictor
from attunet3d.models.attention_unet import AttentionUNet3D
from attunet3d.models.fast_network import rewrite_for_inference
from attunet3d.models.normalisation import GroupNorm
from tests.conftest import present
from tests.known_network import ball_volume, checkpoint

CPU = torch.device("cpu")
EXACT = 1e-5  # of the largest logit


def network(
    channels: tuple[int, ...] = (4, 8, 16), classes: int = 2, **settings: Any
) -> AttentionUNet3D:
    """A network with weights, biases and statistics that nothing can mistake for another's."""
    torch.manual_seed(0)
    made = AttentionUNet3D(1, classes, channels, **settings)
    for part in made.modules():
        if isinstance(part, nn.BatchNorm3d):
            nn.init.normal_(present(part.running_mean))
            nn.init.uniform_(present(part.running_var), 0.5, 2)
        if isinstance(part, nn.BatchNorm3d | nn.InstanceNorm3d | nn.GroupNorm):
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.normal_(part.bias)
    return made.eval()


def trained(steps: int = 25) -> tuple[AttentionUNet3D, Tensor]:
    """A network that has learned to tell a bright ball from noise, and a scan of one."""
    torch.manual_seed(0)
    made = AttentionUNet3D(channels=(4, 8, 16))
    for part in made.modules():
        if isinstance(part, nn.BatchNorm3d):
            part.momentum = 0.5  # statistics that keep up with so few steps
    axis = torch.linspace(-1, 1, 24)
    label = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2 < 0.4).long()[None]
    image = label[:, None] + 0.5 * torch.randn(1, 1, 24, 24, 24)
    optimiser = torch.optim.Adam(made.parameters(), 1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(made(image)[0], label).backward()
        optimiser.step()
    return made.eval(), image


def error(got: Tensor, wanted: Tensor) -> float:
    """The largest difference over the largest wanted value."""
    return float((got - wanted).abs().max() / wanted.abs().max())


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


VARIANTS = [
    {},
    {"norm": "instance"},
    {"norm": "group"},
    {"gate": "single"},
    {"gate": "single", "norm": "instance"},
    {"gate": "none"},
    {"deep_supervision": "per-scale"},
    {"deep_supervision": "none", "norm": "group"},
    {"dropout": 0.3},
    {"align_corners": True},
    {"strides": [(2, 2, 1), (1, 3, 2)]},
    {"strides": [(1, 1, 1), (3, 3, 3)], "align_corners": True},
    {"classes": 5, "channels": (4, 8, 8, 12)},
    {"classes": 1, "gate_bias": 3.0},
    {"activation": "leaky_relu"},
    {"activation": "leaky_relu", "norm": "group", "downsampling": "strided"},
    {"block": "residual", "blocks": [1, 2, 2]},
    {"block": "residual", "downsampling": "strided", "strides": [(2, 2, 1), (1, 3, 2)]},
    {"block": "residual", "norm": "instance", "activation": "leaky_relu", "dropout": 0.2},
    {"block": "residual", "channels": (4, 4, 4), "downsampling": "strided"},
    {"blocks": [2, 1, 2]},
]


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("size", [(24, 16, 8), (13, 10, 7), (1, 1, 1)])
@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_every_variant_keeps_logits_and_attention(
    settings: dict[str, Any], size: Size, split: bool
) -> None:
    slow = network(**settings)
    x = torch.randn(2, 1, *size)
    with torch.inference_mode():
        wanted, maps = slow.forward_with_attention(x)
        fast = rewrite_for_inference(slow, CPU, torch.float32, split=split)
        got, fast_maps = fast.forward_with_attention(x)
    assert got.shape == wanted.shape
    assert error(got, wanted) < EXACT
    assert [part.shape for part in fast_maps] == [part.shape for part in maps]
    for fast_map, exact in zip(fast_maps, maps, strict=True):
        torch.testing.assert_close(fast_map, exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_the_network_itself_is_only_read(norm: str, dtype: torch.dtype) -> None:
    slow = network(norm=norm).train()
    before = state(slow)
    strides = [part.stride() for part in slow.parameters()]
    fast = make_forward_pass(slow, CPU, dtype)
    fast(torch.randn(1, 1, 16, 16, 16))
    assert slow.training
    assert all(part.requires_grad for part in slow.parameters())
    assert [part.stride() for part in slow.parameters()] == strides
    assert all(torch.equal(before[name], value) for name, value in slow.state_dict().items())


def test_what_is_made_does_not_follow_the_network() -> None:
    x = torch.randn(1, 1, 8, 8, 8)
    for slow in (network(), network(norm="group")):
        fast = make_forward_pass(slow, CPU, torch.float32)
        before = fast(x)
        with torch.no_grad():
            for part in slow.parameters():
                part.zero_()
        assert torch.equal(fast(x), before)


def test_batch_normalisation_disappears_and_weights_are_of_the_type_asked_for() -> None:
    fast = rewrite_for_inference(network(), CPU, torch.bfloat16)
    assert not any(isinstance(part, nn.BatchNorm3d) for part in fast.modules())
    assert {value.dtype for value in fast.state_dict().values()} == {torch.bfloat16}
    kinds = {
        type(part)
        for part in rewrite_for_inference(network(norm="group"), CPU, torch.float32).modules()
    }
    assert GroupNorm in kinds


@pytest.mark.parametrize("settings", [{}, {"norm": "instance"}, {"norm": "group"}], ids=str)
def test_bfloat16_rounds_and_no_more(settings: dict[str, Any]) -> None:
    slow, x = network(**settings), torch.randn(1, 1, 20, 20, 20)
    with torch.no_grad():
        wanted = slow(x)
    got = make_forward_pass(slow, CPU, torch.bfloat16)(x)
    assert got.dtype == torch.float32
    assert 0 < error(got, wanted) < 0.1


def test_bfloat16_of_a_trained_network_chooses_the_same_classes() -> None:
    slow, image = trained()
    with torch.no_grad():
        wanted = slow(image)
    assert 0.05 < float(wanted.argmax(1).float().mean()) < 0.5
    got = make_forward_pass(slow, CPU, torch.bfloat16)(image)
    assert float((got.argmax(1) == wanted.argmax(1)).float().mean()) >= 0.999


# --- OpenVINO --------------------------------------------------------------------------------


def test_the_engine_is_a_named_choice() -> None:
    config = Config().with_overrides(["inference.engine=openvino"])
    assert Config.from_dict(config.to_dict()) == config
    assert Config().inference.engine == "torch"
    with pytest.raises(SettingsError, match=r"inference\.engine must be one of torch, openvino"):
        Config().with_overrides(["inference.engine=tensorrt"])


def test_a_missing_engine_is_one_line_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(DependencyError, match=r"pip install attunet3d\[openvino\]") as caught:
        make_forward_pass(network(), CPU, torch.float32, runtime="openvino")
    assert "\n" not in str(caught.value)


def test_openvino_is_refused_on_other_devices() -> None:
    with pytest.raises(DeviceError, match=r"openvino runs on CPUs, not on cuda; use --device cpu"):
        compiled(nn.Identity(), torch.device("cuda"), torch.float32)


def test_openvino_computes_the_same() -> None:
    slow = network()
    x = torch.randn(2, 1, 24, 16, 8)
    with torch.no_grad():
        wanted = slow(x)
    fast = make_forward_pass(slow, CPU, torch.float32, runtime="openvino")
    assert error(fast(x), wanted) < EXACT
    half = make_forward_pass(slow, CPU, torch.bfloat16, runtime="openvino")(x)
    assert half.dtype == torch.float32
    assert error(half, wanted) < 0.1


def test_openvino_segments_and_the_record_says_so() -> None:
    member = checkpoint(network(channels=(4, 8, 16)))
    volume = ball_volume()
    predictions = [
        Predictor([copy.deepcopy(member)], "cpu", [f"inference.engine={engine}"]).segment(
            volume, attention=True
        )
        for engine in ("torch", "openvino")
    ]
    assert [p.record.settings["engine"] for p in predictions] == ["torch", "openvino"]
    one, other = (p.segmentation.array for p in predictions)
    assert (one == other).mean() > 0.9999
    torch.testing.assert_close(*(torch.from_numpy(p.attention) for p in predictions))
