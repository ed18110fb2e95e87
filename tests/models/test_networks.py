"""What the pipeline asks of a network; every one that settings can choose passes."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from attunet3d.core import Config, NetworkConfig
from attunet3d.inference import make_forward_pass
from attunet3d.models.build import Network, build_network
from attunet3d.models.checkpoint import load_model, save_model
from attunet3d.models.mean_network import MeanNetwork
from attunet3d.models.published.forms import FORMS
from attunet3d.packaging import exported_program, onnx_model

TINY: dict[str, Any] = {"channels": (4, 8, 8)}
NETWORKS: dict[str, dict[str, Any]] = {
    "attention_unet": TINY,
    "per-scale": TINY | {"deep_supervision": "per-scale", "gate": "single"},
    "plain": TINY | {"gate": "none", "deep_supervision": "none"},
    "residual": TINY
    | {
        "block": "residual",
        "downsampling": "strided",
        "activation": "leaky_relu",
        "blocks": (1, 2, 2),
    },
    "2d_nearest": {"form": "2d_nearest", "width": 2},
    "2d_transposed": {"form": "2d_transposed", "width": 2, "slices": 1},
    "3d_same_resolution": {"form": "3d_same_resolution", "width": 2},
    "3d_transposed": {"form": "3d_transposed", "width": 2},
    "2d_unnormalised": {"form": "2d_unnormalised", "width": 4, "slices": 5},
}
GATED_LEVELS = {"plain": 0, "3d_transposed": 3}  # of the published 4, of others 1


@pytest.fixture(params=NETWORKS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def config(name: str) -> NetworkConfig:
    return NetworkConfig(**NETWORKS[name])


def network(name: str, classes: int = 3) -> Network:
    """Weights that nothing can mistake for others', so that no path is blocked."""
    torch.manual_seed(0)
    made = build_network(config(name), 1, classes)
    for part in made.modules():
        if isinstance(part, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0.5, 0.2)
    return made


def test_every_published_form_is_asked() -> None:
    assert set(FORMS) <= NETWORKS.keys()


def test_sizes_that_the_strides_do_not_divide_come_out_as_they_went_in(name: str) -> None:
    made = network(name).eval()
    for size in [(16, 16, 16), (19, 13, 10), (1, 5, 3)]:
        with torch.no_grad():
            logits = made(torch.randn(1, 1, *size))
        assert logits.shape == (1, 3, *size)
        assert torch.isfinite(logits).all()


def test_training_gives_a_list_finest_first_and_evaluation_a_tensor(name: str) -> None:
    made, x = network(name), torch.randn(2, 1, 32, 16, 8)
    outputs = made.train()(x)
    assert isinstance(outputs, list)
    assert outputs[0].shape == (2, 3, 32, 16, 8)
    assert all(a.shape[2] > b.shape[2] for a, b in pairwise(outputs))
    assert made.eval()(x).shape == (2, 3, 32, 16, 8)


def test_attention_maps_are_at_hand_where_there_are_gates(name: str) -> None:
    made, x = network(name).eval(), torch.randn(1, 1, 32, 16, 9)
    with torch.no_grad():
        assert not isinstance(made, MeanNetwork)
        logits, attention = made.forward_with_attention(x)
        torch.testing.assert_close(logits, made(x))
    assert len(attention) == GATED_LEVELS.get(name, 1 if "form" not in NETWORKS[name] else 4)
    voxels = [maps[0, 0].numel() for maps in attention]
    assert voxels == sorted(voxels, reverse=True)
    if name != "3d_transposed":  # its coefficients are any number, as published
        assert all(maps.min() >= 0 and maps.max() <= 1 for maps in attention)


def test_every_level_is_as_coarse_as_its_strides_say(name: str) -> None:
    made = network(name)
    assert not isinstance(made, MeanNetwork)
    assert made.strides[0] == (1, 1, 1)
    assert made.strides[-1] == made.divisor
    assert (made.in_channels, made.out_channels) == (1, 3)
    assert math.prod(made.divisor) > 1


def test_gradients_reach_every_parameter(name: str) -> None:
    made = network(name).train()
    outputs = made(torch.randn(2, 1, 32, 32, 8))
    sum(output.square().sum() for output in outputs).backward()
    silent = []
    for key, parameter in made.named_parameters():
        assert parameter.grad is not None, key
        if not key.endswith("bias") and not parameter.grad.any():  # but a bias before BatchNorm
            silent.append(key)
    assert silent == []


def test_a_pass_in_bfloat16_differs_by_rounding_only(name: str) -> None:
    made, x = network(name).eval(), torch.randn(1, 1, 32, 32, 8)
    with torch.no_grad():
        exact = made(x)
    got = make_forward_pass(made, torch.device("cpu"), torch.bfloat16)(x)
    assert got.dtype == torch.float32
    assert 0 < float((got - exact).abs().max()) < 0.1 * float(exact.abs().max())


def test_a_prepared_network_computes_the_same(name: str) -> None:
    made, x = network(name).eval(), torch.randn(1, 1, 20, 16, 10)
    with torch.no_grad():
        exact = made(x)
    got = make_forward_pass(made, torch.device("cpu"), torch.float32)(x)
    torch.testing.assert_close(got, exact, rtol=0, atol=1e-5 * float(exact.abs().max()))


def test_onnx_gives_its_logits_for_any_size(name: str) -> None:
    made = network(name).eval()
    content = onnx_model.onnx_bytes(made, {})
    for shape in [(1, 1, 32, 16, 8), (2, 1, 19, 13, 10)]:
        image = torch.randn(shape)
        with torch.no_grad():
            wanted = made(image).numpy()
        found = onnx_model.onnx_logits(content, image.numpy())
        assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_an_exported_program_gives_its_logits_for_sizes_that_its_strides_divide(
    name: str, tmp_path: Path
) -> None:
    made = network(name).eval()
    path = tmp_path / "network.pt2"
    path.write_bytes(exported_program.exported_bytes(made, {}))
    size = [3 * step if step > 1 else 5 for step in made.divisor]
    image = torch.randn(1, 1, *size)
    with torch.no_grad():
        wanted = made(image)
    found = exported_program.exported_logits(path, image)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))


def test_a_checkpoint_brings_it_back(name: str, tmp_path: Path) -> None:
    made, x = network(name).eval(), torch.randn(1, 1, 16, 16, 8)
    labels = {0: "background", 1: "liver", 2: "spleen"}
    settings = Config(network=config(name))
    save_model(tmp_path / "model.safetensors", made.state_dict(), settings, labels)
    found = load_model(tmp_path / "model.safetensors")
    assert found.config == settings
    with torch.no_grad():
        assert torch.equal(found.network(x), made(x))
