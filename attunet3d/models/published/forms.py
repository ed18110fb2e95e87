"""The published networks by name, and their weights."""

from collections.abc import Mapping

import torch
from torch import Tensor

from attunet3d.core import ModelError, Size
from attunet3d.models.published.nearest_2d import Nearest2D
from attunet3d.models.published.network import PublishedNetwork
from attunet3d.models.published.same_resolution_3d import SameResolution3D
from attunet3d.models.published.transposed_2d import Transposed2D
from attunet3d.models.published.transposed_3d import Transposed3D
from attunet3d.models.published.unnormalised_2d import Unnormalised2D

FORMS: dict[str, type[PublishedNetwork]] = {
    "2d_nearest": Nearest2D,
    "2d_transposed": Transposed2D,
    "3d_same_resolution": SameResolution3D,
    "3d_transposed": Transposed3D,
    "2d_unnormalised": Unnormalised2D,
}
# The entries whose shapes tell channels in (their second axis) and channels out (their first).
ENDS = {
    "2d_nearest": ("Conv1.conv.0.weight", "Conv_1x1.weight"),
    "2d_transposed": ("Conv1.conv.0.weight", "Conv_1x1.weight"),
    "3d_same_resolution": ("encoder1.encoder_block.0.weight", "final.final_block.6.weight"),
    "3d_transposed": ("encoder.conv1.conv.0.weight", "decoder.conv1.conv.3.weight"),
    "2d_unnormalised": ("conv2d_119.weight", "conv2d_149.weight"),
}

# Beginnings of the names of entries that have a row per class.
HEADS: dict[type[PublishedNetwork], tuple[str, ...]] = {
    Nearest2D: ("Conv_1x1.",),
    Transposed2D: ("Conv_1x1.",),
    SameResolution3D: ("final.final_block.6.",),
    Transposed3D: ("decoder.conv1.conv.3.", "decoder.conv1.conv.4."),
    Unnormalised2D: ("conv2d_149.",),
}


def published_network(
    name: str, in_channels: int, out_channels: int, width: int | None = None
) -> PublishedNetwork:
    """Make a network that was published as Attention U-Net, with fresh weights.

    Args:
        name: "2d_nearest", "2d_transposed", "3d_same_resolution", "3d_transposed" or
            "2d_unnormalised"; the file of each tells its source and quirks.
        in_channels: Channels of the input.
        out_channels: Classes, background included.
        width: Channels of the finest level; None: as published.

    Raises:
        ModelError: There is no such network, or a number is not positive.

    Example:
        >>> network = published_network("2d_nearest", in_channels=3, out_channels=2)
        >>> sum(parameter.numel() for parameter in network.parameters())
        34878638
    """
    if name not in FORMS:
        known = ", ".join(FORMS)
        raise ModelError(f"the name of a published network must be one of {known}, got {name!r}")
    return FORMS[name](in_channels, out_channels, width)


def form_strides(name: str) -> tuple[Size, ...]:
    """Factors between neighbouring levels of a form along x, y, z.

    Example:
        >>> form_strides("2d_nearest"), form_strides("3d_transposed")
        (((2, 2, 1), (2, 2, 1), (2, 2, 1), (2, 2, 1)), ((2, 2, 2), (2, 2, 2), (2, 2, 2)))
    """
    form = FORMS[name]
    return ((2, 2, 2 if form.axes == 3 else 1),) * (form.factor.bit_length() - 1)


def form_of_state(state_dict: Mapping[str, Tensor]) -> str | None:
    """The form that shares most names with a state; None where that is less than half of them.

    Example:
        >>> form_of_state(published_network("2d_transposed", 3, 2, width=2).state_dict())
        '2d_transposed'
    """
    names = {str(key).removeprefix("module.") for key in state_dict}
    shared = {
        form: len(names & published_network(form, 1, 1, width=1).state_dict().keys())
        for form in FORMS
    }
    best = max(shared, key=lambda form: shared[form])
    return best if 2 * shared[best] > len(names) else None


def with_background(name: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a form of one class with a row for the background, whose logit is 0.

    A sigmoid of the one logit is then the softmax of the two.
    """
    state = {str(key).removeprefix("module."): value for key, value in state_dict.items()}
    for key, value in state.items():
        if key.startswith(HEADS[FORMS[name]]) and value.ndim:
            row = torch.ones_like(value) if key.endswith("running_var") else torch.zeros_like(value)
            state[key] = torch.cat([row, value])
    return state


def from_published_state_dict(name: str, state_dict: Mapping[str, Tensor]) -> PublishedNetwork:
    """Return a published network with weights that the published code saved, in eval mode.

    Args:
        name: As `published_network`.
        state_dict: Weights under the published names; a prefix `module.` is removed. States without
            `num_batches_tracked` (torch 0.3) are taken as well.

    Raises:
        ModelError: The state is not of this network.
    """
    state = {str(key).removeprefix("module."): value for key, value in state_dict.items()}
    published_network(name, 1, 1, width=1)  # refuses unknown names
    first, last = ENDS[name]
    try:
        in_channels, width = state[first].shape[1], state[first].shape[0]
        network = FORMS[name](in_channels, state[last].shape[0], width)
        counters = (key for key in network.state_dict() if key.endswith("num_batches_tracked"))
        missing = {key: network.state_dict()[key] for key in counters if key not in state}
        network.load_state_dict({**missing, **state})
    except (KeyError, IndexError, RuntimeError) as error:
        details = " ".join(str(error).split())[:300]
        raise ModelError(f"the state is not of the network {name} ({details})") from None
    return network.eval()
