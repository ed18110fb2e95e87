"""A start from another model takes what fits: heads by the labels' names, the rest by shape."""

import math
from typing import Any

import pytest
import torch

from attunet3d.core import NetworkConfig
from attunet3d.models.build import Network, build_network
from attunet3d.models.transfer import head_prefixes, transfer_weights

OLD = {0: "background", 1: "spleen", 2: "pancreas"}
NEW = {0: "background", 3: "pancreas", 4: "tumour", 7: "spleen"}
FORMS = [
    {"channels": (4, 8, 8)},
    {"channels": (4, 8, 8), "deep_supervision": "per-scale"},
    {"channels": (4, 8, 8), "deep_supervision": "none"},
    {"form": "2d_nearest", "width": 2},
    {"form": "3d_same_resolution", "width": 2},
    {"form": "3d_transposed", "width": 2},
    {"form": "2d_unnormalised", "width": 4},
]


def networks(classes: int, **settings: Any) -> Network:
    torch.manual_seed(classes)
    return build_network(NetworkConfig(**settings), 1, classes).eval()


def without_random_rows(network: Network) -> None:
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.startswith(head_prefixes(network)) and value.ndim > 1:
                value.zero_()


@pytest.mark.parametrize("settings", FORMS, ids=str)
def test_logits_of_known_labels_are_those_of_the_old_model(settings: dict[str, Any]) -> None:
    old, new = networks(3, **settings), networks(4, **settings)
    without_random_rows(new)
    transfer = transfer_weights(new, NEW, old.state_dict(), OLD)
    x = torch.randn(1, 1, 32, 32, 8)
    with torch.no_grad():
        torch.testing.assert_close(new(x)[:, [0, 1, 3]], old(x)[:, [0, 2, 1]])
        less = new(x)[:, 2] - old(x)[:, 0]  # the tumour was background
    if settings.get("form") == "3d_same_resolution":  # whose logits have no bias
        torch.testing.assert_close(less, torch.zeros_like(less))
    elif settings.get("form") == "3d_transposed":  # whose logits end in a ReLU
        assert -math.log(100) - 1e-4 < float(less.min()) < float(less.max()) <= 1e-4
    else:
        torch.testing.assert_close(less, torch.full_like(less, -math.log(100)))
    count = len(new.state_dict())
    assert transfer.taken == f"{count} of {count} entries, heads of background, pancreas, spleen"
    assert transfer.new == "heads of tumour, which start as background's"
    assert transfer.labels == ("background", "pancreas", "spleen")
    heads = {name for name in new.state_dict() if name.startswith(head_prefixes(new))}
    assert {*transfer.entries} == {*new.state_dict()} - heads  # in which the tumour is new


def test_equal_labels_take_everything() -> None:
    old, new = networks(3, channels=(4, 8)), networks(3, channels=(4, 8))
    with torch.no_grad():
        new.get_parameter("heads.0.weight").zero_()
    transfer = transfer_weights(new, OLD, old.state_dict(), OLD)
    assert transfer.new == ""
    assert transfer.entries == tuple(new.state_dict())
    for name, value in old.state_dict().items():
        assert torch.equal(new.state_dict()[name], value)


def test_entries_of_another_shape_stay_as_they_were_initialised_and_are_named() -> None:
    old, new = networks(2, channels=(4, 8)), networks(2, channels=(4, 8, 8))
    first, third = "encoder.0.0.weight", "encoder.2.0.weight"
    before = new.get_parameter(third).clone()
    labels = {0: "background", 1: "liver"}
    transfer = transfer_weights(new, labels, old.state_dict(), labels)
    assert torch.equal(new.get_parameter(first), old.get_parameter(first))
    assert torch.equal(new.get_parameter(third), before)
    assert "entries without a counterpart of their shape" in transfer.new
    assert third in transfer.new


@pytest.mark.parametrize("settings", FORMS, ids=str)
def test_a_model_without_a_common_label_gives_its_features_alone(settings: dict[str, Any]) -> None:
    old, new = networks(3, **settings), networks(2, **settings)
    before = {name: value.clone() for name, value in new.state_dict().items()}
    transfer = transfer_weights(new, {0: "background", 1: "kidney"}, old.state_dict(), OLD)
    heads = {name for name in before if name.startswith(head_prefixes(new))}
    for name, value in new.state_dict().items():
        assert torch.equal(value, before[name] if name in heads else old.state_dict()[name]), name
    count = len(before)
    assert transfer.taken == f"{count - len(heads)} of {count} entries, heads of no label"
    assert transfer.new == "heads of background, kidney, which start at random"
    assert transfer.labels == ()
    assert {*transfer.entries} == {*before} - heads


def test_the_layer_that_mixes_heads_knows_labels_by_name() -> None:
    """Also where both models have as many labels, so that its shapes agree."""
    old, new = networks(3, channels=(4, 8, 8)), networks(3, channels=(4, 8, 8))
    without_random_rows(new)
    labels = {0: "background", 1: "pancreas", 2: "kidney"}
    assert transfer_weights(new, labels, old.state_dict(), OLD).labels == ("background", "pancreas")
    with torch.no_grad():
        old.get_parameter("final.weight").view(3, -1, 3)[:, :, 1] = 0  # the new one has no spleen
        x = torch.randn(1, 1, 16, 16, 8)
        torch.testing.assert_close(new(x)[:, [0, 1]], old(x)[:, [0, 2]])
