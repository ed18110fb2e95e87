"""The network is the authors': their numbers of parameters, their logits; and it fits anywhere."""

import json
import math
import subprocess
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from monai.losses import DeepSupervisionLoss, DiceCELoss
from torch import Tensor

from attunet3d import AttentionUNet3D, GridAttentionGate
from attunet3d.core import ModelError, Size
from attunet3d.core.errors import UserError
from attunet3d.core.model_config import NetworkConfig
from attunet3d.models.build import build_network
from attunet3d.models.layers import ResidualBlock

HERE = Path(__file__).parent
KEYS = json.loads((HERE / "authors_keys.json").read_text(encoding="utf-8"))
SMALL = (4, 8, 16, 32)


def authors_state(variant: str) -> dict[str, Tensor]:
    return drawn_weights(KEYS[variant])


def drawn_weights(keys: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Weights by a recipe: each entry drawn from a generator seeded by its name."""
    state = {}
    for key, shape in keys.items():
        draw = np.random.default_rng([0, zlib.crc32(key.encode())])
        if key.endswith("num_batches_tracked"):
            value = np.array(7)
        elif key.endswith("running_var"):
            value = draw.uniform(0.5, 1.5, shape)
        elif key.endswith("running_mean"):
            value = draw.normal(0, 0.1, shape)
        elif len(shape) == 1 and key.endswith("weight"):
            value = draw.uniform(0.7, 1.3, shape)
        elif len(shape) == 1:
            value = draw.normal(0, 0.1, shape)
        else:
            value = draw.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape) * 1.4
        dtype = torch.int64 if value.ndim == 0 else torch.float32
        state[key] = torch.tensor(value, dtype=dtype)
    return state


def small(**options: Any) -> AttentionUNet3D:
    torch.manual_seed(0)
    return AttentionUNet3D(channels=SMALL, **options)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"gate": "double"}, 6_472_784),
        ({"gate": "single"}, 6_213_613),
        ({"gate": "none"}, 5_887_466),
        ({"gate": "double", "out_channels": 4}, 6_473_322),
    ],
)
def test_parameter_counts_are_those_of_the_authors(options: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        network = AttentionUNet3D(**options)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


@pytest.mark.parametrize("variant", ["multi", "single"])
def test_converted_weights_give_the_authors_logits(variant: str) -> None:
    network = AttentionUNet3D.from_authors_state_dict(authors_state(variant))
    image = np.random.default_rng([0, 99]).normal(0, 1, (1, 1, 32, 48, 32)).astype(np.float32)
    with torch.no_grad():
        logits = network(torch.from_numpy(image)).numpy()[:, :, ::3, ::4, ::3]
    with np.load(HERE / "authors_reference.npz") as wanted:
        assert np.abs(logits - wanted[variant]).max() < 1e-4


def test_a_state_without_gates_is_the_plain_network() -> None:
    parts = ("attentionblock", "gating")
    state = {k: v for k, v in authors_state("multi").items() if not k.startswith(parts)}
    assert len(state) == 136  # unet_CT_dsv_3D
    network = AttentionUNet3D.from_authors_state_dict(state)
    assert not network.training
    image = torch.randn(1, 1, 16, 16, 16)
    assert network.forward_with_attention(image)[1] == []
    assert torch.equal(network.get_parameter("heads.1.weight"), state["dsv2.dsv.0.weight"])


def test_a_state_of_data_parallel_training_is_taken() -> None:
    state = {f"module.{key}": value for key, value in authors_state("single").items()}
    assert AttentionUNet3D.from_authors_state_dict(state).heads[0].in_channels == 4


def test_weights_of_torch_0_3_have_no_batch_counts_and_align_corners() -> None:
    state = authors_state("multi")
    old = {key: value for key, value in state.items() if "num_batches" not in key}
    assert (len(state), len(old)) == (236, 208)
    image = torch.randn(1, 1, 32, 48, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = AttentionUNet3D.from_authors_state_dict(state)(image)
        assert torch.equal(AttentionUNet3D.from_authors_state_dict(old)(image), logits)
        aligned = AttentionUNet3D.from_authors_state_dict(old, align_corners=True)(image)
    assert 0.1 < float((aligned - logits).norm() / logits.norm()) < 0.4  # "about 20 %"


def test_a_state_of_something_else_is_refused() -> None:
    with pytest.raises(ModelError, match=r"fc\.weight"):
        AttentionUNet3D.from_authors_state_dict({"fc.weight": torch.zeros(1)})
    part = {key: value for key, value in authors_state("multi").items() if "conv1" in key}
    with pytest.raises(ModelError, match="not the whole"):
        AttentionUNet3D.from_authors_state_dict(part)
    other = authors_state("multi")
    for name in [name for name in other if name.endswith("theta.weight")]:
        other[name] = other[name][..., :1, :1, :1]  # attention_dsample=(1, 1, 1)
    with pytest.raises(ModelError, match=r"subsample by \[1, 1, 1\] voxels, must be by 2"):
        AttentionUNet3D.from_authors_state_dict(other)
    torn = authors_state("multi")
    del torn["dsv4.dsv.0.bias"]
    with pytest.raises(ModelError, match="not of the authors"):
        AttentionUNet3D.from_authors_state_dict(torn)


@pytest.mark.parametrize("size", [(16, 16, 16), (17, 23, 9), (8, 8, 8), (1, 2, 3), (11, 8, 8)])
@pytest.mark.parametrize(
    "options",
    [{}, {"gate": "none"}, {"norm": "instance"}, {"norm": "group", "align_corners": True}],
    ids=str,
)
def test_any_size_comes_out_as_it_went_in(size: Size, options: dict[str, Any]) -> None:
    network = small(**options).eval()
    with torch.no_grad():
        logits, attention = network.forward_with_attention(torch.randn(1, 1, *size))
    assert logits.shape == (1, 2, *size)
    assert torch.isfinite(logits).all()
    for level, maps in enumerate(attention, 1):
        assert maps.shape[2:] == tuple(math.ceil(length / 2**level) for length in size)


def test_odd_sizes_are_computed_as_part_of_an_image_that_repeats_its_end() -> None:
    network = small().eval()
    x = torch.randn(1, 1, 11, 8, 13)
    wide = torch.cat([x, x[:, :, -1:].expand(-1, -1, 5, -1, -1)], 2)  # to 16, 8, 13
    wide = torch.cat([wide, wide[..., -1:].expand(-1, -1, -1, -1, 3)], 4)  # to 16, 8, 16
    with torch.no_grad():
        assert torch.equal(network(x), network(wide)[:, :, :11, :, :13])


def test_scales_of_odd_sizes_cover_the_image() -> None:
    outputs = small(deep_supervision="per-scale")(torch.randn(2, 1, 11, 8, 13))
    assert [tuple(y.shape[2:]) for y in outputs] == [(11, 8, 13), (6, 4, 7), (3, 2, 4)]


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_training_on_one_value_a_channel_is_refused_with_the_cure(norm: str) -> None:
    network, x = small(norm=norm), torch.randn(1, 1, 8, 8, 8)
    with pytest.raises(ModelError, match="larger patches or batches, or with norm=group"):
        network(x)
    assert network.eval()(x).shape == (1, 2, 8, 8, 8)
    assert small(norm="group")(x)[0].shape == (1, 2, 8, 8, 8)


def test_train_returns_a_list_finest_first_and_eval_a_tensor() -> None:
    x = torch.randn(2, 1, 16, 16, 8)
    assert [tuple(y.shape[2:]) for y in small(deep_supervision="per-scale")(x)] == [
        (16, 16, 8),
        (8, 8, 4),
        (4, 4, 2),
    ]
    for supervision in ("fused", "none"):
        assert [y.shape for y in small(deep_supervision=supervision)(x)] == [(2, 2, 16, 16, 8)]
    for supervision in ("fused", "none", "per-scale"):
        assert small(deep_supervision=supervision).eval()(x).shape == (2, 2, 16, 16, 8)


def test_attention_of_each_gated_level_finest_first() -> None:
    network, x = small().eval(), torch.randn(1, 1, 16, 16, 8)
    with torch.no_grad():
        logits, attention = network.forward_with_attention(x)
        assert torch.equal(logits, network(x))
    assert [tuple(maps.shape) for maps in attention] == [(1, 2, 8, 8, 4), (1, 2, 4, 4, 2)]
    assert all(maps.min() > 0 and maps.max() < 1 for maps in attention)
    assert small(gate="none").eval().forward_with_attention(torch.randn(1, 1, 8, 8, 8))[1] == []


def test_evaluation_is_equivariant_to_shifts_by_the_divisor() -> None:
    network = small().eval()
    assert network.divisor == (8, 8, 8)
    x = torch.zeros(1, 1, 256, 8, 8)
    x[:, :, 120:128] = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        here, there = network(x), network(x.roll(8, 2))
    assert torch.allclose(here[:, :, 112:136], there[:, :, 120:144], atol=1e-5)


def test_thick_slices_are_pooled_as_the_strides_say() -> None:
    network = small(strides=((2, 2, 1), (2, 2, 2), (2, 2, 2)), deep_supervision="per-scale")
    assert network.divisor == (8, 8, 4)
    assert [tuple(y.shape[2:]) for y in network(torch.randn(2, 1, 16, 16, 4))] == [
        (16, 16, 4),
        (8, 8, 4),
        (4, 4, 2),
    ]


@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_every_normalisation_trains(norm: str) -> None:
    network = small(norm=norm)
    network(torch.randn(2, 1, 16, 16, 16))[0].square().sum().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None]
    assert silent == []


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("index", range(3))
def test_dropout_acts_in_every_block_in_training_only(part: str, index: int) -> None:
    network = small(dropout=0.5, norm="group")
    block = getattr(network, part)[index]
    for module in network.modules():  # no other block drops anything
        if isinstance(module, torch.nn.Dropout3d) and module not in list(block):
            module.p = 0.0
    x = torch.randn(2, 1, 16, 16, 16)
    assert not torch.equal(network(x)[0], network(x)[0])
    network.eval()
    assert torch.equal(network(x), network(x))


def test_dropout_takes_whole_channels_and_keeps_the_mean() -> None:
    *_, dropout = small(dropout=0.25).encoder[0].children()
    dropped = dropout(torch.ones(500, 4, 2, 2, 2))
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert torch.equal(dropped.amin((2, 3, 4)), dropped.amax((2, 3, 4)))
    assert float(dropped.mean()) == pytest.approx(1, abs=0.1)


def test_start_is_the_authors() -> None:
    network = AttentionUNet3D(channels=(8, 16, 32, 64))
    network.requires_grad_(False)
    kernel = network.get_parameter("encoder.3.3.weight")  # 64 → 64, 27 taps
    assert float(kernel.std()) == pytest.approx(math.sqrt(2 / (64 * 27)), rel=0.02)
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm3d)]
    weights = torch.cat([norm.weight for norm in norms])
    assert float(weights.mean()) == pytest.approx(1, abs=0.005)
    assert float(weights.std()) == pytest.approx(0.02, rel=0.2)
    assert all(float(norm.bias.abs().max()) == 0 for norm in norms)
    network.eval()
    with torch.no_grad():
        _, attention = network.forward_with_attention(torch.randn(1, 1, 32, 32, 32))
    assert all(0.2 < float(maps.mean()) < 0.8 for maps in attention)


def test_gate_bias_opens_the_gates() -> None:
    network = small(gate_bias=3.0)
    biases = [p for name, p in network.named_parameters() if name.endswith("psi.bias")]
    assert len(biases) == 4
    assert all(bias.item() == 3.0 for bias in biases)


VARIANTS = [
    {},
    {"gate": "single", "deep_supervision": "per-scale"},
    {"gate": "none", "deep_supervision": "none"},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_torch_compiles_it_in_one_graph(options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    network, x = small(**options).eval(), torch.randn(1, 1, 17, 12, 9)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(x), network(x), atol=1e-6)
    network.train()
    assert len(compiled(x)) == (3 if options.get("deep_supervision") == "per-scale" else 1)


def test_torch_exports_it_for_one_size_and_for_all_multiples_of_the_divisor() -> None:
    network, x = small().eval(), torch.randn(1, 1, 17, 12, 9)
    with torch.no_grad():
        fixed = torch.export.export(network, (x,)).module()
        assert torch.allclose(fixed(x), network(x), atol=1e-6)
        sizes = {axis: 8 * torch.export.Dim(f"n{axis}", min=1, max=64) for axis in (2, 3, 4)}
        example = torch.randn(1, 1, 16, 24, 32)
        free = torch.export.export(network, (example,), dynamic_shapes=(sizes,)).module()
        other = torch.randn(1, 1, 40, 16, 24)
        assert torch.allclose(free(other), network(other), atol=1e-6)


def test_it_drops_into_monai() -> None:
    network = small(deep_supervision="per-scale")
    criterion = DeepSupervisionLoss(DiceCELoss(to_onehot_y=True, softmax=True))
    label = torch.randint(0, 2, (2, 1, 16, 16, 16)).to(torch.uint8)
    criterion(network(torch.randn(2, 1, 16, 16, 16)), label).backward()
    inferer = SlidingWindowInferer((16, 16, 16), overlap=0.5)
    with torch.no_grad():
        assert inferer(torch.randn(1, 1, 20, 16, 24), network.eval()).shape == (1, 2, 20, 16, 24)


def test_a_configuration_makes_the_network_it_describes() -> None:
    config = NetworkConfig(channels=SMALL, gate="single", norm="group", gate_bias=1.0)
    network = build_network(config, 1, 5)
    assert network(torch.randn(1, 1, 16, 16, 16))[0].shape == (1, 5, 16, 16, 16)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gate": "triple"}, "gate must be one of double, single, none, got 'triple'"),
        ({"deep_supervision": "heads"}, "deep_supervision must be one of"),
        ({"norm": "layer"}, "norm must be one of"),
        ({"dropout": 1.0}, "dropout must be in"),
        ({"channels": (4,)}, "channels must be at least two levels"),
        ({"channels": (4, 0)}, "must be positive"),
        ({"strides": ((2, 2, 2),)}, "strides must be 4 triples"),
        ({"strides": ((2, 2),) * 4}, "strides must be 4 triples"),
        ({"strides": ((2, 2, 0),) * 4}, "strides must be 4 triples of positive factors"),
        ({"out_channels": 0}, "channels and blocks must be positive"),
        ({"block": "dense"}, "block must be one of plain, residual"),
        ({"blocks": (1, 2)}, "blocks must be one number per level"),
        ({"blocks": (0, 1, 1, 1, 1)}, "channels and blocks must be positive"),
        ({"activation": "gelu"}, "activation must be one of relu, leaky_relu"),
        ({"downsampling": "mean"}, "downsampling must be one of max_pool, strided"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        AttentionUNet3D(**options)


def test_it_needs_torch_and_its_own_four_files_only() -> None:
    code = "import sys, attunet3d.models.attention_unet; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = {name for name in done.stdout.split() if name.startswith("attunet3d.")}
    models = {"", ".attention_unet", ".gate", ".layers", ".normalisation"}
    wanted = {f"attunet3d.models{name}" for name in models} | {"attunet3d.core"}
    assert ours == wanted | {"attunet3d.core.errors"}


RESIDUAL = {"block": "residual", "blocks": (1, 2, 2, 3), "downsampling": "strided"}


@pytest.mark.parametrize(
    "options", [{"activation": "leaky_relu"}, {"downsampling": "strided"}, RESIDUAL], ids=str
)
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_blocks_of_every_kind_take_any_size_and_train(options: dict[str, Any], norm: str) -> None:
    network = small(norm=norm, **options)
    network(torch.randn(2, 1, 17, 16, 18))[0].square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
    with torch.no_grad():
        assert network.eval()(torch.randn(1, 1, 11, 8, 13)).shape == (1, 2, 11, 8, 13)


def test_residual_blocks_are_counted_as_he_et_al_have_them() -> None:
    """Per block 27 · (in + out) · out weights, and a shortcut of in · out where channels change."""
    with torch.device("meta"):
        plain, residual = AttentionUNet3D(), AttentionUNet3D(block="residual")
    count = [sum(p.numel() for p in net.encoder.parameters()) for net in (plain, residual)]
    shortcuts = [(1, 16), (16, 32), (32, 64), (64, 128), (128, 256)]
    assert count[1] - count[0] == sum(a * b + 2 * b for a, b in shortcuts)


def test_a_residual_block_adds_its_input() -> None:
    block = ResidualBlock(4, 4).eval()
    torch.nn.init.zeros_(block.get_parameter("second.1.weight"))
    x = torch.randn(1, 4, 6, 6, 6)
    assert torch.equal(block(x), x.relu())
    strided = ResidualBlock(4, 4, stride=(2, 2, 1)).eval()
    torch.nn.init.zeros_(strided.get_parameter("second.1.weight"))
    wanted = torch.nn.functional.avg_pool3d(x, (2, 2, 1)).relu()
    torch.testing.assert_close(strided(x), wanted)


def test_strided_levels_have_no_pool_and_the_gates_stay() -> None:
    network = small(downsampling="strided", block="residual")
    assert not any(isinstance(part, torch.nn.MaxPool3d) for part in network.modules())
    gates = [part for part in network.modules() if isinstance(part, GridAttentionGate)]
    assert len(gates) == 4
    first = [vars(level.get_submodule("first.0"))["stride"] for level in network.encoder]
    assert first == [(1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)]
