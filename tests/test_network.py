"""The network is the authors': their numbers of parameters, their logits; and it fits anywhere."""

import json
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from monai.losses import DeepSupervisionLoss, DiceCELoss

from attunet3d import AttentionUNet3D
from attunet3d.authors_weights import AuthorsWeightsError
from attunet3d.config import NetworkConfig
from attunet3d.errors import UserError
from attunet3d.network import NetworkError, from_authors_state_dict

HERE = Path(__file__).parent
KEYS = json.loads((HERE / "authors_keys.json").read_text())
SMALL = (4, 8, 16, 32)


def authors_state(variant):
    """Weights by a recipe: each entry drawn from a generator seeded by its name."""
    state = {}
    for key, shape in KEYS[variant].items():
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


def small(**options):
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
def test_parameter_counts_are_those_of_the_authors(options, count):
    with torch.device("meta"):
        network = AttentionUNet3D(**options)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


@pytest.mark.parametrize("variant", ["multi", "single"])
def test_converted_weights_give_the_authors_logits(variant):
    network = from_authors_state_dict(authors_state(variant))
    image = np.random.default_rng([0, 99]).normal(0, 1, (1, 1, 32, 48, 32)).astype(np.float32)
    with torch.no_grad():
        logits = network(torch.from_numpy(image)).numpy()[:, :, ::3, ::4, ::3]
    with np.load(HERE / "authors_reference.npz") as wanted:
        assert np.abs(logits - wanted[variant]).max() < 1e-4


def test_weights_of_torch_0_3_have_no_batch_counts_and_align_corners():
    state = authors_state("multi")
    old = {key: value for key, value in state.items() if "num_batches" not in key}
    assert (len(state), len(old)) == (236, 208)
    image = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(
            from_authors_state_dict(old)(image), from_authors_state_dict(state)(image)
        )
        aligned = from_authors_state_dict(old, align_corners=True)(image)
        assert not torch.allclose(aligned, from_authors_state_dict(old)(image), atol=1e-2)


def test_a_state_of_something_else_is_refused():
    with pytest.raises(AuthorsWeightsError, match=r"fc\.weight"):
        from_authors_state_dict({"fc.weight": torch.zeros(1)})
    part = {key: value for key, value in authors_state("multi").items() if "conv1" in key}
    with pytest.raises(AuthorsWeightsError, match="not the whole"):
        from_authors_state_dict(part)
    torn = authors_state("multi")
    del torn["dsv4.dsv.0.bias"]
    with pytest.raises(NetworkError, match="not of the authors"):
        from_authors_state_dict(torn)


@pytest.mark.parametrize("size", [(16, 16, 16), (17, 23, 9), (8, 8, 8), (1, 2, 3), (40, 8, 25)])
@pytest.mark.parametrize("gate", ["double", "none"])
def test_any_size_comes_out_as_it_went_in(size, gate):
    network = small(gate=gate).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 1, *size)).shape == (1, 2, *size)


def test_train_returns_a_list_finest_first_and_eval_a_tensor():
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


def test_attention_of_each_gated_level_finest_first():
    network = small().eval()
    with torch.no_grad():
        logits, attention = network.forward_with_attention(torch.randn(1, 1, 16, 16, 8))
        assert torch.equal(logits, network(torch.randn(1, 1, 16, 16, 8) * 0)) is False
    assert [tuple(maps.shape) for maps in attention] == [(1, 2, 8, 8, 4), (1, 2, 4, 4, 2)]
    assert all(maps.min() > 0 and maps.max() < 1 for maps in attention)
    assert small(gate="none").eval().forward_with_attention(torch.randn(1, 1, 8, 8, 8))[1] == []


def test_evaluation_is_equivariant_to_shifts_by_the_divisor():
    network = small().eval()
    assert network.divisor == (8, 8, 8)
    x = torch.zeros(1, 1, 256, 8, 8)
    x[:, :, 120:128] = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        here, there = network(x), network(x.roll(8, 2))
    assert torch.allclose(here[:, :, 112:136], there[:, :, 120:144], atol=1e-5)


def test_thick_slices_are_pooled_as_the_strides_say():
    network = small(strides=((2, 2, 1), (2, 2, 2), (2, 2, 2)), deep_supervision="per-scale")
    assert network.divisor == (8, 8, 4)
    assert [tuple(y.shape[2:]) for y in network(torch.randn(2, 1, 16, 16, 4))] == [
        (16, 16, 4),
        (8, 8, 4),
        (4, 4, 2),
    ]


@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_every_normalisation_trains(norm):
    network = small(norm=norm)
    network(torch.randn(2, 1, 16, 16, 16))[0].square().sum().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None]
    assert silent == []


def test_dropout_acts_in_every_block_in_training_only():
    network = small(dropout=0.5)
    blocks = [*network.encoder, *network.decoder]
    assert all(any(isinstance(m, torch.nn.Dropout3d) for m in block) for block in blocks)
    x = torch.randn(2, 1, 8, 8, 8)
    assert not torch.equal(network(x)[0], network(x)[0])
    network.eval()
    assert torch.equal(network(x), network(x))


def test_gate_bias_opens_the_gates():
    network = small(gate_bias=3.0)
    biases = [p for name, p in network.named_parameters() if name.endswith("psi.bias")]
    assert len(biases) == 4
    assert all(bias.item() == 3.0 for bias in biases)


def test_it_scripts_exports_and_compiles():
    network, x = small().eval(), torch.randn(1, 1, 17, 12, 9)
    with torch.no_grad():
        wanted = network(x)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch deprecates TorchScript
            scripted = torch.jit.script(network)
        assert torch.allclose(scripted(x), wanted, atol=1e-6)
        assert len(scripted.forward_with_attention(x)[1]) == 2
        assert torch.allclose(torch.export.export(network, (x,)).module()(x), wanted, atol=1e-6)
        compiled = torch.compile(network, backend="eager", fullgraph=True)
        assert torch.allclose(compiled(x), wanted, atol=1e-6)


def test_it_drops_into_monai():
    network = small(deep_supervision="per-scale")
    criterion = DeepSupervisionLoss(DiceCELoss(to_onehot_y=True, softmax=True))
    label = torch.randint(0, 2, (2, 1, 16, 16, 16)).to(torch.uint8)
    criterion(network(torch.randn(2, 1, 16, 16, 16)), label).backward()
    inferer = SlidingWindowInferer((16, 16, 16), overlap=0.5)
    with torch.no_grad():
        assert inferer(torch.randn(1, 1, 20, 16, 24), network.eval()).shape == (1, 2, 20, 16, 24)


def test_a_configuration_makes_the_network_it_describes():
    config = NetworkConfig(channels=SMALL, gate="single", norm="group", gate_bias=1.0)
    network = AttentionUNet3D.from_config(config, 1, 5)
    assert network(torch.randn(1, 1, 16, 16, 16))[0].shape == (1, 5, 16, 16, 16)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gate": "triple"}, "gate must be"),
        ({"deep_supervision": "heads"}, "deep_supervision must be"),
        ({"channels": (4,)}, "channels must be"),
        ({"strides": ((2, 2, 2),)}, "strides must be"),
        ({"strides": ((2, 2),) * 4}, "strides must be"),
        ({"out_channels": 0}, "1 channel or more"),
    ],
)
def test_wrong_arguments_are_named(options, words):
    with pytest.raises(UserError, match=words):
        AttentionUNet3D(**options)
