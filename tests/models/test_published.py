"""The published networks are what was published: parameters, names of weights, logits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from attunet3d import from_published_state_dict, published_network
from attunet3d.core import ModelError
from attunet3d.models.published.forms import FORMS
from tests.models.test_attention_unet import drawn_weights

HERE = Path(__file__).parent
KEYS = json.loads((HERE / "published_keys.json").read_text(encoding="utf-8"))
COUNTS = {  # name: (in, out, parameters)
    "2d_nearest": (3, 2, 34_878_638),
    "2d_transposed": (3, 5, 57_162_993),
    "3d_same_resolution": (1, 2, 139_048_236),
    "3d_transposed": (1, 2, 5_879_337),
    "2d_unnormalised": (3, 1, 7_977_941),
}
IMAGES = {  # other shapes than 1 × 3 × 48 × 64
    "3d_same_resolution": (1, 1, 32, 32, 16),
    "3d_transposed": (1, 1, 32, 48, 32),
}


@pytest.mark.parametrize("name", FORMS)
def test_parameters_and_the_names_of_weights_are_as_published(name: str) -> None:
    in_channels, out_channels, count = COUNTS[name]
    with torch.device("meta"):
        network = published_network(name, in_channels, out_channels)
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    found = {key: list(value.shape) for key, value in network.state_dict().items()}
    assert list(found.items()) == list(KEYS[name].items())


@pytest.mark.parametrize(
    ("name", "out_channels", "count"),
    [
        ("2d_nearest", 1, 34_878_573),
        ("2d_transposed", 1, 57_162_733),
        ("2d_transposed", 33, 57_164_813),
    ],
)
def test_counts_that_pages_print_for_other_numbers_of_classes(
    name: str, out_channels: int, count: int
) -> None:
    with torch.device("meta"):
        network = published_network(name, 3, out_channels)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


@pytest.mark.parametrize("name", FORMS)
def test_weights_of_the_published_code_give_its_logits(name: str) -> None:
    state = {f"module.{key}": value for key, value in drawn_weights(KEYS[name]).items()}
    network = from_published_state_dict(name, state)
    shape = IMAGES.get(name, (1, 3, 48, 64))
    image = np.random.default_rng([0, 99]).normal(0, 1, shape).astype(np.float32)
    with torch.no_grad():
        logits = network(torch.from_numpy(image)).numpy()
    stored = logits[..., ::2, ::3] if logits.ndim == 4 else logits[..., ::3, ::4, ::3]
    with np.load(HERE / "published_reference.npz") as answers:
        wanted = answers[name]
    assert np.abs(stored - wanted).max() < 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("name", FORMS)
def test_channels_and_classes_and_width_are_read_from_a_state(name: str) -> None:
    network = published_network(name, 2, 4, width=4)
    state = network.state_dict()
    old = {key: value for key, value in state.items() if "num_batches" not in key}
    found = from_published_state_dict(name, old)
    assert (found.in_channels, found.out_channels, found.width) == (2, 4, 4)
    image = torch.randn(1, 2, *(16,) * network.axes)
    with torch.no_grad():
        assert torch.equal(found(image), network.eval()(image))


@pytest.mark.parametrize("name", FORMS)
def test_training_on_one_value_a_channel_is_refused_if_there_is_batch_norm(name: str) -> None:
    network = published_network(name, 1, 2, width=2).train()
    x = torch.rand(1, 1, *network.divisor)
    if name == "2d_unnormalised":
        assert network(x)[0].shape[2:] == network.divisor
        return
    with pytest.raises(ModelError, match=r"one value per channel .*; train on larger patches"):
        network(x)
    assert len(network(x.repeat(2, 1, *[1] * network.axes))[0]) == 2


def test_other_names_numbers_and_states_are_refused() -> None:
    with pytest.raises(ModelError, match="must be one of 2d_nearest"):
        published_network("2d", 1, 2)
    with pytest.raises(ModelError, match="must be one of"):
        from_published_state_dict("2d", {})
    with pytest.raises(ModelError, match="channels must be positive"):
        published_network("2d_nearest", 0, 2)
    with pytest.raises(ModelError, match="not of the network 2d_nearest"):
        from_published_state_dict("2d_nearest", {"fc.weight": torch.zeros(1)})
    state = published_network("3d_transposed", 1, 2, width=4).state_dict()
    state.pop("decoder.attn1.psi.bias")
    with pytest.raises(ModelError, match=r"decoder\.attn1\.psi\.bias"):
        from_published_state_dict("3d_transposed", state)
